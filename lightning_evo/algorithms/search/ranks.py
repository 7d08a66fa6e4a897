"""Weights by rank, as searches use them: equal members share the mean of the weights that their ranks span.

Each function can be given to :func:`lightning_evo.algorithms.shaping.shape`, which leaves out members that failed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["by_rank", "negative_weights", "recombination_weights", "utilities"]


def by_rank(fitness: Tensor, weights: Tensor) -> Tensor:
    """The weight of each member's rank, the best first.

    Args:
        fitness: float64 ``[members]``, finite, higher is better.
        weights: float64 ``[members]``, that of the best member first.

    Returns:
        float64 ``[members]``, in the order of ``fitness``.

    Example:
        >>> by_rank(torch.tensor([0.0, 5.0, 5.0]), torch.tensor([3.0, 1.0, 0.5]).double()).tolist()
        [0.5, 2.0, 2.0]
    """
    group: Tensor
    count: Tensor
    _, group, count = torch.unique(-fitness, sorted=True, return_inverse=True, return_counts=True)
    ends = count.cumsum(0)
    sums = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
    means: Tensor = (sums[ends] - sums[ends - count]) / count
    means = means.where(count > 1, weights[ends - 1])  # which a difference of sums is but for rounding
    return means[group]


def _raw(members: int) -> Tensor:
    """``ln((lambda + 1) / 2) - ln(i)``, i = 1 … lambda (arXiv:1604.00772, Eq. 49)."""
    return math.log((members + 1) / 2) - torch.arange(1, members + 1, dtype=torch.float64).log()


def recombination_weights(fitness: Tensor, per_direction: int = 1) -> Tensor:
    """``w_i ~ ln((lambda + 1) / 2) - ln(i)`` of the i-th best, if positive, with sum 1 (arXiv:1604.00772, Eq. 49, 53).

    Example:
        >>> recombination_weights(torch.tensor([3.0, 1.0, 2.0, 0.0]).double()).round(decimals=3).tolist()
        [0.804, 0.0, 0.196, 0.0]
    """
    raw = _raw(len(fitness)).clamp(min=0)
    return by_rank(fitness, raw / raw.sum())


def negative_weights(fitness: Tensor, per_direction: int = 1) -> Tensor:
    """``w_i ~ ln((lambda + 1) / 2) - ln(i)`` of the i-th best, if negative, with sum -1 (arXiv:1604.00772, Eq. 49, 53).

    Example:
        >>> negative_weights(torch.tensor([3.0, 1.0, 2.0, 0.0]).double()).round(decimals=3).tolist()
        [0.0, -0.279, 0.0, -0.721]
    """
    raw = _raw(len(fitness)).clamp(max=0)
    return by_rank(fitness, -raw / raw.sum())


def utilities(fitness: Tensor, per_direction: int = 1) -> Tensor:
    """``u_i = max(0, ln(lambda / 2 + 1) - ln(i)) / sum - 1 / lambda`` of the i-th best, with sum 0 (arXiv:1106.4487).

    Example:
        >>> utilities(torch.tensor([3.0, 1.0, 2.0, 0.0]).double()).round(decimals=3).tolist()
        [0.48, -0.25, 0.02, -0.25]
    """
    members = len(fitness)
    raw = (math.log(members / 2 + 1) - torch.arange(1, members + 1, dtype=torch.float64).log()).clamp(min=0)
    return by_rank(fitness, raw / raw.sum() - 1 / members)
