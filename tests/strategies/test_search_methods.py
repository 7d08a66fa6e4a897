"""Every search under Lightning: a fit that was interrupted goes on as if it had not been, and its journal replays."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import EvoStrategy
from lightning_evo.callbacks import SeedJournal
from lightning_evo.journal.replay import replay

NAMES = ["xnes", "snes", "pgpe", "cem", "differential_evolution", "particle_swarm", "genetic", "deep_ga"]


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)  # of which nothing is used


def fit(name, steps, callbacks=(), **options):
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    # One batch in an epoch: at an epoch's end Lightning resumes with one more batch of it, by backpropagation, too.
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=32)
    module = Linear()
    trainer = L.Trainer(
        strategy=EvoStrategy(name, population=8, seed=3), max_steps=steps, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, loader, **options)
    return trainer, module


@pytest.mark.parametrize("name", NAMES)
def test_resumes_and_replays(name, tmp_path):
    start = {key: value.clone() for key, value in Linear().state_dict().items()}
    journal = SeedJournal(tmp_path / "journal")
    _, whole = fit(name, 8, [journal])
    trainer, _ = fit(name, 4)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(name, 8, ckpt_path=tmp_path / "half.ckpt")
    replayed = replay(start, journal.path)["state_dict"]
    for key, value in whole.state_dict().items():
        assert not torch.equal(value, start[key])
        assert torch.equal(value, resumed.state_dict()[key])
        assert torch.equal(value, replayed[key])
