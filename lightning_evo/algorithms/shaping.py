"""Fitness to member weights.

Every function takes the fitness of one generation, float64 ``[members]``, all finite, higher is better, and returns
one weight for each member, float64 ``[members]``. The gradient estimate is the mean over members of weight times
noise, so a larger weight pulls the center closer to that member. ``per_direction`` says how many members share one
noise direction: 2 for antithetic pairs (members ``2k`` and ``2k + 1`` are center plus and minus the same noise), 1
without pairs; only :func:`top_k` looks at it.

**Failures.** :func:`shape` deals with them before any of these functions runs. A member whose fitness is NaN, as it is
where an evaluation failed, is left out: its weight is zero, the others are shaped without it, and the other member of
its antithetic pair, which has nothing to be compared with, is left out, too. One whose fitness is infinite gets the
next number below the worst finite fitness of its generation, so it ranks worst without stretching the scale. If no
finite fitness is left, or all are equal, there is nothing to learn: the weights are zero.

**Ties** share the mean of the ranks they span, so equal members get equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_evo.utils.messages import shown
from lightning_evo.utils.options import one_of

__all__ = [
    "SHAPINGS",
    "Shaping",
    "centered_ranks",
    "comparable",
    "evaluated",
    "linear_ranks",
    "raw",
    "resolve",
    "shape",
    "top_k",
    "z_score",
]

Shaping = Callable[[Tensor, int], Tensor]


def z_score(fitness: Tensor, per_direction: int = 1) -> Tensor:
    """``(r - mean) / (std + 1e-8)`` with the population standard deviation (EA4LLM, arXiv:2510.10603).

    Example:
        >>> z_score(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).round(decimals=4).tolist()
        [-1.2247, 0.0, 1.2247]
    """
    return (fitness - fitness.mean()) / (fitness.std(correction=0) + 1e-8)


def centered_ranks(fitness: Tensor, per_direction: int = 1) -> Tensor:
    """``rank / (N - 1) - 1/2``, in [-1/2, 1/2] (OpenAI-ES, arXiv:1703.03864).

    Example:
        >>> centered_ranks(torch.tensor([10.0, -3.0, 10.0, 99.0], dtype=torch.float64)).tolist()
        [0.0, -0.5, 0.0, 0.5]
    """
    return _ranks(fitness) / max(1, len(fitness) - 1) - 0.5


def linear_ranks(fitness: Tensor, per_direction: int = 1) -> Tensor:
    """``2 rank / (N - 1) - 1``, in [-1, 1]: EA4LLM's rank option (arXiv:2510.10603)."""
    return 2 * centered_ranks(fitness)


def raw(fitness: Tensor, per_direction: int = 1) -> Tensor:
    """Fitness minus its mean over the generation.

    The mean is a baseline: it changes nothing for antithetic pairs, where it cancels, and lowers the variance without
    them. With antithetic pairs and 1/sigma scaling this is the SPSA estimate of MeZO (arXiv:2305.17333).
    """
    return fitness - fitness.mean()


def top_k(fitness: Tensor, per_direction: int = 1, *, k: int) -> Tensor:
    """The ``k`` best directions only, divided by the standard deviation of their fitness (ARS, arXiv:1803.07055).

    Where members failed and fewer directions are left, all of them.

    A direction is as good as the better of its members. Weights are scaled by ``directions / k`` so that the mean over
    all members is the mean over those that were kept.

    Raises:
        ValueError: If ``k`` is below 1.
    """
    by_direction = fitness.view(-1, per_direction)
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}.")
    k = min(k, len(by_direction))
    best = by_direction.amax(dim=1).argsort(descending=True, stable=True)[:k]
    kept = by_direction[best]
    weights = torch.zeros_like(by_direction)
    deviation = kept.std(correction=0)
    if deviation > 0:
        weights[best] = (kept - kept.mean()) / deviation * (len(by_direction) / k)
    return weights.view(-1)


def _ranks(fitness: Tensor) -> Tensor:
    """Ranks from 0 (worst) to N - 1, ties at the mean of the ranks they span."""
    group: Tensor
    count: Tensor
    _, group, count = torch.unique(fitness, sorted=True, return_inverse=True, return_counts=True)
    first = count.cumsum(0) - count
    return (first + (count - 1) / 2).to(torch.float64)[group]


