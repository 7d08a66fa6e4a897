"""The CPU's backend: the functions of ``noise.cpp``, with tensors for pointers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_evo.kernels.backend import Backend, Moved, Span, Values
from lightning_evo.kernels.normal import normal_table
from lightning_evo.kernels.pull import Pull
from lightning_evo.kernels.values import row_size

__all__ = ["Native", "threads"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_DISTRIBUTIONS = {"gaussian": 0, "uniform": 1, "rademacher": 2}
_ELEMENTS_PER_THREAD = 1 << 14  # below, starting a thread costs more than it saves
_MAXIMAL_RANK = 4  # of the product of low rank
_CPU = torch.device("cpu")


_Address = ctypes.c_uint32 * 4


class _Members(ctypes.Structure):
    """A tensor, its noise and where its members go: ``struct Members`` of ``noise.cpp``."""

    _fields_ = (
        ("address", _Address),
        ("first", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("center", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class _Pull(ctypes.Structure):
    """What draws a tensor back, with a null pointer if nothing does: ``struct Pull`` of ``noise.cpp``."""

    _fields_ = (
        ("anchor", ctypes.c_void_p),
        ("decay", ctypes.c_float),
        ("keep", ctypes.c_float),
        ("threshold", ctypes.c_float),
    )

    @classmethod
    def of(cls, pull: Pull | None) -> tuple[int | None, float, float, float]:
        """Its fields."""
        return (None, 0, 0, 0) if pull is None else (pull.anchor.data_ptr(), pull.decay, pull.keep, pull.threshold)


class _Moved(ctypes.Structure):
    """A tensor that moves, its noise, and the noise of its rounding. The fields are those of ``noise.cpp``."""

    _fields_ = (
        ("noise", _Address),
        ("rounding", _Address),
        ("center", ctypes.c_void_p),
        ("coefficient", ctypes.c_float),
        ("pull", _Pull),
    )


class Native(Backend):
    """The kernels of ``noise.cpp``, for contiguous tensors of 32 and 16 bits; others take only their noise from them.

    Args:
        path: The shared library.
    """

    _draw: Any
    _members: Any
    _chosen_rows: Any
    _sum: Any
    _move: Any
    _pull: Any
    _update: Any
    _low_rank: Any

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        pointer, integer, whole = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        signatures = {
            "draw": (integer, pointer, pointer, whole, whole, pointer, whole, pointer, integer),
            "members": (integer, integer, pointer, whole, pointer, pointer, whole, pointer, pointer, whole, integer),
            "chosen_rows": (
                *(integer, integer, pointer, pointer, whole, whole, pointer, pointer, pointer),
                *(whole, pointer, pointer, whole, integer),
            ),
            "sum": (integer, pointer, pointer, whole, whole, pointer, pointer, whole, pointer, integer),
            "move": (integer, pointer, whole, whole, pointer, pointer, integer),
            "pull": (integer, pointer, whole, whole, pointer, pointer, pointer, pointer, integer),
            "update": (
                *(integer, integer, pointer, whole, pointer, pointer),
                *(whole, pointer, pointer, pointer, pointer, integer),
            ),
            "low_rank": (
                *(integer, pointer, whole, pointer, whole, pointer, pointer),
                *(whole, whole, whole, whole, integer, pointer, integer),
            ),
        }
        for name, arguments in signatures.items():
            function = getattr(functions, f"lightning_evo_{name}")
            function.argtypes, function.restype = arguments, None
            setattr(self, f"_{name}", function)

    def draw(  # noqa: D102
        self, values: Values, directions: Sequence[int], start: int, stop: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        if dtype != torch.float32 or not directions or start == stop:
            return super().draw(values, directions, start, stop, dtype, device)
        size = row_size(values.distribution)
        first = start // size
        drawn = self.rows(values, directions, first, -(-stop // size), device)
        return drawn[:, start - first * size : stop - first * size]

    def rows(  # noqa: D102
        self, values: Values, directions: Sequence[int], first: int, last: int, device: torch.device
    ) -> Tensor:
        (distribution, address), count = values, last - first
        if distribution not in _DISTRIBUTIONS:
            return super().rows(values, directions, first, last, device)
        out = torch.empty(len(directions), count, row_size(distribution), dtype=torch.float32)
        self._draw(
            *(_DISTRIBUTIONS[distribution], _words(address), _table(), first, count),
            *(_int64(directions), len(directions), out.data_ptr(), threads(out.numel())),
        )
        return out.flatten(1)

    def members(self, spans: Sequence[Span], directions: Sequence[int], steps: Sequence[float]) -> None:  # noqa: D102
        for (distribution, dtype), chosen in _kinds(spans).items():
            mine = [spans[i] for i in chosen]
            if dtype is None:
                super().members(mine, directions, steps)
                continue
            elements = [span.center.numel() for span in mine]
            tensors: list[Any] = [
                (values.address, start, out.stride(0), center.data_ptr(), out.data_ptr())
                for values, start, center, out in mine
            ]
            self._members(
                *(_DISTRIBUTIONS[distribution], dtype, _table()),
                *(len(mine), (_Members * len(mine))(*tensors), _int64(elements)),
                *(len(directions), _int64(directions)),
                *(_float(steps), len(steps) // len(directions)),
                threads(sum(elements) * len(directions)),
            )

    def chosen_rows(  # noqa: D102
        self,
        values: Values,
        directions: Sequence[int],
        steps: Sequence[float],
        center: Tensor,
        chosen: Tensor,
        out: Tensor,
    ) -> None:
        if center.dtype not in _DTYPES:
            super().chosen_rows(values, directions, steps, center, chosen, out)
            return
        center, chosen = center.contiguous(), chosen.contiguous()
        self._chosen_rows(
            *(_DISTRIBUTIONS[values.distribution], _DTYPES[center.dtype], _words(values.address), _table()),
            *(math.prod(center.shape[1:]), chosen.numel(), chosen.data_ptr(), center.data_ptr(), out.data_ptr()),
            *(len(directions), _int64(directions)),
            *(_float(steps), len(steps) // len(directions)),
            threads(out.numel()),
        )

    def weighted_sum(  # noqa: D102
        self, values: Values, directions: Sequence[int], weights: Sequence[float], start: int, stop: int, like: Tensor
    ) -> Tensor:
        if like.dtype not in _DTYPES:
            return super().weighted_sum(values, directions, weights, start, stop, like)
        size = row_size(values.distribution)
        first, last = start // size, -(-stop // size)  # whole rows, of which the ends may not be wanted
        total = torch.zeros((last - first) * size, dtype=torch.float32)
        self._sum(
            *(_DISTRIBUTIONS[values.distribution], _words(values.address), _table(), first, last - first),
            *(_int64(directions), _float(weights)),
            *(len(weights), total.data_ptr(), threads(total.numel() * len(weights))),
        )
        return total[start - first * size : stop - first * size]

    def move(self, address: tuple[int, ...], start: int, center: Tensor, step: Tensor) -> None:  # noqa: D102
        if center.dtype not in _DTYPES or not center.is_contiguous() or not step.is_contiguous():
            super().move(address, start, center, step)
            return
        row, elements = start // row_size("uniform16"), center.numel()
        tensors = center.data_ptr(), step.data_ptr()
        self._move(_DTYPES[center.dtype], _words(address), row, elements, *tensors, threads(elements))

    def pull(  # noqa: D102
        self, address: tuple[int, ...], start: int, center: Tensor, step: Tensor, pull: Pull
    ) -> Tensor:
        anchor = pull.anchor
        here = center.is_contiguous() and step.is_contiguous() and anchor.is_contiguous() and anchor.is_cpu
        if center.dtype not in _DTYPES or not here:
            return super().pull(address, start, center, step, pull)
        square, row, elements = ctypes.c_double(), start // row_size("uniform16"), center.numel()
        self._pull(
            *(_DTYPES[center.dtype], _words(address), row, elements, center.data_ptr(), step.data_ptr()),
            *(ctypes.byref(_Pull(*_Pull.of(pull))), ctypes.byref(square), threads(elements)),
        )
        return torch.tensor(math.sqrt(square.value), dtype=torch.float64)

    def update(  # noqa: D102
        self, tensors: Sequence[Moved], directions: Sequence[int], weights: Sequence[float]
    ) -> Tensor:
        norms = torch.zeros(len(tensors), dtype=torch.float64)
        for (distribution, dtype), chosen in _kinds(tensors).items():
            mine = [tensors[i] for i in chosen]
            if dtype is None:
                norms[chosen] = super().update(mine, directions, weights)
            else:
                norms[chosen] = self._update_all(_DISTRIBUTIONS[distribution], dtype, mine, directions, weights)
        return norms

    def _update_all(
        self, distribution: int, dtype: int, tensors: list[Moved], directions: Sequence[int], weights: Sequence[float]
    ) -> Tensor:
        count, elements = len(tensors), [moved.center.numel() for moved in tensors]
        structures: list[Any] = [
            (values.address, rounding, center.data_ptr(), coefficient, _Pull.of(pull))
            for values, rounding, center, coefficient, pull in tensors
        ]
        squares, away = (torch.empty(count, dtype=torch.float64) for _ in range(2))
        self._update(
            *(distribution, dtype, _table()),
            *(count, (_Moved * count)(*structures), _int64(elements)),
            *(len(directions), _int64(directions)),
            *(_float(weights), squares.data_ptr(), away.data_ptr(), threads(sum(elements) * len(weights))),
        )
        for i, moved in enumerate(tensors):
            if moved.pull is not None:
                moved.pull.distance = away[i].sqrt()
        return squares.sqrt()

    def low_rank(self, b: Tensor, a: Tensor) -> Callable[[Tensor | None, Tensor], Tensor]:  # noqa: D102
        reference, call = super().low_rank(b, a), self._low_rank
        if a.shape[1] > _MAXIMAL_RANK or a.dtype != torch.float32 or b.dtype != torch.float32:
            return reference
        b, a = b.contiguous(), a.contiguous()
        (members, rank, outputs), width, factors = a.shape, b.shape[2], (b.data_ptr(), a.data_ptr())

        def product(bias: Tensor | None, x: Tensor, _memory: Any = (b, a)) -> Tensor:
            (several, rows, inputs), dtype = x.shape, _DTYPES.get(x.dtype)
            if dtype is None or inputs != width:
                return reference(bias, x)
            x = x.contiguous()
            shift: tuple[int | None, int] = None, 0
            if bias is not None:
                if bias.shape[1] != outputs or bias.dtype != x.dtype:
                    return reference(bias, x)
                bias = bias.contiguous()
                shift = bias.data_ptr(), 0 if bias.shape[0] == 1 else outputs
            out = x.new_empty(members, rows, outputs)
            call(
                *(dtype, *shift, x.data_ptr(), 0 if several == 1 else rows * inputs, *factors),
                *(members, rows, inputs, outputs, rank),
                *(out.data_ptr(), threads(members * rows * (inputs + outputs))),
            )
            return out

        return product


def _kinds(tensors: Sequence[Any]) -> dict[tuple[str, int | None], list[int]]:
    """Numbers of tensors by distribution and the kernels' number of the dtype: ``None`` if they can't work on it."""
    found: dict[tuple[str, int | None], list[int]] = {}
    for i, tensor in enumerate(tensors):
        pull = getattr(tensor, "pull", None)
        here = tensor.center.is_contiguous() and (pull is None or (pull.anchor.is_cpu and pull.anchor.is_contiguous()))
        dtype = _DTYPES.get(tensor.center.dtype) if here else None
        found.setdefault((tensor.values.distribution, dtype), []).append(i)
    return found


def _int64(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _float(numbers: Sequence[float]) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(numbers))(*numbers)


def _table() -> int:
    return normal_table(_CPU).data_ptr()


def _words(address: Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(address))(*address)


def threads(elements: int) -> int:
    """How many threads to use for a number of elements."""
    return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))
