"""What a module may hold: with a learning rate of 0 it ends up as it does by backpropagation."""

import lightning as L
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import wrappers

from lightning_evo import EvoStrategy


def data():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)


class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.0)


def fit(module, strategy, **options):
    torch.manual_seed(1)
    trainer = L.Trainer(
        strategy=strategy, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, data())
    return module


def accuracy(**options):
    return torchmetrics.Accuracy("multiclass", num_classes=3, **options)


METRICS = {
    "classwise": lambda: wrappers.ClasswiseWrapper(accuracy(average=None)),
    "classwise in a collection": lambda: torchmetrics.MetricCollection(
        {"each": wrappers.ClasswiseWrapper(accuracy(average=None)), "all": accuracy()}
    ),
    "extremes": lambda: wrappers.MinMaxMetric(accuracy()),
    "tracker": lambda: wrappers.MetricTracker(accuracy()),
    "bootstrapped": lambda: wrappers.BootStrapper(accuracy(), num_bootstraps=3),
    "running": lambda: wrappers.Running(accuracy(), window=2),
}


class Measured(Plain):
    def __init__(self, metric):
        super().__init__()
        self.metric = metric

    def training_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        if isinstance(self.metric, wrappers.MetricTracker) and not batch_idx:
            self.metric.increment()  # adds a part to the module
        self.metric.update(scores, batch[1])
        return nn.functional.cross_entropy(scores, batch[1])

    def on_train_epoch_end(self):
        self.found = self.metric.compute()


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_metrics_in_wrappers(metric):
    expected, module = (fit(Measured(metric()), strategy) for strategy in ("auto", "evo"))
    assert str(module.found) == str(expected.found)
    assert [name for name, _ in module.named_modules()] == [name for name, _ in expected.named_modules()]


class Resized(Plain):
    """A buffer that gets its size from the first batch, and one that grows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("grown", torch.zeros(2))

    def training_step(self, batch, batch_idx):
        if not len(self.seen):
            self.seen.resize_(8).zero_()
        self.seen += batch[0].mean(0)
        self.grown.resize_(len(self.grown) + 1)[-1] = float(batch_idx)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("evaluation", ["plain", "in_forward", "batched"])
def test_buffers_of_changing_size(evaluation, recwarn):
    expected, module = fit(Resized(), "auto"), fit(Resized(), EvoStrategy(population=8, evaluation=evaluation))
    assert torch.equal(module.seen, expected.seen)
    assert module.grown.tolist() == expected.grown.tolist() == [0, 0, 0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore")  # torch.ao's own
def test_quantisation_aware_training():
    """Whose observers, one for each channel, get their sizes in the first forward."""
    from torch.ao import quantization

    class Aware(Plain):
        def __init__(self):
            super().__init__()
            net = nn.Sequential(quantization.QuantStub(), self.net, quantization.DeQuantStub())
            net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
            self.net = quantization.prepare_qat(net.train())

    expected, module = (fit(Aware(), strategy) for strategy in ("auto", "evo"))
    buffers = dict(module.named_buffers())
    assert any("min_val" in name and len(buffer) == 3 for name, buffer in buffers.items() if buffer.dim())
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffers[name], buffer), name


@torch.library.custom_op("lightning_evo_tests::twice", mutates_args=())
def twice(values: torch.Tensor) -> torch.Tensor:
    return values * 2


class WithoutBatchingRule(Plain):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(twice(self.net(batch[0])), batch[1])


def test_operations_without_a_batching_rule_print_no_line_each_time(capfd):
    module = fit(WithoutBatchingRule(), EvoStrategy(population=8, evaluation="batched"))
    assert module.trainer.strategy.evolution.evaluation.summary == "evaluation: batched, 8 members per forward"
    assert "performance drop" not in "".join(capfd.readouterr())
