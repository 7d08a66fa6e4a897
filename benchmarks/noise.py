"""How fast noise is made on this machine, and whether keeping it would be faster than making it again.

``python -m benchmarks.noise [--quick] [--output results.json]``

A tensor of 16,777,216 weights, by default on all cores. The limit is a copy of it. Rows:

* *a pair* writes both members of a pair, ``theta + sigma eps`` and ``theta - sigma eps``, as an evaluation does;
* *update, N directions* is the in-place update of a generation, ``theta + lr sum_d w_d eps_d``, with all noise made
  again; its rate counts each direction;
* *kept noise* does the same work with noise that lies in memory in float32: *add to a sum* is ``sum + w eps`` for a
  direction, in place; *update, 1 direction* is ``theta + lr eps``;
* *torch.normal_* draws from torch's global generator, as scripts for MeZO and evolution strategies do.

**What this decides.** An update could be summed up while members are evaluated, if their noise were kept until their
fitness is known: four bytes a weight for the noise, four more for the sum. That saves making the noise again, and
costs writing it once, reading it, and reading and writing the sum. It pays only where *kept noise, add to a sum* is
several times faster than *update* for each of its directions.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._measure import interleaved, show, write
from benchmarks._models import DTYPES
from lightning_evo import kernels
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.perturbations import Dense, Moving, Part

LIMIT = "copy"
DIRECTIONS = 8


def rows(elements: int, dtype: torch.dtype) -> dict[str, tuple[int, Callable[[], object]]]:
    """Each row's call, and the noise values that it stands for, in units of the tensor's size."""
    center = torch.randn(elements).to(dtype).view(-1, 1 << 12)
    noise, total = torch.randn(elements), torch.zeros(elements)
    outs = torch.empty(2, *center.shape, dtype=dtype)
    key = NoiseKey(seed=0, generation=0)
    perturbation = Dense(key)

    def pair() -> object:
        return perturbation.members([0], [1e-3, -1e-3], [Part(0, center, out=outs.flatten(1))])[0]

    def update(directions: int) -> object:
        return perturbation.move([1.0] * directions, [Moving(0, center, 1e-9)], key)

    found: dict[str, tuple[int, Callable[[], object]]] = {
        LIMIT: (1, lambda: outs[0].copy_(center)),
        "a pair": (1, pair),
        "update, 1 direction": (1, lambda: update(1)),
        f"update, {DIRECTIONS} directions": (DIRECTIONS, lambda: update(DIRECTIONS)),
        "kept noise, add to a sum": (1, lambda: total.add_(noise, alpha=0.5)),
        "torch.normal_": (1, lambda: noise.normal_()),
    }
    if dtype == torch.float32:  # others need rounding, which is not one call
        found["kept noise, update, 1 direction"] = (1, lambda: center.view(-1).add_(noise, alpha=1e-9))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--tiny", action="store_true", help="a small tensor, to see that everything runs")
    parser.add_argument("--repeats", type=int, help="rounds that count (default 25, quick 5)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)
    if not isinstance(kernels.backend_for(torch.empty(1)), kernels.Native):
        parser.exit(1, "The noise kernels are needed: a C++ compiler, and LIGHTNING_EVO_KERNELS=auto or native.\n")
    elements = 1 << (14 if options.tiny else 24)
    repeats = options.repeats or (5 if options.quick or options.tiny else 25)

    results = []
    for dtype in DTYPES:
        chosen = rows(elements, DTYPES[dtype])
        times = interleaved({name: call for name, (_, call) in chosen.items()}, repeats, warmup=2)
        rate = {name: work * elements / statistics.median(times[name]) for name, (work, _) in chosen.items()}
        measured = [
            {
                "row": name,
                "seconds": times[name],
                "values_per_second": rate[name],
                "of_copy": rate[name] / rate[LIMIT],
            }
            for name in chosen
        ]
        results.append({"dtype": dtype, "elements": elements, "rows": measured})
        show(
            f"{elements:,} weights, {dtype}, {torch.get_num_threads()} threads",
            ("row", "10^9 values/s", "of a copy"),
            [(name, f"{rate[name] / 1e9:.2f}", f"{rate[name] / rate[LIMIT]:.2f}") for name in chosen],
        )
    write(options.output, "noise", results=results)


if __name__ == "__main__":
    main()
