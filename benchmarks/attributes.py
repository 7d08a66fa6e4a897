"""Data in attributes of a module: what it costs that members are kept from changing it.

``python -m benchmarks.attributes [--generations 1024] [--quick] [--output results.json]``

The network of :mod:`benchmarks.digits` with low-rank noise and 64 members, in modules that also hold a vocabulary of
100,000 words, 200,000 rows of a table, 50,000 records, 20,000 small tensors, or an array of 10 million numbers. All
that a module can reach is compared in generations 0, 1, 2, 4, 8, …, and costs nothing in the others. The modules take
turns, generation by generation. *Median* is of a generation's time, *mean* of all generations together, those that
compare included; both are relative to the module that holds nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from benchmarks._measure import interleaved, show, write
from lightning_evo.generation.evolution import Evolution

HELD: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "vocabulary of 100,000": lambda: {f"token{i}": i for i in range(100_000)},
    "200,000 rows": lambda: [(i, i + 1, float(i)) for i in range(200_000)],
    "50,000 records": lambda: [{"text": "a", "label": i} for i in range(50_000)],
    "20,000 small tensors": lambda: [torch.zeros(64) for _ in range(20_000)],
    "array of 10 million": lambda: numpy.zeros(10_000_000, dtype=numpy.float32),
}


class Holding(nn.Module):
    """A small network, and something in an attribute."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
        self.held = held

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The cross-entropy."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])


def generation(held: Any) -> Callable[[], None]:
    """Runs one generation of a module that holds something."""
    module = Holding(held)
    evolution = Evolution("eggroll", population=64, sigma=0.05, seed=0)
    evolution.setup(module)
    batch = torch.randn(256, 64), torch.randint(10, (256,))

    def run() -> None:
        evolution.evaluate(lambda batch: -module.loss(batch), batch)
        evolution.conclude().apply()

    return run


def measure(generations: int) -> dict[str, dict[str, float]]:
    """Median and mean milliseconds of each module's generations, and both relative to the one that holds nothing."""
    times = interleaved({name: generation(make()) for name, make in HELD.items()}, generations, warmup=0)
    found = {
        name: {"median": statistics.median(each) * 1e3, "mean": statistics.fmean(each) * 1e3}
        for name, each in times.items()
    }
    nothing = found["nothing"]
    return {
        name: {**each, **{f"{key}_ratio": each[key] / nothing[key] for key in ("median", "mean")}}
        for name, each in found.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=1024)
    parser.add_argument("--quick", action="store_true", help="fewer generations")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # what is compared is Python's work
    generations = 128 if arguments.quick else arguments.generations
    found = measure(generations)
    rows = [
        [
            name,
            f"{each['median']:.2f}",
            f"{each['mean']:.2f}",
            f"{each['median_ratio']:.2f}",
            f"{each['mean_ratio']:.2f}",
        ]
        for name, each in found.items()
    ]
    headings = ["the module holds", "median ms", "mean ms", "median / nothing", "mean / nothing"]
    show(f"{generations:,} generations", headings, rows)
    write(arguments.output, "attributes", generations=generations, rows=found)


if __name__ == "__main__":
    main()
