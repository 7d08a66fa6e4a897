"""Separable natural evolution strategy: natural gradients of mean and deviations, one for each coordinate.

T. Schaul, T. Glasmachers and J. Schmidhuber, "High dimensions and heavy tails for natural evolution strategies", GECCO
2011, https://doi.org/10.1145/2001576.2001692 (Algorithm 1); utilities and rates as in D. Wierstra et al., "Natural
Evolution Strategies", JMLR 2014, https://arxiv.org/abs/1106.4487 (Table 1: ``eta_mu = 1``,
``eta_sigma = (3 + ln d) / (5 sqrt(d))``). It costs little more than the noise, so it is also for millions of elements.

Departures. Equal members share their utilities; failed ones have none. A generation whose members all tie changes
nothing. Deviations are kept as ``sigma * scales``, so that sigma can be set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State, check_fitness
from lightning_evo.algorithms.lesson import NewCenter
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.search.ranks import utilities
from lightning_evo.algorithms.search.search import center_of
from lightning_evo.algorithms.search.separable import SeparableSearch, SeparableState, moments
from lightning_evo.algorithms.shaping import shape

__all__ = ["SNES", "SeparableNES"]


@dataclass(frozen=True, kw_only=True)
class SeparableNES(SeparableSearch[SeparableState]):
    """The separable natural evolution strategy.

    Args:
        population: Number of members, lambda; ``None`` for ``4 + floor(3 ln d)``.
        sigma: The first generation's deviations, > 0.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = SeparableNES(sigma=0.5)
        >>> state = algorithm.init(torch.ones(5, dtype=torch.float64), seed=1)
        >>> for _ in range(300):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 1e-6
        True
    """

    name: str = "snes"

    State: ClassVar[type[State]] = SeparableState

    def learn(
        self, state: SeparableState, population: Population, fitness: Tensor, numel: int
    ) -> tuple[SeparableState, NewCenter]:
        """``mu <- mu + sigma s sum_k u_k z_k`` and ``s <- s exp(eta_sigma / 2 sum_k u_k (z_k^2 - 1))``.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        u = shape(check_fitness(population, fitness), utilities)
        following = replace(state, generation=state.generation + 1)
        if not u.any():
            return following, NewCenter(None)
        center, sigma = center_of(state), population.sigma
        step, square = moments(u, self.steps_of(population, state))  # of s z
        if state.scales is not None:
            square /= state.scales.square()
        eta = (3 + math.log(numel)) / (5 * math.sqrt(numel))
        growth = square.sub_(u.sum()).mul_(eta / 2)
        return self.grown(following, sigma, growth), NewCenter(torch.add(center.double(), step, alpha=sigma).to(center))


SNES = Recipe(
    name="snes",
    summary="Natural gradients of a normal distribution with a deviation for each element; cheap in high dimensions.",
    paper="Schaul et al. 2011, doi:10.1145/2001576.2001692",
    defaults={"sigma": 0.1},
    algorithm=SeparableNES,
)
