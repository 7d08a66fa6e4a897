"""A generation's members: a center, and steps of sigma along directions of noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_evo.perturbations import Perturbation

__all__ = ["Population"]

_TOGETHER = 1 << 20  # elements of vectors that are made at once


@dataclass(frozen=True)
class Population:
    """The members of one generation, as addresses of noise: nothing is stored for a member but two numbers.

    Attributes:
        perturbation: The generation's noise and how it is laid over a tensor.
        sigma: Distance of a member from the center, in standard deviations of the noise.
        directions: Number of noise directions. With antithetic pairs, members ``2k`` and ``2k + 1`` are center plus
            and minus direction ``k``; without, member ``k`` is center plus direction ``k``.
        antithetic: Whether members come in such pairs.
        center: ``[d]``, outside a module; inside one the weights themselves are the center.
        seed: The run's.
        generation: Its number. (The noise has another number where it is used for several generations.)
    """

    perturbation: Perturbation
    sigma: float
    directions: int
    antithetic: bool
    center: Tensor | None = field(default=None, repr=False)
    seed: int = 0
    generation: int = 0

    def __len__(self) -> int:
        return self.directions * self.per_direction

    @property
    def per_direction(self) -> int:
        """Members that share one noise direction: 2 or 1."""
        return 2 if self.antithetic else 1

    @property
    def signs(self) -> Tensor:
        """The sign of each member's noise, float64 ``[members]``."""
        pair = [1.0, -1.0] if self.antithetic else [1.0]
        return torch.tensor(pair * self.directions, dtype=torch.float64)

    def address(self, member: int) -> tuple[int, float]:
        """The noise direction of a member, and its step along it: sigma or minus sigma."""
        direction, second = divmod(member, self.per_direction)
        return direction, -self.sigma if second else self.sigma

    def vectors(self) -> Tensor:
        """The members as vectors, ``[members, d]`` in the center's dtype.

        Raises:
            ValueError: If the state was made without a center.
        """
        if self.center is None:
            raise ValueError(
                "This population has no center: it lives in a module. Give `init` a vector to get vectors."
            )
        members = self.center.new_empty(len(self), len(self.center))
        together = max(1, _TOGETHER // max(1, len(self.center)))
        for first in range(0, self.directions, together):
            chosen = range(first, min(first + together, self.directions))
            steps = self.perturbation.noise(chosen, 0, self.center) * self.sigma
            for sign, row in ((1, 0), (-1, 1))[: self.per_direction]:
                part = slice(first * self.per_direction + row, chosen.stop * self.per_direction, self.per_direction)
                step = steps if sign > 0 else -steps
                if step.dtype == members.dtype:
                    torch.add(self.center, step, out=members[part])
                else:
                    members[part] = self.center + step
        return members
