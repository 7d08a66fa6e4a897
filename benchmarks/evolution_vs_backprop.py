"""What evolution costs where backpropagation works, too: the digits network to 95 % held-out accuracy.

``python -m benchmarks.evolution_vs_backprop [--repeats 3] [--target 0.95] [--output results.json]``

Runs are interleaved, one seed after the other, in one process on one thread; the table shows medians. Time includes
validation after every epoch, which all pay alike. A step of evolution runs every image of its batch forward once
for each member and once for the center, whether members run together or not.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path

import lightning as L
import rich
import torch
from rich.table import Table
from torch import Tensor

from examples.digits.digits import Digits, DigitsClassifier
from lightning_evo import EvoStrategy

POPULATION = 64


class ByLoss(DigitsClassifier):
    """The same network without a fitness of its own: evolution then maximises minus the loss."""

    fitness_step = None


class ByAccuracy(DigitsClassifier):
    """The same network by accuracy alone: members that get the same number of images right are equal."""

    def fitness_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().fitness_step(batch, batch_idx).values


MODULES = {
    "backpropagation": ByLoss,
    "evolution of the loss": ByLoss,
    "evolution of accuracy": ByAccuracy,
    "evolution of accuracy, ties by the loss": DigitsClassifier,
}


class StopAt(L.Callback):
    """Stops as soon as held-out accuracy reaches the target."""

    def __init__(self, target: float) -> None:
        self.target = target

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = float(trainer.callback_metrics["val_acc"]) >= self.target


class CountSamples(L.Callback):
    """How many images have gone forward through the network in training.

    Args:
        times: Forward passes of a step.
    """

    def __init__(self, times: int) -> None:
        self.times, self.samples = times, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: list[Tensor], idx: int
    ) -> None:
        self.samples += len(batch[0]) * self.times


def run(method: str, seed: int, target: float, max_epochs: int) -> dict[str, float]:
    """One training to the target: seconds, optimizer steps, samples forward, held-out accuracy."""
    L.seed_everything(seed, verbose=False)
    module = MODULES[method]()
    backpropagation = method == "backpropagation"
    counter = CountSamples(1 if backpropagation else POPULATION + 1)
    trainer = L.Trainer(
        strategy="auto" if backpropagation else EvoStrategy(population=POPULATION, sigma=0.1),
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=[StopAt(target), counter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    trainer.fit(module, Digits())
    return {
        "seconds": time.perf_counter() - start,
        "steps": trainer.global_step,
        "samples_forward": counter.samples,
        "val_acc": float(trainer.callback_metrics["val_acc"]),
    }


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--max-epochs", type=int, default=400)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    methods = list(MODULES)
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for seed in range(options.repeats):
        for method in methods:
            runs[method].append(run(method, seed, options.target, options.max_epochs))

    def median(method: str, key: str) -> float:
        return statistics.median(result[key] for result in runs[method])

    table = Table(title=f"Digits to {options.target:.0%} held-out accuracy, median of {options.repeats} seeds")
    for heading in ("method", "reached", "steps", "samples forward", "relative", "seconds", "relative"):
        table.add_column(heading, justify="left" if heading == "method" else "right", overflow="fold")
    for method in methods:
        reached = sum(result["val_acc"] >= options.target for result in runs[method])
        table.add_row(
            method,
            f"{reached} of {options.repeats}",
            f"{median(method, 'steps'):,.0f}",
            f"{median(method, 'samples_forward'):,.0f}",
            f"{median(method, 'samples_forward') / median(methods[0], 'samples_forward'):,.0f}",
            f"{median(method, 'seconds'):.1f}",
            f"{median(method, 'seconds') / median(methods[0], 'seconds'):,.0f}",
        )
    rich.print(table)
    if options.output:
        record = {
            "benchmark": "evolution_vs_backprop",
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
            "versions": {name: version(name) for name in ("torch", "lightning", "lightning-evo")},
            "target": options.target,
            "runs": runs,
        }
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
