"""Lightning's features around a training step keep working."""

import warnings

import lightning as L
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy
from tests.strategies.models import ConvNet, assert_same_weights, images, trainer, weights


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_stochastic_weight_averaging(update):
    """Its extra epoch only refreshes BatchNorm's statistics: no member is evaluated and no weight moves."""
    seen = []

    class Model(ConvNet):
        evolution_shared = frozenset({"seen"})

        def training_step(self, batch, batch_idx):
            seen.append(self.trainer.current_epoch)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

        def on_train_epoch_start(self):
            self.start = [parameter.detach().clone() for parameter in self.parameters()]

        def on_train_epoch_end(self):
            self.moved = any(not torch.equal(a, b) for a, b in zip(self.start, self.parameters(), strict=True))

    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    module = Model()
    strategy = EvoStrategy(population=4, update=update, evaluation="plain")  # calls the step for nothing but members
    t = trainer(strategy, callbacks=[averaging], max_epochs=3, max_steps=-1)
    t.fit(module)
    assert [seen.count(epoch) for epoch in range(4)] == [20, 20, 20, 4]
    assert not module.moved
    assert int(module.net[1].num_batches_tracked) == 4  # reset, then one for each batch of the extra epoch


@pytest.mark.parametrize("evaluation", ["auto", "in_forward"])
def test_the_way_of_evaluating_is_shown_once(evaluation, monkeypatch):
    said = []
    monkeypatch.setattr("lightning_evo.strategies._evolution.rank_zero_info", said.append)
    trainer(EvoStrategy(population=4, evaluation=evaluation), max_steps=6).fit(ConvNet())
    assert [line for line in said if "evaluation: " in line] == said
    assert len(said) == 1
    assert evaluation == "auto" or said == ["evaluation: in_forward"]


def test_training_step_may_return_none():
    class Model(ConvNet):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

        def on_train_batch_start(self, batch, batch_idx):
            self.start = [parameter.detach().clone() for parameter in self.parameters()]

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.moves.append(any(not torch.equal(a, b) for a, b in zip(self.start, self.parameters(), strict=True)))

    module = Model(optimizer=torch.optim.SGD)
    module.moves = []
    t = trainer(EvoStrategy(population=8), max_steps=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        t.fit(module)
    assert t.strategy.evolution.state.generation == 3
    assert module.moves == [True, False, True, True]


def test_overfit_batches_learns_one_batch():
    module = ConvNet()
    trainer("evo", overfit_batches=1, max_steps=60, max_epochs=-1).fit(module)
    assert sum(module.losses[-5:]) < 0.5 * sum(module.losses[:5])


def test_fast_dev_run():
    t = trainer("evo", fast_dev_run=True)
    t.fit(ConvNet())
    assert t.global_step == 1


def test_barebones():
    class Model(ConvNet):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are running in `Trainer\\(barebones=True\\)`")
        warnings.filterwarnings("ignore", "You are trying to `self.log\\(\\)` but `Trainer\\(barebones=True\\)`")
        L.Trainer(strategy=EvoStrategy(population=4), barebones=True, max_steps=3, accelerator="cpu").fit(module)
    assert len(module.losses) == 3


def test_detect_anomaly():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have turned on `Trainer\\(detect_anomaly=True\\)`")
        t = trainer(EvoStrategy(population=4), detect_anomaly=True, max_steps=2)
        t.fit(ConvNet())
    assert t.global_step == 2


def test_learning_rate_finder(tmp_path):
    class Model(ConvNet):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.learning_rate = 0.01

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    seed_everything(0, verbose=False)
    module = Model()
    before = weights(module)
    t = trainer(EvoStrategy(population=16), default_root_dir=tmp_path, max_epochs=5, max_steps=-1)
    finder = Tuner(t).lr_find(module, num_training=30, min_lr=1e-4, max_lr=10)
    assert len(finder.results["loss"]) >= 20
    assert_same_weights(weights(module), before)
    assert t.strategy.evolution.state.generation == 0  # put back, so that training starts at the beginning
    assert 1e-4 < finder.suggestion() < 10


@pytest.mark.slow
def test_compiled_module():
    """torch.compile compiles training_step; members and center run through the compiled code."""

    class Model(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)
            )
            self.losses = []

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.losses.append(float(outputs["loss"]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.02)

    def run(compiled):
        seed_everything(0, verbose=False)
        module = Model()
        t = trainer(EvoStrategy(population=8), max_steps=8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler
            t.fit(torch.compile(module) if compiled else module, DataLoader(images(), 16))
        return module.losses

    assert run(True) == pytest.approx(run(False), rel=1e-3)


def test_callbacks_and_loggers(tmp_path):
    """Checkpoints follow a metric, early stopping stops, the learning rate is monitored, the logger has evo/ values."""

    class Model(ConvNet):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def val_dataloader(self):
            return DataLoader(images(), 32)

    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="evo/fitness_mean", mode="max", every_n_train_steps=2)
    stop = EarlyStopping("evo/sigma", patience=1, check_on_train_epoch_end=True)
    means = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            means.append(float(trainer.callback_metrics["evo/fitness_mean"]))

    callbacks = [checkpoint, stop, LearningRateMonitor("step"), Record()]
    t = trainer(
        EvoStrategy(population=8),
        callbacks=callbacks,
        logger=CSVLogger(tmp_path),
        enable_checkpointing=True,
        log_every_n_steps=1,
        max_epochs=10,
        max_steps=-1,
    )
    t.fit(Model())
    assert stop.stopped_epoch == 1  # sigma never improves
    assert checkpoint.best_model_score == pytest.approx(max(means[1::2]))
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"evo/fitness_mean", "evo/update_norm", "evo/members_per_second", "lr-Adam", "val_loss"} <= set(header)


