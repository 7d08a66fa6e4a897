"""EvolutionMixin: evolution inside a module with manual optimization."""

import lightning as L
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_evo import Evolution, EvolutionMixin, EvoStrategy, Fitness
from tests.strategies.models import assert_same_weights, images, trainer, weights
from tests.strategies.test_resume import draws_the_order_twice

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Model(EvolutionMixin, L.LightningModule):
    def __init__(self, update="optimizer", optimizer=torch.optim.Adam, lr=0.02, **options):
        super().__init__()
        self.automatic_optimization = False
        self.evolution = Evolution("openai_es", **{"population": 16, "sigma": 0.05, **options})
        self.evolution_update = update
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Dropout(0.1))
        self.optimizer, self.lr = optimizer, lr
        self.losses = []

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def fitness_step(self, batch, batch_idx):
        self.log("from_a_member", 1.0)  # must not be heard
        return -self.loss(batch)

    def training_step(self, batch, batch_idx):
        values = self.evolve(batch, batch_idx)
        self.losses.append(-values["evo/fitness_mean"])
        self.log_dict(values)

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return DataLoader(images(), 16, shuffle=True)


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_learns_and_counts_steps(update):
    seed_everything(0, verbose=False)
    module = Model(update, lr=0.02 if update == "optimizer" else 0.5)
    t = trainer("auto", max_steps=60, max_epochs=-1)
    t.fit(module)
    assert t.global_step == 60
    assert sum(module.losses[-5:]) < 0.6 * sum(module.losses[:5])
    assert "from_a_member" not in t.callback_metrics
    assert set(t.callback_metrics) == {
        "evo/fitness_mean", "evo/fitness_std", "evo/fitness_best", "evo/failed_members", "evo/sigma", "evo/update_norm",
    }  # fmt: skip
    assert bool(t.optimizers[0].state) is (update == "optimizer")
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_equals_the_strategy(update):
    """The same seed, batches and optimizer: the mixin and strategy="evo" take the same steps."""

    class Automatic(L.LightningModule):
        training_step, configure_optimizers = None, Model.configure_optimizers

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
            self.optimizer, self.lr = torch.optim.SGD, 0.1

        def training_step(self, batch, batch_idx):  # noqa: F811
            return Model.loss(self, batch)

    data = DataLoader(images(), 16)
    seed_everything(0, verbose=False)
    expected = Automatic()
    trainer(EvoStrategy(population=16, sigma=0.05, update=update, seed=1), max_steps=5).fit(expected, data)
    seed_everything(0, verbose=False)
    actual = Model(update, torch.optim.SGD, 0.1, seed=1)
    actual.net[2].p = 0.0
    trainer("auto", max_steps=5).fit(actual, data)
    assert_same_weights(weights(actual), weights(expected))


def test_a_tie_breaker_alone_decides_where_fitness_is_equal():
    """The same steps as by the tie breaker as fitness."""

    class Tied(Model):
        def fitness_step(self, batch, batch_idx):
            return Fitness(1.0, tie_breaker=super().fitness_step(batch, batch_idx))

    modules, logged = [], []
    for kind in (Model, Tied):
        seed_everything(0, verbose=False)
        modules.append(kind())
        t = trainer("auto", max_steps=5)
        t.fit(modules[-1])
        logged.append({name: float(value) for name, value in t.callback_metrics.items()})
    assert_same_weights(*map(weights, modules))
    assert logged[1]["evo/tie_breaker_mean"] == logged[0]["evo/fitness_mean"]
    assert (logged[1]["evo/fitness_mean"], logged[1]["evo/fitness_std"]) == (1, 0)


@draws_the_order_twice
@pytest.mark.parametrize("strategy", ["auto", "evo"])
def test_resumed_equals_uninterrupted(tmp_path, strategy):
    def fit(folder, epochs, ckpt_path=None, seed=0):
        seed_everything(seed, verbose=False)
        module = Model()
        callbacks = [
            ModelCheckpoint(folder, save_last=True),
            EarlyStopping("evo/fitness_mean", mode="max", patience=99),
        ]
        callbacks[1]._check_on_train_epoch_end = True
        options = {"max_epochs": epochs, "max_steps": -1, "enable_checkpointing": True, "default_root_dir": folder}
        trainer(strategy, callbacks=callbacks, **options).fit(module, ckpt_path=ckpt_path)
        return module

    expected = fit(tmp_path / "a", 4)
    fit(tmp_path / "b", 2)
    resumed = fit(tmp_path / "b", 4, tmp_path / "b" / "last.ckpt", seed=9)
    assert_same_weights(weights(resumed), weights(expected))
    assert resumed.evolution.state == expected.evolution.state
    torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)


def test_loading_only_the_weights_starts_anew(tmp_path):
    t = trainer("auto", max_steps=3)
    t.fit(Model(seed=1))
    t.save_checkpoint(tmp_path / "x.ckpt")
    assert Model.load_from_checkpoint(tmp_path / "x.ckpt").evolution.state.generation == 0


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_gradient_scaler(update):
    def moved(**options):
        seed_everything(0, verbose=False)
        module = Model(update, torch.optim.SGD, 0.5)
        before = module.net[1].weight.detach().clone()
        t = trainer("auto", max_steps=1, **options)
        t.fit(module)
        assert t.global_step == 1
        return float((module.net[1].weight - before).detach().norm())

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    assert moved(plugins=[plugin]) == pytest.approx(moved(), rel=0.1)


