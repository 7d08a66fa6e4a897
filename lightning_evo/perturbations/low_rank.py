"""Low-rank perturbations: the noise of a matrix is the product of two thin ones.

Sarkar et al., "Evolution Strategies at the Hyperscale" (EGGROLL), 2025, https://arxiv.org/abs/2511.16652:
``E = A B^T / sqrt(r)`` with standard normal A ``[m, r]`` and B ``[n, r]``. A member costs (m + n) r random numbers
instead of m n, and the sum over the population is one matrix product.

Chen et al., "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank Structures" (LOZO), 2024,
https://arxiv.org/abs/2410.07698, keep B for some generations: here ``basis_key``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_evo.kernels.values import standardised
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import Distribution, draw
from lightning_evo.perturbations._base import Moving, Perturbation, Target, divided, noise_dtype
from lightning_evo.perturbations.dense import Dense
from lightning_evo.utils.options import whole
from lightning_evo.utils.tensors import uploaded

__all__ = ["LowRank"]

_BLOCK = 1 << 20  # elements of a product, or of the factors that go into it, that are made at a time: 4 MB of float32
_SMALLEST_MATRIX = 16  # rows and columns of a stack's matrices; most kernels of convolutions are smaller


class LowRank(Perturbation):
    """One generation's noise, ``A B^T / sqrt(rank)`` for tensors of two and more dimensions.

    Such a tensor is a matrix of ``m = shape[0]`` rows and n columns. A's elements are drawn at the flat, row-major
    offsets ``[0, m rank)`` of the tensor's address, B's at ``[m rank, (m + n) rank)``. Every element has mean 0 and
    variance 1, and two elements of a direction are uncorrelated, though not independent.

    A tensor ``[e, m, n]`` with m and n of at least 16 is a stack of e matrices, such as the experts of a layer: each
    has factors of its own, A's ``[e, m, rank]`` one after the other and behind them B's ``[e, n, rank]``. (As one
    matrix of e rows all of them would share a direction. With smaller m or n it is taken for a convolution's kernel. A
    shape does not tell for certain: a Conv1d of 16 or more inputs and taps is a stack, too.)

    Vectors, scalars and matrices with ``min(m, n) <= rank``, for which nothing would be saved, get dense noise.

    Args:
        key: Seed and generation.
        rank: Columns of A and B, >= 1.
        basis_key: Seed and generation of B; ``None`` for ``key``.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"uniform"``, of the elements of A and B and of dense noise.

    Raises:
        ValueError: If the rank is not a whole number >= 1, or the distribution is unknown.

    Example:
        >>> weight = torch.zeros(20, 30)
        >>> perturbation = LowRank(NoiseKey(seed=0, generation=0), rank=2)
        >>> noise = perturbation.noise([0, 1], parameter=0, center=weight)
        >>> a, b = perturbation.factors([0, 1], parameter=0, center=weight)
        >>> a.shape, b.shape
        (torch.Size([2, 20, 2]), torch.Size([2, 30, 2]))
        >>> torch.allclose(noise, a @ b.mT, atol=1e-5)
        True
        >>> total = perturbation.weighted_sum([0.5, -2.0], parameter=0, center=weight)
        >>> torch.allclose(total.view(20, 30), 0.5 * noise[0] - 2.0 * noise[1], atol=1e-5)
        True
    """

    def __init__(
        self,
        key: NoiseKey,
        rank: int = 1,
        basis_key: NoiseKey | None = None,
        distribution: Distribution = "gaussian",
    ) -> None:
        self.key = key
        self.rank = whole("rank", rank)
        self.basis_key = key if basis_key is None else basis_key
        self._dense = Dense(key, distribution)
        self.distribution = self._dense.distribution

    def noise_of_range(
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        """The noise of some elements, by elementwise products: the same bits on any device.

        Args:
            directions: Numbers of the directions.
            parameter: Index of the tensor.
            center: The tensor, or something of its shape, device and dtype.
            start: First flat, row-major offset.
            stop: One past the last offset.

        Returns:
            ``[len(directions), stop - start]`` in float32, or float64 for a float64 tensor. Not to be written to.
        """
        if not self._is_low_rank(center):
            return self._dense.noise_of_range(directions, parameter, center, start, stop)
        if (start, stop) == (0, center.numel()):
            return _product(*self._all_factors(directions, parameter, center)).flatten(1)
        _, rows, columns = _matrices(center)
        first, last = start // columns, -(-stop // columns)  # whole rows, of which the ends may not be wanted
        shape = len(directions), last - first, columns
        noise = torch.empty(shape, dtype=noise_dtype(center), device=center.device)
        for matrix, begin, end in _pieces(first, last, rows):
            a = self._a(directions, parameter, center, begin, end)
            noise[:, begin - first : end - first] = _product(a, self._b(directions, parameter, center, matrix))
        return noise.flatten(1)[:, start - first * columns : stop - first * columns]

    def write_members(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], targets: Sequence[Target]
    ) -> None:
        low_rank: list[Target] = []
        dense: list[Target] = []
        for target in targets:
            (low_rank if self._is_low_rank(target.center) else dense).append(target)
        super().write_members(directions, steps, low_rank)
        self._dense.write_members(directions, steps, dense)

    def chosen_rows(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor:
        if self._is_low_rank(center):
            return super().chosen_rows(directions, steps, parameter, center, chosen)
        return self._dense.chosen_rows(directions, steps, parameter, center, chosen)

    def move(self, weights: Sequence[float], tensors: Sequence[Moving], rounding: NoiseKey) -> Tensor:  # noqa: D102
        return divided(
            tensors,
            lambda one: self._is_low_rank(one.center),
            lambda mine: super(LowRank, self).move(weights, mine, rounding),
            lambda dense: self._dense.move(weights, dense, rounding),
        )

    def factors(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        if not self._is_low_rank(center) or _matrices(center)[:2] != (1, len(center)):
            return None
        a, b = self._all_factors(directions, parameter, center)
        return a[:, 0], b[:, 0]

    def weighted_sum(
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """``sum_d weights[d] eps_d`` for a range of elements.

        One matrix product ``(A diag(weights)) B^T`` over all directions and ranks, for each matrix of a stack, so
        against the sum of :meth:`noise` it is rounded in another order, and as
        ``torch.set_float32_matmul_precision`` allows. Rows are multiplied in whole blocks that depend only on the
        tensor, so an element does not depend on the range.

        Args:
            weights: One for each direction.
            parameter: Index of the tensor.
            center: The tensor.
            start: First flat, row-major offset.
            stop: One past the last offset; ``None`` for the tensor's end.

        Returns:
            ``[stop - start]`` in float32, or float64 for a float64 tensor.
        """
        stop = center.numel() if stop is None else stop
        if not self._is_low_rank(center):
            return self._dense.weighted_sum(weights, parameter, center, start, stop)
        _, rows, columns = _matrices(center)
        first, last = start // columns, -(-stop // columns)
        total = torch.empty(last - first, columns, dtype=noise_dtype(center), device=center.device)
        with torch.autocast(center.device.type, enabled=False):  # which would multiply in 16 bits
            for matrix, lower, upper in _pieces(first, last, rows):
                self._write_sum(total[lower - first : upper - first], weights, parameter, center, matrix, lower)
        return total.view(-1)[start - first * columns : stop - first * columns]

    def _write_sum(
        self,
        total: Tensor,
        weights: Sequence[float],
        parameter: int,
        center: Tensor,
        matrix: int,
        first: int,
    ) -> None:
        """Write ``sum_d weights[d] A_d B_d^T`` of a matrix's rows into ``total [rows, columns]``.

        Args:
            total: From row ``first`` of the whole tensor on.
            weights: One for each direction.
            parameter: Index of the tensor.
            center: The tensor.
            matrix: Number of the matrix in its stack.
            first: Number of the first row, counted through the stack.
        """
        _, rows, columns = _matrices(center)
        top, last = matrix * rows, first + len(total)
        chosen = [direction for direction, weight in enumerate(weights) if weight]
        if not chosen:
            total.zero_()
        block = max(1, _BLOCK // columns)
        at_once = max(1, _BLOCK // (self.rank * (min(block, rows) + columns)))
        for i in range(0, len(chosen), at_once):
            directions = chosen[i : i + at_once]
            chosen_weights = [weights[direction] for direction in directions]
            scales = uploaded(chosen_weights, total.dtype, total.device)[:, None, None]
            b = self._b(directions, parameter, center, matrix).permute(1, 0, 2).flatten(1)
            for begin in range(top + (first - top) // block * block, last, block):
                end = min(begin + block, top + rows)
                a = self._a(directions, parameter, center, begin, end) * scales
                a = a.permute(1, 0, 2).flatten(1)
                lower, upper = max(begin, first), min(end, last)
                part, is_complete = total[lower - first : upper - first], (lower, upper) == (begin, end)
                if i == 0 and is_complete:
                    torch.mm(a, b.T, out=part)
                    continue
                product = (a @ b.T)[lower - begin : upper - begin]
                part.copy_(product if i == 0 else part + product)

    def _is_low_rank(self, center: Tensor) -> bool:
        return center.dim() >= 2 and center.numel() > 0 and min(_matrices(center)[1:]) > self.rank

    def _all_factors(self, directions: Sequence[int], parameter: int, center: Tensor) -> tuple[Tensor, Tensor]:
        """A ``[directions, matrices, rows, rank]`` and B ``[directions, matrices, columns, rank]``."""
        count, rows, columns = _matrices(center)
        above = count * rows  # rows of A
        if self.basis_key == self.key:  # both in one draw
            values = self._draw(self.key, directions, parameter, center, 0, (above + count * columns) * self.rank)
            values = values.view(len(directions), -1, self.rank)
            a, b = self._scaled(values[:, :above]), values[:, above:]
        else:
            a = self._a(directions, parameter, center, 0, above)
            b = torch.cat([self._b(directions, parameter, center, matrix) for matrix in range(count)], dim=1)
        each = len(directions), count
        return a.view(*each, rows, self.rank), b.view(*each, columns, self.rank)

    def _a(self, directions: Sequence[int], parameter: int, center: Tensor, first: int, last: int) -> Tensor:
        """Rows of A, counted through a stack: ``[directions, rows, rank]``, divided by ``sqrt(rank)``."""
        values = self._draw(self.key, directions, parameter, center, first * self.rank, last * self.rank)
        return self._scaled(values.view(len(directions), -1, self.rank))

    def _scaled(self, a: Tensor) -> Tensor:
        return a if self.rank == 1 else a * (1 / math.sqrt(self.rank))  # a GPU rounds `/` differently

    def _b(self, directions: Sequence[int], parameter: int, center: Tensor, matrix: int) -> Tensor:
        """B of one matrix, ``[directions, columns, rank]``."""
        count, rows, columns = _matrices(center)
        start = (count * rows + matrix * columns) * self.rank
        values = self._draw(self.basis_key, directions, parameter, center, start, start + columns * self.rank)
        return values.view(len(directions), columns, self.rank)

    def _draw(
        self, key: NoiseKey, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        values = draw(
            key,
            directions,
            parameter,
            start,
            stop,
            distribution=self.distribution,
            dtype=noise_dtype(center),
            device=center.device,
        )
        return standardised(self.distribution, values)


def _matrices(center: Tensor) -> tuple[int, int, int]:
    """How many matrices a tensor of two and more dimensions is, and the rows and columns of each."""
    if center.dim() == 3 and min(center.shape[1:]) >= _SMALLEST_MATRIX:
        return center.shape[0], center.shape[1], center.shape[2]
    return 1, len(center), center.numel() // len(center)


def _pieces(first: int, last: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Rows ``first <= row < last`` of a stack by matrix: its number, and the first and last of its rows."""
    for matrix in range(first // rows, -(-last // rows)):
        yield matrix, max(first, matrix * rows), min(last, (matrix + 1) * rows)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``A B^T``, of ``[..., rows, rank]`` and ``[..., columns, rank]``.

    Not by a matrix product, whose rounding depends on the device, on TF32 and on an enclosing autocast.
    """
    a_first, *a_more = a.unbind(-1)
    b_first, *b_more = b.unbind(-1)
    total = a_first[..., :, None] * b_first[..., None, :]
    for a_k, b_k in zip(a_more, b_more, strict=True):
        total += a_k[..., :, None] * b_k[..., None, :]
    return total