def test_sigma_schedule_and_callback():
    from lightning_evo import Schedule

    sigmas = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            sigmas.append(float(trainer.callback_metrics["evo/sigma"]))
            if trainer.global_step == 4:
                trainer.strategy.sigma = 0.5

    schedule = Schedule("linear", start=0.2, end=0.1, generations=10)
    trainer(EvoStrategy(population=4, sigma=schedule), callbacks=[Record()], max_steps=6).fit(ConvNet())
    assert sigmas == pytest.approx([0.2, 0.19, 0.18, 0.17, 0.5, 0.5])


def test_fit_twice_goes_on_with_new_noise():
    keys = []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            keys.append(trainer.strategy.evolution.population.perturbation.key)

    module = ConvNet()
    t = trainer(EvoStrategy(population=4), callbacks=[Record()], max_steps=3)
    t.fit(module)
    t.fit_loop.epoch_loop.max_steps = 6
    t.fit(module)
    assert t.strategy.evolution.state.generation == 6
    assert [key.generation for key in keys] == list(range(6))
    assert len({key.seed for key in keys}) == 1


def test_validate_test_and_predict_need_no_training():
    class Model(ConvNet):
        def test_step(self, batch, batch_idx):
            self.log("test_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def predict_step(self, batch, batch_idx):
            return self.net(batch[0]).argmax(1)

    t = trainer("evo")
    (result,) = t.test(Model(), DataLoader(images(), 16), verbose=False)
    assert result["test_loss"] > 0
    assert len(t.predict(Model(), DataLoader(images(), 16))) == 4


def test_seed_is_that_of_seed_everything():
    def run(seed):
        seed_everything(seed, verbose=False)
        t = trainer(EvoStrategy(population=4), max_steps=1)
        t.fit(ConvNet())
        return t.strategy.evolution.state.seed

    assert run(5) == run(5) == 5
    assert run(6) == 6


def test_same_seed_same_weights_another_seed_others():
    def run(seed):
        seed_everything(0, verbose=False)
        module = ConvNet()
        trainer(EvoStrategy(population=8, seed=seed), max_steps=4).fit(module)
        return weights(module)

    assert_same_weights(run(1), run(1))
    assert not torch.equal(run(1)["net.5.weight"], run(2)["net.5.weight"])


@pytest.mark.gpu
def test_cuda_draws_the_same_noise_and_learns():
    from lightning_evo.noise.philox import NoiseKey
    from lightning_evo.noise.values import draw

    key = NoiseKey(1, 2)
    cpu, gpu = (draw(key, [0, 3], 1, 5, 100_005, device=device) for device in ("cpu", "cuda"))
    assert torch.equal(cpu, gpu.cpu())
    module = ConvNet()
    t = trainer("evo", accelerator="gpu", max_steps=60)
    t.fit(module)
    assert t.strategy.root_device.type == "cuda"
    assert sum(module.losses[-5:]) < 0.5 * sum(module.losses[:5])


def test_device_choice_is_the_trainers():
    """Without care a strategy known by name would stay on the CPU, whatever the Trainer chose."""
    strategy = EvoStrategy()
    strategy.parallel_devices = [torch.device("meta")]
    assert strategy.root_device == torch.device("meta")


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_fitness_without_a_loss(update, precision):
    """With a fitness_step, training_step may return no loss: Lightning then skips backward, evolution goes on."""

    class Model(ConvNet):
        def fitness_step(self, batch, batch_idx):
            return -torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)

    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))] if precision == "16-mixed" else None
    seed_everything(0, verbose=False)
    module = Model(optimizer=torch.optim.SGD, lr=0.1)
    t = trainer(EvoStrategy(update=update), max_steps=40, plugins=plugins)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        t.fit(module)
    assert t.strategy.evolution.state.generation == 40
    assert sum(module.losses[-5:]) < 0.8 * sum(module.losses[:5])


def test_monitor_has_one_entry_per_generation(tmp_path):
    pytest.importorskip("matplotlib")
    from lightning_evo.callbacks import EvolutionMonitor

    monitor = EvolutionMonitor(output_dir=tmp_path)
    t = trainer(EvoStrategy(population=4), accumulate_grad_batches=2, max_steps=3, callbacks=[monitor])
    t.fit(ConvNet())
    assert [generation for generation, _ in monitor.fitness] == [1, 2, 3]


def test_sigma_set_within_a_window_counts_from_the_next_generation():
    logged = []

    class Set(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            logged.append(float(trainer.callback_metrics["evo/sigma"]))
            trainer.strategy.sigma = 0.9

    t = trainer(EvoStrategy(population=4, sigma=0.05), accumulate_grad_batches=2, max_steps=2, callbacks=[Set()])
    t.fit(ConvNet())
    assert logged == pytest.approx([0.05, 0.05, 0.9, 0.9])
