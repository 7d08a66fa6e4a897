"""What bounds the engine: where the time goes that evolution takes beyond a forward pass.

``python -m benchmarks.overhead [--quick] [--output results.json]``

**On the language model** of :mod:`benchmarks.engine`, dense noise, milliseconds per member evaluation:

- *forward*: the limit, a plain forward pass under ``torch.inference_mode()``;
- *through Python*: what the same pass takes longer when every torch function passes through a ``Perturbed``, which is
  how members get their weights; here of another module;
- *noise*: in the kernels that read a weight, make its noise and write the member's;
- *rest*: what is left of the evaluation: calls, caches that noise has emptied, larger tensors of members together;
- *update*: shaping, and moving the weights.

*Share* is the forward over the sum. Each row has a process of its own; the parts of a row take turns.

**On the digits** of :mod:`benchmarks.digits`, milliseconds per generation of 256 members: a whole generation with
dense noise, and by how much less there could be at most: the matrix products and biases of its two layers alone, on
weights that lie ready, and those with the activation between them. No program that computes 256 different networks in
float32 with the same library of matrix products can be faster than its products.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks import digits
from benchmarks._measure import interleaved, seconds, show, write
from benchmarks._models import Likelihood
from benchmarks.engine import Case, forward, how
from lightning_evo.algorithms import get
from lightning_evo.evaluation.ways.layouts import OneMember
from lightning_evo.evaluation.ways.perturbed import Perturbed
from lightning_evo.kernels import Native
from lightning_evo.spaces.search_space import SearchSpace

PARTS = ("forward", "through Python", "noise", "rest", "update")


def parts(case: Case, name: str, repeats: int) -> dict[str, Any]:
    """Seconds of a member evaluation of ours, in parts; medians of the rounds."""
    torch.set_num_threads(os.cpu_count() or 1)
    model, batch = case.make()
    row, plain = case.rows[name], copy.deepcopy(model)
    limit, generation = forward().prepare(plain, batch), row.prepare(model, batch)
    evolution, calls = generation.evolution, min(row.members, 4)
    through_python = _through_python(Likelihood(plain), batch)
    noise = 0.0

    def timed(make: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            nonlocal noise
            start = time.perf_counter()
            make(*arguments)
            noise += time.perf_counter() - start

        return run

    generation()
    rounds = []
    members, chosen_rows = timed(Native.members), timed(Native.chosen_rows)
    with mock.patch.object(Native, "members", members), mock.patch.object(Native, "chosen_rows", chosen_rows):
        for _ in range(1 + repeats):  # the first warms up
            one = seconds(lambda: [limit() for _ in range(calls)]) / calls
            mode = seconds(lambda: [through_python() for _ in range(calls)]) / calls - one
            noise = 0.0
            evaluation = seconds(lambda: evolution.evaluate(generation.fitness, generation.batch)) / row.members
            update = seconds(lambda: evolution.conclude().apply()) / row.members
            made = noise / row.members
            rounds.append((one, mode, made, evaluation - one - mode - made, update))
    medians = dict(zip(PARTS, map(statistics.median, zip(*rounds[1:], strict=True)), strict=True))
    share = statistics.median(one / (one + sum(others)) for one, *others in rounds[1:])
    return {"row": name, "members": row.members, "seconds": medians, "share": share, "how": how(generation)}


def _through_python(fitness: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> Callable[[], None]:
    algorithm = get("openai_es")(population=2)
    population = algorithm.ask(algorithm.init(seed=0))
    none_of_it = SearchSpace(nn.Linear(1, 1))

    @torch.no_grad()
    def run() -> None:
        with Perturbed(none_of_it, population, [0], OneMember()):
            float(fitness(batch))

    return run


def digits_limits(population: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of a generation on the digits, and of what can't be left out of it."""
    torch.set_num_threads(os.cpu_count() or 1)
    make, sigma, learning_rate = digits.CONTESTANTS["ours, dense"]
    contestant = make(digits.initial_weights(0), population, sigma, learning_rate)
    batches = digits.Data(256).batches(0)
    images = next(batches)[0]
    group = min(population, 128)
    stacks = [(torch.randn(group, i, o), torch.randn(group, 1, o)) for i, o in ((64, 128), (128, 10))]

    @torch.inference_mode()
    def layers(activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for _ in range(population // group):
            hidden = torch.baddbmm(stacks[0][1], images.expand(group, -1, -1), stacks[0][0])
            torch.baddbmm(stacks[1][1], activation(hidden), stacks[1][0])

    rows = {
        "generation, dense noise": lambda: contestant.generation(*next(batches)),
        "products and activation alone": lambda: layers(torch.relu),
        "products alone": lambda: layers(lambda hidden: hidden),
    }
    return interleaved(rows, repeats, warmup=3, calls=5)


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case, few repeats")
    parser.add_argument("--tiny", action="store_true", help="a miniature model, to see that everything runs")
    parser.add_argument("--repeats", type=int, help="rounds that count (default 7, quick 2)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    small = options.quick or options.tiny
    repeats = options.repeats or (2 if small else 7)
    cases = [Case("fp32", 4, options.tiny)] if small else [Case("fp32", 4), Case("bf16", 4), Case("bf16", 16)]

    results = []
    for case in cases:
        names = [name for name in case.rows if name.startswith(("ours, in forward", "ours, batched"))]
        names = [name for name in names if "eggroll" not in name]
        if case.tiny:
            measured = [parts(case, name, repeats) for name in names]
        else:
            with get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
                measured = [processes.apply(parts, (case, name, repeats)) for name in names]
        tokens = case.make()[1].numel()
        results.append({"dtype": case.dtype, "tokens_per_member": tokens, "rows": measured})
        show(
            f"{case.dtype}, {tokens} tokens per member: milliseconds per member evaluation",
            ("row", *PARTS, "share"),
            [
                (row["row"], *(f"{1e3 * row['seconds'][part]:.1f}" for part in PARTS), f"{row['share']:.1%}")
                for row in measured
            ],
        )
    times = digits_limits(8 if options.tiny else 256, repeats)
    show(
        "Digits: milliseconds per generation",
        ("what", "milliseconds"),
        [(name, f"{1e3 * statistics.median(values):.1f}") for name, values in times.items()],
    )
    write(options.output, "overhead", results=results, digits_seconds=times)


if __name__ == "__main__":
    main()
