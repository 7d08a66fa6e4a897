"""A module with `fitness_step` alone trains; methods that are missing, misnamed or can't be called are named."""

import copy
import pickle
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import EvoDDPStrategy, EvoStrategy, Fitness
from lightning_evo.strategies.methods import nearly_fitness_steps
from tests.strategies.models import ConvNet, assert_same_weights, images, trainer, weights
from tests.strategies.test_ddp import quietly
from tests.strategies.test_ddp import trainer as trainer_of_processes

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You called `self.log.* but have no logger configured"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


class Alone(L.LightningModule):
    """How often it is right, and a dropout that must be the same with and without `training_step`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Dropout(0.2))
        self.outputs = []

    def fitness_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        fitness = -nn.functional.cross_entropy(scores, batch[1])
        self.log("accuracy", (scores.argmax(1) == batch[1]).float().mean(), on_step=True, on_epoch=True)
        self.log_dict({"index": float(batch_idx), "ones": 1.0}, reduce_fx="sum", on_step=False, on_epoch=True)
        return fitness

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.outputs.append({name: float(value) for name, value in outputs.items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(images(), 16)


class Both(Alone):
    """The same by hand: the center runs `fitness_step` within `training_step`."""

    def training_step(self, batch, batch_idx):
        return -self.fitness_step(batch, batch_idx)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"update": "in_place"},
        {"accumulate_grad_batches": 2},
        {"samples_per_generation": 20, "accumulate_grad_batches": 2},
        {"evaluation": "plain"},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_the_centers_fitness_step_is_the_step(options):
    ours = ("update", "samples_per_generation", "evaluation")
    strategy = {name: value for name, value in options.items() if name in ours}
    others = {name: value for name, value in options.items() if name not in ours}

    def run(model):
        torch.manual_seed(1)
        module = model()
        t = trainer(EvoStrategy(population=8, seed=3, **strategy), max_epochs=2, max_steps=-1, **others)
        t.fit(module)
        return module, t

    (alone, one), (both, two) = run(Alone), run(Both)
    assert_same_weights(weights(alone), weights(both))
    assert one.global_step == two.global_step > 0
    assert set(one.callback_metrics) == set(two.callback_metrics)
    for name, value in one.callback_metrics.items():
        assert name == "evo/members_per_second" or torch.equal(value, two.callback_metrics[name]), name
    assert one.callback_metrics["ones"] == 4  # once for each batch of an epoch, not for each member
    assert one.callback_metrics["index"] == 0 + 1 + 2 + 3
    window = others.get("accumulate_grad_batches", 1)
    for first, second in zip(alone.outputs, both.outputs, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)  # Lightning divides it by the window
        assert first["fitness"] == pytest.approx(-first["loss"] * window, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "fitness"),
    [
        ([0.5, 1, True], 2.5 / 3),
        (True, 1.0),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), 1.5),
        (Fitness([1.0, 3.0], tie_breaker=9.0), 2.0),
        (Fitness(torch.tensor([1.0, 5.0]), missing=torch.tensor([False, True])), 1.0),
    ],
    ids=str,
)
def test_the_loss_is_minus_the_centers_fitness(value, fitness):
    class Model(Alone):
        def fitness_step(self, batch):
            return value

    module = Model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*have the same fitness")
        trainer(EvoStrategy(population=4), max_steps=1).fit(module)
    assert module.outputs == [{"loss": pytest.approx(-fitness), "fitness": pytest.approx(fitness)}]


def test_generations_from_a_journal(tmp_path):
    """Recalled ones run the center's fitness_step, too, and log."""

    def run(**options):
        torch.manual_seed(1)
        module = Alone()
        saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=4)
        strategy = EvoStrategy("mezo", sigma=0.01, update="in_place", seed=3, evaluation="plain")
        t = trainer(strategy, max_steps=10, callbacks=[saving], enable_checkpointing=True, max_epochs=-1)
        t.fit(module, **options)
        return module, t

    undisturbed, _ = run()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*exists and is not empty")
        resumed, t = run(ckpt_path=tmp_path / "last.ckpt")
    assert_same_weights(weights(resumed), weights(undisturbed))
    assert t.strategy.evolution.evaluation.summary == ""  # nothing was evaluated
    assert resumed.outputs == undisturbed.outputs[8:]
    assert "accuracy_step" in t.callback_metrics


def test_nothing_is_left_in_the_module():
    seen = {}

    class Copy(L.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            seen["copied"] = copy.deepcopy(module.net), pickle.loads(pickle.dumps(vars(module)["training_step"]))

    class Fails(Alone):
        def fitness_step(self, batch):
            raise RuntimeError("of the user's")

    module = Alone()
    trainer(EvoStrategy(population=4), max_steps=1, callbacks=[Copy()]).fit(module)
    assert seen
    assert "training_step" not in vars(module)
    failing = Fails()
    with pytest.raises(RuntimeError, match="of the user's"):
        trainer(EvoStrategy(population=4), max_steps=1).fit(failing)
    assert not {"training_step", "configure_optimizers", "log"} & set(vars(failing))
    with pytest.raises(Exception, match="No `training_step"):  # what backpropagation needs is as missing as before
        trainer("auto", max_steps=1).fit(Alone())


