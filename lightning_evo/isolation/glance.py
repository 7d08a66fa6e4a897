"""Whether a large tensor or array, or many tensors, were written to, told without a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_evo.isolation.contents import is_plain, parts_of, version_of
from lightning_evo.isolation.rows import Rows

__all__ = ["Glance", "size_of"]

_SAMPLED = 256  # elements


class Glance:
    """A look at a tensor or an array: where it lies, how often it was written to, and some of its elements.

    Args:
        value: The tensor, of any kind, the NumPy array, or the tensors in a container, without their elements.

    Example:
        >>> weight = torch.zeros(1000, 1000)
        >>> glance = Glance(weight)
        >>> _ = weight.data.add_(1)  # which a tensor does not count
        >>> glance.changed()
        True
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self._seen = _seen(value)

    def changed(self) -> bool:
        """Whether it looks otherwise now."""
        return bool(_seen(self._value) != self._seen)


def _seen(value: Any) -> Any:
    if isinstance(value, Rows):
        try:
            return [(tensor._version, tensor.data_ptr()) for tensor in value.entries]
        except (RuntimeError, ValueError):  # one has neither
            return [(version_of(tensor), tensor.data_ptr()) for tensor in value.entries if is_plain(tensor)]
    if not isinstance(value, Tensor):
        return value.shape, value.ravel(order="K")[:: max(1, value.size // _SAMPLED)].tobytes()
    return version_of(value), [(part.shape, part.data_ptr(), _sample(part)) for part in parts_of(value)]


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().as_strided((1,), (1,)) if not tensor.numel() else tensor.detach()
    step = max(1, tensor.numel() // _SAMPLED)
    index = torch.arange(0, tensor.numel(), step, device=tensor.device)
    return bytes(flat.take(index).cpu().contiguous().view(torch.uint8).numpy())


def size_of(value: Any) -> int:
    """Elements of a tensor or an array; 0 for other objects."""
    if isinstance(value, Tensor):
        return sum(part.numel() for part in parts_of(value))
    return int(value.size) if hasattr(type(value), "__array_interface__") else 0
