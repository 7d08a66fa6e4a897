"""Perturbations that are given: each direction is a vector, cut into a module's parameters.

So an algorithm that samples vectors, as search distributions do, hands its members over as any other population, and
every way of evaluating them works unchanged: sigma times the "noise" of member i is ``x_i - m``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lightning_evo.perturbations._base import Perturbation, noise_dtype
from lightning_evo.perturbations.padding import WithoutRows

__all__ = ["Vectors", "VectorsOnDemand", "table_of"]


class Vectors(Perturbation):
    """Noise from a table.

    Args:
        table: ``[directions, d]``, floating.
        offsets: Where each parameter begins in a vector, by its index; by default the whole vector is parameter 0.

    Example:
        >>> import torch
        >>> perturbation = Vectors(torch.arange(12.0).view(2, 6)).over({0: 0, 1: 4})
        >>> perturbation.noise([1], parameter=1, center=torch.zeros(2))
        tensor([[10., 11.]])
        >>> perturbation.weighted_sum([1.0, -1.0], parameter=0, center=torch.zeros(2, 2))
        tensor([-6., -6., -6., -6.])
    """

    def __init__(self, table: Tensor, offsets: Mapping[int, int] | None = None) -> None:
        self.table = table
        self._offsets = {0: 0} if offsets is None else dict(offsets)

    def over(self, offsets: Mapping[int, int]) -> Vectors:  # noqa: D102
        return Vectors(self.table, offsets)

    def noise_of_range(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        first = self._offsets[parameter]
        return self.table[list(directions), first + start : first + stop].to(center.device, noise_dtype(center))


def table_of(perturbation: Perturbation) -> Tensor | None:
    """The table of a perturbation of vectors, also where padding rows are left out; ``None`` of others.

    Example:
        >>> import torch
        >>> table_of(Vectors(torch.eye(2)).over({0: 0})).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    while isinstance(perturbation, WithoutRows):
        perturbation = perturbation.inner
    return perturbation.table if isinstance(perturbation, Vectors) else None


class VectorsOnDemand(Perturbation):
    """Noise that a function makes, vector by vector, when it is asked for: there is no table of all of them.

    The vectors that were made last are kept, for the parameters that follow.

    Args:
        make: Gives the vectors of some directions, ``[directions, d]``, floating.
        offsets: Where each parameter begins in a vector, by its index; by default the whole vector is parameter 0.

    Example:
        >>> import torch
        >>> perturbation = VectorsOnDemand(lambda directions: torch.arange(12.0).view(2, 6)[directions])
        >>> perturbation.over({0: 0, 1: 4}).noise([1], parameter=1, center=torch.zeros(2))
        tensor([[10., 11.]])
    """

    def __init__(self, make: Callable[[list[int]], Tensor], offsets: Mapping[int, int] | None = None) -> None:
        self._make = make
        self._offsets = {0: 0} if offsets is None else dict(offsets)
        self._made: tuple[list[int], Tensor] | None = None

    def over(self, offsets: Mapping[int, int]) -> VectorsOnDemand:  # noqa: D102
        return VectorsOnDemand(self._make, offsets)

    def noise_of_range(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        wanted = list(directions)
        if self._made is None or self._made[0] != wanted:
            self._made = None  # before others are made: both need not fit into memory
            self._made = wanted, self._make(wanted)
        first = self._offsets[parameter]
        return self._made[1][:, first + start : first + stop].to(center.device, noise_dtype(center))
