"""What torch functions are given, and do with it: write to it, or only tell what kind of tensor it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["GET_DATA", "HARMLESS", "SET_DATA", "tensors_in", "writes"]


def writes(function: Callable[..., Any]) -> bool:
    """Whether a function writes to its first argument, by its name: ``clamp_``, ``__iadd__``, ``__setitem__``."""
    name = getattr(function, "__name__", "")
    special = name.startswith("__") and name.endswith("__")
    return name in _IN_PLACE if special else name.endswith("_")


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some values, and in lists, tuples and dictionaries among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple | dict):
            found += tensors_in(value.values() if isinstance(value, dict) else value)
    return found


_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
_IN_PLACE = frozenset(["__setitem__", *(f"__i{name}__" for name in _OPERATORS)])

GET_DATA: Any = vars(torch._C.TensorBase)["data"].__get__
SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__

HARMLESS: frozenset[Any] = frozenset(
    vars(torch._C.TensorBase)[name].__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_leaf", "layout", "is_meta", "grad")
) | {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.nelement,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.element_size,
    Tensor.get_device,
    Tensor.__len__,
    Tensor.__hash__,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
}
"""They tell what kind of tensor a parameter is, and a member's is of the same kind."""
