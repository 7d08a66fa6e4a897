"""The module's own ``optimizer_step``: after its closure gradients are there, and what steps moves the weights."""

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import grad_norm
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import EvoStrategy
from tests.strategies.models import assert_same_weights, trainer, weights

# pytest.warns shows other warnings again, as if they came from here, where pyproject.toml does not ignore this one.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

UPDATES = ["optimizer", "in_place"]


class Classifier(L.LightningModule):
    """Three classes of points; of its fitness every member has another."""

    def __init__(self, optimizer=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(8, 3)
        self.x = torch.randn(64, 8)
        self.make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.5))

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.make(self.parameters())

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x, self.x[:, :3].argmax(1)), batch_size=16)


def fit(module, strategy=None, **options):
    if not isinstance(strategy, str):
        strategy = EvoStrategy(**{"population": 16, "seed": 0, **(strategy or {})})
    t = trainer(strategy, **{"max_epochs": 1, "max_steps": -1, **options})
    t.fit(module)
    return t


class ByTorch(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.optimizer.step(closure=optimizer_closure)


class ByPosition(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        with torch.no_grad():
            optimizer.optimizer.step(optimizer_closure)


class AfterTheClosure(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        self.trainer.optimizers[0].step()


class ByLightningAfterTheClosure(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        optimizer.step()


class WarmUp(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * min(1.0, (batch_idx + 1) / 3)
        optimizer.step(closure=optimizer_closure)


class OneBatchLater(Classifier):
    """Steps with the gradients of the batch before."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step()
        optimizer_closure()


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", [ByTorch, ByPosition, AfterTheClosure, ByLightningAfterTheClosure])
def test_whoever_steps_the_weights_are_the_same(kind, update, accumulate):
    modules = Classifier(), kind()
    expected, actual = (fit(module, {"update": update}, accumulate_grad_batches=accumulate) for module in modules)
    assert actual.strategy.evolution.state.generation == expected.strategy.evolution.state.generation == 4 // accumulate
    assert_same_weights(weights(modules[0]), weights(modules[1]))
    assert not torch.equal(modules[0].net.weight, Classifier().net.weight)


@pytest.mark.parametrize("update", UPDATES)
def test_a_learning_rate_that_warms_up(update):
    first, warm, plain = WarmUp(), WarmUp(), Classifier(lambda parameters: torch.optim.SGD(parameters, lr=0.5 / 3))
    fit(first, {"update": update}, max_steps=1)
    fit(plain, {"update": update}, max_steps=1)
    assert_same_weights(weights(first), weights(plain))
    fit(warm, {"update": update})
    assert not torch.equal(warm.net.weight, first.net.weight)


@pytest.mark.parametrize("update", UPDATES)
def test_a_step_one_batch_later(update):
    """Three of four generations have moved the weights, each of the batch before; the last one is not stepped on."""
    late, start = OneBatchLater(), weights(Classifier())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*did not step")
        t = fit(late, {"update": update})
    assert t.strategy.evolution.state.generation == (4 if update == "optimizer" else 3)
    prompt = Classifier()
    fit(prompt, {"update": update}, limit_train_batches=1)
    first = OneBatchLater()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*did not step")
        fit(first, {"update": update}, limit_train_batches=1)
    assert_same_weights(weights(first), start)  # there was nothing to step on yet
    assert not torch.equal(prompt.net.weight, start["net.weight"])


class IfFinite(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients and all(gradient.isfinite().all() for gradient in gradients):
            optimizer.step()


def test_a_step_that_waits_for_gradients():
    modules = Classifier(), IfFinite()
    for module in modules:
        fit(module)
    assert_same_weights(weights(modules[0]), weights(modules[1]))


def test_a_step_that_waits_for_gradients_that_never_come_is_named():
    with pytest.warns(
        UserWarning, match=r"IfFinite.optimizer_step ran its closure and did not step, .*optimizer'"
    ) as w:
        fit(IfFinite(), {"update": "in_place"})
    assert sum("did not step" in str(warning.message) for warning in w) == 1


class EverySecond(Classifier):
    """As Lightning's documentation shows."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


def test_gradients_of_a_batch_without_a_step_are_dropped_as_with_backpropagation():
    """Generations 1 and 3 moved the weights; with a zero_grad of one's own 0 and 2 do, too."""

    class Adding(EverySecond):
        seen = ()

        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            if batch_idx % 2 == 0:
                optimizer.zero_grad()

        def on_before_optimizer_step(self, optimizer):
            self.seen = (*self.seen, self.net.weight.grad.clone())

        def on_after_backward(self):
            self.after = (*getattr(self, "after", ()), self.net.weight.grad.clone())

    class Dropping(Adding):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad()

    adding, dropping = Adding(), Dropping()
    for module in (adding, dropping):
        t = fit(module, limit_train_batches=2)
        assert t.strategy.evolution.state.generation == 2
        assert len(module.seen) == 1
    assert torch.equal(adding.after[0], dropping.after[0])
    assert torch.equal(dropping.seen[0], dropping.after[1])
    assert torch.equal(adding.seen[0], adding.after[1])
    torch.testing.assert_close(adding.seen[0], adding.after[0] + dropping.after[1])


def test_in_place_a_batch_without_a_step_counts_for_the_next():
    module, accumulating = EverySecond(), Classifier()
    with pytest.warns(UserWarning, match=r"EverySecond.optimizer_step ran its closure and did not step"):
        t = fit(module, {"update": "in_place"})
    fit(accumulating, {"update": "in_place"}, accumulate_grad_batches=2)
    assert t.strategy.evolution.state.generation == 2
    torch.testing.assert_close(module.net.weight, accumulating.net.weight)


class Sharp(Classifier):
    """SAM: the gradient at the weights, moved along the first gradient."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        self.first = [p.grad.clone() for p in self.parameters()]
        with torch.no_grad():
            for p in self.parameters():
                p += 0.1 * p.grad
        self.moved = [p.detach().clone() for p in self.parameters()]
        optimizer_closure()
        with torch.no_grad():
            for p, gradient in zip(self.parameters(), self.first, strict=True):
                p -= 0.1 * gradient
        self.second = [p.grad.clone() for p in self.parameters()]
        optimizer.step()


def test_a_closure_called_twice_gives_two_estimates():
    module = Sharp()
    t = fit(module, max_steps=1, max_epochs=-1)
    assert t.strategy.evolution.state.generation == 2
    plain = Classifier()
    fit(plain, max_steps=1, max_epochs=-1)
    start = Classifier()
    for p, begun, gradient in zip(plain.parameters(), start.parameters(), module.first, strict=True):
        torch.testing.assert_close(p.detach(), begun.detach() - 0.5 * gradient)
    for p, begun, gradient in zip(module.parameters(), start.parameters(), module.second, strict=True):
        torch.testing.assert_close(p.detach(), begun.detach() - 0.5 * gradient)
    assert not torch.allclose(module.first[0], module.second[0])


@pytest.mark.parametrize("update", UPDATES)
def test_a_module_without_a_loss_steps_by_torch(update):
    """Without a loss Lightning calls no backward; the closure's end makes the gradients."""

    class NoLoss(AfterTheClosure):
        def fitness_step(self, batch, batch_idx):
            return -functional.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            return None

    module, plain = NoLoss(), Classifier()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        fit(module, {"update": update})
    fit(plain, {"update": update})
    torch.testing.assert_close(module.net.weight, plain.net.weight)


# --- nothing to learn ---


class Tied(Classifier):
    """Every member has the fitness of every other."""

    def fitness_step(self, batch, batch_idx):
        return self.net(batch[0] * 0).sum() * 0

    def on_after_backward(self):
        self.norms = [*getattr(self, "norms", []), grad_norm(self, 2)["grad_2.0_norm_total"]]

    def on_before_optimizer_step(self, optimizer):
        self.norms = [*getattr(self, "norms", []), grad_norm(self, 2)["grad_2.0_norm_total"]]


class TiedByTorch(Tied):
    optimizer_step = ByTorch.optimizer_step


class TiedAfterTheClosure(Tied):
    optimizer_step = AfterTheClosure.optimizer_step


def momentum(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)


@pytest.mark.filterwarnings("ignore:Generation 0. members that should be compared")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("kind", [Tied, TiedByTorch, TiedAfterTheClosure])
def test_hooks_see_a_gradient_of_zero_and_the_optimizer_none(kind, precision):
    scaler = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))] if precision == "16-mixed" else None
    module = kind(momentum)
    start = weights(module)
    t = fit(module, plugins=scaler)
    assert t.strategy.evolution.state.generation == 4
    assert len(module.norms) == (8 if kind is Tied else 4)
    assert not any(module.norms)
    assert_same_weights(weights(module), start)
    assert not t.optimizers[0].state  # no moment was made of a gradient that nobody has measured


@pytest.mark.filterwarnings("ignore:Generation 0. members that should be compared")
def test_gradients_of_zero_that_zero_grad_leaves_are_not_given_to_the_optimizer_either():
    class Zeroing(Tied):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=False)

    module = Zeroing(momentum)
    start = weights(module)
    t = fit(module)
    assert_same_weights(weights(module), start)
    assert not t.optimizers[0].state


@pytest.mark.filterwarnings("ignore:Generation 0. members that should be compared")
def test_what_a_hook_puts_into_the_gradients_is_given_to_the_optimizer():
    class Decaying(Tied):
        def on_after_backward(self):
            for p in self.parameters():
                p.grad += 0.1

    module = Decaying()
    start = weights(module)
    fit(module, max_steps=1, max_epochs=-1)
    torch.testing.assert_close(module.net.weight.detach(), start["net.weight"] - 0.5 * 0.1)


def test_while_batches_accumulate_gradients_are_zero_until_the_last():
    class Norms(Classifier):
        def on_after_backward(self):
            self.norms = [*getattr(self, "norms", []), float(grad_norm(self, 2)["grad_2.0_norm_total"])]

    module, plain = Norms(), Classifier()
    for each in (module, plain):
        fit(each, accumulate_grad_batches=2)
    assert [norm > 0 for norm in module.norms] == [False, True, False, True]
    assert_same_weights(weights(module), weights(plain))


def test_steps_are_looked_after_during_the_fit_only():
    module = Classifier()
    t = fit(module)
    optimizer = t.optimizers[0]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert "_make_closure" not in vars(t.fit_loop.epoch_loop.automatic_optimization)
