"""A training step of the strategy waits for the device once, for the fitness: logging adds nothing."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy
from lightning_evo.isolation import contents
from tests.generation.waits import Waits
from tests.strategies.models import trainer

FITNESS = ("cpu", "generation/scores.results_of")


class Regression(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def fitness_step(self, batch, batch_idx):
        return -(self.layer(batch) - 1).square().mean(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.randn(64, 3), batch_size=8)


class Watch(L.Callback):
    """Counts the waits of one generation, number 3."""

    waits = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 3:
            self.waits = Waits([*module.parameters(), batch])
            self.waits.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 3:
            self.waits.__exit__(None, None, None)
            self.metrics = dict(trainer.callback_metrics)


@pytest.mark.parametrize(("update", "anchor"), [("in_place", None), ("in_place", 0.1), ("optimizer", None)])
def test_a_training_step_waits_once(update, anchor, monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "torch")
    monkeypatch.setattr(contents, "_is_waited_for", lambda tensor: True)
    watch = Watch()
    strategy = EvoStrategy(population=4, sigma=0.1, update=update, anchor=anchor, evaluation="in_forward", seed=0)
    torch.manual_seed(0)
    trainer(strategy, max_steps=4, callbacks=[watch]).fit(Regression())
    assert watch.waits.found == [FITNESS]
    ours = {name for name in watch.metrics if name.startswith("evo/")}
    assert {"evo/update_norm", "evo/fitness_mean", "evo/members_per_second"} <= ours
    assert ("evo/drift" in ours) == (anchor is not None)
    lazily = {"evo/update_norm", "evo/drift"} & ours
    for name in ours:  # what Python has stays with the host, what the device has with the device
        assert watch.waits._is_there(watch.metrics[name]) == (name in lazily), name
        assert watch.metrics[name].dtype == torch.float32
