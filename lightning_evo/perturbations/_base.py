"""What a perturbation is: one generation's noise for every tensor, in as many directions as are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_evo.noise import NoiseKey

__all__ = ["Perturbation", "noise_dtype"]


class Perturbation(ABC):
    """One generation's noise: mean 0 and, if it is neither sparse nor scaled, variance 1 for every element.

    It is a pure function of the element's address (and of the center, where a perturbation says so).

    The noise that :meth:`noise` gives, that :meth:`members` adds and that :meth:`weighted_sum` sums are the same
    numbers. Tensors are named by their index in the search space. ``center`` is the tensor as it is without noise; only
    its shape, device and dtype matter, unless a perturbation says otherwise.

    Args:
        key: Seed and generation.
    """

    def __init__(self, key: NoiseKey) -> None:
        self.key = key

    @abstractmethod
    def noise(self, directions: Sequence[int], parameter: int, center: Tensor) -> Tensor:
        """Noise for one tensor in several directions.

        Args:
            directions: Numbers of the directions.
            parameter: Index of the tensor.
            center: The tensor.

        Returns:
            ``[len(directions), *center.shape]`` in float32, or float64 for a float64 tensor. Not to be written to.
        """

    @abstractmethod
    def weighted_sum(
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """``sum_d weights[d] eps_d`` over directions 0, 1, …, for the elements ``start <= offset < stop``.

        The result for an element does not depend on the range that it was asked for in. Directions of weight zero cost
        nothing.

        Args:
            weights: One for each direction.
            parameter: Index of the tensor.
            center: The tensor.
            start: First flat, row-major offset.
            stop: One past the last offset; ``None`` for the tensor's end.

        Returns:
            ``[stop - start]`` in float32, or float64 for a float64 tensor.
        """

    def move(
        self, weights: Sequence[float], parameter: int, center: Tensor, coefficient: float, rounding: NoiseKey
    ) -> float | None:
        """``center += coefficient * weighted_sum`` in place and in one pass, where there is such a pass.

        It gives, bit for bit, what :meth:`weighted_sum` and :func:`lightning_evo.rounding.move` give.

        Args:
            weights: One for each direction.
            parameter: Index of the tensor.
            center: The tensor.
            coefficient: The learning rate.
            rounding: Seed and generation of the rounding's random numbers.

        Returns:
            The norm of the sum; ``None`` if nothing was done, because there is no such pass.
        """
        return None

    def members(self, direction: int, steps: Sequence[float], parameter: int, center: Tensor) -> list[Tensor]:
        """``center + step * eps`` for each step: one tensor of some members.

        Args:
            direction: Number of the direction.
            steps: Sigma and minus sigma for an antithetic pair, or only one of them.
            parameter: Index of the tensor.
            center: The tensor.

        Returns:
            For each step a tensor of the shape and dtype of ``center``, computed in :func:`noise_dtype`.
        """
        noise = self.noise([direction], parameter, center)[0]
        wide = center.to(noise.dtype)
        return [(wide + noise * step).to(center.dtype) for step in steps]

    def members_of_rows(
        self,
        direction: int,
        steps: Sequence[float],
        parameter: int,
        center: Tensor,
        first: int,
        last: int,
        outs: Sequence[Tensor] | None = None,
    ) -> list[Tensor] | None:
        """Rows ``first <= row < last`` of :meth:`members`, without making the others; ``None`` if that can't be.

        Args:
            direction: Number of the direction.
            steps: As there.
            parameter: Index of the tensor.
            center: The tensor.
            first: Number of the first row.
            last: One past that of the last.
            outs: Where to write them: vectors of the dtype of ``center``, one for each step.
        """
        return None

    def noise_of_range(self, direction: int, parameter: int, center: Tensor, start: int, stop: int) -> Tensor:
        """The elements ``start <= offset < stop`` of :meth:`noise` in one direction, without making the others.

        Args:
            direction: Number of the direction.
            parameter: Index of the tensor.
            center: The tensor, or something of its shape, device and dtype.
            start: First flat, row-major offset.
            stop: One past the last offset.

        Returns:
            ``[stop - start]``, the same bits as there.

        Raises:
            NotImplementedError: If the noise depends on more of the center than its shape.
        """
        raise NotImplementedError(f"{type(self).__name__} noise needs the whole tensor.")

    def members_of_range(
        self, direction: int, steps: Sequence[float], parameter: int, center: Tensor, part: Tensor, start: int
    ) -> list[Tensor]:
        """:meth:`members`, of consecutive elements of a tensor: of a shard.

        Args:
            direction: Number of the direction.
            steps: As there.
            parameter: Index of the tensor.
            center: The tensor, or something of its shape, device and dtype.
            part: Its elements from ``start`` on, ``[elements]``.
            start: Flat, row-major offset of the first of them.

        Returns:
            For each step a vector of the shape and dtype of ``part``, the same bits as there.
        """
        noise = self.noise_of_range(direction, parameter, center, start, start + len(part))
        wide = part.to(noise.dtype)
        return [(wide + noise * step).to(part.dtype) for step in steps]

    def factors(self, directions: Sequence[int], parameter: int, center: Tensor) -> tuple[Tensor, Tensor] | None:
        """The noise as a product of two thin matrices, where it is one.

        The tensor is seen as a matrix of ``rows = center.shape[0]`` rows.

        Returns:
            ``A [len(directions), rows, rank]`` and ``B [len(directions), columns, rank]`` in float32 (float64 for
            float64), with ``noise = (A @ B.T).view(shape)``; ``None`` if the tensor's noise is dense.
        """
        return None


def noise_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which noise meets a tensor: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
