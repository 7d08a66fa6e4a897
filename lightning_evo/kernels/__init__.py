"""The CPU's noise kernels: ``noise.cpp``, built with the machine's C++ compiler when they are first needed.

They give, bit for bit, what the plain tensor operations in :mod:`lightning_evo.noise` and
:mod:`lightning_evo.perturbations.dense` give, only many times faster. (The product in
:mod:`lightning_evo.evaluation.ways.low_rank` agrees to rounding only.) The library is kept in
``$XDG_CACHE_HOME/lightning_evo`` (``~/.cache/lightning_evo``) and built again, in two seconds, when the source, the
compiler or the processor changes. ``LIGHTNING_EVO_COMPILE=0`` uses no kernels.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lightning_evo.kernels.library import DTYPES, Library
from lightning_evo.utils.messages import first_line

__all__ = ["Library", "enabled", "library_for", "supports"]

_SOURCE = Path(__file__).with_name("noise.cpp")
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-ffp-contract=off", "-fPIC", "-shared"]


def enabled() -> bool:
    """Whether kernels may be compiled.

    Raises:
        ValueError: If ``LIGHTNING_EVO_COMPILE`` is neither 0 nor 1.
    """
    setting = os.environ.get("LIGHTNING_EVO_COMPILE", "1")
    if setting not in ("0", "1"):
        raise ValueError(f"LIGHTNING_EVO_COMPILE must be 0 or 1, got {setting!r}.")
    return setting == "1"


def library_for(*tensors: Tensor) -> Library | None:
    """The kernels, if they support all of these tensors (see :func:`supports`) and are enabled; else ``None``."""
    if not enabled() or torch.compiler.is_compiling() or not all(map(supports, tensors)):
        return None
    return _library()


def supports(tensor: Tensor) -> bool:
    """Whether the kernels can read and write a tensor: plain, contiguous, on the CPU and of 32 or 16 bits."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.dtype in DTYPES and tensor.is_contiguous()


@lru_cache(maxsize=1)
def _library() -> Library | None:
    try:
        return _load()
    except (OSError, subprocess.SubprocessError) as error:
        reason = first_line(getattr(error, "stderr", None) or error) or type(error).__name__
        warnings.warn(
            f"The noise kernels could not be built, so noise is many times slower ({reason}). The results are the "
            "same. Install a C++ compiler (g++ or clang++; $CXX names another), or set LIGHTNING_EVO_COMPILE=0 to "
            "silence this.",
            stacklevel=4,
        )
        return None


def _load() -> Library:
    """The library from the cache; compiled first, unless that was done before."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [*filter(None, map(shutil.which, ("g++", "clang++")))][:1]
    if not compiler:
        raise OSError("no C++ compiler was found")
    identity = "\0".join(
        [_SOURCE.read_text(), _run([*compiler, "--version"]), _processor(), *_FLAGS, torch.__version__]
    )
    name = f"noise-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    failures = []
    for folder in _folders():
        try:
            if not (folder / name).exists():
                _build(compiler, folder / name)
            return Library(folder / name)
        except OSError as error:  # a folder that can't be written to, or holds nothing that may be executed
            failures.append(error)
    raise failures[-1]


def _folders() -> Iterator[Path]:
    with suppress(RuntimeError):  # there is no home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_evo"
    with tempfile.TemporaryDirectory(prefix="lightning_evo-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)  # what was loaded from it stays


def _build(compiler: Sequence[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    failures: list[Exception] = []
    try:
        for unknown in ([], ["-fopenmp"], ["-fopenmp", "-march=native"]):  # to Apple's clang, or without its library
            flags = [flag for flag in _FLAGS if flag not in unknown]
            openmp = [] if "-fopenmp" in unknown else _openmp()
            try:
                _run([*compiler, *flags, str(_SOURCE), "-o", unfinished, *openmp])
                Library(Path(unfinished))
                os.replace(unfinished, library)  # at once: other processes build the same
                return
            except (OSError, subprocess.CalledProcessError) as error:
                failures.append(error)
        raise failures[0]
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def _processor() -> str:
    """What ``-march=native`` depends on; the cache may be on a disk that several machines share."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    except OSError:
        return platform.platform() + platform.processor()


def _openmp() -> list[str]:
    """PyTorch's own OpenMP library where it brings one: two of them in a process would fight over the cores."""
    return [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))]
