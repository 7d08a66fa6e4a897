"""The demo: digits learnt from accuracy, with ties broken by the loss."""

import csv
import sys
import warnings

import pytest
import torch

from benchmarks.evolution_vs_backprop import run
from lightning_evo.cli.command import main


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_demo_at_a_small_size(tmp_path, capsys, monkeypatch, one_thread):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(
            [
                *("fit", "--config", "examples/digits/config.yaml", "--trainer.max_epochs=20"),
                *(f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.callbacks=null"),
                *(
                    "--trainer.callbacks+=lightning_evo.callbacks.EvolutionMonitor",
                    "--trainer.callbacks.metric=val_acc",
                ),
                "--trainer.enable_progress_bar=false",
            ]
        )
    text = capsys.readouterr().out
    for name in ("val_acc (held out), generation 100", "generations", "members per second", "peak memory"):
        assert name in text
    folder = tmp_path / "digits" / "version_0"
    assert f"Learning curve: {folder / 'learning_curve.png'}" in text.replace("\n", "")
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_acc"]]
    assert float(rows[-1]["val_acc"]) > 0.55
    assert float(rows[-1]["val_acc"]) > float(rows[0]["val_acc"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_95_percent_held_out_accuracy_from_accuracy(one_thread, seed):
    """By every seed, within 1,250 steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run("evolution of accuracy, ties by the loss", seed, target=0.95, max_epochs=250)["val_acc"] >= 0.95
