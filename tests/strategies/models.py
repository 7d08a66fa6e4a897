"""Ordinary Lightning modules that know nothing of evolution."""

from collections import Counter

import lightning as L
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def images(samples: int = 64) -> TensorDataset:
    """Four easy classes of 1 x 6 x 6 images: which quadrant is bright."""
    generator = torch.Generator().manual_seed(0)
    pictures = 0.1 * torch.randn(samples, 1, 6, 6, generator=generator)
    labels = torch.arange(samples) % 4
    for picture, label in zip(pictures, labels, strict=True):
        row, column = 3 * (label // 2), 3 * (label % 2)
        picture[0, row : row + 3, column : column + 3] += 1
    return TensorDataset(pictures, labels)


class ConvNet(L.LightningModule):
    """BatchNorm, Dropout, torchmetrics and every kind of logging."""

    def __init__(self, optimizer=torch.optim.Adam, lr=0.01, dropout=0.1, batch_size=16):
        super().__init__()
        self.optimizer, self.lr, self.batch_size = optimizer, lr, batch_size
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(64, 4)
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)
        self.calls = Counter()
        self.losses = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self.net(x)
        loss = nn.functional.cross_entropy(scores, y)
        self.accuracy(scores, y)
        self.log("loss", loss, prog_bar=True)
        self.log("acc", self.accuracy, on_step=False, on_epoch=True)
        self.log("ones", torch.tensor(1.0), reduce_fx="sum", on_step=False, on_epoch=True)
        self.log("epoch_loss", loss, on_step=False, on_epoch=True)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self):
        return DataLoader(images(), self.batch_size)

    # What the counts of hooks are compared by.
    def on_before_zero_grad(self, optimizer):
        self.calls["on_before_zero_grad"] += 1

    def optimizer_zero_grad(self, *args):
        self.calls["optimizer_zero_grad"] += 1
        super().optimizer_zero_grad(*args)

    def on_before_backward(self, loss):
        self.calls["on_before_backward"] += 1

    def on_after_backward(self):
        self.calls["on_after_backward"] += 1

    def on_before_optimizer_step(self, optimizer):
        self.calls["on_before_optimizer_step"] += 1

    def configure_gradient_clipping(self, *args, **kwargs):
        self.calls["configure_gradient_clipping"] += 1
        super().configure_gradient_clipping(*args, **kwargs)

    def optimizer_step(self, *args, **kwargs):
        self.calls["optimizer_step"] += 1
        super().optimizer_step(*args, **kwargs)

    def lr_scheduler_step(self, *args):
        self.calls["lr_scheduler_step"] += 1
        super().lr_scheduler_step(*args)

    def on_train_batch_end(self, *args):
        self.calls["on_train_batch_end"] += 1


class CallCounter(L.Callback):
    """Counts every call of every hook of a callback."""

    def __init__(self):
        self.calls = Counter()


def _counting(name):
    def hook(self, *args, **kwargs):
        self.calls[name] += 1

    return hook


for _name in dir(L.Callback):
    if _name.startswith("on_") or _name in ("setup", "teardown"):
        setattr(CallCounter, _name, _counting(_name))


def trainer(strategy, **options):
    """A quiet Trainer on the CPU."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 10,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(strategy=strategy, **{**defaults, **options})


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
