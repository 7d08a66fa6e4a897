"""Rows that stand for padding, of embeddings: they neither are perturbed nor learn.

In backpropagation ``nn.Embedding`` gives the row ``padding_idx`` no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.perturbations._base import Moving, Perturbation, Target, divided
from lightning_evo.spaces.search_space import EvolvingParameter

__all__ = ["WithoutRows", "without_padding"]


class WithoutRows(Perturbation):
    """Another perturbation's noise, but for one row of some tensors, which has none.

    Args:
        inner: Its noise is used.
        rows: The row's number, by the tensor's index.

    Example:
        >>> from lightning_evo.perturbations.dense import Dense
        >>> perturbation = WithoutRows(Dense(NoiseKey(seed=0, generation=0)), {5: 1})
        >>> noise = perturbation.noise([0], parameter=5, center=torch.zeros(3, 4))
        >>> (noise[0] != 0).all(1).tolist()
        [True, False, True]
    """

    def __init__(self, inner: Perturbation, rows: Mapping[int, int]) -> None:
        self.inner = inner
        self.rows = dict(rows)

    def look_at(self, centers: Mapping[int, Tensor]) -> None:  # noqa: D102
        self.inner.look_at(centers)

    def noise_of_range(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        noise = self.inner.noise_of_range(directions, parameter, center, start, stop)
        row = self._row(parameter, center, start, stop)
        if row.start < row.stop:
            noise = noise.clone()
            noise[:, row] = 0
        return noise

    def write_members(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], targets: Sequence[Target]
    ) -> None:
        self.inner.write_members(directions, steps, targets)
        for target in targets:
            row = self._row(target.parameter, target.center, target.start, target.stop)
            if row.start < row.stop:
                target.out[:, row] = target.values[row]

    def chosen_rows(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor:
        members = self.inner.chosen_rows(directions, steps, parameter, center, chosen)
        if parameter not in self.rows:
            return members
        row = self.rows[parameter]
        is_row = (chosen == row).view(*chosen.shape, *[1] * (center.dim() - 1))
        return torch.where(is_row, center.detach()[row], members)

    def weighted_sum(  # noqa: D102
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        total = self.inner.weighted_sum(weights, parameter, center, start, stop)
        if parameter in self.rows:
            total[self._row(parameter, center, start, start + len(total))] = 0
        return total

    def move(self, weights: Sequence[float], tensors: Sequence[Moving], rounding: NoiseKey) -> Tensor:  # noqa: D102
        return divided(
            tensors,
            lambda one: one.parameter in self.rows,
            lambda mine: super(WithoutRows, self).move(weights, mine, rounding),
            lambda others: self.inner.move(weights, others, rounding),
        )

    def factors(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        factors = self.inner.factors(directions, parameter, center)
        if factors is None or parameter not in self.rows:
            return factors
        a, b = factors[0].clone(), factors[1]
        a[:, self.rows[parameter]] = 0
        return a, b

    def _row(self, parameter: int, center: Tensor, start: int, stop: int) -> slice:
        """Where the row is among the elements ``start <= offset < stop``."""
        if parameter not in self.rows:
            return slice(0, 0)
        width = center.shape[1:].numel()
        first = self.rows[parameter] * width - start
        return slice(max(0, first), max(0, min(first + width, stop - start)))


def without_padding(perturbation: Perturbation, parameters: Iterable[EvolvingParameter]) -> Perturbation:
    """A perturbation that leaves the padding rows of a search space alone."""
    rows = {parameter.index: parameter.padding_row for parameter in parameters if parameter.padding_row is not None}
    return WithoutRows(perturbation, rows) if rows else perturbation
