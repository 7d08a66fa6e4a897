"""Where a tensor's elements lie in memory, whether two tensors share some, and memory that lies as another tensor's.

A matrix product may be rounded by its operands' addresses: MKL's is on AMD's processors, and cuBLAS chooses kernels by
them. So a tensor that takes a weight's place begins at the weight's address modulo a cache line.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Scratch", "copies_of", "empty_copies", "extent", "lies_as", "overlap"]

_LINE = 64  # bytes: a cache line, and where torch's CPU tensors begin
_LINE_OF_GPU = 256  # the largest alignment that cuBLAS distinguishes


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
        second: Strided, on the same device as ``first``, not empty.

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


def lies_as(values: Tensor, center: Tensor) -> bool:
    """Whether a tensor begins at the address of ``center``, modulo a cache line.

    An address that is no multiple of the element size counts as the one below it that is.
    """
    return _place(values) == _place(center)


def empty_copies(centers: Sequence[Tensor], count: int) -> list[Tensor]:
    """Memory for some tensors like each of ``centers``, of its memory format, all of which lie as it does.

    Args:
        centers: Strided tensors of one dtype and device. They get one allocation.
        count: How many of each.

    Returns:
        ``[count, *center.shape]`` for each, not initialised; contiguous if ``count`` is 1 or each fills cache lines.

    Example:
        >>> center = torch.zeros(10)[3:]
        >>> [both] = empty_copies([center], 2)
        >>> both.shape, lies_as(both[0], center), lies_as(both[1], center)
        (torch.Size([2, 7]), True, True)
    """
    first = centers[0]
    line = max(1, _line(first) // first.element_size())  # in elements, as all that follows
    starts, sizes, end = [], [], 0
    for center in centers:
        size = center.numel() if count == 1 else -(-center.numel() // line) * line
        starts.append(-(-end // line) * line + _place(center))
        sizes.append(size)
        end = starts[-1] + count * size
    memory = first.new_empty(end + line)
    shift = (line - _place(memory)) % line  # 0 with torch's own allocator
    return [
        memory.as_strided((count, *center.shape), (size, *_strides(center)), start + shift)
        for center, size, start in zip(centers, sizes, starts, strict=True)
    ]


def copies_of(center: Tensor, values: Tensor) -> Tensor:
    """``values [count, *center.shape]``, each of which lies as ``center`` does; copied if they don't yet."""
    step = values.stride(0) * values.element_size() if len(values) > 1 else 0
    if center.is_contiguous() and values[0].is_contiguous() and lies_as(values, center) and step % _line(center) == 0:
        # Dimensions of size 1 may have any stride, and a convolution takes its layout from it.
        return values.as_strided(values.shape, (values.stride(0), *center.stride()))
    [copies] = empty_copies([center], len(values))
    return copies.copy_(values)


class Scratch:
    """Memory that is used again and again: what was in it is gone when it is asked for next.

    Example:
        >>> scratch, weight = Scratch(), torch.zeros(10)[3:]
        >>> memory = scratch.elements(weight, 7)
        >>> memory.shape, lies_as(memory, weight)
        (torch.Size([7]), True)
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def elements(self, like: Tensor, size: int) -> Tensor:
        """``size`` flat elements like ``like``, which begin at its address modulo a cache line."""
        kind, width = (like.dtype, like.device), like.element_size()
        memory = self._memory.get(kind)
        if memory is None or memory.numel() * width < size * width + _line(like):
            with torch.inference_mode(False):  # it outlives that of the user's code
                memory = self._memory[kind] = like.new_empty(size + _line(like) // width)
        start = (_place(like) - _place(memory)) % (_line(like) // width)
        return memory[start : start + size]


def _strides(center: Tensor) -> tuple[int, ...]:
    return center.stride() if center.is_contiguous() else torch.empty_like(center, device="meta").stride()


def _place(tensor: Tensor) -> int:
    """Elements from the beginning of a cache line to the tensor's first."""
    return tensor.data_ptr() % _line(tensor) // tensor.element_size()


def _line(tensor: Tensor) -> int:
    return _LINE if tensor.device.type == "cpu" else _LINE_OF_GPU


def _bytes(memory: Tensor, tensor: Tensor, offset: int) -> Tensor:
    """A tensor's bytes in ``memory``, which has an element for each: ``[*shape, element_size]``."""
    width = tensor.element_size()
    return memory.as_strided((*tensor.shape, width), (*(stride * width for stride in tensor.stride()), 1), offset)
