"""Everything worth knowing about one large GPU, in one command with a time budget.

``python -m benchmarks.gpu --minutes 8 [--tiny] [--output results.json]``

Needs torch, lightning, transformers and this repository; models have random weights, nothing is downloaded. Sections
run in order of importance, each is skipped with a reason when the remaining time or the memory is too short for it, and
the results are written after each, so that a run that ends early loses only its last section.

- **noise**: GB/s of noise written, compared with a copy of a tensor on the device.
- **throughput** at Qwen3-like shapes of 0.5B, 1.7B and 8B (bfloat16, 4 sequences of 128 tokens per member): members per
  second of dense and low-rank noise, including noise and in-place update, compared with a plain forward pass of one
  batch, of a whole population's batches at once, MeZO's own loop and ES at Scale's.
- **32B**: one generation of full-parameter evolution of Qwen3-32B's shape: peak memory compared with that of a plain
  forward.
- **AdamW**: peak memory of a training step, measured where it fits; if not, calculated from 4 times the weights
  (weights, gradient, two moments, all bfloat16), without activations, and marked so.

``--tiny`` runs every section on miniature shapes, on a CPU, too.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import Unavailable, interleaved, peak, rates, reset_peak, seconds, show, write
from benchmarks._models import parameters, qwen3, tokens
from benchmarks._published import Backpropagation, ESAtScale, MeZO
from benchmarks.engine import LIMIT, Row, evolve, forward, how, published
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw

# Layers, width, heads, key-value heads, width of the feed-forward part. 32B is the published Qwen3-32B.
SHAPES = {
    "0.5B": (24, 1024, 8, 4, 4096),
    "1.7B": (28, 2048, 16, 8, 6144),
    "8B": (36, 4096, 32, 8, 12_288),
    "32B": (64, 5120, 64, 8, 25_600),
}
TIED = ("0.5B", "1.7B")  # as published, the small ones use the embedding as output layer
TINY = (2, 32, 2, 1, 64)


@dataclass
class Machine:
    """Where the sections run, and what is left of the budget.

    Attributes:
        deadline: Of the clock ``time.monotonic``.
        tiny: Whether all shapes are miniatures.
    """

    deadline: float
    tiny: bool
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")

    def require(self, needed_seconds: float, needed_bytes: float = 0.0) -> None:
        """Skip the section if time or memory is short."""
        left = self.deadline - time.monotonic()
        if not self.tiny and left < needed_seconds:
            raise Unavailable(f"needs about {needed_seconds:.0f} s, {max(left, 0):.0f} s are left")
        if self.device == "cuda" and not self.tiny:
            free = torch.cuda.mem_get_info()[0]
            if free < needed_bytes:
                raise Unavailable(f"needs about {needed_bytes / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")

    @contextmanager
    def model(self, size: str) -> Iterator[tuple[nn.Module, Tensor]]:
        """A model with random weights and a batch; both are freed at the end."""
        shape, vocabulary, head = (TINY, 64, 16) if self.tiny else (SHAPES[size], 151_936, 128)
        torch.manual_seed(0)
        model = qwen3(*shape, vocabulary=vocabulary, head_size=head, tied=size in TIED, device=self.device)
        try:
            yield model, tokens(4, 8 if self.tiny else 128, vocabulary, self.device)
        finally:
            model.to("meta")  # frees the weights even where a traceback still holds the model
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()


def weight_bytes(size: str) -> int:
    """Bytes of a shape's weights in bfloat16, counted on a model without memory."""
    return parameters(qwen3(*SHAPES[size], tied=size in TIED, device="meta")) * 2


def noise(machine: Machine) -> dict[str, Any]:
    """GB/s of noise written, and of a copy (bytes written, so a copy moves twice as many)."""
    machine.require(40)
    elements = 1 << (16 if machine.tiny else 28)
    rows: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        source = torch.ones(elements, dtype=dtype, device=machine.device)
        target = torch.empty_like(source)
        name = str(dtype).removeprefix("torch.")
        rows[f"copy, {name}"] = lambda source=source, target=target: target.copy_(source)
        for distribution in ("gaussian", "rademacher"):
            rows[f"{distribution}, {name}"] = lambda distribution=distribution, dtype=dtype: draw(
                NoiseKey(0, 0), [0], 0, 0, elements, distribution=distribution, dtype=dtype, device=machine.device
            )
    times = interleaved(rows, repeats=10, warmup=3)
    work = {name: elements * (2 if "bfloat16" in name else 4) / 1e9 for name in rows}
    rate = rates(times, work)
    show("Noise", ("what", "GB/s"), [(name, f"{value:,.0f}") for name, value in rate.items()])
    return {"elements": elements, "seconds": times, "gigabytes_per_second": rate}


