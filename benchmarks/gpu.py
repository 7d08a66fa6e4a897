"""Everything worth knowing about one large GPU, each figure beside its limit, in six minutes.

``python -m benchmarks.gpu [--minutes 6] [--tiny] [--only SECTION ...] [--output results.json]``

Needs torch, transformers and this repository; models have random weights, nothing is downloaded. Limits are those of
:mod:`benchmarks._roofline`: for an H100 or H200, and as if for an H100 on other devices, which the record says.

Sections run in order of importance, each within a time of its own. One that fails, or for which time or memory is
short, is reported with the reason, and the others run; results are written after each.

- **bits**: a network is trained for 50 generations with a given fitness, here and on the CPU; how many weights differ.
- **noise**: values drawn, a pair's members, and updates, against their limits and a copy on the device.
- **members 0.5B, 1.7B, 8B** at Qwen3's shapes (bfloat16): 512 and 2,048 tokens for each member, dense and of rank 1, a
  pair and 16 members. Evaluations a second as a share of as many plain forward passes; the limit is the share that is
  left if noise takes no longer than it must. The update of the weights has rows of its own.
- **rows 0.5B, 1.7B**: 16 members of rank 1 write 32 tokens to 4 prompts each, as rows of one batch, against a plain
  ``generate`` of as many texts.
- **memory 32B**: a generation of rank 1 of Qwen3-32B's shape, all weights evolving: its peak against that of a plain
  forward pass, which is the weights and activations.

``--tiny`` runs every section on miniature shapes, without a GPU, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _gpu_models as models
from benchmarks import _roofline as roofline
from benchmarks._gpu import Machine, OutOfTime
from benchmarks._measure import Unavailable, show, synchronize, write
from lightning_evo.generation.evolution import Evolution
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.perturbations import Dense, Moving, Part
from lightning_evo.utils.messages import first_line

# --- bits -----------------------------------------------------------------------------------------------------------


def trained(device: torch.device, dtype: torch.dtype, options: dict[str, Any], generations: int) -> list[Tensor]:
    """A network's weights after so many generations, whose fitness does not depend on the device: on the CPU."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(200, 256), nn.ReLU(), nn.Linear(256, 10)).to(dtype).to(device)
    members = 8
    given = torch.randn(generations, members, generator=torch.Generator().manual_seed(1)).tolist()
    evolution = Evolution("openai_es", population=members, sigma=0.02, seed=0, evaluation="plain", **options)
    evolution.setup(network)
    for fitness in given:
        waiting = iter(fitness)
        evolution.evaluate(lambda batch, waiting=waiting: next(waiting), None)
        evolution.conclude().apply()
    return [parameter.detach().cpu() for parameter in network.parameters()]


def bits(machine: Machine) -> dict[str, Any]:
    """How many weights differ from those of a training on the CPU."""
    generations = 5 if machine.tiny else 50
    rows = []
    for name, dtype, options in (
        ("float32, dense", torch.float32, {}),
        ("float32, Rademacher", torch.float32, {"noise": "rademacher"}),
        ("bfloat16, dense", torch.bfloat16, {}),
        ("float16, sparse", torch.float16, {"sparsity": 0.5}),
    ):
        start = time.monotonic()
        pairs = zip(
            trained(machine.device, dtype, options, generations),
            trained(torch.device("cpu"), dtype, options, generations),
            strict=True,
        )
        different = sum(int((here != there).sum()) for here, there in pairs)
        rows.append({"row": name, "seconds": [time.monotonic() - start], "value": different, "limit": 0})
    title = f"Weights that differ from the CPU's after {generations} generations"
    show(title, ("training", "weights"), [(row["row"], f"{row['value']:,}") for row in rows])
    return {"generations": generations, "rows": rows}


# --- noise ----------------------------------------------------------------------------------------------------------


