"""Numbers that kernels read on the device, and how kernels are launched.

One launch works on many tensors. What it must know of them lies in a table of addresses and other whole numbers, which
is uploaded from pinned memory without waiting, and kept: the same numbers are not uploaded again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_evo.utils.tensors import uploaded

__all__ = ["FIELDS", "Table", "aligned", "blocks_for", "fields", "float_bits", "launch", "parts_of", "upload"]

FIELDS = 20
"""Numbers that a table has for each tensor; the kernels that read them say what they are."""
_ROW = 128  # elements of a rounding row: see noise.py
_LANES = {torch.float32: 128, torch.bfloat16: 256, torch.float16: 256}  # 16 bytes for each of a warp's threads
_WARPS = 4
_SMALL = 256  # numbers of a table of which thousands are kept: 2 kB


def upload(rows: Sequence[Sequence[int]], numbers: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tables of tensors, each filled up to :data:`FIELDS`, and other numbers: int64, on the device.

    Members of one generation differ in the numbers alone.

    Example:
        >>> tables, numbers = upload([[1, 2, 3], [4]], [5, 6], torch.device("cpu"))
        >>> tables.view(2, FIELDS)[:, :3].tolist(), numbers.tolist()
        ([[1, 2, 3], [4, 0, 0]], [5, 6])
    """
    flat: list[int] = []
    for row in rows:
        flat += row
        flat += [0] * (FIELDS - len(row))
    stream = _stream(device)
    return _kept(tuple(flat), device, stream), _kept(tuple(numbers), device, stream)


def _kept(numbers: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    return (_small if len(numbers) <= _SMALL else _large)(numbers, device, stream)


def _uploaded(numbers: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    return uploaded(numbers, torch.int64, device)


# A large model's weights have a table each, which every member needs again; an update's table of all is another matter.
_small, _large = lru_cache(maxsize=4096)(_uploaded), lru_cache(maxsize=16)(_uploaded)


def parts_of(elements: Sequence[int], size: int, device: torch.device) -> tuple[list[int], Tensor]:
    """Tensors divided into parts of ``size`` elements.

    Returns:
        The first part of each tensor and, after them, how many there are; and each part's tensor, int64 on the device.

    Example:
        >>> parts_of([1000, 10, 0, 600], 512, torch.device("cpu"))
        ([0, 2, 3, 3, 5], tensor([0, 0, 1, 3, 3]))
    """
    first = [0]
    for number in elements:
        first.append(first[-1] - (-number // size))
    return first, _parts(tuple(first), device, _stream(device))


@lru_cache(maxsize=64)
def _parts(first: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    counts = torch.tensor(first, device="cpu").diff()
    parts = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
    return (parts.pin_memory() if device.type == "cuda" else parts).to(device, non_blocking=True)


def float_bits(values: Sequence[float]) -> list[int]:
    """The bits of numbers in float32.

    Example:
        >>> [hex(bits) for bits in float_bits([1.0, -2.0])]
        ['0x3f800000', '-0x40000000']
    """
    bits: list[int] = torch.tensor(values, dtype=torch.float32, device="cpu").view(torch.int32).tolist()
    return bits


def fields(address: Sequence[int], start: int, elements: int) -> list[int]:
    """The first fields of a tensor, whose ``elements`` from the offset ``start`` on are worked on: those of its noise.

    They are the four words of its address, the rounding row where it begins, between which two offsets from there it
    lies, and a place for the number of its first part.

    Example:
        >>> fields((1, 2, 3, 4), 130, 1000)
        [1, 2, 3, 4, 1, 2, 1002, 0]
    """
    row, lower = divmod(start, _ROW)
    return [*address, row, lower, lower + elements, 0]


def aligned(row: Sequence[int], *numbers: int) -> bool:
    """Whether elements begin and end where 16 of them do, and addresses and strides are multiples of 16."""
    return row[5] == 0 and row[6] % 16 == 0 and not any(number % 16 for number in numbers)


class Table:
    """The tensors of one launch, divided into programs.

    Args:
        rows: Of each tensor, beginning with :func:`fields`.
        blocks: Blocks of Philox in a program.
        device: Where the tensors are.
        numbers: Other numbers.

    Attributes:
        bounds: How many parts there are, then where each tensor's begin and, after them, end.
    """

    def __init__(
        self, rows: Sequence[list[int]], blocks: int, device: torch.device, numbers: Sequence[int] = ()
    ) -> None:
        first, self._parts = parts_of([row[6] for row in rows], 8 * blocks, device)
        for row, begin in zip(rows, first, strict=False):
            row[7] = begin
        self._tensors, self._numbers = upload(rows, [*numbers, first[-1], *first], device)
        self.bounds, self._blocks, self._device = self._numbers[len(numbers) :], blocks, device

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self._parts)

    def put(self, field: int, values: Mapping[int, Tensor]) -> None:
        """Write numbers that only the device knows, by their tensors' places in the rows, as float32 into a field."""
        if values:
            tensors = self._tensors.clone().view(-1, FIELDS)  # the uploaded ones are kept for other launches
            bits = torch.stack([each.to(self._device, torch.float32) for each in values.values()]).view(torch.int32)
            tensors[uploaded(list(values), torch.int64, self._device), field] = bits.long()
            self._tensors = tensors.view(-1)

    def launch(self, kernel: Any, *arguments: Any, times: int = 1, **constants: Any) -> None:
        """Run a kernel for every part, ``times`` for each."""
        tables = self._parts, self._tensors, self._numbers
        launch(kernel, len(self) * times, self._device, *tables, *arguments, BLOCKS=self._blocks, **constants)


def blocks_for(dtype: torch.dtype, elements: int | None = None) -> int:
    """Blocks of Philox in a program: a power of two, fewer for few elements."""
    largest = _LANES[dtype] * _WARPS
    return largest if elements is None else max(32, min(largest, 1 << (-(-elements // 8) - 1).bit_length()))


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run a kernel, with a warp for as many blocks as it can load at a time; products and sums are never fused."""
    if programs:
        lanes = _LANES[getattr(torch, constants.get("DTYPE", "float32"))]
        warps = max(1, min(_WARPS, constants.get("BLOCKS", _WARPS * lanes) // lanes))
        with _on(device):
            kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream(device: torch.device) -> int:
    """Of the uploads: another stream would not wait for them."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
