"""A (mu/mu_w, lambda) evolution strategy: the best members' weighted mean is the new center; sigma adapts itself.

N. Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, https://arxiv.org/abs/1604.00772, with the covariance matrix
left at the identity: sampling (Eqs. 38 to 40), selection and recombination (Eqs. 41 and 42 with c_m = 1) and cumulative
step-size adaptation (Eqs. 43 and 44), with the constants of its Table 1. Of the recombination weights only the positive
half is used: the negative ones are for the covariance matrix.

Departures. Members of equal fitness share the mean of the weights that their ranks would have, so that a tie says
nothing; failed members have none. A generation whose members all tie leaves center, path and sigma as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State, check_fitness
from lightning_evo.algorithms.lesson import NewCenter
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.search.ranks import recombination_weights
from lightning_evo.algorithms.search.search import Search, center_of, expected_length
from lightning_evo.algorithms.shaping import shape

__all__ = ["CSA_ES", "CSAEvolutionStrategy", "CSAState"]


@dataclass(frozen=True)
class CSAState(State):
    """What the strategy remembers from one generation to the next.

    Attributes:
        path: The evolution path ``p_sigma``, float64 ``[d]``; ``None`` stands for zero.
    """

    path: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class CSAEvolutionStrategy(Search[CSAState]):
    """The (mu/mu_w, lambda)-ES with cumulative step-size adaptation.

    Args:
        population: Number of members, lambda; ``None`` for ``4 + floor(3 ln d)``.
        sigma: Step size of the first generation, > 0, about a third of how far away the optimum may be.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = CSAEvolutionStrategy(population=8, sigma=0.5)
        >>> state = algorithm.init(torch.ones(5, dtype=torch.float64), seed=1)
        >>> for _ in range(200):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 1e-6, algorithm.current_sigma(state) < 1e-6
        (True, True)
    """

    name: str = "csa_es"

    State: ClassVar[type[State]] = CSAState

    def steps(self, state: CSAState) -> Tensor:
        """``z_k``, standard normal, float64 ``[members, d]``."""
        return self.normal(state)

    def learn(self, state: CSAState, population: Population, fitness: Tensor, numel: int) -> tuple[CSAState, NewCenter]:
        """``m <- m + sigma sum_i w_i z_i``, and sigma by the length of the path of such steps.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        w = shape(check_fitness(population, fitness), recombination_weights)
        following = replace(state, generation=state.generation + 1)
        if not w.any():
            return following, NewCenter(None)
        z, sigma, n = self.steps_of(population, state), population.sigma, numel
        mu_eff = 1 / float(w.square().sum())
        c = (mu_eff + 2) / (n + mu_eff + 5)
        d = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c
        step = w @ z
        path = torch.zeros(n, dtype=torch.float64) if state.path is None else state.path
        path = (1 - c) * path + math.sqrt(c * (2 - c) * mu_eff) * step
        grown = math.exp(min(1.0, c / d * (float(path.norm()) / expected_length(n) - 1)))
        center = center_of(state)
        center = (center.double() + sigma * step).to(center.dtype)
        return replace(following, path=path, sigma=sigma * grown), NewCenter(center)


CSA_ES = Recipe(
    name="csa_es",
    summary="The best half's weighted mean is the new center, and sigma adapts itself; for small vectors.",
    paper="Hansen 2016, arXiv:1604.00772",
    defaults={"population": 16, "sigma": 0.1},
    algorithm=CSAEvolutionStrategy,
)