def test_learning_rate_finder(tmp_path):
    class Model(Alone):
        learning_rate = 0.01

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    t = trainer(EvoStrategy(population=8), default_root_dir=tmp_path, max_epochs=5, max_steps=-1)
    finder = Tuner(t).lr_find(Model(), num_training=20, min_lr=1e-3, max_lr=10)
    assert len(finder.results["loss"]) >= 15


# --- several processes ---


def run_in_processes(model):
    quietly()
    torch.manual_seed(1)
    module = model()
    t = trainer_of_processes(EvoDDPStrategy(population=8, seed=3), 6, max_epochs=-1)
    t.fit(module)
    logged = {name: float(value) for name, value in t.callback_metrics.items() if name != "evo/members_per_second"}
    return torch.cat([p.detach().flatten() for p in module.parameters()]).tolist(), logged, module.outputs


class ReturnsNone(Alone):
    def training_step(self, batch, batch_idx):
        self.log("from_the_center", float(batch_idx))


@pytest.mark.parametrize("model", [Alone, ReturnsNone])
def test_several_processes(world, model):
    (alone,) = world(1).run(run_in_processes, model)
    first, second = world(2).run(run_in_processes, model)
    assert first[:2] == second[:2]
    assert first[2] == second[2] == alone[2]
    assert first[0] == pytest.approx(alone[0], abs=1e-6)
    assert first[1] == pytest.approx(alone[1], abs=1e-5)
    assert first[1]["accuracy_step" if model is Alone else "from_the_center"] >= (0.0 if model is Alone else 1.0)
    assert len(first[2]) == 6
    assert all(outputs.keys() == ({"loss", "fitness"} if model is Alone else set()) for outputs in first[2])


# --- without an optimizer ---


class NoOptimizer(Alone):
    configure_optimizers = L.LightningModule.configure_optimizers


class ReturnsNoOptimizer(Alone):
    def configure_optimizers(self):
        return None


