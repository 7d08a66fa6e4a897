"""Perturbations that are given: each direction is a vector, cut into a module's parameters.

So an algorithm that samples vectors, as search distributions do, hands its members over as any other population, and
every way of evaluating them works unchanged: sigma times the "noise" of member i is ``x_i - m``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_evo.perturbations._base import Perturbation, noise_dtype

__all__ = ["Vectors"]


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
        rows = self.table[list(directions), first + start : first + stop]
        return rows.to(center.device, noise_dtype(center), non_blocking=center.is_cuda)
