"""What tensors hold, to be put back: in the sizes and the memory that they had."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_evo.spaces.memory import extent
from lightning_evo.spaces.shards import is_sharded

__all__ = ["LARGEST_COPY", "Contents", "Memory", "is_plain", "parts_of", "version_of"]

LARGEST_COPY = 1 << 26
"""Elements above which there may be no memory for a copy of them."""


class Contents:
    """What some tensors hold.

    Args:
        tensors: The tensors. Those that can't be copied and written to are left out (see :func:`parts_of`).
        find: How to find those that were written to: by their ``"versions"``, as far as tensors count their writes
            (neither BatchNorm's kernels nor writes through ``.data`` count); by comparing their ``"bits"``; or not, so
            that ``"all"`` are copied back. Memory that is read-only must not be written to.

    Example:
        >>> total = torch.zeros(2)
        >>> contents = Contents([total])
        >>> _ = total.add_(1)
        >>> contents.changed(), contents.restore(), total
        (True, None, tensor([0., 0.]))
    """

    def __init__(self, tensors: Iterable[Tensor], find: Literal["versions", "bits", "all"] = "versions") -> None:
        different = {id(part): part for tensor in tensors for part in parts_of(tensor)}
        self._tensors = list(different.values())
        self._copies = [tensor.detach().clone() for tensor in self._tensors]
        self._movable = [tensor for tensor in self._tensors if not is_sharded(tensor)]
        self._memory = [tensor.data for tensor in self._movable]
        self._places = _places(self._movable)
        self._find = find
        self._versions = [version_of(tensor) for tensor in self._tensors] if find == "versions" else []

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what they held."""
        self._take_memory_back()
        if self._find == "all":
            if self._tensors:
                torch._foreach_copy_(self._tensors, self._copies)
            return
        if self._find == "bits":
            for tensor, copy in zip(self._tensors, self._copies, strict=True):
                if _is_waited_for(tensor) or not _same_bits(tensor.detach(), copy):
                    tensor.copy_(copy)
            return
        for i, (tensor, version) in enumerate(zip(self._tensors, self._versions, strict=True)):
            if version is None or version_of(tensor) != version:
                tensor.copy_(self._copies[i])
                self._versions[i] = version_of(tensor)

    def changed(self) -> bool:
        """Whether one of them holds other numbers now, or lies elsewhere."""
        return bool(self.written())

    def written(self) -> list[Tensor]:
        """Those that hold other numbers now, or lie elsewhere."""
        if _places(self._movable) != self._places:
            return list(self._tensors)
        pairs = zip(self._tensors, self._copies, strict=True)
        return [tensor for tensor, copy in pairs if not _same_bits(tensor.detach(), copy)]

    def _take_memory_back(self) -> None:
        """Undo ``resize_``, and the other memory that ``tensor.data = …`` gives."""
        places = _places(self._movable)
        if places == self._places:
            return
        for tensor, memory, place, before in zip(self._movable, self._memory, places, self._places, strict=True):
            if place != before:
                tensor.data = memory
        self._places = _places(self._movable)  # `resize_` may have moved the memory itself
        if self._find == "versions":
            self._versions = [None] * len(self._tensors)  # they say nothing about the other memory


def _is_waited_for(tensor: Tensor) -> bool:
    """Whether to compare a tensor would be to wait for its device, none of whose memory is read-only."""
    return not tensor.is_cpu


def _same_bits(first: Tensor, second: Tensor) -> bool:
    if torch.equal(first, second):
        return True
    if not (first.is_floating_point() or first.is_complex()) or is_sharded(first):
        return False
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return torch.equal(*bits)  # NaN is as NaN was


def _places(tensors: list[Tensor]) -> list[tuple[torch.Size, int]]:
    return [(tensor.shape, tensor.data_ptr()) for tensor in tensors]


class Memory:
    """Where some tensors lie."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._by_storage: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            if is_sharded(tensor) or is_plain(tensor):
                self._by_storage.setdefault(_storage(tensor), []).append(tensor)

    def __contains__(self, tensor: Any) -> bool:
        """Whether a tensor, or a NumPy array, lies among the bytes of one of them."""
        if not isinstance(tensor, Tensor):
            return self._holds_array(tensor)
        storage = _storage(tensor)
        neighbours = self._by_storage.get(storage) if storage else None  # 0: it holds nothing
        if not neighbours or not (is_sharded(tensor) or is_plain(tensor)):
            return False
        first, last = extent(tensor)
        return any(first < stop and start < last for start, stop in map(extent, neighbours))

    def _holds_array(self, array: Any) -> bool:
        if not hasattr(type(array), "__array_interface__"):
            return False
        start = array.__array_interface__["data"][0]
        steps = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
        first, last = start + sum(min(0, step) for step in steps), start + sum(max(0, step) for step in steps)
        below = bisect_right(self._extents, (last, math.inf))  # those that begin at its last byte or before
        return below > 0 and first < self._reaches[below - 1]

    @cached_property
    def _extents(self) -> list[tuple[int, int]]:
        tensors = [t for each in self._by_storage.values() for t in each if t.device.type == "cpu" and is_plain(t)]
        return sorted(map(extent, tensors))

    @cached_property
    def _reaches(self) -> list[int]:
        """How far those up to each extent reach."""
        return list(accumulate((stop for _, stop in self._extents), max))


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written to; ``None`` for tensors that don't count it."""
    return None if nn.parameter.is_lazy(tensor) or tensor.is_inference() else tensor._version


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors of which a tensor consists, as far as they can be copied and written to.

    Itself, if it has ordinary memory; what it wraps, as quantised weights of torchao and jagged nested tensors do;
    nothing for sparse and strided nested tensors, and for those that are not initialised, expanded, on no device, or
    of an inference mode that is over.
    """
    if is_plain(tensor):
        return [tensor]
    if is_sharded(tensor) or not hasattr(type(tensor), "__tensor_flatten__"):
        return []
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = [getattr(tensor, name) for name in names]
    return [part for each in inner if isinstance(each, Tensor) for part in parts_of(each)]


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own for every element, so that it can be copied and written to."""
    if type(tensor) is not Tensor:
        if nn.parameter.is_lazy(tensor):
            return False
        if hasattr(type(tensor), "__tensor_flatten__") and not is_sharded(tensor):  # it wraps others
            return False
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        return False
    if tensor.is_conj() or tensor.is_neg():  # a view that shows other numbers than its memory holds
        return False
    if tensor.is_inference() and not torch.is_inference_mode_enabled():  # it can't be written to
        return False
    if not is_sharded(tensor) and not _has_its_memory(tensor):
        return False
    if tensor.is_contiguous():
        return True
    return not any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _has_its_memory(tensor: Tensor) -> bool:
    """Whether the memory is there: FSDP frees that of gathered weights between their uses."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    span = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps) + 1
    return not tensor.numel() or tensor.untyped_storage().nbytes() >= span * tensor.element_size()


def _storage(tensor: Tensor) -> int:
    if is_sharded(tensor):  # nothing can be a view of a whole that is nowhere
        return id(tensor)
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # NotImplementedError, too: it has none, or is not initialised
        return 0