def noise(machine: Machine) -> dict[str, Any]:
    """10^9 values or weights a second, the most that there can be, and bytes against those of a copy."""
    elements, dtype = 1 << (13 if machine.tiny else 28), torch.bfloat16
    machine.require(2**33)
    center = torch.randn(elements, device=machine.device).to(dtype)
    outs = torch.empty(2, elements, dtype=dtype, device=machine.device)
    key, space = NoiseKey(0, 0), center.view(-1, 1 << 12)
    perturbation = Dense(key)

    def values(distribution: Any) -> Callable[[], object]:
        return lambda: draw(key, [0], 0, 0, elements, distribution=distribution, device=machine.device)

    def members(steps: list[float]) -> Callable[[], object]:
        out = outs[: len(steps)]
        return lambda: perturbation.members([0], steps, [Part(0, space, out=out)])

    def update(directions: int) -> Callable[[], object]:
        return lambda: perturbation.move([1.0] * directions, [Moving(0, space, 1e-9)], key)

    work = roofline.Work
    rows: dict[str, tuple[float, roofline.Work, Callable[[], object]]] = {
        "copy, bfloat16": (1, work(moved=4), lambda: outs[0].copy_(center)),
        "normal values, float32": (1, roofline.draw(), values("gaussian")),
        "Rademacher values, float32": (1, roofline.draw("rademacher"), values("rademacher")),
        "one member": (1, roofline.member(1), members([1e-3])),
        "a pair": (2, 2 * roofline.member(2), members([1e-3, -1e-3])),
        "update, 1 direction": (1, roofline.update(1), update(1)),
        "update, 8 directions": (1, roofline.update(8), update(8)),
    }
    times = machine.timed({name: call for name, (_, _, call) in rows.items()}, repeats=10)
    found, copied = [], statistics.median(times["copy, bfloat16"]) / 4
    for name, measured in times.items():
        count, each, _ = rows[name]
        elapsed = statistics.median(measured) / elements
        found.append(
            {
                "row": name,
                "seconds": measured,
                "value": count / elapsed,
                "limit": count / machine.gpu.seconds(each),
                "of_copy": each.moved * copied / elapsed,
            }
        )
    show(
        f"{elements:,} weights, kernels: {machine.kernels}",
        ("row", "10^9/s", "limit", "of the limit", "bytes, of a copy's"),
        [
            (
                row["row"],
                f"{row['value'] / 1e9:,.1f}",
                f"{row['limit'] / 1e9:,.0f}",
                f"{row['value'] / row['limit']:.2f}",
                f"{row['of_copy']:.2f}",
            )
            for row in found
        ],
    )
    return {"elements": elements, "dtype": str(dtype), "rows": found}


# --- all ------------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, tuple[float, Callable[[Machine], dict[str, Any]]]] = {
    "bits": (20, lambda machine: bits(machine)),
    "noise": (15, lambda machine: noise(machine)),
    "members 0.5B": (30, lambda machine: models.members(machine, "0.5B")),
    "rows 0.5B": (40, lambda machine: models.written(machine, "0.5B")),
    "members 8B": (75, lambda machine: models.members(machine, "8B")),
    "memory 32B": (45, lambda machine: models.memory(machine, "32B")),
    "members 1.7B": (45, lambda machine: models.members(machine, "1.7B")),
    "rows 1.7B": (45, lambda machine: models.written(machine, "1.7B")),
}
"""Seconds that each is expected to take, and the section; 315 in all."""


def main(arguments: list[str] | None = None) -> int:
    """Run the sections that there is time for; 1 if one failed for another reason than time or memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--tiny", action="store_true", help="miniature shapes, to see that everything runs")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="these sections")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    os.environ.setdefault("LIGHTNING_EVO_KERNELS", "torch" if options.tiny else "auto")
    machine = Machine(time.monotonic() + options.minutes * 60, options.tiny)
    made_by = machine.kernels
    about = {"gpu": machine.gpu.name, "kernels": made_by, "device": str(machine.device)}
    about |= {"without_triton": machine.without_triton}
    if machine.device.type == "cuda":
        properties = torch.cuda.get_device_properties(machine.device)
        about |= {"memory": properties.total_memory, "capability": f"{properties.major}.{properties.minor}"}
    reason = f" (no Triton: {machine.without_triton})" if machine.without_triton else ""
    print(f"noise is made by {made_by}{reason}; limits are those of an {machine.gpu.name}", flush=True)
    results: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    failures: dict[str, str] = {}
    for name, (needed, section) in SECTIONS.items():
        if options.only and name not in options.only:
            continue
        start = time.monotonic()
        try:
            with machine.within(needed):
                results[name] = section(machine)
                synchronize()
        except Unavailable as reason:
            skipped[name] = str(reason)
        except OutOfTime:
            skipped[name] = f"stopped after {time.monotonic() - start:.0f} s"
        except Exception as error:  # one broken section must not cost the others their turn
            failures[name] = traceback.format_exc()
            skipped[name] = f"failed: {type(error).__name__}: {first_line(error)}"
        elapsed = time.monotonic() - start
        outcome = skipped.get(name, f"done, kernels: {machine.kernels}")
        print(f"{name}: {outcome} ({elapsed:.0f} s)", flush=True)
        if name in results:
            results[name] |= {"section_seconds": elapsed, "kernels": machine.kernels}
        content = {"results": results, "skipped": skipped, "failures": failures}
        write(options.output, "gpu", tiny=options.tiny, about=about, **content)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
