"""What members leave behind: a run with a learning rate of 0 leaves the module as backpropagation leaves it."""

import functools
import warnings

import lightning as L
import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from lightning_evo import EvoStrategy
from tests.strategies.test_holdings import Plain, data, fit

WAYS = ["auto", "plain", "in_forward", "batched"]


def both(make, evaluation="auto", **options):
    """The module after a run by backpropagation, and after one by evolution."""
    expected = fit(make(), "auto", **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "evaluation='.*' does not work with this module")
        return expected, fit(make(), EvoStrategy(population=8, evaluation=evaluation), **options)


def summary(module):
    return module.trainer.strategy.evolution.evaluation.summary


# --- tensors that escape --------------------------------------------------------------------------------------------


class Meter:
    total, count = 0.0, 0

    def update(self, loss, n):
        self.total = self.total + loss.detach()
        self.count += n


class WithMeter(Plain):
    def __init__(self):
        super().__init__()
        self.meter = Meter()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.meter.update(loss, len(batch[0]))
        return loss

    def left(self):
        return float(self.meter.total), self.meter.count


class Criterion(nn.Module):
    def __init__(self, log):
        super().__init__()
        self.log_function = log

    def forward(self, logits, target):
        loss = functional.cross_entropy(logits, target)
        self.log_function("loss", loss, on_step=False, on_epoch=True)
        return loss


class WithHelper(Plain):
    """A part that was given ``self.log``."""

    def __init__(self):
        super().__init__()
        self.criterion = Criterion(self.log)

    def training_step(self, batch, batch_idx):
        return self.criterion(self.net(batch[0]), batch[1])

    def left(self):
        return float(self.trainer.callback_metrics["loss"])


class WithPartial(WithHelper):
    def __init__(self):
        super().__init__()
        self.criterion = Criterion(functools.partial(self.log, prog_bar=True))


history = []


class WithGlobalList(Plain):
    def on_train_start(self):
        history.clear()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        history.append(loss.detach())
        return loss

    def left(self):
        return torch.stack(history).tolist()


class WithMetricsByName(Plain):
    def __init__(self):
        super().__init__()
        self.metrics = {"accuracy": MulticlassAccuracy(num_classes=3)}

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.metrics["accuracy"].update(logits, batch[1])
        return functional.cross_entropy(logits, batch[1])

    def left(self):
        return float(self.metrics["accuracy"].compute()), self.metrics["accuracy"].update_count


class WithClosure(Plain):
    def __init__(self):
        super().__init__()
        losses = []
        self.remember, self.losses_of = losses.append, lambda: losses

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.remember(loss.detach())
        return loss

    def left(self):
        return torch.stack(self.losses_of()).tolist()


class WithHook(Plain):
    """Activations that a forward hook keeps."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.net.register_forward_hook(lambda module, inputs, output: self.kept.update(last=output.detach()))

    def left(self):
        return self.kept["last"].flatten().tolist()


ESCAPES = [WithMeter, WithHelper, WithPartial, WithGlobalList, WithMetricsByName, WithClosure, WithHook]


@pytest.mark.parametrize("evaluation", WAYS)
@pytest.mark.parametrize("kind", ESCAPES)
def test_what_a_forward_keeps(kind, evaluation):
    expected = fit(kind(), "auto").left()  # before the list of the file is used again
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "evaluation='.*' does not work with this module")
        module = fit(kind(), EvoStrategy(population=8, evaluation=evaluation))
    assert module.left() == pytest.approx(expected, abs=1e-7) if kind is not WithMeter else module.left() == expected


def test_members_do_not_run_together_where_their_tensors_are_kept_out_of_reach():
    out_of_reach = []

    class Keeping(Plain):
        evolution_shared = {"out_of_reach"}

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            out_of_reach.append(loss.detach())
            return loss

    module = fit(Keeping(), EvoStrategy(population=8))
    assert "batched is not possible: a tensor that " in summary(module)
    assert module.trainer.global_step == 4


# --- state that members advance -------------------------------------------------------------------------------------


class Annealer:
    value = 0.0

    def __call__(self):
        self.value += 0.001
        return self.value


class WithState(Plain):
    """A meter, an annealed weight, an array, a generator and a scheduler that ``training_step`` steps."""

    def __init__(self):
        super().__init__()
        self.meter, self.annealer, self.confusion = Meter(), Annealer(), numpy.zeros((3, 3))
        self.generator = torch.Generator().manual_seed(0)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0] + 0.1 * torch.randn(batch[0].shape, generator=self.generator))
        loss = functional.cross_entropy(logits, batch[1]) + self.annealer() * logits.square().mean()
        self.meter.update(loss, len(logits))
        numpy.add.at(self.confusion, (batch[1].numpy(), logits.argmax(1).numpy()), 1)
        self.scheduler.step()
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        optimizer.step()
        return optimizer


@pytest.mark.parametrize("evaluation", WAYS)
def test_state_that_steps_advance(evaluation):
    expected, module = both(WithState, evaluation)
    assert module.meter.count == expected.meter.count == 64
    assert module.confusion.tolist() == expected.confusion.tolist()
    assert module.annealer.value == expected.annealer.value == pytest.approx(0.004)
    assert module.scheduler.last_epoch == expected.scheduler.last_epoch == 4
    assert torch.equal(module.generator.get_state(), expected.generator.get_state())
    assert float(module.meter.total) == pytest.approx(float(expected.meter.total), rel=1e-6)


class WarmingUp(Plain):
    """The learning rate is set in ``training_step``, by the Trainer's optimizers."""

    def training_step(self, batch, batch_idx):
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = 0.9 * group["lr"] + 0.1
        self.seen = [*getattr(self, "seen", []), self.optimizers().param_groups[0]["lr"]]
        return super().training_step(batch, batch_idx)


