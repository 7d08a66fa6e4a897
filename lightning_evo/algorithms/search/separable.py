"""What searches with a deviation for each coordinate share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State
from lightning_evo.algorithms.search.search import Search

__all__ = ["AnySeparable", "SeparableSearch", "SeparableState", "moments"]


@dataclass(frozen=True)
class SeparableState(State):
    """A normal distribution with a deviation for each coordinate: ``sigma * scales``.

    Attributes:
        scales: The deviations in units of sigma, float64 ``[d]``; ``None`` stands for one.
    """

    scales: Tensor | None = field(default=None, repr=False)


AnySeparable = TypeVar("AnySeparable", bound=SeparableState)


class SeparableSearch(Search[AnySeparable]):
    """A search whose members are ``center + sigma * scales * z``, z standard normal.

    Sigma is the geometric mean of the deviations, or what was set by hand; the scales have the rest.
    """

    def steps(self, state: AnySeparable) -> Tensor:
        """``scales * z``, float64 ``[members, d]``."""
        z = self.normal(state)
        return z if state.scales is None else z.mul_(state.scales)

    @staticmethod
    def grown(state: AnySeparable, sigma: float, growth: Tensor) -> AnySeparable:
        """The state with each deviation ``exp(growth)`` times what it is.

        Args:
            state: Before.
            sigma: The generation's.
            growth: float64 ``[d]``.
        """
        mean = growth.mean()
        scales = (growth - mean).exp_()
        if state.scales is not None:
            scales *= state.scales
        return replace(state, sigma=sigma * float(mean.exp()), scales=scales)


def moments(weights: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_k w_k t_k`` and ``sum_k w_k t_k^2``, each read once and nothing as large as the table made.

    Args:
        weights: float64 ``[members]``.
        table: ``[members, d]``.

    Example:
        >>> moments(torch.tensor([1.0, -1.0]), torch.tensor([[3.0], [2.0]]))
        (tensor([1.]), tensor([5.]))
    """
    first, second = torch.zeros_like(table[0]), torch.zeros_like(table[0])
    for w, t in zip(weights.tolist(), table, strict=True):
        if w:
            first.add_(t, alpha=w)
            second.addcmul_(t, t, value=w)
    return first, second