def throughput(machine: Machine, size: str, needed_seconds: float, repeats: int) -> dict[str, Any]:
    """Members per second, all rows on one model (its weights move a little; no figure depends on them)."""
    machine.require(needed_seconds, 2 * weight_bytes(size) + 2**34)
    members = 4 if machine.tiny else 16
    rows: dict[str, Row] = {
        LIMIT: forward(),
        f"{LIMIT}, {members} batches at once": forward(members),
        "ours, in forward, mezo, 2 members": evolve("mezo", 2, evaluation="in_forward"),
        f"ours, in forward, openai_es, {members} members": evolve("openai_es", members, evaluation="in_forward"),
        f"ours, batched, eggroll rank 1, {members} members": evolve("eggroll", members, rank=1, evaluation="batched"),
        "MeZO's own loop": published(MeZO, 2),
        "ES at Scale's own loop, 8 members": published(ESAtScale, 8),
    }
    skipped: dict[str, str] = {}
    with machine.model(size) as (model, batch):
        calls = {name: row.prepare(model, batch) for name, row in rows.items()}
        for name in list(calls):  # a row that does not fit must not take the others with it
            try:
                calls[name]()
            except torch.OutOfMemoryError as error:
                skipped[name] = str(error).splitlines()[0]
                del calls[name]
        times = interleaved(calls, repeats, warmup=1)
        count = parameters(model)
    rate = rates(times, {name: rows[name].members for name in times})
    title = f"{size}: {count / 1e9:.2f}B parameters, {batch.numel()} tokens per member"
    table = [(name, f"{value:,.2f}", f"{value / rate[LIMIT]:.1%}") for name, value in rate.items()]
    show(title, ("row", "evaluations/s", "of a plain forward"), table)
    share = {name: value / rate[LIMIT] for name, value in rate.items()}
    return {
        "parameters": count,
        "tokens_per_member": batch.numel(),
        "seconds": times,
        "evaluations_per_second": rate,
        "share_of_forward": share,
        "how": {name: how(call) for name, call in calls.items()},
        "skipped": skipped,
    }


def memory(machine: Machine, size: str, needed_seconds: float) -> dict[str, Any]:
    """Peak memory and seconds of a plain forward pass, then of a generation, dense and of low rank."""
    machine.require(needed_seconds, 1.15 * weight_bytes(size) + 2**33)
    result: dict[str, Any] = {}
    with machine.model(size) as (model, batch):
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        for name, row in (
            (LIMIT, forward()),
            ("ours, in forward, mezo, 2 members", evolve("mezo", 2, evaluation="in_forward")),
            (
                "ours, batched, eggroll rank 1, 2 members",
                evolve("eggroll", 2, rank=1, shaping="raw", evaluation="batched"),
            ),
        ):
            call = row.prepare(model, batch)
            call()  # compiles, and makes what stays
            reset_peak()
            elapsed = seconds(call)
            result[name] = {"peak": peak(), "seconds": elapsed, "how": how(call)}
            result[name]["of_forward"] = result[name]["peak"] / result[LIMIT]["peak"]
    show(
        f"{size}: weights {weights / 2**30:.1f} GiB",
        ("row", "peak GiB", "of a plain forward", "seconds"),
        [
            (name, f"{row['peak'] / 2**30:.1f}", f"{row['of_forward']:.3f}", f"{row['seconds']:.2f}")
            for name, row in result.items()
        ],
    )
    return {"weights": weights, "rows": result}


def adamw(machine: Machine, size: str, needed_seconds: float) -> dict[str, Any]:
    """Peak memory and seconds of a step of AdamW."""
    machine.require(needed_seconds, 4.5 * weight_bytes(size) + 2**34)
    with machine.model(size) as (model, batch):
        call = published(Backpropagation, 1).prepare(model, batch)
        call()  # makes the moments
        reset_peak()
        elapsed = seconds(call)
        result = {"peak": peak(), "seconds": elapsed, "measured": True}
        del call
    show(f"AdamW, {size}", ("peak GiB", "seconds"), [(f"{result['peak'] / 2**30:.1f}", f"{elapsed:.2f}")])
    return result


def adamw_calculated(sizes: list[str]) -> dict[str, Any]:
    """What AdamW would hold at sizes that were not measured: weights, gradient and two moments; no activations."""
    return {size: {"bytes_without_activations": 4 * weight_bytes(size), "measured": False} for size in sizes}


def main(arguments: list[str] | None = None) -> int:
    """Run the sections that fit the budget; 1 if one failed for another reason than time or memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tiny", action="store_true", help="miniature shapes, to see that everything runs")
    parser.add_argument("--only", nargs="*", help="names of sections")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    os.environ.setdefault("LIGHTNING_EVO_KERNELS", "torch" if options.tiny else "auto")
    machine = Machine(time.monotonic() + options.minutes * 60, options.tiny)
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "noise": lambda: noise(machine),
        "throughput 0.5B": lambda: throughput(machine, "0.5B", 60, repeats=5),
        "memory 32B": lambda: memory(machine, "32B", 90),
        "throughput 8B": lambda: throughput(machine, "8B", 75, repeats=3),
        "throughput 1.7B": lambda: throughput(machine, "1.7B", 60, repeats=5),
        "AdamW 0.5B": lambda: adamw(machine, "0.5B", 15),
        "AdamW 1.7B": lambda: adamw(machine, "1.7B", 20),
        "AdamW calculated": lambda: adamw_calculated(["8B", "32B"]),
    }
    results: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    failed = False
    for name, section in sections.items():
        if options.only and name not in options.only:
            continue
        start = time.monotonic()
        try:
            results[name] = section()
        except (Unavailable, torch.OutOfMemoryError) as reason:
            skipped[name] = str(reason).splitlines()[0]
        except Exception as error:  # one broken section must not cost the others their turn
            failed = True
            skipped[name] = f"failed: {type(error).__name__}: {error}"
        outcome = f"skipped: {skipped[name]}" if name in skipped else "done"
        print(f"{name}: {outcome} ({time.monotonic() - start:.0f} s)", flush=True)
        write(options.output, "gpu", tiny=options.tiny, results=results, skipped=skipped)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
