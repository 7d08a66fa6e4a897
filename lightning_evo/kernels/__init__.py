"""The CPU's noise kernels: ``noise.cpp``, built with the machine's C++ compiler when they are first wanted.

They give, bit for bit, what the plain tensor operations in :mod:`lightning_evo.noise`, :mod:`lightning_evo.rounding`
and :mod:`lightning_evo.perturbations.dense` give, only many times faster. (The product in
:mod:`lightning_evo.evaluation.low_rank` is the same to rounding, as every product is.) The library is kept in
``$XDG_CACHE_HOME/lightning_evo`` (``~/.cache/lightning_evo``) and built anew, in two seconds, when the source, the
compiler or the processor changes. ``LIGHTNING_EVO_COMPILE=0`` goes without.
"""

from __future__ import annotations

import ctypes
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
from typing import Any

import torch
from torch import Tensor

__all__ = ["Library", "native", "wanted"]

_SOURCE = Path(__file__).with_name("noise.cpp")
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-ffp-contract=off", "-fPIC", "-shared"]
_DISTRIBUTIONS = {"gaussian": 0, "uniform": 1, "rademacher": 2}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ELEMENTS_PER_THREAD = 1 << 14  # below, starting a thread costs more than it saves


def wanted() -> bool:
    """Whether kernels may be compiled.

    Raises:
        ValueError: If ``LIGHTNING_EVO_COMPILE`` is neither 0 nor 1.
    """
    setting = os.environ.get("LIGHTNING_EVO_COMPILE", "1")
    if setting not in ("0", "1"):
        raise ValueError(f"LIGHTNING_EVO_COMPILE must be 0 or 1, got {setting!r}.")
    return setting == "1"


def native(*tensors: Tensor) -> Library | None:
    """The kernels, if they can work on all of these tensors: plain, contiguous, on the CPU and of 32 or 16 bits."""
    if not wanted() or torch.compiler.is_compiling() or not all(map(_suits, tensors)):
        return None
    return _library()