@pytest.mark.parametrize("options", [{"algorithm": "mezo"}, {"learning_rate": 0.5}, {"algorithm": "csa_es"}], ids=str)
def test_no_optimizer_is_needed_where_none_is_used(options):
    def run(model):
        module = model()
        update = {} if options.get("algorithm") == "csa_es" else {"update": "in_place"}
        trainer(EvoStrategy(seed=1, population=8, **update, **options), max_steps=3).fit(module)
        assert "configure_optimizers" not in vars(module)
        return weights(module)

    before = weights(Alone())
    found = run(NoOptimizer)
    assert not torch.equal(found["net.1.weight"], before["net.1.weight"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*configure_optimizers. returned .None.")
        assert_same_weights(found, run(ReturnsNoOptimizer))


def test_an_optimizer_is_asked_for_where_it_moves_the_weights():
    with pytest.raises(
        ValueError, match=r"^NoOptimizer has no `configure_optimizers`.*EvoStrategy\('mezo', update='in_pl"
    ):
        trainer(EvoStrategy("mezo")).fit(NoOptimizer())


# --- logs that only members say ---


def test_logs_of_fitness_step_beside_a_training_step_are_announced():
    class Model(Alone):
        def training_step(self, batch, batch_idx):
            self.log("ones", 1.0)

    module = Model()
    module.on_train_batch_end = lambda *args: None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        t = trainer(EvoStrategy(population=4), max_steps=3)
        t.fit(module)
    said = [str(warning.message) for warning in caught if "is not heard" in str(warning.message)]
    assert len(said) == 1
    assert said[0].startswith("What fitness_step logs is not heard (accuracy, index): Model has a training_step")
    assert {"accuracy", "index"}.isdisjoint(t.callback_metrics)
    assert t.callback_metrics["ones"] == 1


def test_logs_of_a_fitness_step_that_training_step_calls_are_heard():
    t = trainer(EvoStrategy(population=4), max_steps=2)
    t.fit(Both())  # a warning would be an error
    assert "accuracy" in t.callback_metrics


# --- names and signatures ---


@pytest.mark.parametrize(
    "name",
    [
        "fitnes_step", "fitness", "fitness_fn", "step_fitness", "fitnessstep", "fitnessStep", "compute_fitness",
        "_fitness_step", "fitness_func", "get_fitness", "fitness_function", "evaluate_fitness", "fittness_step",
        "fitness_steps", "reward_step", "objective_step", "score_step", "training_fitness", "eval_fitness_batch",
    ],
)  # fmt: skip
def test_names_that_are_nearly_fitness_step(name):
    model = type("Model", (), {name: lambda self, batch: 0.0})
    assert list(nearly_fitness_steps(model())) == [name]


@pytest.mark.parametrize(
    "name",
    ["log_fitness", "fitness_history", "forward", "step", "training_step", "fit", "witness", "plot_fitness", "reward",
     "score", "test_step", "predict_step", "__fitness__", "on_fit_start", "best_fitness"],
)  # fmt: skip
def test_names_that_mean_something_else(name):
    assert list(nearly_fitness_steps(type("Model", (), {name: lambda self, batch: 0.0})())) == []


def test_a_method_that_the_module_uses_is_not_asked_about():
    class Uses(ConvNet):
        def fitness(self, batch):
            return 0.0

        def training_step(self, batch, batch_idx):
            return sum(self.fitness(part) for part in batch) + super().training_step(batch, batch_idx)

    trainer(EvoStrategy(population=4), max_steps=1).fit(Uses())  # a warning would be an error
    assert list(nearly_fitness_steps(Uses())) == []
    assert list(nearly_fitness_steps(L.LightningModule())) == []


def test_a_misspelt_fitness_step_is_asked_about():
    class Typo(ConvNet):
        def fitnes_step(self, batch, batch_idx):
            return 0.0

    message = r"^Typo has a method `fitnes_step`, which is not used: .* rename it to `fitness_step\(self, batch, batch_"
    with pytest.warns(UserWarning, match=message):
        trainer(EvoStrategy(population=4), max_steps=1).fit(Typo())


class Nothing(Alone):
    fitness_step = None


class OnlyTypo(Nothing):
    def fitness(self, batch):
        return 0.0


class Number(Alone):
    fitness_step = 3


class NoBatch(Alone):
    def fitness_step(self):
        return 0.0


class TooMany(Alone):
    def fitness_step(self, batch, batch_idx, dataloader_idx):
        return 0.0


class Iterates(Alone):
    def fitness_step(self, dataloader_iter):
        return 0.0


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (Nothing, ValueError, "^Nothing has neither `fitness_step.*Write one of them.$"),
        (OnlyTypo, ValueError, "^OnlyTypo has neither .* It has a method `fitness`. .*rename it to `fitness_step"),
        (Number, TypeError, "^Number.fitness_step is of type int. Make it a method"),
        (NoBatch, TypeError, r"^NoBatch.fitness_step\(\) can't be called with a batch: too many positional"),
        (TooMany, TypeError, r"^TooMany.fitness_step\(batch, batch_idx, dataloader_idx\) can't be called with a batch"),
        (Iterates, ValueError, "every member would take another batch"),
    ],
)
def test_what_can_not_be_run(model, kind, message):
    with pytest.raises(kind, match=message):
        trainer(EvoStrategy(population=4), max_steps=1).fit(model())


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_the_other_package(update):
    import pytorch_lightning as pl

    from lightning_evo.pytorch_lightning import EvoStrategy as EvoStrategyForPL

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def fitness_step(self, batch):
            self.log("seen", 1.0, reduce_fx="sum", on_step=False, on_epoch=True)
            return -self.layer(batch[0]).square().mean(1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Bare(Model):
        configure_optimizers = pl.LightningModule.configure_optimizers

    t = pl.Trainer(
        strategy=EvoStrategyForPL(population=4, update=update), max_epochs=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Bare if update == "in_place" else Model
    t.fit(model(), DataLoader(TensorDataset(torch.ones(6, 3)), 2))
    assert t.callback_metrics["seen"] == 3
    assert t.global_step == 3