SHAPINGS: dict[str, Shaping] = {
    "z_score": z_score,
    "centered_ranks": centered_ranks,
    "linear_ranks": linear_ranks,
    "raw": raw,
    # top_k is added by `resolve`: it needs its k
}


def resolve(shaping: str | Shaping, top_k_directions: int | None = None) -> Shaping:
    """The function that a name stands for; a callable is returned as it is.

    Raises:
        ValueError: If the name is unknown (the message gives the nearest), or ``top_k`` and its number don't go
            together.
    """
    if callable(shaping):
        if top_k_directions is not None:
            raise ValueError("top_k has no effect with a shaping of your own; leave it out.")
        return shaping
    name = one_of("shaping", shaping, [*SHAPINGS, "top_k"])
    if (name == "top_k") != (top_k_directions is not None):
        raise ValueError(
            f"shaping='top_k' and top_k (how many directions to keep) go together; got shaping={name!r} and "
            f"top_k={top_k_directions}."
        )
    if name == "top_k":
        assert top_k_directions is not None
        return partial(top_k, k=top_k_directions)
    return SHAPINGS[name]


def shape(fitness: Tensor, shaping: Shaping, per_direction: int = 1) -> Tensor:
    """Apply ``shaping`` with the rules for failures and ties from the head of this file.

    Args:
        fitness: ``[members]``, any values, NaN and infinities included.
        shaping: One of this file's functions or your own of the same signature.
        per_direction: Members that share a noise direction, 1 or 2.

    Returns:
        Weights, float64 ``[members]``; all zero if there is nothing to learn.

    Raises:
        ValueError: If ``shaping`` returns another shape or values that are not finite.

    Example:
        >>> shape(torch.tensor([1.0, float("nan"), 3.0, 2.0]), centered_ranks).tolist()
        [-0.5, 0.0, 0.5, 0.0]
        >>> shape(torch.tensor([1.0, float("inf"), 3.0, 2.0]), centered_ranks).tolist()[1]
        -0.5
        >>> shape(torch.full((4,), float("nan")), centered_ranks).tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    fitness = fitness.to(torch.float64)
    weights = torch.zeros_like(fitness)
    kept = evaluated(fitness, per_direction)
    finite = _finite(fitness[kept])
    if finite is None:
        return weights
    shaped: object = shaping(finite, per_direction)
    if not isinstance(shaped, Tensor) or shaped.shape != finite.shape or not shaped.isfinite().all():
        given = shown(shaped.tolist() if isinstance(shaped, Tensor) else shaped)
        raise ValueError(
            f"The shaping must give one finite weight for each of the {len(finite)} members; it gave {given}."
        )
    weights[kept] = shaped.to(torch.float64)
    return weights


def evaluated(fitness: Tensor, per_direction: int = 1) -> Tensor:
    """Which members count: those of directions without a NaN. Bool ``[members]``."""
    return ~fitness.view(-1, per_direction).isnan().any(1).repeat_interleave(per_direction)


def comparable(fitness: Tensor) -> Tensor | None:
    """Fitness that can be compared member by member, by the rules for failures from the head of this file.

    Args:
        fitness: float64 ``[members]``, any values, NaN and infinities included.

    Returns:
        float64 ``[members]``, minus infinity for members that failed; ``None`` if there is nothing to learn.

    Example:
        >>> comparable(torch.tensor([1.0, float("nan"), 3.0]).double()).tolist()
        [1.0, -inf, 3.0]
        >>> comparable(torch.tensor([1.0, float("nan"), 1.0]).double())
    """
    kept = evaluated(fitness)
    finite = _finite(fitness[kept])
    return None if finite is None else torch.full_like(fitness, -math.inf).masked_scatter(kept, finite)


def _finite(fitness: Tensor) -> Tensor | None:
    """Fitness with infinities as the next number below the worst; ``None`` if there is nothing to learn."""
    finite = fitness.isfinite()
    if not finite.any() or (fitness == fitness[0]).all():
        return None
    worst = torch.nextafter(fitness[finite].min(), torch.tensor(-math.inf, dtype=torch.float64))
    return fitness.where(finite, worst)
