"""What sigma, learning rate and population do to a run, and what its log shows of that: the pictures of docs/tuning.md.

``python -m benchmarks.tuning [--generations 400] [--seeds 3] [--pictures docs/pictures] [--output results.json]``

The digits network (4,810 weights) learns from accuracy alone, so that members can tie, with AdamW. Every run changes
one setting of the same start. ``evo/ties`` is the share of members whose fitness another one has, too.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from benchmarks._measure import show, write
from benchmarks.evolution_vs_backprop import ByAccuracy
from examples.digits.digits import Digits, DigitsClassifier
from lightning_evo import EvoStrategy
from lightning_evo.algorithms.shaping import centered_ranks
from lightning_evo.curves.groups import grouped
from lightning_evo.curves.picture import draw_groups
from lightning_evo.curves.runs import Run, read_run

ALONE, TIES = "accuracy", "accuracy, ties by the loss"
GOOD: dict[str, Any] = {"sigma": 0.05, "learning_rate": 0.02, "population": 64, "fitness": ALONE}
SERIES: dict[str, tuple[Any, ...]] = {
    "sigma": (0.0005, 0.05, 1.0),
    "learning_rate": (0.0005, 0.02, 0.5),
    "population": (8, 64),
    "fitness": (ALONE, TIES),
}
METRICS = ("val_acc", "evo/ties", "evo/fitness_std", "evo/update_norm")


class Ties(L.Callback):
    """Logs how many members of a generation tie, and passes their ranks on."""

    def __init__(self) -> None:
        self.share = 0.0

    def shaping(self, fitness: Tensor, members_per_direction: int) -> Tensor:
        _, counts = fitness.unique(return_counts=True)
        self.share = float(counts[counts > 1].sum() / len(fitness))
        return centered_ranks(fitness, members_per_direction)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        alike = not trainer.callback_metrics["evo/fitness_std"]  # then nothing is shaped
        module.log("evo/ties", 1.0 if alike else self.share)


def run(settings: dict[str, Any], seed: int, generations: int, folder: Path) -> Run:
    """One training, as its log has it."""
    L.seed_everything(seed, verbose=False)
    ties = Ties()
    strategy = EvoStrategy(
        population=settings["population"], sigma=settings["sigma"], shaping=ties.shaping, scaling="gradient"
    )
    logger = CSVLogger(folder)
    trainer = L.Trainer(
        strategy=strategy, max_steps=generations, accelerator="cpu", devices=1, logger=logger, callbacks=[ties],
        check_val_every_n_epoch=2, log_every_n_steps=5, num_sanity_val_steps=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = DigitsClassifier if settings["fitness"] == TIES else ByAccuracy
    trainer.fit(module(learning_rate=settings["learning_rate"]), datamodule=Digits())
    logged = read_run(logger.log_dir)
    return Run(logged.folder, logged.curves, {**settings, "seed": seed})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="of the start and with a tie breaker; others have one")
    parser.add_argument("--pictures", type=Path, help="folder for tuning_sigma.svg and the others")
    parser.add_argument("--output", type=Path, help="write all results as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    rows, results = [], []
    with tempfile.TemporaryDirectory() as folder:

        def runs_of(settings: dict[str, Any]) -> list[Run]:
            seeds = range(options.seeds if settings["fitness"] == TIES or settings == GOOD else 1)
            return [run(settings, seed, options.generations, Path(folder)) for seed in seeds]

        good = runs_of(GOOD)
        for name, values in SERIES.items():
            runs = [one for v in values for one in (good if v == GOOD[name] else runs_of({**GOOD, name: v}))]
            groups = grouped(runs)
            for group in groups:
                last = {metric: [_end(run.curve(metric)) for run in group.runs] for metric in METRICS}
                results.append({"settings": group.label, "runs": len(group.runs), "last": last})
                rows.append([group.label, *(f"{statistics.median(last[metric]):.3g}" for metric in METRICS)])
            if options.pictures is not None:
                options.pictures.mkdir(parents=True, exist_ok=True)
                draw_groups(groups, METRICS, options.pictures / f"tuning_{name}.svg", logarithmic=["evo/update_norm"])
    show(f"After {options.generations} generations (means of the last fifth)", ["settings", *METRICS], rows)
    write(options.output, "tuning", generations=options.generations, results=results)


def _end(curve: list[tuple[int, float]]) -> float:
    """The mean of a curve's last fifth."""
    last = [value for _, value in curve[-max(1, len(curve) // 5) :]]
    return statistics.fmean(last)


if __name__ == "__main__":
    main()
