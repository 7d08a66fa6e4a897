"""The functions of ``noise.cpp``, with tensors for pointers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["DTYPES", "Library", "threads"]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes that the kernels read and write, with the kernels' numbers for them."""

_DISTRIBUTIONS = {"gaussian": 0, "uniform": 1, "rademacher": 2}
_ELEMENTS_PER_THREAD = 1 << 14  # below, starting a thread costs more than it saves


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


class _Moved(ctypes.Structure):
    """A tensor that moves, its noise, and the noise of its rounding. The fields are those of ``noise.cpp``."""

    _fields_ = (
        ("noise", _Address),
        ("rounding", _Address),
        ("center", ctypes.c_void_p),
        ("coefficient", ctypes.c_float),
    )


class Library:
    """The functions of ``noise.cpp``.

    Args:
        path: The shared library.
    """

    _draw: Any
    _members: Any
    _chosen_rows: Any
    _sum: Any
    _move: Any
    _update: Any
    _low_rank: Any

    MAXIMAL_RANK = 4
    """The largest rank that :meth:`low_rank` takes."""

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
            "update": (integer, integer, pointer, whole, pointer, pointer, whole, pointer, pointer, pointer, integer),
            "low_rank": (
                *(integer, pointer, whole, pointer, whole, pointer, pointer),
                *(whole, whole, whole, whole, integer, pointer, integer),
            ),
        }
        for name, arguments in signatures.items():
            function = getattr(functions, f"lightning_evo_{name}")
            function.argtypes, function.restype = arguments, None
            setattr(self, f"_{name}", function)

    def draw(
        self, distribution: str, address: Sequence[int], table: Tensor, first: int, members: Sequence[int], out: Tensor
    ) -> None:
        """Write the values of rows ``first``, ``first + 1``, … to ``out [members, rows, row size]``, float32."""
        numbers = (ctypes.c_int64 * len(members))(*members)
        self._draw(
            _DISTRIBUTIONS[distribution],
            _words(address),
            table.data_ptr(),
            first,
            out.shape[1],
            numbers,
            len(members),
            out.data_ptr(),
            threads(out.numel()),
        )

    def members(
        self,
        distribution: str,
        addresses: Sequence[Sequence[int]],
        table: Tensor,
        first: int,
        directions: Sequence[int],
        centers: Sequence[Tensor],
        outs: Sequence[Tensor],
        steps: Sequence[float],
    ) -> None:
        """``outs[t][i] = centers[t] + steps[i] * eps``: members of some tensors, those of a direction together.

        Args:
            distribution: Of the noise.
            addresses: Each tensor's.
            table: The normal distribution.
            first: Flat offset of the first element of each tensor.
            directions: Numbers of the directions.
            centers: ``[elements]`` each, of the same dtype.
            outs: ``[members, elements]``, of that dtype, too; each member's elements are contiguous.
            steps: One for each member.
        """
        elements = [center.numel() for center in centers]
        tensors = [
            (tuple(address), first, out.stride(0), center.data_ptr(), out.data_ptr())
            for address, center, out in zip(addresses, centers, outs, strict=True)
        ]
        self._members(
            _DISTRIBUTIONS[distribution],
            DTYPES[centers[0].dtype],
            table.data_ptr(),
            len(tensors),
            (_Members * len(tensors))(*tensors),  # type: ignore[misc]  # ctypes takes tuples for structures
            (ctypes.c_int64 * len(tensors))(*elements),
            len(directions),
            (ctypes.c_int64 * len(directions))(*directions),
            (ctypes.c_float * len(steps))(*steps),
            len(steps) // len(directions),
            threads(sum(elements) * len(directions)),
        )

    def chosen_rows(
        self,
        distribution: str,
        address: Sequence[int],
        table: Tensor,
        directions: Sequence[int],
        center: Tensor,
        chosen: Tensor,
        out: Tensor,
        steps: Sequence[float],
    ) -> None:
        """``out[i, j] = center[chosen[j]] + steps[i] * eps[chosen[j]]``: some rows of a tensor's members.

        Args:
            distribution: Of the noise.
            address: Its address.
            table: The normal distribution.
            directions: Numbers of the directions.
            center: ``[rows, ...]``.
            chosen: Numbers of rows, int64. They are not checked.
            out: ``[members, len(chosen), ...]``, contiguous, of the dtype of ``center``.
            steps: One for each member, those of a direction together.
        """
        self._chosen_rows(
            _DISTRIBUTIONS[distribution],
            DTYPES[center.dtype],
            _words(address),
            table.data_ptr(),
            math.prod(center.shape[1:]),
            chosen.numel(),
            chosen.data_ptr(),
            center.data_ptr(),
            out.data_ptr(),
            len(directions),
            (ctypes.c_int64 * len(directions))(*directions),
            (ctypes.c_float * len(steps))(*steps),
            len(steps) // len(directions),
            threads(out.numel()),
        )

    def add_noise(
        self,
        distribution: str,
        address: Sequence[int],
        table: Tensor,
        first: int,
        directions: Sequence[int],
        weights: Sequence[float],
        total: Tensor,
    ) -> None:
        """``total += sum_d weights[d] eps_d``, one by one, of a float32 tensor ``[rows, row size]``."""
        self._sum(
            _DISTRIBUTIONS[distribution],
            _words(address),
            table.data_ptr(),
            first,
            total.shape[0],
            (ctypes.c_int64 * len(directions))(*directions),
            (ctypes.c_float * len(weights))(*weights),
            len(weights),
            total.data_ptr(),
            threads(total.numel() * len(weights)),
        )

    def move(self, address: Sequence[int], first: int, center: Tensor, step: Tensor) -> None:
        """``center += step``, rounded stochastically; of vectors, ``step`` in float32."""
        self._move(
            DTYPES[center.dtype],
            _words(address),
            first,
            center.numel(),
            center.data_ptr(),
            step.data_ptr(),
            threads(center.numel()),
        )

    def update(
        self,
        distribution: str,
        noise: Sequence[Sequence[int]],
        rounding: Sequence[Sequence[int]],
        table: Tensor,
        directions: Sequence[int],
        weights: Sequence[float],
        coefficients: Sequence[float],
        centers: Sequence[Tensor],
    ) -> list[float]:
        """``centers[t] += coefficients[t] * sum_d weights[d] eps_d`` from offset 0 on, rounded stochastically.

        Args:
            distribution: Of the noise.
            noise: Its addresses, one for each tensor.
            rounding: Addresses of the rounding's random numbers, one for each tensor.
            table: The normal distribution.
            directions: Numbers of the directions.
            weights: One for each direction.
            coefficients: The learning rate of each tensor.
            centers: Vectors of the same dtype.

        Returns:
            The squared norm of each tensor's sum.
        """
        elements = [center.numel() for center in centers]
        tensors = [
            (tuple(own), tuple(random), center.data_ptr(), coefficient)
            for own, random, center, coefficient in zip(noise, rounding, centers, coefficients, strict=True)
        ]
        squares = (ctypes.c_double * len(tensors))()
        self._update(
            _DISTRIBUTIONS[distribution],
            DTYPES[centers[0].dtype],
            table.data_ptr(),
            len(tensors),
            (_Moved * len(tensors))(*tensors),  # type: ignore[misc]  # ctypes takes tuples for structures
            (ctypes.c_int64 * len(tensors))(*elements),
            len(directions),
            (ctypes.c_int64 * len(directions))(*directions),
            (ctypes.c_float * len(weights))(*weights),
            squares,
            threads(sum(elements) * len(weights)),
        )
        return list(squares)

    def low_rank(self, bias: Tensor | None, x: Tensor, b: Tensor, a: Tensor) -> Tensor:
        """``bias + (x B) A^T`` for each member, in float32 until it is stored.

        Args:
            bias: ``[members or 1, outputs]``, of the dtype of ``x``, or ``None``.
            x: ``[members or 1, rows, inputs]``.
            b: B transposed, ``[members, rank, inputs]`` in float32.
            a: A transposed, ``[members, rank, outputs]`` in float32.

        Returns:
            ``[members, rows, outputs]``, of the dtype of ``x``.
        """
        (members, rank, outputs), (rows, inputs) = a.shape, x.shape[1:]
        out = x.new_empty(members, rows, outputs)
        self._low_rank(
            DTYPES[x.dtype],
            None if bias is None else bias.data_ptr(),
            0 if bias is None or len(bias) == 1 else outputs,
            x.data_ptr(),
            0 if len(x) == 1 else rows * inputs,
            b.data_ptr(),
            a.data_ptr(),
            members,
            rows,
            inputs,
            outputs,
            rank,
            out.data_ptr(),
            threads(out.numel() + members * rows * inputs),
        )
        return out


def _words(address: Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(address))(*address)


def threads(elements: int) -> int:
    """How many threads to use for a number of elements."""
    return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))
