"""Peak memory of one generation, of a plain forward pass, of MeZO's own loop and of a step of AdamW.

``python -m benchmarks.memory [--quick] [--output results.json]``

A GPT-2 with the shape of the 124M one (12 layers, 768 wide, 50,257 tokens in the vocabulary), randomly initialised, in
float32 and bfloat16, on 4 sequences of 128 tokens. Every row runs in five processes of its own, which take turns with
those of the other rows, and figures are medians: on a CPU the heap comes out a tenth larger in one process than in the
next. Every process does the same: import the same libraries, evolve a miniature model once so that the compiler and its
kernels are loaded (``LIGHTNING_EVO_KERNELS=auto``), create the model directly in its dtype, run the row once (AdamW's
moments then exist, and caches are filled), hand freed memory back to the system, reset the peak, run the row once more,
read the peak.

On a CPU the peak is that of the resident memory (``VmHWM``, reset through ``/proc/self/clear_refs``; where that is not
permitted, the peak since the process started), so it contains Python and the libraries, which are the same for every
row. The last column leaves out what was resident before the model was created. On a GPU it is the peak of the memory
that tensors hold. The limit is a plain forward pass under ``torch.inference_mode()``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import peak, reset_peak, resident, show, write
from benchmarks._models import DTYPES, gpt2, parameters, tokens
from benchmarks._published import Backpropagation, MeZO
from benchmarks.engine import LIMIT, evolve, forward, how, published

ROWS = {
    LIMIT: forward(),
    "ours, in forward, mezo, 2 members": evolve("mezo", 2, evaluation="in_forward"),
    "ours, batched, eggroll rank 1, 2 members": evolve("eggroll", 2, rank=1, shaping="raw", evaluation="batched"),
    "MeZO's own loop": published(MeZO, 2),
    "backpropagation, AdamW": published(Backpropagation, 1),
}
_TIMEOUT = 1200  # seconds of one process: many times what a row takes on two cores
SHAPES = {"gpt2": (12, 768, 12, 50_257), "tiny": (2, 32, 2, 64)}


def measure(name: str, dtype: str, size: str = "gpt2") -> dict[str, Any]:
    """One row, in this process: bytes at the peak, of the weights, and resident before the model was created."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    miniature = gpt2(*SHAPES["tiny"], dtype=DTYPES[dtype], device=device)
    for row in list(ROWS.values())[1:3]:  # compiles what ours uses; the other rows load the same code
        row.prepare(miniature, tokens(2, 8, SHAPES["tiny"][-1], device))()
    del miniature
    reset_peak()
    before = resident() if device == "cpu" else 0
    model: nn.Module = gpt2(*SHAPES[size], dtype=DTYPES[dtype], device=device)
    batch: Tensor = tokens(4, 8 if size == "tiny" else 128, SHAPES[size][-1], device)
    run: Callable[[], object] = ROWS[name].prepare(model, batch)
    run()
    was_reset = reset_peak()
    run()
    weights = parameters(model) * DTYPES[dtype].itemsize
    return {
        "row": name,
        "dtype": dtype,
        "peak": peak(),
        "before": before,
        "weights": weights,
        "reset": was_reset,
        "how": how(run),
    }


def in_subprocess(name: str, dtype: str, size: str) -> dict[str, Any]:
    """:func:`measure`, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--row", name, "--dtype", dtype, "--size", size]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{name}, {dtype}: the process took longer than {_TIMEOUT} seconds.") from None
    if finished.returncode:
        raise RuntimeError(f"{name}, {dtype}: the process failed.\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


def _median(processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row, from processes that measured it: the median of each figure, and all peaks."""
    medians = {key: statistics.median(row[key] for row in processes) for key in ("peak", "before", "weights")}
    return {**processes[0], **medians, "peaks": [row["peak"] for row in processes]}


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="float32 only, without the published loop")
    parser.add_argument("--repeats", type=int, help="processes for each row (default 5, quick 1)")
    parser.add_argument("--size", choices=SHAPES, default="gpt2")
    parser.add_argument("--row", choices=ROWS, help="measure this row in this process and print JSON")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)
    if options.row:
        print(json.dumps(measure(options.row, options.dtype or "fp32", options.size)))
        return
    results: list[dict[str, Any]] = []
    dtypes = [options.dtype] if options.dtype else ["fp32"] if options.quick else list(DTYPES)
    for dtype in dtypes:
        names = [name for name in ROWS if not (options.quick and name == "MeZO's own loop")]
        repeats = options.repeats or (1 if options.quick else 5)
        turns = [[in_subprocess(name, dtype, options.size) for name in names] for _ in range(repeats)]
        measured = [_median(processes) for processes in zip(*turns, strict=True)]
        limit = measured[0]
        for row in measured:
            row["ratio"] = row["peak"] / limit["peak"]
            row["ratio_without_libraries"] = (row["peak"] - row["before"]) / (limit["peak"] - limit["before"])
        results += measured
        show(
            f"Peak memory, GPT-2 124M, {dtype}, weights {limit['weights'] / 2**20:,.0f} MiB",
            ("row", "MiB", "of a plain forward", "without the libraries"),
            [
                (
                    row["row"],
                    f"{row['peak'] / 2**20:,.0f}",
                    f"{row['ratio']:.2f}",
                    f"{row['ratio_without_libraries']:.2f}",
                )
                for row in measured
            ],
        )
        write(options.output, "memory", results=results)


if __name__ == "__main__":
    main()
