"""Ten thousand tiny in-place updates in bfloat16: stochastic rounding follows float32, nearest rounding stalls.

``python -m benchmarks.rounding [--generations 10000] [--quick] [--output results.json]``

The model is one vector of 256 weights between 1 and 2, where neighbouring bfloat16 numbers are 2^-7 apart. Fitness is
linear, ``<c, w>`` with every ``c_i`` between 0.5 and 1.5, and the learning rate is such that a step (mezo, two members)
is a small part of that distance. Three runs see the same noise:

- float32, the truth;
- bfloat16 with :meth:`AlongDirections.apply`, which rounds stochastically;
- bfloat16 with the same steps rounded to nearest, as ``parameter.add_(step)`` does.

With a linear fitness no run corrects itself: an error of rounding stays, which is the hardest case. The steps
of all runs are then nearly the same, so the error of stochastic rounding is a random walk whose variance is known: a
step ``s`` between two numbers ``u`` apart adds at most ``|s| u``. *Error / expected* is the root mean square distance
of the weights to the float32 run's, divided by the root of that sum, and should be near 1; *progress* is what the
fitness has gained, relative to the float32 run's, with the deviation that the random walk is expected to add.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import show, write
from lightning_evo.generation.evolution import Evolution
from lightning_evo.generation.update import AlongDirections

WEIGHTS = 256
SPACING = 2.0**-7  # of bfloat16 between 1 and 2


def slope() -> Tensor:
    """The fitness gained per unit of each weight, float64 ``[256]``. Odd numbers, so that no two members tie."""
    return torch.rand(WEIGHTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5


class Linear(nn.Module):
    """The weights, and a fitness that is linear in them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        start = torch.rand(WEIGHTS, generator=torch.Generator().manual_seed(0)) * 0.25 + 1.25
        self.weights = nn.Parameter(start.bfloat16().to(dtype))  # the same start in all runs

    def forward(self) -> Tensor:
        """In float64, so that nothing but the weights is rounded."""
        return slope() @ self.weights.double()


def nearest(update: AlongDirections) -> None:
    """Apply an update as plain code would: each weight becomes the number nearest to the sum."""
    for parameter in update.space:
        step = update.estimate(parameter) * update.lesson.learning_rate
        parameter.tensor.data.copy_(parameter.tensor.data.float() + step)


def run(dtype: torch.dtype, generations: int, apply: Callable[[AlongDirections], object]) -> tuple[Tensor, Tensor]:
    """The weights moved from their start ``[256]``, and the sum of the steps' absolute values ``[256]``, float64."""
    model = Linear(dtype)
    start = model.weights.detach().double()
    # A step is learning_rate * |<c, eps>| * |eps_i|, about ten learning rates; the mean step is one learning rate.
    evolution = Evolution("mezo", population=2, sigma=0.05, learning_rate=1.5e-5, seed=0)
    evolution.setup(model)
    travelled = torch.zeros(WEIGHTS, dtype=torch.float64)
    for _ in range(generations):
        evolution.evaluate(lambda batch: model(), None)
        update = evolution.conclude()
        assert isinstance(update, AlongDirections)
        for parameter in update.space:
            travelled += (update.estimate(parameter) * update.lesson.learning_rate).abs().double()
        apply(update)
    return model.weights.detach().double() - start, travelled


def measure(generations: int) -> list[dict[str, Any]]:
    """All three runs: progress and error relative to float32, and to what stochastic rounding is expected to add."""
    truth, travelled = run(torch.float32, generations, AlongDirections.apply)
    expected = float((travelled * SPACING).mean().sqrt())
    step = float(travelled.mean()) / generations
    results = []
    for name, dtype, apply in (
        ("float32", torch.float32, None),
        ("bfloat16, in place (stochastic)", torch.bfloat16, AlongDirections.apply),
        ("bfloat16, rounded to nearest", torch.bfloat16, nearest),
    ):
        moved = truth if apply is None else run(dtype, generations, apply)[0]
        error = float((moved - truth).square().mean().sqrt())
        results.append(
            {
                "row": name,
                "progress": float(slope() @ moved / (slope() @ truth)),
                "progress_expected_deviation": expected * float(slope().norm() / (slope() @ truth)),
                "error": error,
                "error_over_expected": error / expected,
                "step_over_spacing": step / SPACING,
            }
        )
    return results


def main(arguments: list[str] | None = None) -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the generations")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # 256 weights: a second thread would only wait
    generations = options.generations // 10 if options.quick else options.generations
    results = measure(generations)
    show(
        f"{generations:,} updates, each {results[0]['step_over_spacing']:.1%} of the distance between bfloat16 numbers",
        ("weights", "progress", "error", "error / expected"),
        [
            (
                result["row"],
                f"{result['progress']:.1%} +- {result['progress_expected_deviation']:.1%}"
                if "stochastic" in result["row"]
                else f"{result['progress']:.1%}",
                f"{result['error']:.4f}",
                f"{result['error_over_expected']:.2f}",
            )
            for result in results
        ],
    )
    write(options.output, "rounding", generations=generations, results=results)


if __name__ == "__main__":
    main()
