"""Where a tensor's elements lie in memory, and whether two tensors share some."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["extent", "overlap"]


def extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte, and of the one after its last; of a strided tensor that is not empty.

    Example:
        >>> matrix = torch.zeros(2, 3)
        >>> start, stop = extent(matrix.t())
        >>> stop - start, start == matrix.data_ptr()
        (24, True)
    """
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size()


def overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have bytes in common. Exact, and costs memory only if their extents overlap.

    Args:
        first: Strided, on the same device as ``second``, not empty.
        second: Likewise.

    Example:
        >>> memory = torch.zeros(6)
        >>> overlap(memory[:4].view(2, 2), memory[3:])
        True
        >>> overlap(memory[::2], memory[1::2])
        False
    """
    (start, stop), (other_start, other_stop) = extent(first), extent(second)
    if stop <= other_start or other_stop <= start:
        return False
    origin = min(start, other_start)
    taken = torch.zeros(max(stop, other_stop) - origin, dtype=torch.bool)
    _bytes(taken, first, start - origin).fill_(True)
    return bool(_bytes(taken, second, other_start - origin).any())


def _bytes(memory: Tensor, tensor: Tensor, offset: int) -> Tensor:
    """A tensor's bytes in ``memory``, which has an element for each: ``[*shape, element_size]``."""
    width = tensor.element_size()
    return memory.as_strided((*tensor.shape, width), (*(stride * width for stride in tensor.stride()), 1), offset)