class Total(L.Callback):
    total = 0


class InCallback(Plain):
    def training_step(self, batch, batch_idx):
        self.trainer.callbacks[0].total += 1
        return super().training_step(batch, batch_idx)


def test_state_that_is_reached_by_the_trainer():
    expected, module = both(WarmingUp)
    assert module.seen == expected.seen
    assert len(module.seen) == 4
    callback = Total()
    fit(InCallback(), EvoStrategy(population=8), callbacks=[callback])
    assert callback.total == 4


class Queue(Plain):
    """A plain tensor that is given other memory, and one that is written to by ``.data``."""

    def __init__(self):
        super().__init__()
        self.queue, self.total = torch.zeros(0, 8), torch.zeros(8)

    def training_step(self, batch, batch_idx):
        self.queue.data = torch.cat([self.queue, batch[0][:4]])
        self.total.data.add_(batch[0].sum(0))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("evaluation", WAYS)
def test_plain_tensors_that_are_written_by_data(evaluation):
    expected, module = both(Queue, evaluation)
    assert module.queue.tolist() == expected.queue.tolist()
    assert len(module.queue) == 16
    assert module.total.tolist() == expected.total.tolist()


# --- teachers -------------------------------------------------------------------------------------------------------


class Teacher(Plain):
    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(8, 3).requires_grad_(False)
        nn.init.zeros_(self.teacher.weight)

    def move(self):
        self.teacher.weight.mul_(0.99).add_(self.net.weight, alpha=0.01)

    @property
    def moved(self):
        return self.teacher.weight

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.move()
        return functional.mse_loss(self.net(batch[0]), functional.linear(batch[0], self.moved))


class ByData(Teacher):
    def move(self):
        self.teacher.weight.data = self.teacher.weight.data * 0.99 + self.net.weight.data * 0.01


class ByDataInPlace(Teacher):
    def move(self):
        self.teacher.weight.data.mul_(0.99).add_(0.01 * self.net.weight.detach().data)


class ByState(Teacher):
    def move(self):
        for old, new in zip(self.teacher.state_dict().values(), self.net.state_dict().values(), strict=True):
            old.copy_(old * 0.99 + new * 0.01)


class ByLoading(Teacher):
    def move(self):
        self.teacher.load_state_dict(self.net.state_dict())


class Hidden(Teacher):
    """In a list, so that it is no part of the module."""

    def __init__(self):
        super().__init__()
        self.hidden = [self.teacher]
        del self.teacher

    def move(self):
        self.hidden[0].weight.mul_(0.99).add_(self.net.weight, alpha=0.01)

    @property
    def moved(self):
        return self.hidden[0].weight


class Averaged(Teacher):
    """By torch's own class."""

    def __init__(self):
        super().__init__()
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        self.average = torch.optim.swa_utils.AveragedModel(self.net, multi_avg_fn=decay)

    def move(self):
        self.average.update_parameters(self.net)

    @property
    def moved(self):
        return self.average.module.weight


@pytest.mark.parametrize("kind", [Teacher, ByData, ByDataInPlace, ByState, ByLoading, Hidden, Averaged])
def test_a_teacher_follows_once_in_a_step(kind):
    expected, module = both(kind)
    assert torch.equal(module.moved, expected.moved)
    if kind not in (ByLoading, Averaged):
        share = (module.moved.norm() / module.net.weight.norm()).detach()
        assert float(share) == pytest.approx(1 - 0.99**4, rel=1e-4)


# --- weights that are no ordinary tensors ---------------------------------------------------------------------------


def frozen(make):
    """A module behind frozen layers."""

    class Behind(Plain):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.backbone = make()

        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(self.net(self.backbone(batch[0]).float()), batch[1])

    return Behind


def of_torchao():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    layer = nn.Linear(8, 8).requires_grad_(False)
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    return layer


def of_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return bitsandbytes.nn.Linear4bit(8, 8, compute_dtype=torch.float32).requires_grad_(False)


class Dynamic(nn.Module):
    """Packed weights of torch.ao, which are no parameters."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated
            self.layers = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})

    def forward(self, x):
        return self.layers(x)


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("graph", torch.eye(8).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.graph, x.t()).t()


@pytest.mark.parametrize("make", [of_torchao, of_bitsandbytes, Dynamic, Graph])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.filterwarnings("ignore:Found 1 module")  # in eval mode
def test_frozen_weights_of_other_kinds(make):
    expected, module = both(frozen(make))
    assert module.trainer.global_step == expected.trainer.global_step == 4
    with torch.no_grad():
        found, wanted = (float(each.training_step(next(iter(data())), 0)) for each in (module, expected))
    assert found == pytest.approx(wanted, rel=1e-6)
