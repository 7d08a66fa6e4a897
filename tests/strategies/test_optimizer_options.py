"""What counts of the user's optimizer, and what is said of the rest."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LambdaCallback
from torch import nn
from torch.nn import functional

from lightning_evo.callbacks import SeedJournal
from lightning_evo.journal.replay import replay
from tests.strategies.models import assert_same_weights, weights
from tests.strategies.test_optimizer_step import Classifier, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

SGD = torch.optim.SGD


def groups(weight, bias):
    """An optimizer of two groups, with these options."""

    def make(parameters):
        first, second = parameters
        return SGD([{"params": [first], **weight}, {"params": [second], **bias}], lr=0.1)

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.1, weight_decay=0.5),
        lambda p: SGD(p, lr=0.1, weight_decay=0.5, maximize=True),
        groups({"weight_decay": 0.5, "maximize": True}, {"lr": 0.2}),
        groups({"lr": 0.3}, {"weight_decay": 0.2}),
    ],
    ids=["decay", "maximize", "one group maximizes", "one group decays"],
)
def test_in_place_moves_as_plain_sgd_does(make):
    """Clipping limits the estimate, not the decay, and nothing of either is lost."""
    by_optimizer, in_place = Classifier(make), Classifier(make)
    for module, update in ((by_optimizer, "optimizer"), (in_place, "in_place")):
        fit(module, {"update": update}, gradient_clip_val=0.2)
    for expected, actual in zip(by_optimizer.parameters(), in_place.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_decay_is_the_same_coupled_or_not():
    modules = [Classifier(lambda p, kind=kind: kind(p, lr=0.1, weight_decay=0.5)) for kind in (SGD, torch.optim.AdamW)]
    for module in modules:
        fit(module, {"update": "in_place"})
    assert_same_weights(*map(weights, modules))


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize("has_fitness", [False, True])
def test_what_is_maximized_rises(update, has_fitness):
    """What ``training_step`` returns, or the fitness: higher is better, whatever the optimizer does with gradients."""
    losses = []

    class Gain(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(float(loss))
            return -loss

    class Fitness(Gain):
        def fitness_step(self, batch, batch_idx):
            return -functional.cross_entropy(self.net(batch[0]), batch[1])

    module = (Fitness if has_fitness else Gain)(lambda p: SGD(p, lr=0.5, maximize=True))
    t = fit(module, {"update": update, "population": 32}, max_epochs=8)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert t.callback_metrics["evo/fitness_best"] > t.callback_metrics["evo/fitness_mean"] > -losses[0]


def test_a_search_can_not_go_both_ways():
    module = Classifier(groups({"maximize": True}, {}))
    with pytest.raises(ValueError, match="Some parameter groups have maximize=True and others not, and 'csa_es'"):
        fit(module, {"algorithm": "csa_es"})


def test_decay_that_takes_everything():
    with pytest.raises(ValueError, match=r"weight_decay=2.0 with lr=0.5 takes 100% of each weight away"):
        fit(Classifier(lambda p: SGD(p, lr=0.5, weight_decay=2.0)), {"update": "in_place"})


def test_a_learning_rate_of_none():
    class Relative(SGD):
        """As Adafactor's relative steps."""

        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1)
            self.param_groups[0]["lr"] = None

    with pytest.raises(ValueError, match="no learning rate that update='in_place' could use"):
        fit(Classifier(Relative), {"update": "in_place"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decay_is_replayed(tmp_path, dtype):
    """Also one that a schedule changes, and what a resumed run repeats."""

    class Scheduled(Classifier):
        def __init__(self):
            super().__init__(groups({"weight_decay": 0.5}, {"maximize": True}))
            self.to(dtype)

        def training_step(self, batch, batch_idx):
            x, y = batch
            return functional.cross_entropy(self.net(x.to(dtype)).float(), y)

        def on_train_batch_start(self, batch, batch_idx):
            self.optimizers().param_groups[0]["weight_decay"] = 0.5 / (1 + batch_idx)

    module, journal = Scheduled(), SeedJournal(tmp_path)
    start = weights(module)
    fit(module, {"update": "in_place"}, callbacks=[journal])
    rebuilt = replay(start, journal.path)["state_dict"]
    assert_same_weights(weights(module), rebuilt)
    assert not torch.equal(start["net.weight"], rebuilt["net.weight"])


# --- what is said ---


def said_of(optimizer, monkeypatch, **options):
    said = []
    monkeypatch.setattr("lightning_evo.strategies._evolution.rank_zero_info", said.append)
    fit(Classifier(optimizer), {"update": "in_place", "evaluation": "plain", **options}, max_steps=1)
    return [line for line in said if line.startswith("update=")]


def test_what_is_not_used_is_named(monkeypatch):
    assert said_of(lambda p: SGD(p, lr=0.1, weight_decay=0.1, maximize=True), monkeypatch) == []
    [momentum] = said_of(lambda p: SGD(p, lr=0.1, momentum=0.9), monkeypatch)
    assert momentum.endswith("weight_decay and maximize are used, not its momentum.")
    [adaptive] = said_of(lambda p: torch.optim.AdamW(p, lr=0.1), monkeypatch)
    assert "of AdamW" in adaptive
    assert adaptive.endswith("not its momentum and adaptivity.")
    [nothing] = said_of(lambda p: SGD(p, lr=0.1), monkeypatch, algorithm="csa_es", update=None)
    assert "of SGD nothing is used" in nothing


class Outside(Classifier):
    """A layer in a list, which is no submodule; a criterion in an object; a frozen one."""

    def __init__(self, parts):
        super().__init__()
        self.layers = [nn.Linear(8, 8)]
        self.held = {"criterion": nn.Parameter(torch.zeros(3))}
        self.frozen = [nn.Linear(2, 2).requires_grad_(False)]
        self.parts = parts

    def configure_optimizers(self):
        chosen = {
            "layer": self.layers[0].parameters(),
            "criterion": self.held.values(),
            "frozen": self.frozen[0].parameters(),
        }
        parameters = [p for part in self.parts for p in chosen[part]]
        return SGD([{"params": [*self.net.parameters()]}, {"params": [*parameters, *parameters[:0]]}], lr=0.1)


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["layer", "criterion"], r"The optimizer holds 3 parameters \(of shape \[8, 8\], \[8\], \[3\]\) that Outside"),
        (["criterion", "frozen"], r"The optimizer holds 1 parameter \(of shape \[3\]\) that Outside does not"),
    ],
)
def test_parameters_that_the_module_does_not_hold_are_counted(parts, message, update):
    module = Outside(parts)
    before = module.layers[0].weight.clone()
    with pytest.warns(UserWarning, match=message) as said:
        fit(module, {"update": update}, max_steps=1)
    assert sum("The optimizer holds" in str(one.message) for one in said) == 1
    assert torch.equal(module.layers[0].weight, before)


