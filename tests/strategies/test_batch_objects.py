"""Steps that write into a batch which is an object give the losses of backpropagation."""

from dataclasses import dataclass

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy


@dataclass
class Record:
    x: torch.Tensor


class Graph:
    """As those of torch_geometric: it knows how to go to a device."""

    def __init__(self, x):
        self.x = x

    def to(self, device, non_blocking=False):
        self.x = self.x.to(device)
        return self


def rows(x):
    """An object for each sample."""
    return [Graph(row.clone()) for row in x]


class Module(L.LightningModule):
    def __init__(self, replaces):
        super().__init__()
        self.net, self.replaces, self.seen = nn.Linear(3, 3), replaces, []

    def training_step(self, batch, batch_idx):
        values = []
        for each in batch if isinstance(batch, list) else [batch]:
            if self.replaces:
                each.x = self.net(each.x)
            else:
                each.x.mul_(2)
            values.append(each.x if self.replaces else self.net(each.x))
        loss = torch.cat(values).square().mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        batch = batch if isinstance(batch, list) else [batch]
        self.seen.append((float(outputs["loss"]), [float(each.x.detach().sum()) for each in batch]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def run(strategy, kind, replaces):
    torch.manual_seed(0)
    module = Module(replaces)
    loader = DataLoader(list(torch.randn(8, 3)), batch_size=4, collate_fn=lambda rows: kind(torch.stack(rows)))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(strategy=strategy, max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, loader)
    return module.seen


@pytest.mark.parametrize("evaluation", ["plain", "in_forward", "batched"])
@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("kind", [Record, Graph, rows])
def test_losses_and_batches_are_those_of_backpropagation(kind, replaces, evaluation):
    evo = EvoStrategy(population=4, evaluation=evaluation)
    assert run(evo, kind, replaces) == run("auto", kind, replaces)
    assert evo.evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
