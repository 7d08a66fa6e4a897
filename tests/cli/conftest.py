"""A folder of its own for each test of the command line, and a run with a journal."""

import logging
import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_evo import EvoStrategy


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # LightningCLI saves its configuration here
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))


@pytest.fixture(scope="session")
def journaled(tmp_path_factory):
    """A folder with a run's journal, its first checkpoint, and the weights at its end."""
    folder = tmp_path_factory.mktemp("journaled")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(0)
    module = BoringModel()
    trainer = L.Trainer(
        strategy=EvoStrategy("mezo", sigma=0.01, update="in_place", seed=1), max_steps=12, accelerator="cpu",
        devices=1, logger=False, callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4,
        save_top_k=-1)], limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    torch.save(module.state_dict(), folder / "end.pt")
    return folder