def test_frozen_and_shared_parameters_are_not_counted():
    class Shared(Outside):
        def __init__(self):
            super().__init__(["frozen"])
            self.again = self.net

    fit(Shared(), max_steps=1)  # a warning would be an error


class Looking(Classifier):
    def on_before_optimizer_step(self, optimizer):
        self.log("norm", self._norm())

    def _norm(self):
        return sum(float(p.grad.norm()) for p in self.parameters() if p.grad is not None)


class Counting(Classifier):
    """Hooks that need no gradients."""

    count = 0

    def on_after_backward(self):
        self.count += 1

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")

    def on_before_zero_grad(self, optimizer):
        with torch.no_grad():
            self.average = self.net.weight.clone()


class Clipping(Classifier):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)


class Watching(L.Callback):
    def on_after_backward(self, trainer, pl_module):
        def norms():
            return [p.grad for p in pl_module.parameters()]

        self.seen = norms()


@pytest.mark.parametrize(
    ("module", "callbacks", "named"),
    [
        (Looking, [], "Looking.on_before_optimizer_step"),
        (Clipping, [], "Clipping.configure_gradient_clipping"),
        (Classifier, [Watching()], "Watching.on_after_backward"),
        (Looking, [Watching()], "Looking.on_before_optimizer_step, Watching.on_after_backward"),
        (
            Classifier,
            [LambdaCallback(on_after_backward=lambda trainer, module: module.net.weight.grad)],
            "LambdaCallback.on_after_backward",
        ),
    ],
)
def test_hooks_that_look_at_gradients_are_named_in_place(module, callbacks, named):
    with pytest.warns(UserWarning, match=rf"there are no gradients, so {named} will find `.grad` None") as said:
        fit(module(), {"update": "in_place"}, callbacks=callbacks, max_steps=1)
    assert sum("there are no gradients" in str(one.message) for one in said) == 1
    if not callbacks:
        fit(module(), {"update": "optimizer"}, max_steps=1)  # a warning would be an error


def test_hooks_that_need_no_gradients_are_not_named():
    callbacks = [GradientAccumulationScheduler({0: 1}), LambdaCallback(on_train_start=lambda *_: None)]
    module, clipped = Counting(), Classifier()
    fit(module, {"update": "in_place"}, callbacks=callbacks)
    fit(clipped, {"update": "in_place"}, gradient_clip_val=0.1)
    assert module.count == 4
    assert_same_weights(weights(module), weights(clipped))
