"""Dense perturbations: every element of a tensor gets noise of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from lightning_evo._messages import did_you_mean
from lightning_evo.noise import Distribution, NoiseKey, draw

__all__ = ["Dense", "noise_dtype"]

_CHUNK = 1 << 22  # elements of one tensor that are summed at a time: 16 MB of float32


class Dense:
    """One generation's noise: independent, with mean 0 and variance 1, for every element of every tensor.

    The noise of a tensor is addressed by the flat, row-major offset of its elements, whatever its memory format.

    Args:
        key: Seed and generation.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"uniform"`` (here on [-sqrt 3, sqrt 3)).

    Raises:
        ValueError: If the distribution is unknown.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> perturbation = Dense(NoiseKey(seed=0, generation=0))
        >>> noise = perturbation.noise([0, 1], parameter=0, like=weight)
        >>> noise.shape
        torch.Size([2, 2, 3])
        >>> total = perturbation.weighted_sum([0.5, -2.0], parameter=0, like=weight)
        >>> torch.equal(total, 0.5 * noise[0] + -2.0 * noise[1])
        True
    """

    def __init__(self, key: NoiseKey, distribution: Distribution = "gaussian") -> None:
        known = get_args(Distribution)
        if distribution not in known:
            raise ValueError(
                f"Unknown noise {distribution!r}.{did_you_mean(str(distribution), known)} "
                f"Choose one of {', '.join(known)}."
            )
        self.key = key
        self.distribution = distribution
        self._kept: dict[int, Tensor] = {}

    def noise(self, directions: Sequence[int], parameter: int, like: Tensor) -> Tensor:
        """Noise for one tensor in several directions.

        Args:
            directions: Numbers of the directions.
            parameter: Index of the tensor.
            like: A tensor of the shape, device and dtype wanted.

        Returns:
            ``[len(directions), *like.shape]`` in float32, or float64 for a float64 tensor.
        """
        return self._flat(directions, parameter, like, 0, like.numel()).view(len(directions), *like.shape)

    def weighted_sum(self, weights: Sequence[float], parameter: int, like: Tensor) -> Tensor:
        """``sum_d weights[d] eps_d`` over directions 0, 1, …, of the very noise that :meth:`noise` gives.

        Terms are added one by one in this order, element by element, so the result does not depend on chunk sizes.
        Directions of weight zero cost nothing.

        Args:
            weights: One for each direction.
            parameter: Index of the tensor.
            like: A tensor of the shape, device and dtype wanted.

        Returns:
            ``like.shape`` in float32, or float64 for a float64 tensor.
        """
        chosen = [direction for direction, weight in enumerate(weights) if weight]
        total = torch.zeros(like.numel(), dtype=noise_dtype(like), device=like.device)
        for start in range(0, total.numel(), _CHUNK):
            part = total[start : start + _CHUNK]
            at_once = max(1, _CHUNK // part.numel())
            for i in range(0, len(chosen), at_once):
                noise = self._flat(chosen[i : i + at_once], parameter, like, start, start + part.numel())
                for direction, values in zip(chosen[i : i + at_once], noise, strict=True):
                    part += values * weights[direction]
        return total.view(like.shape)

    def keep(self, directions: int, parameter: int, like: Tensor) -> None:
        """Draw a tensor's noise in all ``directions`` once and hold on to it.

        For small models, where the noise of a whole generation fits into memory: every member and the update want it.
        """
        if parameter not in self._kept:
            self._kept[parameter] = self._draw(range(directions), parameter, like, 0, like.numel())

    def _flat(self, directions: Sequence[int], parameter: int, like: Tensor, start: int, stop: int) -> Tensor:
        kept = self._kept.get(parameter)
        if kept is None:
            return self._draw(directions, parameter, like, start, stop)
        if len(directions) == 1:  # of one member: a slice is much faster than a list of indices
            return kept[directions[0] : directions[0] + 1, start:stop]
        if directions == range(len(kept)):
            return kept[:, start:stop]
        return kept[list(directions), start:stop]

    def _draw(self, directions: Sequence[int], parameter: int, like: Tensor, start: int, stop: int) -> Tensor:
        values = draw(
            self.key,
            directions,
            parameter,
            start,
            stop,
            distribution=self.distribution,
            dtype=noise_dtype(like),
            device=like.device,
        )
        return (values - 0.5) * math.sqrt(12) if self.distribution == "uniform" else values


def noise_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which noise meets a tensor: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
