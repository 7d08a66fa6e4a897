"""How much of a forward pass's speed evolution keeps on a language model; also of two published loops and AdamW.

``python -m benchmarks.engine [--quick] [--output results.json]``

A GPT-2 of 23M parameters (6 layers, 512 wide, 8 heads, 8,192 tokens in the vocabulary), randomly initialised. A *member
evaluation* is the mean cross-entropy of one batch: 4 or 16 sequences of 128 tokens. The limit, 100 %, is the same
function under ``torch.inference_mode()`` with unperturbed weights. Every other row includes all that a generation
needs: noise, forward passes, shaping and the update of the weights. A step of AdamW counts as one evaluation, so its
share says how many forward passes a step costs. ``N batches at once`` is the plain forward pass of a whole population's
tokens in one call, the limit of what evaluating members together can reach.

Every row has a process of its own, like a training run, in which it takes turns with the plain forward pass of 2 to 8
batches, one after the other. The speed of a machine that others use, too, changes within seconds, so a share is the
median over the rounds of the row's rate divided by the forward's before and after it; ``middle half`` is the range of
the middle half of the rounds. The row of the plain forward itself shows how well that works. A warm-up round, which
also compiles (``LIGHTNING_EVO_KERNELS=auto``), is not counted.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import paired, show, write
from benchmarks._models import DTYPES, Likelihood, gpt2, parameters, tokens
from benchmarks._published import Backpropagation, ESAtScale, MeZO
from lightning_evo.generation.evolution import Evolution

LIMIT = "plain forward"


@dataclass(frozen=True)
class Row:
    """A way of evaluating members.

    Attributes:
        members: Member evaluations in one call.
        prepare: Makes the call, from a model and a batch.
    """

    members: int
    prepare: Callable[[nn.Module, Tensor], Callable[[], object]]


def forward(members: int = 1) -> Row:
    """The limit: the fitness alone, of one batch or of several in one call."""

    def prepare(model: nn.Module, batch: Tensor) -> Callable[[], object]:
        fitness, together = Likelihood(model), batch.repeat(members, 1)

        @torch.inference_mode()
        def run() -> None:
            float(fitness(together))

        return run

    return Row(members, prepare)


class Generation:
    """One of our generations with an in-place update, as a call."""

    def __init__(self, evolution: Evolution, model: nn.Module, batch: Tensor) -> None:
        self.evolution, self.fitness, self.batch = evolution, Likelihood(model), batch

    def __call__(self) -> None:
        """Evaluate, learn, update."""
        self.evolution.evaluate(self.fitness, self.batch)
        self.evolution.conclude().apply()


def evolve(algorithm: str, members: int, **options: Any) -> Row:
    """Generations of ours."""

    def prepare(model: nn.Module, batch: Tensor) -> Generation:
        evolution = Evolution(algorithm, population=members, seed=0, **options)
        evolution.setup(model)
        return Generation(evolution, model, batch)

    return Row(members, prepare)


def how(call: Callable[[], object]) -> str:
    """How a call of ours evaluated its members, and whether what was asked for was possible; empty for the others."""
    return call.evolution.evaluation.summary if isinstance(call, Generation) else ""


def published(method: type[MeZO | ESAtScale | Backpropagation], members: int) -> Row:
    """A step of a yardstick."""

    def prepare(model: nn.Module, batch: Tensor) -> Callable[[], object]:
        step = method(model, Likelihood(model)).step
        return lambda: step(batch)

    return Row(members, prepare)


def rows(population: int) -> dict[str, Row]:
    """All rows; ``population`` is that of the rows with many members."""
    return {
        LIMIT: forward(),
        f"{LIMIT}, {population} batches at once": forward(population),
        "ours, plain, mezo, 2 members": evolve("mezo", 2, evaluation="plain"),
        "ours, in forward, mezo, 2 members": evolve("mezo", 2, evaluation="in_forward"),
        f"ours, in forward, openai_es, {population} members": evolve("openai_es", population, evaluation="in_forward"),
        "ours, batched, mezo, 2 members": evolve("mezo", 2, evaluation="batched"),
        f"ours, batched, openai_es, {population} members": evolve("openai_es", population, evaluation="batched"),
        f"ours, in forward, eggroll rank 1, {population} members": evolve(
            "eggroll", population, rank=1, evaluation="in_forward"
        ),
        f"ours, batched, eggroll rank 1, {population} members": evolve(
            "eggroll", population, rank=1, evaluation="batched"
        ),
        "MeZO's own loop, 2 members": published(MeZO, 2),
        "ES at Scale's own loop, 8 members": published(ESAtScale, 8),
        "backpropagation, AdamW": published(Backpropagation, 1),
    }


@dataclass(frozen=True)
class Case:
    """A model and its batch.

    Attributes:
        dtype: ``"fp32"`` or ``"bf16"``.
        sequences: Of 128 tokens each.
        tiny: Whether to use a miniature model.
    """

    dtype: str
    sequences: int
    tiny: bool = False

    def make(self) -> tuple[nn.Module, Tensor]:
        """The model, initialised at random, and a batch."""
        torch.manual_seed(0)
        shape = (2, 32, 2, 64) if self.tiny else (6, 512, 8, 8192)
        model = gpt2(*shape, dtype=DTYPES[self.dtype])
        return model, tokens(self.sequences, 8 if self.tiny else 128, shape[-1])

    @property
    def rows(self) -> dict[str, Row]:
        """What is measured."""
        return rows(4 if self.tiny else 16)


def measure(case: Case, name: str, repeats: int) -> dict[str, Any]:
    """Time a row together with the plain forward: seconds, evaluations/s, share."""
    torch.set_num_threads(os.cpu_count() or 1)
    model, batch = case.make()
    row = case.rows[name]
    limit, call = forward().prepare(copy.deepcopy(model), batch), row.prepare(model, batch)
    times, forwards = paired(limit, call, repeats, warmup=1, calls=min(max(2, row.members), 8))
    shares = [row.members * one / own for own, one in zip(times, forwards, strict=True)]
    low, share, high = statistics.quantiles(shares, n=4) if repeats > 1 else shares * 3
    return {
        "row": name,
        "members": row.members,
        "seconds": times,
        "forward_seconds": forwards,
        "evaluations_per_second": row.members / statistics.median(times),
        "share_of_forward": share,
        "middle_half": [low, high],
        "how": how(call),
    }


def measure_all(case: Case, repeats: int) -> list[dict[str, Any]]:
    """All rows, each in a process of its own."""
    if case.tiny:
        return [measure(case, name, repeats) for name in case.rows]
    results = []
    with get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        for name, row in case.rows.items():
            rounds = repeats if row.members > 2 else 3 * repeats
            results.append(processes.apply(measure, (case, name, rounds)))
    return results


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case, few repeats")
    parser.add_argument("--tiny", action="store_true", help="a miniature model, to see that everything runs")
    parser.add_argument("--repeats", type=int, help="rounds that count (default 5, for few members 15; quick 2)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    cases = [Case("fp32", 4), Case("bf16", 4), Case("bf16", 16)]
    if options.quick or options.tiny:
        cases = [Case("fp32", 4, options.tiny)]

    results = []
    for case in cases:
        model, batch = case.make()
        measured = measure_all(case, options.repeats or (2 if options.quick or options.tiny else 5))
        results.append({"dtype": case.dtype, "tokens_per_member": batch.numel(), "rows": measured})
        show(
            f"GPT-2 of {parameters(model) / 1e6:.1f}M parameters, {case.dtype}, {batch.numel()} tokens per member",
            ("row", "evaluations/s", "of a plain forward", "middle half"),
            [
                (
                    row["row"],
                    f"{row['evaluations_per_second']:.2f}",
                    f"{row['share_of_forward']:.1%}",
                    " to ".join(f"{share:.1%}" for share in row["middle_half"]),
                )
                for row in measured
            ],
        )
        write(options.output, "engine", parameters=parameters(model), results=results)


if __name__ == "__main__":
    main()
