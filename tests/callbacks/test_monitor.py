"""EvolutionMonitor leaves a picture, and values and options that tell its run from others."""

import warnings

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy
from lightning_evo.callbacks import EvolutionMonitor
from lightning_evo.curves.groups import grouped
from lightning_evo.curves.runs import FITNESS, read_run

pytest.importorskip("matplotlib", reason="EvolutionMonitor draws with matplotlib")


class Classifier(L.LightningModule):
    def __init__(self, lr=0.1, note=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layer(batch), batch[:, :3].argmax(1))

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.layer(batch).argmax(1) == batch[:, :3].argmax(1)).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


def fit(folder, strategy, **options):
    torch.manual_seed(0)
    monitor = EvolutionMonitor("val_acc", folder, **options)
    trainer = L.Trainer(
        strategy=strategy, max_epochs=2, callbacks=[monitor], accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder,
    )  # fmt: skip
    data = DataLoader(torch.randn(24, 6), batch_size=8)
    trainer.fit(Classifier(lr=0.05, note=[1, 2]), data, data)
    return monitor


def test_values_and_options_are_written(tmp_path, capsys):
    monitor = fit(tmp_path, EvoStrategy("openai_es", population=8, sigma=0.1, seed=3))
    run = read_run(tmp_path)
    assert [step for step, _ in run.curve(FITNESS)] == [1, 2, 3, 4, 5, 6]
    assert run.curve(FITNESS) == monitor.fitness
    assert run.curve("val_acc") == monitor.validation
    assert [step for step, _ in run.curve("val_acc")] == [3, 6]
    settings = {"lr": 0.05, "strategy.algorithm": "openai_es", "strategy.population": 8, "strategy.sigma": 0.1}
    assert settings.items() <= run.settings.items()
    assert run.settings["strategy.seed"] == 3
    assert "note" not in run.settings
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert f"Learning curve: {tmp_path / 'learning_curve.png'}" in capsys.readouterr().out


def test_runs_that_it_is_compared_with(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "lightning_evo.callbacks.monitor.draw_groups", lambda groups, metrics, *_: drawn.append((groups, metrics))
    )
    fit(tmp_path / "one", EvoStrategy(population=8, seed=1))
    assert not drawn
    fit(tmp_path / "two", EvoStrategy(population=8, seed=2), compare_with=[tmp_path / "one"])
    fit(tmp_path / "three", "auto", compare_with=[tmp_path / "one", str(tmp_path / "two")])
    ((pair, _), (all_three, metrics)) = drawn
    assert [len(group.runs) for group in pair] == [2]
    assert [(group.label, len(group.runs)) for group in all_three] == [("backpropagation", 1), ("openai_es", 2)]
    assert metrics == ["val_acc"]
    runs = [read_run(tmp_path / name) for name in ("one", "two", "three")]
    assert [len(group.runs) for group in grouped(runs)] == [2, 1]


def test_a_picture_of_several_runs(tmp_path):
    fit(tmp_path / "one", EvoStrategy(population=8))
    fit(tmp_path / "two", EvoStrategy(population=4), compare_with=str(tmp_path / "one"))
    assert (tmp_path / "two" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_has_ended_does_not_fail_of_a_picture(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.csv").write_text("step,other_metric\n1,0.5\n")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(tmp_path / "new", EvoStrategy(population=4), compare_with=[tmp_path / "other"])
    expected = "EvolutionMonitor draws this run alone: The runs have no metric in common"
    assert sum(str(warning.message).startswith(expected) for warning in said) == 1
    assert (tmp_path / "new" / "learning_curve.png").exists()


def test_what_holds_no_run_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist. Name a folder"):
        fit(tmp_path / "new", "evo", compare_with=[tmp_path / "nowhere"])
    assert not (tmp_path / "new").exists()