def _suits(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.dtype in _DTYPES and tensor.is_contiguous()


@lru_cache(maxsize=1)
def _library() -> Library | None:
    try:
        return _load()
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error)
        first_line = (reason.strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"The noise kernels could not be built, so noise is many times slower ({first_line}). The results are the "
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


class Library:
    """The functions of ``noise.cpp``.

    Args:
        path: The shared library.
    """

    _draw: Any
    _members: Any
    _sum: Any
    _move: Any
    _update: Any
    _low_rank: Any

    UNIT = 2048
    """Elements that are whole rows of every distribution."""

    MAXIMAL_RANK = 4
    """Of :meth:`low_rank`."""

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        pointer, integer, whole = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        signatures = {
            "draw": (integer, pointer, pointer, whole, whole, pointer, whole, pointer, integer),
            "members": (
                *(integer, integer, pointer, pointer, whole, whole, whole, pointer, pointer, pointer, integer, integer),
            ),
            "sum": (integer, pointer, pointer, whole, whole, pointer, pointer, whole, pointer, integer),
            "move": (integer, pointer, whole, whole, pointer, pointer, integer),
            "update": (
                *(integer, integer, pointer, pointer, pointer, whole, pointer, pointer, whole),
                *(ctypes.c_float, pointer, integer),
            ),
            "low_rank": (
                *(integer, pointer, whole, pointer, whole, pointer, pointer),
                *(whole, whole, whole, whole, integer, pointer, integer),
            ),
        }
        for name, arguments in signatures.items():
            function = getattr(functions, f"lightning_evo_{name}")
            function.argtypes, function.restype = arguments, ctypes.c_double if name == "update" else None
            setattr(self, f"_{name}", function)

    def draw(
        self, distribution: str, address: Sequence[int], table: Tensor, first: int, members: Sequence[int], out: Tensor
    ) -> None:
        """Write the values of rows ``first``, ``first + 1``, … to ``out [members, rows, row size]``, float32."""
        numbers = (ctypes.c_int64 * len(members))(*members)
        self._draw(
            _DISTRIBUTIONS[distribution],
            _words(address),
            table.data_ptr(),
            first,
            out.shape[1],
            numbers,
            len(members),
            out.data_ptr(),
            _threads(out.numel()),
        )

    def members(
        self,
        distribution: str,
        address: Sequence[int],
        table: Tensor,
        first: int,
        direction: int,
        center: Tensor,
        outs: Sequence[Tensor],
        steps: Sequence[float],
    ) -> None:
        """``outs[i] = center + steps[i] * eps``, of tensors ``[rows, row size]``."""
        self._members(
            _DISTRIBUTIONS[distribution],
            _DTYPES[center.dtype],
            _words(address),
            table.data_ptr(),
            first,
            center.shape[0],
            direction,
            center.data_ptr(),
            (ctypes.c_void_p * len(outs))(*[out.data_ptr() for out in outs]),
            (ctypes.c_float * len(steps))(*steps),
            len(outs),
            _threads(center.numel()),
        )

    def add_noise(
        self,
        distribution: str,
        address: Sequence[int],
        table: Tensor,
        first: int,
        directions: Sequence[int],
        weights: Sequence[float],
        total: Tensor,
    ) -> None:
        """``total += sum_d weights[d] eps_d``, one by one, of a float32 tensor ``[rows, row size]``."""
        self._sum(
            _DISTRIBUTIONS[distribution],
            _words(address),
            table.data_ptr(),
            first,
            total.shape[0],
            (ctypes.c_int64 * len(directions))(*directions),
            (ctypes.c_float * len(weights))(*weights),
            len(weights),
            total.data_ptr(),
            _threads(total.numel() * len(weights)),
        )

    def move(self, address: Sequence[int], first: int, center: Tensor, step: Tensor) -> None:
        """``center += step``, rounded stochastically; of vectors, ``step`` in float32."""
        self._move(
            _DTYPES[center.dtype],
            _words(address),
            first,
            center.numel(),
            center.data_ptr(),
            step.data_ptr(),
            _threads(center.numel()),
        )

    def update(
        self,
        distribution: str,
        noise: Sequence[int],
        rounding: Sequence[int],
        table: Tensor,
        directions: Sequence[int],
        weights: Sequence[float],
        coefficient: float,
        center: Tensor,
    ) -> float:
        """``center += coefficient * sum_d weights[d] eps_d`` from offset 0 on, rounded stochastically.

        Args:
            distribution: Of the noise.
            noise: Its address.
            rounding: Address of the rounding's random numbers.
            table: The normal distribution.
            directions: Numbers of the directions.
            weights: One for each.
            coefficient: The learning rate.
            center: A vector of a multiple of :attr:`UNIT` elements.

        Returns:
            The squared norm of the sum.
        """
        squares: float = self._update(
            _DISTRIBUTIONS[distribution],
            _DTYPES[center.dtype],
            _words(noise),
            _words(rounding),
            table.data_ptr(),
            center.numel() // self.UNIT,
            (ctypes.c_int64 * len(directions))(*directions),
            (ctypes.c_float * len(weights))(*weights),
            len(weights),
            coefficient,
            center.data_ptr(),
            _threads(center.numel() * len(weights)),
        )
        return squares

    def low_rank(self, bias: Tensor | None, x: Tensor, b: Tensor, a: Tensor) -> Tensor:
        """``bias + (x B) A^T`` for each member, in float32 until it is stored.

        Args:
            bias: ``[members or 1, outputs]``, of the dtype of ``x``, or ``None``.
            x: ``[members or 1, rows, inputs]``.
            b: B transposed, ``[members, rank, inputs]`` in float32.
            a: A transposed, ``[members, rank, outputs]`` in float32.

        Returns:
            ``[members, rows, outputs]``, of the dtype of ``x``.
        """
        (members, rank, outputs), (rows, inputs) = a.shape, x.shape[1:]
        out = x.new_empty(members, rows, outputs)
        self._low_rank(
            _DTYPES[x.dtype],
            None if bias is None else bias.data_ptr(),
            0 if bias is None or len(bias) == 1 else outputs,
            x.data_ptr(),
            0 if len(x) == 1 else rows * inputs,
            b.data_ptr(),
            a.data_ptr(),
            members,
            rows,
            inputs,
            outputs,
            rank,
            out.data_ptr(),
            _threads(out.numel() + members * rows * inputs),
        )
        return out


def _words(address: Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(address))(*address)


def _threads(elements: int) -> int:
    return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))
