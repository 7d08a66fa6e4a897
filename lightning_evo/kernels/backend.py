"""The operations on random values, in plain tensor operations: the reference, on any device.

Another backend inherits them and overrides what it does faster. What it can't do faster (strided memory, float64) it
leaves to them, so that callers need not know which backend they have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evo.kernels.normal import normal_table
from lightning_evo.kernels.pull import Pull, drawn_back
from lightning_evo.kernels.rounding import stochastic_round
from lightning_evo.kernels.values import noise_dtype, row_size, rows, standardised, write_members
from lightning_evo.utils.tensors import uploaded

__all__ = ["AT_ONCE", "CHUNK", "Backend", "Moved", "Span", "Values", "move_in_pieces"]

_CHUNK_ROWS = 1 << 13  # rows drawn at a time: 1M normal values, so temporaries stay in the cache
CHUNK = 1 << 20
"""Elements that are summed at a time, so that they stay in the cache."""
AT_ONCE = 1 << 22
"""Elements that are perturbed at a time: they need 40 bytes for each."""


class Values(NamedTuple):
    """A tensor's random values: of a direction and an element's flat, row-major offset.

    As *noise* they have mean 0 and variance 1. They are made in float32, and converted to float64 for float64 tensors.

    Attributes:
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"uniform"``.
        address: Words 1 and 2 of Philox's counter and the key's two. Word 0 follows from the offset, and word 3 is the
            direction.
    """

    distribution: str
    address: tuple[int, ...]


class Span(NamedTuple):
    """Consecutive elements of a tensor, and where their members go.

    Attributes:
        values: The tensor's noise.
        start: Offset of the first element.
        center: ``[elements]``.
        out: ``[members, elements]``, of the center's dtype; each member's elements are contiguous.
    """

    values: Values
    start: int
    center: Tensor
    out: Tensor


class Moved(NamedTuple):
    """A tensor that moves.

    Attributes:
        values: Its noise.
        rounding: The address of its rounding's random numbers.
        center: ``[elements]``.
        coefficient: What the sum of noise is multiplied by; a tensor, float64 ``[]``, if only the center's device knows
            it. On a CPU it is a number.
        pull: Where it is drawn back to, if anywhere; is told how far from there the tensor has come.
    """

    values: Values
    rounding: tuple[int, ...]
    center: Tensor
    coefficient: float | Tensor
    pull: Pull | None = None


class Backend:
    """Every backend gives the same bits, but for :meth:`low_rank`, which agrees to rounding.

    Directions are given by their numbers. Where ``steps`` are given there is one for each member; the members of a
    direction follow each other, the same number for each direction.

    Example:
        >>> from lightning_evo.kernels import backend_for
        >>> values, center, out = Values("gaussian", (0, 0, 0, 0)), torch.zeros(1000), torch.empty(2, 1000)
        >>> noise = Backend().draw(values, [5], 0, 1000, torch.float32, center.device)
        >>> for backend in (Backend(), backend_for(center)):
        ...     backend.members([Span(values, 0, center, out)], [5], [0.5, -0.5])
        ...     print(torch.equal(out, torch.cat([noise * 0.5, noise * -0.5])))
        True
        True
    """

    def draw(
        self, values: Values, directions: Sequence[int], start: int, stop: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Values at ``start <= offset < stop``, ``[directions, stop - start]``; uniform ones are in [0, 1)."""
        out = torch.empty(len(directions), stop - start, dtype=dtype, device=device)
        if out.numel() == 0:
            return out
        size = row_size(values.distribution)
        first, last = start // size, -(-stop // size)
        at_once = max(1, _CHUNK_ROWS // (last - first))
        for begin in range(first, last, _CHUNK_ROWS):
            end = min(begin + _CHUNK_ROWS, last)
            lower, upper = max(start, begin * size), min(stop, end * size)
            for i in range(0, len(directions), at_once):
                chunk = directions[i : i + at_once]
                drawn = self.rows(values, chunk, begin, end, device)[:, lower - begin * size : upper - begin * size]
                out[i : i + len(chunk), lower - start : upper - start] = drawn
        return out

    def members(self, spans: Sequence[Span], directions: Sequence[int], steps: Sequence[float]) -> None:
        """``out[i] = center + steps[i] * noise`` of some tensors."""
        at_once = max(1, AT_ONCE // len(directions))
        for values, start, center, out in spans:
            for begin in range(0, len(center), at_once):
                end = min(begin + at_once, len(center))
                noise = self.noise(values, directions, start + begin, start + end, center)
                write_members(center[begin:end], noise, steps, out[:, begin:end])

    def chosen_rows(
        self,
        values: Values,
        directions: Sequence[int],
        steps: Sequence[float],
        center: Tensor,
        chosen: Tensor,
        out: Tensor,
    ) -> None:
        """``out[i, j] = center[chosen[j]] + steps[i] * noise[chosen[j]]``: some rows of a tensor's members.

        Args:
            values: The tensor's noise.
            directions: Numbers of the directions.
            steps: One for each member.
            center: ``[rows, ...]``.
            chosen: Numbers of rows, int64 ``[number]``. They are not checked.
            out: ``[members, number, ...]``, contiguous, of the dtype of ``center``.
        """
        size, width = row_size(values.distribution), math.prod(center.shape[1:])
        aligned = width % size == 0
        each = width // size if aligned else (width + size - 2) // size + 1  # rows of noise that hold a row of weights
        at_once = max(1, AT_ONCE // max(1, out[:, :1].numel()))
        out = out.view(len(out), len(chosen) * width)
        for first in range(0, len(chosen), at_once):
            part = chosen[first : first + at_once]
            start = part[:, None] * width
            numbers = start // size + torch.arange(each, device=center.device)
            drawn = self._numbered_rows(values, directions, numbers.flatten()).view(len(directions), -1, each * size)
            if not aligned:
                index = start % size + torch.arange(width, device=center.device)
                drawn = drawn.gather(2, index.expand(len(directions), -1, -1))
            noise = standardised(values.distribution, drawn.to(noise_dtype(center))).flatten(1)
            flat = center.index_select(0, part).flatten()
            write_members(flat, noise, steps, out[:, first * width : first * width + len(flat)])

    def weighted_sum(
        self, values: Values, directions: Sequence[int], weights: Sequence[float], start: int, stop: int, like: Tensor
    ) -> Tensor:
        """``sum_d weights[d] noise_d`` at ``start <= offset < stop``, added up one by one, where ``like`` is."""
        total = torch.zeros(stop - start, dtype=noise_dtype(like), device=like.device)
        for begin in range(start, stop, CHUNK):
            part = total[begin - start : begin - start + CHUNK]
            at_once = max(1, CHUNK // len(part))
            for i in range(0, len(directions), at_once):
                noise = self.noise(values, directions[i : i + at_once], begin, begin + len(part), like)
                for eps, weight in zip(noise, weights[i : i + at_once], strict=True):
                    part += eps * weight
        return total

    def move(self, address: tuple[int, ...], start: int, center: Tensor, step: Tensor) -> None:
        """``center += step``; bfloat16 and float16 are rounded stochastically. Where ``step`` is 0 not a bit changes.

        Args:
            address: Of the rounding's random numbers.
            start: Offset of the first element; a row of random numbers begins there.
            center: ``[elements]``.
            step: ``[elements]``, in the dtype of noise.
        """
        if center.dtype not in (torch.bfloat16, torch.float16):
            # `where` keeps the sign of a negative zero.
            center.copy_(torch.where(step == 0, center, center + step))
            return
        moved = self._rounded(address, start, center.float() + step, center.dtype)
        center.copy_(torch.where(step == 0, center, moved))

    def pull(self, address: tuple[int, ...], start: int, center: Tensor, step: Tensor, pull: Pull) -> Tensor:
        """:meth:`move`, drawn back on the way, with the one rounding: the formula is that of :class:`Pull`.

        Args:
            address: Of the rounding's random numbers.
            start: Offset of the first element; a row of random numbers begins there.
            center: ``[elements]``.
            step: ``[elements]``, in the dtype of noise.
            pull: Of these elements.

        Returns:
            The norm of ``center - anchor`` after it, float64 ``[]``.
        """
        anchor = pull.anchor.to(center.device, non_blocking=True)
        home = anchor.to(step.dtype)
        away = drawn_back(center.to(step.dtype), home, step, pull)
        moved = home + away
        if center.dtype in (torch.bfloat16, torch.float16):
            moved = self._rounded(address, start, moved, center.dtype)
        center.copy_(torch.where(away == 0, anchor, moved))
        way: Tensor = torch.linalg.vector_norm(center.to(step.dtype) - home, dtype=torch.float64)
        return way

    def _rounded(self, address: tuple[int, ...], start: int, values: Tensor, dtype: torch.dtype) -> Tensor:
        first, count = start // row_size("uniform16"), -(-len(values) // row_size("uniform16"))
        uniform = self.rows(Values("uniform16", address), [0], first, first + count, values.device)[0, : len(values)]
        return stochastic_round(values, dtype, uniform)

    def update(self, tensors: Sequence[Moved], directions: Sequence[int], weights: Sequence[float]) -> Tensor:
        """``center += coefficient * sum_d weights[d] noise_d`` of whole tensors, as :meth:`move` and :meth:`pull` move.

        Returns:
            The norm of each tensor's sum, float64 ``[tensors]``, on the first center's device, which is not waited for.
        """

        def weighted_sum(i: int, start: int, stop: int) -> Tensor:
            return self.weighted_sum(tensors[i].values, directions, weights, start, stop, tensors[i].center)

        def move(i: int, piece: Tensor, start: int, step: Tensor, pull: Pull | None) -> Tensor | None:
            if pull is not None:
                return self.pull(tensors[i].rounding, start, piece, step, pull)
            self.move(tensors[i].rounding, start, piece, step)
            return None

        return move_in_pieces([(one.center, one.coefficient, one.pull) for one in tensors], weighted_sum, move)

    def low_rank(self, b: Tensor, a: Tensor) -> Callable[[Tensor | None, Tensor], Tensor]:
        """``bias + (x B) A^T`` for each member, as a function of ``bias`` and ``x``.

        Args:
            b: B transposed, ``[members, rank, inputs]``.
            a: A transposed, ``[members, rank, outputs]``.

        Returns:
            A function of ``bias``, ``[members or 1, outputs]`` of the dtype of ``x``, or ``None``, and of ``x``,
            ``[members or 1, rows, inputs]``, that gives ``[members, rows, outputs]``, of the dtype of ``x``.
        """

        def product(bias: Tensor | None, x: Tensor) -> Tensor:
            hidden, right = _thin_product(x, b.mT.to(x.dtype)), a.to(x.dtype)
            return hidden @ right if bias is None else torch.baddbmm(bias[:, None], hidden, right)

        return product

    # --- of what the others are made ---

    def rows(self, values: Values, directions: Sequence[int], first: int, last: int, device: torch.device) -> Tensor:
        """Values of the rows ``first <= row < last``: float32 ``[directions, elements]``."""
        return self._numbered_rows(values, directions, torch.arange(first, last, device=device))

    def noise(self, values: Values, directions: Sequence[int], start: int, stop: int, like: Tensor) -> Tensor:
        """Noise at ``start <= offset < stop``, ``[directions, stop - start]``, where ``like`` is."""
        drawn = self.draw(values, directions, start, stop, noise_dtype(like), like.device)
        return standardised(values.distribution, drawn)

    def run(self, function: Callable[..., Any], elements: int, *args: Any) -> Any:
        """Call a function of tensors that makes a number of random values."""
        return function(*args)

    def _numbered_rows(self, values: Values, directions: Sequence[int], numbers: Tensor) -> Tensor:
        """Whole rows, in any order: float32 ``[directions, len(numbers) * row_size]``."""
        device, count = numbers.device, len(numbers)
        row = numbers.repeat(len(directions))
        member = uploaded(directions, torch.int64, device).repeat_interleave(count)
        if len(row) == 1:  # one row alone would be compiled for itself
            row, member = row.repeat(2), member.repeat(2)
        elements = len(row) * row_size(values.distribution)
        words, table = uploaded(values.address, torch.int64, device), normal_table(device)
        drawn = self.run(rows, elements, values.distribution, row, member, words, table)
        return drawn[: len(directions) * count].view(len(directions), -1)  # type: ignore[no-any-return]


def move_in_pieces(
    tensors: Sequence[tuple[Tensor, float | Tensor, Pull | None]],
    weighted_sum: Callable[[int, int, int], Tensor],
    move: Callable[[int, Tensor, int, Tensor, Pull | None], Tensor | None],
) -> Tensor:
    """Move whole tensors along their sums, piece by piece, so that nothing as large as a tensor is made.

    Args:
        tensors: Centers, contiguous, their coefficients, and what draws them back.
        weighted_sum: Of a tensor's number and a range, a vector that may be written to.
        move: Of a tensor's number, a piece of the center, the offset where it begins, its step, and what draws it back;
            gives how far from there it has come.

    Returns:
        The norm of each tensor's sum, float64 ``[tensors]``, on the first center's device, which is not waited for.
    """
    norms: list[Tensor] = []
    for i, (center, coefficient, pull) in enumerate(tensors):
        flat = center.view(-1)
        square, away = (flat.new_zeros((), dtype=torch.float64) for _ in range(2))
        for start in range(0, len(flat), CHUNK):
            piece = flat[start : start + CHUNK]
            total = weighted_sum(i, start, start + len(piece))
            square += torch.linalg.vector_norm(total).double().square()
            part = None if pull is None else pull.part(start, start + len(piece))
            way = move(i, piece, start, total.mul_(coefficient), part)
            if way is not None:
                away += way.square()
        norms.append(square.sqrt())
        if pull is not None:
            pull.distance = away.sqrt()
    if not norms:
        return torch.zeros(0, dtype=torch.float64)
    return torch.stack([norm.to(norms[0].device) for norm in norms])


def _thin_product(x: Tensor, thin: Tensor) -> Tensor:
    """``x [members or 1, rows, inputs]`` times ``thin [members, inputs, rank]``: ``[members, rows, rank]``."""
    if x.is_cuda:
        return x @ thin
    if len(x) == 1:
        members, _, rank = thin.shape
        product = functional.linear(x[0], thin.mT.reshape(members * rank, -1))
        return product.view(-1, members, rank).transpose(0, 1)
    # On a CPU a batched product with a single column is up to ten times slower than one after the other.
    return torch.stack([functional.linear(x[i], thin[i].T) for i in range(len(thin))])
