"""Random values and what is made of them, by one of several backends that give the same bits.

- :class:`~lightning_evo.kernels.backend.Backend`: plain tensor operations, the reference, on any device;
- :class:`~lightning_evo.kernels.native.Native`: C++ on the CPU (``noise.cpp``), many times faster;
- :class:`~lightning_evo.kernels.compiled.Compiled`: the reference, compiled by ``torch.compile``, on other devices.

``LIGHTNING_EVO_KERNELS`` chooses: ``auto`` takes the fastest that there is, ``native`` requires the C++ kernels on the
CPU, ``torch`` takes plain tensor operations alone, and no compiler is ever called.
"""

from __future__ import annotations

import os
import subprocess
import warnings
from functools import lru_cache

import torch
from torch import Tensor

from lightning_evo.kernels.backend import Backend, Moved, Span, Values
from lightning_evo.kernels.build import load
from lightning_evo.kernels.compiled import Compiled
from lightning_evo.kernels.native import Native
from lightning_evo.kernels.pull import Pull
from lightning_evo.utils.messages import first_line

__all__ = ["COMPILED", "REFERENCE", "Backend", "Moved", "Native", "Pull", "Span", "Values", "backend_for", "built"]

REFERENCE = Backend()
"""Plain tensor operations."""

COMPILED = Compiled()
"""The same, compiled."""

_SETTINGS = ("auto", "native", "torch")
_ADVICE = "Install a C++ compiler (g++ or clang++; $CXX names another), or set LIGHTNING_EVO_KERNELS=torch"


def backend_for(*tensors: Tensor) -> Backend:
    """The fastest backend for some tensors: by the device that they are all on, and by ``LIGHTNING_EVO_KERNELS``.

    Raises:
        ValueError: If ``LIGHTNING_EVO_KERNELS`` is not one of auto, native and torch.
        RuntimeError: If it is native, tensors are on the CPU, and the kernels can't be built.

    Example:
        >>> isinstance(backend_for(torch.zeros(2)), Backend)
        True
    """
    setting = os.environ.get("LIGHTNING_EVO_KERNELS", "auto")
    if setting not in _SETTINGS:
        raise ValueError(f"LIGHTNING_EVO_KERNELS must be one of {', '.join(_SETTINGS)}, got {setting!r}.")
    if setting == "torch" or torch.compiler.is_compiling():
        return REFERENCE
    kinds = {(type(tensor) is Tensor, tensor.is_cpu) for tensor in tensors}
    if kinds == {(True, True)}:
        return _native(required=setting == "native")
    return COMPILED if kinds == {(True, False)} else REFERENCE


def _native(required: bool) -> Backend:
    found = built()
    if isinstance(found, Native):
        return found
    if required:
        raise RuntimeError(f"The noise kernels could not be built ({found}). {_ADVICE} or auto to do without.")
    _warn(found)
    return REFERENCE


@lru_cache(maxsize=1)
def built() -> Native | str:
    """The C++ kernels, built at the first call; or why they could not be."""
    try:
        return load()
    except (OSError, subprocess.SubprocessError) as error:
        return first_line(getattr(error, "stderr", None) or error) or type(error).__name__


@lru_cache(maxsize=1)
def _warn(reason: str) -> None:
    warnings.warn(
        f"The noise kernels could not be built, so noise is many times slower ({reason}). The results are the "
        f"same (with noise of low rank but for rounding). {_ADVICE} to silence this.",
        stacklevel=5,
    )