def test_alternating_with_backpropagation():
    """Even batches by evolution, odd ones by backpropagation, one optimizer."""

    class Alternating(Model):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2 == 0:
                return super().training_step(batch, batch_idx)
            optimizer, loss = self.optimizers(), self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.backprop_losses.append(float(loss.detach()))
            return None

    module = Alternating()
    module.backprop_losses = []
    t = trainer("auto", max_steps=40, max_epochs=-1)
    t.fit(module)
    assert t.global_step == 40
    assert module.evolution.state.generation == len(module.backprop_losses) == 20
    assert sum(module.backprop_losses[-5:]) < 0.5 * sum(module.backprop_losses[:5])


def test_several_optimizers():
    class Two(Model):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(2, 2)

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters()), torch.optim.Adam(self.other.parameters())

        def training_step(self, batch, batch_idx):
            self.evolve(batch, batch_idx, optimizer=self.optimizers()[self.which] if self.which is not None else None)

    module = Two()
    module.which = None
    with pytest.raises(RuntimeError, match="There are 2 optimizers; say which one"):
        trainer("auto", max_steps=1).fit(module)
    module.which = 0
    before = weights(module)
    trainer("auto", max_steps=1).fit(module)
    assert torch.equal(module.other.weight, before["other.weight"])
    assert not torch.equal(module.net[1].weight, before["net.1.weight"])


def test_errors():
    module = Model()
    module.automatic_optimization = True
    with pytest.raises(RuntimeError, match="needs manual optimization"):
        trainer("auto", max_steps=1).fit(module)

    module = Model()
    del module.evolution
    with pytest.raises(RuntimeError, match="Set `self.evolution"):
        trainer("auto", max_steps=1).fit(module)

    with pytest.raises(ValueError, match="Unknown evolution_update 'inplace'. Did you mean 'in_place'"):
        trainer("auto", max_steps=1).fit(Model(update="inplace"))

    class NoFitness(EvolutionMixin, L.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.evolution = Evolution(population=4)
            self.layer = nn.Linear(1, 1)

        training_step, train_dataloader = Model.training_step, Model.train_dataloader

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    with pytest.raises(RuntimeError, match="NoFitness needs a method `fitness_step"):
        trainer("auto", max_steps=1).fit(NoFitness())


def test_what_does_not_evolve_takes_no_step_on_an_older_gradient():
    class Alternating(Model):
        def training_step(self, batch, batch_idx):
            before = self.net[1].weight.detach().clone()
            if batch_idx % 2:
                self.evolve(batch, batch_idx)
                assert torch.equal(self.net[1].weight, before)
            else:
                self.manual_backward(self.loss(batch))
                self.optimizers().step()
                assert not torch.equal(self.net[1].weight, before)

    trainer("auto", max_steps=4).fit(Alternating(evolve="bias", optimizer=torch.optim.SGD))


def test_learning_rate_that_would_do_nothing():
    with pytest.raises(ValueError, match="whose learning rate counts"):
        trainer("auto", max_steps=1).fit(Model(learning_rate=1.0))


@pytest.mark.filterwarnings("ignore:Generation 0. members that should be compared")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_where_nothing_is_learnt_hooks_see_gradients_of_zero_and_the_optimizer_none(precision):
    class Tied(Model):
        norms = ()

        def fitness_step(self, batch, batch_idx):
            return self.net(batch[0]).sum() * 0

        def on_before_optimizer_step(self, optimizer):
            self.norms = (*self.norms, *(float(p.grad.norm()) for p in self.parameters()))

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu")) if precision == "16-mixed" else None
    module = Tied(optimizer=torch.optim.AdamW)
    before = weights(module)
    t = trainer("auto", max_steps=3, max_epochs=-1, plugins=plugin)
    t.fit(module)
    assert module.norms == (0.0,) * 6
    assert t.global_step == 3
    assert_same_weights(weights(module), before)
    assert not t.optimizers[0].state
    assert not t.optimizers[0]._optimizer_step_pre_hooks


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_what_the_optimizer_maximizes_and_decays(update):
    """The fitness rises whichever way the optimizer goes; in place the decay is the optimizer's, too."""

    class Options(Model):
        def __init__(self, **options):
            super().__init__(update, seed=0)
            self.options = options

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, **self.options)

    ends = []
    for options in ({}, {"maximize": True}, {"weight_decay": 0.5}):
        seed_everything(0, verbose=False)
        module = Options(**options)
        start = module.net[1].weight.detach().clone()
        trainer("auto", max_steps=1, max_epochs=-1).fit(module)
        ends.append(module.net[1].weight.detach())
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0] - 0.1 * 0.5 * start)


def test_parameters_that_the_module_does_not_hold_are_counted():
    class Outside(Model):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(2, 1)]

        def configure_optimizers(self):
            return torch.optim.SGD([*self.parameters(), *self.layers[0].parameters()], lr=0.1)

    with pytest.warns(UserWarning, match=r"The optimizer holds 2 parameters \(of shape \[1, 2\], \[1\]\)") as said:
        trainer("auto", max_steps=2, max_epochs=-1).fit(Outside())
    assert sum("The optimizer holds" in str(one.message) for one in said) == 1
