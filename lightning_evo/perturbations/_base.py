"""What a perturbation is: one generation's noise for every tensor, in any number of directions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_evo.kernels.backend import CHUNK, move_in_pieces
from lightning_evo.kernels.pull import Pull
from lightning_evo.kernels.values import noise_dtype, write_members
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.rounding import move
from lightning_evo.spaces.memory import empty_copies

__all__ = ["Moving", "Part", "Perturbation", "Target", "check_whole", "divided", "noise_dtype"]


class Part(NamedTuple):
    """Consecutive elements of a tensor, in row-major order, whose members are asked for.

    Attributes:
        parameter: The tensor's index in the search space.
        center: The tensor, or something of its shape, device and dtype.
        start: Flat offset of the first element.
        values: The center's elements, of any shape; ``None`` for the whole tensor.
        out: Where to write the members, ``[members, elements]``, each member's contiguous; ``None`` allocates.
    """

    parameter: int
    center: Tensor
    start: int = 0
    values: Tensor | None = None
    out: Tensor | None = None

    @classmethod
    def of_rows(cls, parameter: int, center: Tensor, first: int, last: int, out: Tensor | None = None) -> Part:
        """The rows ``first <= row < last`` of a tensor."""
        return cls(parameter, center, first * math.prod(center.shape[1:]), center[first:last], out)


class Target(NamedTuple):
    """A :class:`Part` whose members are written.

    Attributes:
        parameter: The tensor's index in the search space.
        center: The tensor, or something of its shape, device and dtype.
        start: Flat offset of the first element.
        values: The center's elements, ``[elements]``.
        out: ``[members, elements]``, of the dtype of ``values``; each member's elements are contiguous.
    """

    parameter: int
    center: Tensor
    start: int
    values: Tensor
    out: Tensor

    @property
    def stop(self) -> int:
        """One past the last offset."""
        return self.start + self.values.numel()


class Moving(NamedTuple):
    """A tensor that an update moves.

    Attributes:
        parameter: Its index in the search space.
        center: The tensor, contiguous.
        coefficient: Its learning rate; a tensor, float64 ``[]``, if only the center's device knows it.
        pull: Draws it back to where it began, if anything does; is told how far from there it has come.
    """

    parameter: int
    center: Tensor
    coefficient: float | Tensor
    pull: Pull | None = None


class Perturbation(ABC):
    """One generation's noise: mean 0 and, if it is neither sparse nor scaled, variance 1 for every element.

    It is a pure function of the element's address (and of the center, where a perturbation says so).

    The noise that :meth:`noise` gives, that :meth:`members` adds and that :meth:`weighted_sum` sums are the same
    numbers. Tensors are named by their index in the search space. ``center`` is the tensor as it is without noise; only
    its shape, device and dtype matter, except where a perturbation says that more does.

    A kind of perturbation need only say what its noise is, in :meth:`noise_of_range`. What it can do faster it
    overrides: :meth:`write_members`, :meth:`chosen_rows`, :meth:`weighted_sum`, :meth:`move`, :meth:`factors`.

    Example:
        >>> class Table(Perturbation):
        ...     def noise_of_range(self, directions, parameter, center, start, stop):
        ...         return torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])[directions, start:stop]
        >>> center, table = torch.ones(3), Table()
        >>> [members] = table.members([0, 1], [0.5, -0.5, 0.5, -0.5], [Part(0, center)])
        >>> members.tolist()
        [[1.5, 2.0, 2.5], [0.5, 0.0, -0.5], [1.0, 1.0, 3.5], [1.0, 1.0, -1.5]]
        >>> table.weighted_sum([2.0, 1.0], 0, center, start=1).tolist()
        [4.0, 11.0]
    """

    def over(self, offsets: Mapping[int, int]) -> Perturbation:
        """This perturbation over the parameters of a module; itself, where noise is addressed by parameter.

        Args:
            offsets: Where each parameter begins in a vector of all evolving elements, by its index.
        """
        return self

    def look_at(self, centers: Mapping[int, Tensor]) -> None:  # noqa: B027, for most there is nothing to take
        """Take what the noise depends on from the whole centers, where that would be waited for, all at once.

        Args:
            centers: By the tensor's index.
        """

    @abstractmethod
    def noise_of_range(
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        """The noise of the elements ``start <= offset < stop`` in several directions.

        The result for an element does not depend on the range that it was asked for in.

        Args:
            directions: Numbers of the directions.
            parameter: Index of the tensor.
            center: The tensor, or something of its shape, device and dtype.
            start: First flat, row-major offset.
            stop: One past the last offset.

        Returns:
            ``[len(directions), stop - start]`` in float32, or float64 for a float64 tensor. Not to be written to.

        Raises:
            NotImplementedError: If the noise depends on more of the center than its shape, and ``center`` is not the
                tensor itself.
        """

    def noise(self, directions: Sequence[int], parameter: int, center: Tensor) -> Tensor:
        """Noise for one tensor in several directions: ``[len(directions), *center.shape]``. Not to be written to."""
        noise = self.noise_of_range(directions, parameter, center, 0, center.numel())
        return noise.view(len(directions), *center.shape)

    def members(self, directions: Sequence[int], steps: Sequence[float], parts: Sequence[Part]) -> list[Tensor]:
        """``center + step * eps`` of some tensors or of parts of them.

        Args:
            directions: Numbers of the directions.
            steps: One for each member. The members of a direction follow each other, the same number for each
                direction: sigma and minus sigma for antithetic pairs.
            parts: What is made, in one pass where there is such a pass.

        Returns:
            For each part ``[len(steps), *values.shape]``, of the dtype of ``values``, computed in :func:`noise_dtype`.
            What is not written to ``out`` lies as ``values`` does, modulo a cache line.
        """
        values = [part.center if part.values is None else part.values for part in parts]
        flat = [(tensor.detach() if tensor.requires_grad else tensor).reshape(-1) for tensor in values]
        outs: dict[int, Tensor] = {}
        missing: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i, part in enumerate(parts):
            if part.out is not None:
                outs[i] = part.out
            else:
                missing.setdefault((flat[i].dtype, flat[i].device), []).append(i)
        for mine in missing.values():
            outs.update(zip(mine, empty_copies([flat[i] for i in mine], len(steps)), strict=True))
        targets = [Target(*part[:3], flat[i], outs[i]) for i, part in enumerate(parts)]
        if targets:
            self.write_members(directions, steps, targets)
        return [outs[i].view(len(steps), *tensor.shape) for i, tensor in enumerate(values)]

    def write_members(self, directions: Sequence[int], steps: Sequence[float], targets: Sequence[Target]) -> None:
        """:meth:`members`, into memory that is there."""
        for target in targets:
            noise = self.noise_of_range(directions, target.parameter, target.center, target.start, target.stop)
            write_members(target.values, noise, steps, target.out)

    def chosen_rows(
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor:
        """Some rows of a tensor's members, in any order, without making the others.

        Args:
            directions: Numbers of the directions.
            steps: One for each member, those of a direction together.
            parameter: Index of the tensor.
            center: The tensor.
            chosen: Numbers of rows, int64 ``[...]``, each in [0, len(center)), which is not checked.

        Returns:
            ``[len(steps), *chosen.shape, *center.shape[1:]]``.
        """
        out = center.new_empty(len(steps), *chosen.shape, *center.shape[1:])
        width = math.prod(center.shape[1:])
        rows = out.view(len(steps), chosen.numel(), width)
        center = center.detach()
        targets = [
            Target(parameter, center, row * width, center[row].reshape(-1), rows[:, i])
            for i, row in enumerate(chosen.flatten().tolist())
        ]
        if targets:
            self.write_members(directions, steps, targets)
        return out

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
        stop = center.numel() if stop is None else stop
        total = torch.zeros(stop - start, dtype=noise_dtype(center), device=center.device)
        chosen = [direction for direction, weight in enumerate(weights) if weight]
        for begin in range(start, stop, CHUNK):
            part = total[begin - start : begin - start + CHUNK]
            for direction in chosen:
                [noise] = self.noise_of_range([direction], parameter, center, begin, begin + len(part))
                part += noise * weights[direction]
        return total

    def move(self, weights: Sequence[float], tensors: Sequence[Moving], rounding: NoiseKey) -> Tensor:
        """``center += coefficient * weighted_sum`` of some tensors, in one pass where there is such a pass.

        It gives, bit for bit, what :meth:`weighted_sum` and :func:`lightning_evo.noise.rounding.move` give.

        Args:
            weights: One for each direction.
            tensors: What moves.
            rounding: Seed and generation of the rounding's random numbers.

        Returns:
            The norm of each tensor's sum, float64 ``[tensors]``, on the first center's device, which is not waited for.
        """

        def weighted_sum(i: int, start: int, stop: int) -> Tensor:
            return self.weighted_sum(weights, tensors[i].parameter, tensors[i].center, start, stop)

        def move_piece(i: int, piece: Tensor, start: int, step: Tensor, pull: Pull | None) -> Tensor | None:
            return move(piece, step, rounding, tensors[i].parameter, start, pull=pull)

        return move_in_pieces([(one.center, one.coefficient, one.pull) for one in tensors], weighted_sum, move_piece)

    def factors(self, directions: Sequence[int], parameter: int, center: Tensor) -> tuple[Tensor, Tensor] | None:
        """The noise as a product of two thin matrices, where it is one.

        The tensor is seen as a matrix of ``rows = center.shape[0]`` rows. (A stack of matrices has no such product.)

        Returns:
            ``A [len(directions), rows, rank]`` and ``B [len(directions), columns, rank]`` in float32 (float64 for
            float64), with ``noise = (A @ B.T).view(shape)``; ``None`` if the tensor's noise is dense.
        """
        return None


def divided(
    tensors: Sequence[Moving],
    first: Callable[[Moving], bool],
    by_first: Callable[[list[Moving]], Tensor],
    by_second: Callable[[list[Moving]], Tensor],
) -> Tensor:
    """What one function gives for some tensors and another for the rest, ``[tensors]`` in the tensors' order."""
    chosen = [first(one) for one in tensors]
    results = (
        iter(by_second([one for one, mine in zip(tensors, chosen, strict=True) if not mine])),
        iter(by_first([one for one, mine in zip(tensors, chosen, strict=True) if mine])),
    )
    in_order = [next(results[mine]) for mine in chosen]
    if not in_order:
        return torch.zeros(0, dtype=torch.float64)
    return torch.stack([one.to(tensors[0].center.device) for one in in_order])


def check_whole(perturbation: Perturbation, center: Tensor) -> None:
    """Raise a NotImplementedError if a center has only the shape of the tensor: all of its elements are one."""
    if center.numel() > 1 and not any(center.stride()):
        raise NotImplementedError(f"{type(perturbation).__name__} noise needs the whole tensor.")
