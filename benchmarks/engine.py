"""How much of a plain forward pass's speed evolution keeps on a language model, beside two published loops and AdamW.

``python -m benchmarks.engine [--quick] [--output results.json]``

A GPT-2 of 23M parameters (6 layers, 512 wide, 8 heads, 8,192 tokens in the vocabulary), randomly initialised. A *member
evaluation* is the mean cross-entropy of one batch: 4 or 16 sequences of 128 tokens. The limit, 100 %, is the same
function under ``torch.inference_mode()`` with unperturbed weights. Every other row includes all that a generation
needs: noise, forward passes, shaping and the update of the weights. A step of AdamW counts as one evaluation, so its
share says how many forward passes a step costs. ``N batches at once`` is the plain forward pass of a whole population's
tokens in one call, the limit of what evaluating members together can reach.

Rows take turns within one process, after warm-up rounds which also compile (``LIGHTNING_EVO_COMPILE=1``), so compiling
is not part of any figure; a share is the ratio of two medians of one run. Each row has a model of its own.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import interleaved, rates, show, write
from benchmarks._models import DTYPES, Likelihood, gpt2, parameters, tokens
from benchmarks._published import Backpropagation, ESAtScale, MeZO
from lightning_evo.evolution import Evolution

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
    """A generation of ours with an in-place update, as a call."""

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


def measure(model: nn.Module, batch: Tensor, population: int, repeats: int, warmup: int) -> list[dict[str, Any]]:
    """Time all rows, each on a copy of the model: seconds of each repeat, evaluations/s, share of the limit."""
    chosen = rows(population)
    calls = {name: row.prepare(copy.deepcopy(model), batch) for name, row in chosen.items()}
    times = interleaved(calls, repeats, warmup)
    rate = rates(times, {name: row.members for name, row in chosen.items()})
    return [
        {
            "row": name,
            "members": row.members,
            "seconds": times[name],
            "evaluations_per_second": rate[name],
            "share_of_forward": rate[name] / rate[LIMIT],
            "how": how(calls[name]),
        }
        for name, row in chosen.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case, few repeats")
    parser.add_argument("--tiny", action="store_true", help="a miniature model, to see that everything runs")
    parser.add_argument("--repeats", type=int, help="rounds that count (default 5, 3 of 2,048 tokens; quick 2)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    os.environ.setdefault("LIGHTNING_EVO_COMPILE", "1")
    torch.set_num_threads(os.cpu_count() or 1)
    quick = options.quick or options.tiny
    shape = (2, 32, 2, 64) if options.tiny else (6, 512, 8, 8192)
    population = 4 if options.tiny else 16
    cases = [("fp32", 4), ("bf16", 4), ("bf16", 16)][: 1 if quick else 3]

    results = []
    for dtype, sequences in cases:
        torch.manual_seed(0)
        model = gpt2(*shape, dtype=DTYPES[dtype])
        batch = tokens(sequences, 8 if options.tiny else 128, shape[-1])
        repeats = options.repeats or (2 if quick else 5 if sequences == 4 else 3)
        measured = measure(model, batch, population, repeats, warmup=1)
        results.append({"dtype": dtype, "tokens_per_member": batch.numel(), "rows": measured})
        show(
            f"GPT-2 of {parameters(model) / 1e6:.1f}M parameters, {dtype}, {batch.numel()} tokens per member",
            ("row", "evaluations/s", "of a plain forward"),
            [
                (row["row"], f"{row['evaluations_per_second']:.2f}", f"{row['share_of_forward']:.1%}")
                for row in measured
            ],
        )
        write(options.output, "engine", parameters=parameters(model), results=results)


if __name__ == "__main__":
    main()
