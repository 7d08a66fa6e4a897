"""Numbers as tensors, in whatever form users' code returns them: Python's own, NumPy's, and lists of both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_tensor", "is_several"]


def as_tensor(value: Any, source: str, what: str = "fitness") -> Tensor | None:
    """A number, an array, or a sequence of numbers as a tensor; a tensor as it is; ``None`` if it is nothing of these.

    Args:
        value: For example ``0.5``, ``[0.5, True, np.float32(1)]``, ``np.zeros(8)`` or a list of 0-dimensional tensors.
        source: The method that returned it, for error messages.
        what: What its numbers are, for error messages.

    Returns:
        Numbers in float64 on the CPU, or bool if all of them are; tensors in a sequence are stacked as they are.

    Raises:
        TypeError: If a sequence or an array holds something else than real numbers.

    Example:
        >>> as_tensor([0.5, 1, True], "fitness_step")
        tensor([0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    if isinstance(value, Tensor):
        return value
    if _is_number(value):
        return _number(value)
    if (array := _as_array(value)) is not None:
        if array.dtype.kind not in "biuf":
            raise TypeError(f"`{source}` returned an array of {array.dtype}; {what} must be real numbers.")
        return torch.tensor(array.tolist(), dtype=torch.bool if array.dtype.kind == "b" else torch.float64).reshape(
            array.shape
        )
    if not is_several(value):
        return None
    for i, each in enumerate(value):
        if not _is_one(each):
            advice = "" if each is not None else " A sample without a value is marked by Fitness(values, missing=…)."
            raise TypeError(
                f"`{source}` returned a {type(value).__name__} with {type(each).__name__} ({each!r:.80}) at position "
                f"{i}; {what} must be real numbers, one per sample.{advice}"
            )
    each_one = [each.reshape(()) if isinstance(each, Tensor) else _number(each) for each in value]
    return _stacked(each_one) if each_one else torch.zeros(0, dtype=torch.float64)


def is_several(value: object) -> bool:
    """Whether it is a list, tuple, array or the like: several values that are no tensor."""
    array = _as_array(value)
    if array is not None:
        return bool(array.ndim)
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _stacked(numbers: list[Tensor]) -> Tensor:
    device = next((number.device for number in numbers if number.device.type != "cpu"), numbers[0].device)
    dtype = numbers[0].dtype
    for number in numbers[1:]:
        dtype = torch.promote_types(dtype, number.dtype)
    if dtype == torch.float64 and device.type == "mps":  # which has nothing longer than float32
        dtype = torch.float32
    return torch.stack([number.to(device, dtype) for number in numbers])


def _is_one(value: Any) -> bool:
    """Whether it is one real number: a tensor or an array of one element is."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    array = _as_array(value)
    return _is_number(value) if array is None else array.size == 1 and array.dtype.kind in "biuf"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or type(value).__name__ in ("bool_", "bool")  # NumPy's bool is no Real


def _number(value: Any) -> Tensor:
    is_bool = type(value).__name__ in ("bool_", "bool")
    return torch.tensor(bool(value) if is_bool else float(value), dtype=torch.bool if is_bool else torch.float64)


def _as_array(value: object) -> Any:
    """What converts itself into an array of NumPy's, such as one of JAX's or a column of a table, as such a one."""
    numpy = sys.modules.get("numpy")
    if numpy is None or isinstance(value, type) or not hasattr(value, "__array__"):
        return None
    return numpy.asarray(value)
