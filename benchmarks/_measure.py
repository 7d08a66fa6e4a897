"""What all benchmarks share: interleaved timing, peak memory, a record of the machine, tables and JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "lightning", "transformers", "lightning-evo", "evotorch", "evox")


class Unavailable(Exception):
    """A row cannot run here; the message is the reason that the table gives."""


# --- time -----------------------------------------------------------------------------------------------------------


def synchronize() -> None:
    """Wait for the accelerator: what was started must be finished before the clock is read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def interleaved(
    rows: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds per call of each row, ``repeats`` values each.

    The rows take turns, so that whatever slows the machine for a while slows all of them, and a ratio of two medians
    is fair. The first ``warmup`` rounds compile and fill caches; they are not counted.

    Args:
        rows: What to call, by name.
        repeats: Rounds that count.
        warmup: Rounds before them.
        calls: Calls in a row for each value, for rows of few milliseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(warmup + repeats):
        for name, function in rows.items():
            elapsed = seconds(lambda function=function: [function() for _ in range(calls)]) / calls
            if turn >= warmup:
                times[name].append(elapsed)
    return times


def paired(
    reference: Callable[[], object], function: Callable[[], object], repeats: int, warmup: int, calls: int
) -> tuple[list[float], list[float]]:
    """Seconds of a function, and of one call of the reference before and after it: ``repeats`` values each.

    For machines whose speed changes from second to second: the two were measured in the same seconds.

    Args:
        reference: What the function is compared with.
        function: What to call.
        repeats: Rounds that count.
        warmup: Rounds before them.
        calls: Calls of the reference in a row, so that it runs for about as long as the function.
    """
    times, of_reference = [], []
    before = [seconds(reference) for _ in range(calls)]
    for turn in range(warmup + repeats):
        elapsed = seconds(function)
        after = [seconds(reference) for _ in range(calls)]
        if turn >= warmup:
            times.append(elapsed)
            of_reference.append(statistics.fmean(before + after))
        before = after
    return times, of_reference


def rates(times: Mapping[str, Sequence[float]], work: Mapping[str, float]) -> dict[str, float]:
    """Work per second of each row at its median time."""
    return {name: work[name] / statistics.median(values) for name, values in times.items()}


# --- memory ---------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return _status("VmRSS") or _peak_since_start()


def held() -> int:
    """Bytes held now, of the memory that :func:`peak` is about."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else resident()


def reset_peak() -> bool:
    """Forget the peak so far; ``False`` where the system cannot (then the peak is that since the start)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        ctypes.CDLL(None).malloc_trim(0)  # hand freed memory back, or it would count as in use
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def peak() -> int:
    """Bytes at the peak since :func:`reset_peak`: of the accelerator's tensors if there is one, of the process else."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or _peak_since_start()


def _status(field: str) -> int | None:
    """A field of Linux's ``/proc/self/status``, in bytes; ``None`` on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _peak_since_start() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- the machine ----------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Date, machine and versions: what a reader needs to judge a number."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "kernels": os.environ.get("LIGHTNING_EVO_KERNELS", "auto"),
        },
        "versions": {"python": platform.python_version(), **versions},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors without a dtype get this one: a model is created in it, not created in float32 and converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- output ---------------------------------------------------------------------------------------------------------


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column is a name, the others are numbers."""
    try:
        import rich
        from rich.table import Table
    except ImportError:  # on a machine with torch and little else
        print("\n".join([title, *(" | ".join(row) for row in [headings, *rows])]))
        return
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    rich.print(table)


def write(path: Path | None, benchmark: str, **content: Any) -> None:
    """Write what was measured as JSON; without a path, nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": benchmark, **environment(), **content}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(path)  # a benchmark that is killed while it writes leaves the last complete file
