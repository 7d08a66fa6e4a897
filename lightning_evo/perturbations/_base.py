"""What a perturbation is: one generation's noise for every tensor, in any number of directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_evo.noise.philox import NoiseKey

__all__ = ["Perturbation", "around", "noise_dtype"]


class Perturbation(ABC):
    """One generation's noise: mean 0 and, if it is neither sparse nor scaled, variance 1 for every element.

    It is a pure function of the element's address (and of the center, where a perturbation says so).

    The noise that :meth:`noise` gives, that :meth:`members` adds and that :meth:`weighted_sum` sums are the same
    numbers. Tensors are named by their index in the search space. ``center`` is the tensor as it is without noise; only
    its shape, device and dtype matter, except where a perturbation says that more does.

    Args:
        key: Seed and generation.
    """

    def __init__(self, key: NoiseKey) -> None:
        self.key = key

    def over(self, offsets: Mapping[int, int]) -> Perturbation:
        """This perturbation over the parameters of a module; itself, where noise is addressed by parameter.

        Args:
            offsets: Where each parameter begins in a vector of all evolving elements, by its index.
        """
        return self

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
        self,
        weights: Sequence[float],
        parameters: Sequence[int],
        centers: Sequence[Tensor],
        coefficients: Sequence[float],
        rounding: NoiseKey,
    ) -> list[float | None]:
        """``center += coefficient * weighted_sum`` of some tensors, in one pass, where there is such a pass.

        It gives, bit for bit, what :meth:`weighted_sum` and :func:`lightning_evo.noise.rounding.move` give.

        Args:
            weights: One for each direction.
            parameters: Indices of the tensors.
            centers: The tensors, each contiguous.
            coefficients: The learning rate of each.
            rounding: Seed and generation of the rounding's random numbers.

        Returns:
            The norm of each tensor's sum; ``None`` if nothing was done to it, because there is no such pass.
        """
        return [None] * len(centers)

    def members(self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor) -> Tensor:
        """``center + step * eps``: one tensor of some members.

        Args:
            directions: Numbers of the directions.
            steps: One for each member. The members of a direction follow each other, the same number for each
                direction: sigma and minus sigma for antithetic pairs.
            parameter: Index of the tensor.
            center: The tensor.

        Returns:
            ``[len(steps), *center.shape]``, of the dtype of ``center``, computed in :func:`noise_dtype`.
        """
        return around(center, self.noise(directions, parameter, center), steps)

    def members_of_several(
        self, directions: Sequence[int], steps: Sequence[float], parameters: Sequence[int], centers: Sequence[Tensor]
    ) -> list[Tensor]:
        """:meth:`members` of several tensors, all in one pass where there is such a pass."""
        each = zip(parameters, centers, strict=True)
        return [self.members(directions, steps, parameter, center) for parameter, center in each]

    def members_of_rows(
        self,
        directions: Sequence[int],
        steps: Sequence[float],
        parameter: int,
        center: Tensor,
        first: int,
        last: int,
        out: Tensor | None = None,
    ) -> Tensor | None:
        """Rows ``first <= row < last`` of :meth:`members`, without making the others; ``None`` if that is not possible.

        Args:
            directions: Numbers of the directions.
            steps: One for each member, those of a direction together.
            parameter: Index of the tensor.
            center: The tensor.
            first: Number of the first row.
            last: One past that of the last.
            out: Where to write them, ``[len(steps), elements of these rows]`` in the dtype of ``center``.

        Returns:
            ``[len(steps), last - first, ...]``.
        """
        return None

    def members_of_chosen_rows(
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor | None:
        """Some rows of :meth:`members`, in any order, without making the others; ``None`` if that is no gain.

        Args:
            directions: Numbers of the directions.
            steps: One for each member, those of a direction together.
            parameter: Index of the tensor.
            center: The tensor.
            chosen: Numbers of rows, int64 ``[...]``, each in [0, len(center)), which is not checked.

        Returns:
            ``[len(steps), *chosen.shape, *center.shape[1:]]``.
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
            ``[stop - start]``, bit for bit a part of what :meth:`noise` gives.

        Raises:
            NotImplementedError: If the noise depends on more of the center than its shape.
        """
        raise NotImplementedError(f"{type(self).__name__} noise needs the whole tensor.")

    def members_of_range(
        self,
        directions: Sequence[int],
        steps: Sequence[float],
        parameter: int,
        center: Tensor,
        part: Tensor,
        start: int,
    ) -> Tensor:
        """:meth:`members`, of consecutive elements of a tensor: of a shard.

        Args:
            directions: Numbers of the directions.
            steps: One for each member, those of a direction together.
            parameter: Index of the tensor.
            center: The tensor, or something of its shape, device and dtype.
            part: Its elements from ``start`` on, ``[elements]``.
            start: Flat, row-major offset of the first of them.

        Returns:
            ``[len(steps), elements]``, of the dtype of ``part``, bit for bit a part of what :meth:`members` gives.
        """
        stop = start + len(part)
        noise = [self.noise_of_range(direction, parameter, center, start, stop) for direction in directions]
        return around(part, torch.stack(noise), steps)

    def factors(self, directions: Sequence[int], parameter: int, center: Tensor) -> tuple[Tensor, Tensor] | None:
        """The noise as a product of two thin matrices, where it is one.

        The tensor is seen as a matrix of ``rows = center.shape[0]`` rows. (A stack of matrices has no such product.)

        Returns:
            ``A [len(directions), rows, rank]`` and ``B [len(directions), columns, rank]`` in float32 (float64 for
            float64), with ``noise = (A @ B.T).view(shape)``; ``None`` if the tensor's noise is dense.
        """
        return None


def around(center: Tensor, noise: Tensor, steps: Sequence[float]) -> Tensor:
    """``center + step * noise``, rounded to the dtype of ``center``.

    Args:
        center: Of any shape.
        noise: ``[directions, *center.shape]``, in :func:`noise_dtype`.
        steps: The same number for each direction, one after the other.

    Returns:
        ``[len(steps), *center.shape]``.
    """
    scales = noise.new_tensor(steps).view(len(noise), -1, *[1] * center.dim())
    return (center.detach().to(noise.dtype) + noise.unsqueeze(1) * scales).to(center.dtype).flatten(0, 1)


def noise_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which noise is added to a tensor: float64 for float64, float32 for all others."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
