"""Random values and what is made of them, by one of several backends that give the same bits.

- :class:`~lightning_evo.kernels.backend.Backend`: plain tensor operations, the reference, on any device;
- :class:`~lightning_evo.kernels.native.Native`: C++ on the CPU (``noise.cpp``), many times faster;
- :class:`~lightning_evo.kernels.triton.backend.Triton`: Triton on CUDA GPUs, each kernel one pass over memory;
- :class:`~lightning_evo.kernels.compiled.Compiled`: the reference, compiled by ``torch.compile``, on other devices.

``LIGHTNING_EVO_KERNELS`` chooses: ``auto`` takes the fastest that there is, ``native`` requires the C++ kernels on the
CPU, ``triton`` the Triton kernels on GPUs (and on the CPU, too, where ``TRITON_INTERPRET=1`` has Triton's interpreter
run them: for tests), ``torch`` takes plain tensor operations alone, and no compiler is ever called.
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
from lightning_evo.kernels.triton import proven
from lightning_evo.utils.messages import first_line

__all__ = ["COMPILED", "REFERENCE", "Backend", "Moved", "Native", "Pull", "Span", "Values", "backend_for", "built"]

REFERENCE = Backend()
"""Plain tensor operations."""

COMPILED = Compiled()
"""The same, compiled."""

_SETTINGS = ("auto", "native", "triton", "torch")
_SAME = "The results are the same (with noise of low rank but for rounding)."
_ADVICE = "Install a C++ compiler (g++ or clang++; $CXX names another), or set LIGHTNING_EVO_KERNELS=torch"


def backend_for(*tensors: Tensor) -> Backend:
    """The fastest backend for some tensors: by the device that they are all on, and by ``LIGHTNING_EVO_KERNELS``.

    Raises:
        ValueError: If ``LIGHTNING_EVO_KERNELS`` is not one of auto, native, triton and torch.
        RuntimeError: If it is native, tensors are on the CPU, and the kernels can't be built; or it is triton, tensors
            are on a CUDA GPU (or on the CPU, with ``TRITON_INTERPRET=1``), and its kernels can't be used.

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
        if setting == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
            return _triton(tensors[0].device, required=True)
        return _native(required=setting == "native")
    if kinds != {(True, False)}:
        return REFERENCE
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1 and tensors[0].is_cuda:
        return _triton(tensors[0].device, required=setting == "triton")
    return COMPILED


def _triton(device: torch.device, required: bool) -> Backend:
    found = proven(device)
    if isinstance(found, Backend):
        return found
    if required:
        raise RuntimeError(
            f"LIGHTNING_EVO_KERNELS is triton, but its kernels can't be used on {device} ({found}). Install what is "
            "missing (CUDA builds of PyTorch for Linux bring Triton), or set LIGHTNING_EVO_KERNELS=auto to do without."
        )
    _warn(
        f"The Triton kernels can't be used on {device}, so noise there is slower ({found}). {_SAME} Set "
        "LIGHTNING_EVO_KERNELS=torch to silence this."
    )
    return COMPILED


def _native(required: bool) -> Backend:
    found = built()
    if isinstance(found, Native):
        return found
    if required:
        raise RuntimeError(f"The noise kernels could not be built ({found}). {_ADVICE} or auto to do without.")
    _warn(
        f"The noise kernels could not be built, so noise is many times slower ({found}). {_SAME} {_ADVICE} to silence "
        "this."
    )
    return REFERENCE


@lru_cache(maxsize=1)
def built() -> Native | str:
    """The C++ kernels, built at the first call; or why they could not be."""
    try:
        return load()
    except (OSError, subprocess.SubprocessError) as error:
        return first_line(getattr(error, "stderr", None) or error) or type(error).__name__


@lru_cache(maxsize=64)
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)
