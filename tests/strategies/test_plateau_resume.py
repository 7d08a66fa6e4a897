"""A run with ReduceLROnPlateau that is resumed from the end of an epoch has the learning rates of the whole run."""

import lightning as L
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import EvoStrategy
from tests.strategies.models import assert_same_weights, trainer, weights


def data():
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)


class Classifier(L.LightningModule):
    """What is monitored never counts as better, so every second epoch lowers the learning rate."""

    def __init__(self, monitor="loss", **config):
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.monitor, self.config = monitor, config

    def training_step(self, batch, batch_idx):
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def scheduler(self, optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, threshold=1e9)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        config = {"scheduler": self.scheduler(optimizer), "monitor": self.monitor, **self.config}
        return {"optimizer": optimizer, "lr_scheduler": config}


class Steps(Classifier):
    """A scheduler of epochs that monitors nothing."""

    def scheduler(self, optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2)


class Own(Classifier):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(metric)


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def run(module, folder, strategy=None, path=None, validate=False, **options):
    seed_everything(0, verbose=False)
    rates = Rates()
    checkpoints = ModelCheckpoint(
        folder, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=not validate, enable_version_counter=False
    )
    t = trainer(
        strategy or EvoStrategy(population=4, seed=0, **options),
        callbacks=[rates, checkpoints],
        enable_checkpointing=True,
        max_epochs=6,
        max_steps=-1,
    )
    t.fit(module, data(), data() if validate else None, ckpt_path=path)
    return rates.seen, weights(module)


CASES = {
    "at the end of an epoch": (lambda: Classifier(), False),
    "at the end of a validation": (lambda: Classifier("val_loss"), True),
    "every second epoch": (lambda: Classifier(frequency=2), False),
    "without a metric": (lambda: Steps(), False),
}


@pytest.mark.filterwarnings("ignore:You called `self.log", "ignore:You defined a `validation_step`")
@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize("case", CASES)
def test_learning_rates_go_on(case, update, tmp_path):
    make, validate = CASES[case]
    expected, _ = run(make(), tmp_path / "backpropagation", "auto", validate=validate)
    whole, end = run(make(), tmp_path / "whole", update=update, validate=validate)
    assert whole == expected  # to look ahead for a checkpoint changes nothing
    assert len(set(whole)) > 1
    for epoch in range(4):
        path = tmp_path / "whole" / f"epoch={epoch}.ckpt"
        rates, resumed = run(make(), tmp_path / f"{epoch}", path=path, update=update, validate=validate, journal=False)
        # Lightning before 2.5 starts an epoch again whose validation it has resumed from, without a batch of it.
        assert rates[epoch - 5 :] == whole[epoch + 1 :]
        assert_same_weights(resumed, end)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize(
    ("make", "validate"),
    [(lambda: Classifier("loss"), True), (lambda: Own("loss"), False)],
    ids=["train metric", "own"],
)
def test_where_the_step_of_one_epoch_is_missed_as_with_backpropagation(make, validate, tmp_path):
    """The validation ends before the epoch's training metrics are there; a module's own step may do anything."""
    whole, _ = run(make(), tmp_path / "whole", validate=validate)
    for name, strategy in (("evo", None), ("backpropagation", "auto")):
        run(make(), tmp_path / name, strategy, validate=validate)
        path = tmp_path / name / "epoch=1.ckpt"
        rates, _ = run(make(), tmp_path / f"{name} resumed", strategy, path=path, validate=validate)
        assert rates != whole[2:]
        assert rates[1:] == pytest.approx(whole[2:-1])
