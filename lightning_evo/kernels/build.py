"""Builds ``noise.cpp`` with the machine's C++ compiler when it is first needed.

The library is kept in ``$XDG_CACHE_HOME/lightning_evo`` (``~/.cache/lightning_evo``) and built again, in two seconds,
when the source, the compiler or the processor changes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from lightning_evo.kernels.native import Native

__all__ = ["load"]

_SOURCE = Path(__file__).with_name("noise.cpp")
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-ffp-contract=off", "-fPIC", "-shared"]


def load() -> Native:
    """The kernels from the cache; compiled first, unless that was done before.

    Raises:
        OSError, subprocess.SubprocessError: If they can't be built or loaded.
    """
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
            return Native(folder / name)
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
                Native(Path(unfinished))
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
