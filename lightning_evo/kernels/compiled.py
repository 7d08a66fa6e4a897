"""The backend of other devices than the CPU: the reference's operations, compiled by ``torch.compile``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from lightning_evo.kernels.backend import AT_ONCE, CHUNK, Backend, Span, Values
from lightning_evo.kernels.normal import normal_table
from lightning_evo.kernels.values import noise_dtype, row_size, rows, standardised
from lightning_evo.utils.messages import first_line
from lightning_evo.utils.tensors import uploaded

__all__ = ["Compiled"]

_COMPILE_AFTER = 1 << 29  # elements: about as long to draw uncompiled, on one core, as the compiler would run


class Compiled(Backend):
    """Compiles an operation once the process has drawn enough noise to repay the compiler.

    Attributes:
        drawn: Elements drawn so far.
        failed: Whether compilation was tried and failed.
    """

    def __init__(self) -> None:
        self.drawn = 0
        self.failed = False
        self._compiled: dict[object, Callable[..., Any]] = {}

    def members(self, spans: Sequence[Span], directions: Sequence[int], steps: Sequence[float]) -> None:  # noqa: D102
        for values, start, center, out in spans:
            head, tail = _whole_rows(values, start, start + len(center))
            for first, last in ((0, head), (tail, len(center))):
                if first < last:
                    rest = Span(values, start + first, center[first:last], out[:, first:last])
                    super().members([rest], directions, steps)
            if head < tail:
                self._write_rows(Span(values, start + head, center[head:tail], out[:, head:tail]), directions, steps)

    def _write_rows(self, span: Span, directions: Sequence[int], steps: Sequence[float]) -> None:
        (distribution, address), start, center, out = span
        size, device = row_size(distribution), center.device
        scales = uploaded(steps, noise_dtype(center), device).view(len(directions), -1)
        outs = out.view(len(directions), -1, len(center) // size, size)
        pieces = -(-len(center) // AT_ONCE)
        for direction, scale, members in zip(directions, scales, outs, strict=True):
            words = uploaded([start // size, direction, *address], torch.int64, device)
            tensors = (tensor.tensor_split(pieces) for tensor in (center.view(-1, size), *members))
            for piece, *of_members in zip(*tensors, strict=True):
                elements, table = piece.numel(), normal_table(device)
                self.run(_write_rows, elements, distribution, words, table, scale, piece, of_members)
                words[0] += len(piece)

    def weighted_sum(  # noqa: D102
        self, values: Values, directions: Sequence[int], weights: Sequence[float], start: int, stop: int, like: Tensor
    ) -> Tensor:
        (distribution, address), size = values, row_size(values.distribution)
        total = torch.zeros(stop - start, dtype=noise_dtype(like), device=like.device)
        head, tail = _whole_rows(values, start, stop)
        for first, last in ((0, head), (tail, len(total))):
            if first < last:
                rest = super().weighted_sum(values, directions, weights, start + first, start + last, like)
                total[first:last] = rest
        row, table = (start + head) // size, normal_table(like.device)
        for part in total[head:tail].view(-1, size).tensor_split(max(1, -(-(tail - head) // CHUNK))):
            for direction, weight in zip(directions, weights, strict=True) if len(part) else ():
                words = uploaded([row, direction, *address], torch.int64, like.device)
                coefficient = torch.full((), weight, dtype=total.dtype, device=like.device)
                self.run(_add_rows, part.numel(), distribution, words, table, coefficient, part)
            row += len(part)
        return total

    def run(self, function: Callable[..., Any], elements: int, *args: Any) -> Any:  # noqa: D102
        self.drawn += elements
        if self.failed or self.drawn < _COMPILE_AFTER:
            return function(*args)
        variant = function, *map(_variant, args)
        if variant not in self._compiled:
            # torch.compile gives up on a function that it had to compile eight times, and there may be more
            # combinations of dtypes and distributions in a process. It recognises functions by their code objects.
            plain: Any = function
            copy = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__)
            self._compiled[variant] = torch.compile(copy, dynamic=True)
        try:
            return self._compiled[variant](*args)
        except Exception as error:  # whatever a missing or broken compiler raises: the plain function gives the same
            self.failed = True
            warnings.warn(
                f"Noise will not be compiled and is slower ({type(error).__name__}: {first_line(error)}). The results "
                "are the same. Set LIGHTNING_EVO_KERNELS=torch to silence this.",
                stacklevel=2,
            )
            return function(*args)


def _variant(argument: Any) -> object:
    """What torch.compile compiles a separate version for."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.device, argument.dim()
    return tuple(map(_variant, argument)) if isinstance(argument, list) else argument


def _whole_rows(values: Values, start: int, stop: int) -> tuple[int, int]:
    """Where whole rows begin and end, counted from ``start``; nowhere if there are too few."""
    size = row_size(values.distribution)
    head, tail = -start % size, stop // size * size - start
    return (head, tail) if tail - head >= 2 * size else (stop - start, stop - start)


# --- noise in the one kernel that uses it ---


def _noise(count: int, distribution: str, words: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    numbers = words[0] + torch.arange(count, device=words.device)
    return standardised(distribution, rows(distribution, numbers, words[1], words[2:], table).to(dtype))


def _write_rows(
    distribution: str, words: Tensor, table: Tensor, scales: Tensor, center: Tensor, outs: list[Tensor]
) -> None:
    noise = _noise(len(center), distribution, words, table, scales.dtype)
    wide = center.to(scales.dtype)
    for out, scale in zip(outs, scales.unbind(), strict=True):
        out.copy_(wide + noise * scale)


def _add_rows(distribution: str, words: Tensor, table: Tensor, weight: Tensor, total: Tensor) -> None:
    total += _noise(len(total), distribution, words, table, total.dtype) * weight
