"""LM-MA-ES: the shape of the fitness along a few directions, for millions of elements.

I. Loshchilov, T. Glasmachers and H.-G. Beyer, "Limited-Memory Matrix Adaptation for Large Scale Black-box
Optimization", 2017, https://arxiv.org/abs/1705.06693, Algorithm 1 with its constants: m and lambda are
4 + floor(3 ln n), c_sigma = 2 lambda / n, c_d,i = 1 / (1.5^(i-1) n) and c_c,i = lambda / (4^(i-1) n).

Departures. The paper is for large n: here c_sigma and c_c,i are at most 1/2, which matters below n = 4 lambda. Members
of equal fitness share the mean of the weights that their ranks would have; failed members have none. A generation whose
members all tie changes nothing. Steps, paths and directions are in float32, the center in float64.

What a member's step d(z) is, is linear in z, so that of the mean is the mean of the steps, and no member's is kept:
memory is for m directions, and for those members only that are evaluated at a time.
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
from lightning_evo.algorithms.search.search import Search, center_of
from lightning_evo.algorithms.shaping import shape
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.perturbations.vectors import VectorsOnDemand
from lightning_evo.utils.options import whole

__all__ = ["LM_MA_ES", "LMMAEvolutionStrategy", "LMMAState"]


@dataclass(frozen=True)
class LMMAState(State):
    """What the strategy remembers from one generation to the next. ``None`` stands for zero.

    Attributes:
        path: The evolution path ``p_sigma``, float32 ``[d]``.
        directions: The vectors ``m_i``, float32 ``[m, d]``.
        learnt: Generations that something was learnt from.
    """

    path: Tensor | None = field(default=None, repr=False)
    directions: Tensor | None = field(default=None, repr=False)
    learnt: int = 0


@dataclass(frozen=True, kw_only=True)
class LMMAEvolutionStrategy(Search[LMMAState]):
    """The limited-memory matrix adaptation evolution strategy.

    Args:
        population: Number of members, lambda; ``None`` for ``4 + floor(3 ln d)``.
        sigma: Step size of the first generation, > 0.
        name: Name for checkpoints.
        m: Number of directions that are remembered; ``None`` for ``4 + floor(3 ln d)``.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = LMMAEvolutionStrategy(sigma=0.3)
        >>> state = algorithm.init(torch.ones(100, dtype=torch.float64), seed=1)
        >>> for _ in range(400):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 1e-2
        True
    """

    name: str = "lm_ma_es"
    m: int | None = None

    State: ClassVar[type[State]] = LMMAState

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None:
            object.__setattr__(self, "m", whole("m", self.m, minimum=1))  # the dataclass is frozen

    def ask(self, state: LMMAState) -> Population:
        """Members ``center + sigma d(z_k)``, whose steps are made when they are needed.

        Raises:
            ValueError: If the state has no center.
        """
        center_of(state)
        return self.population_of(state, VectorsOnDemand(lambda members: self._steps(state, members)))

    def steps(self, state: LMMAState) -> Tensor:
        """``d(z_k)`` of all members, float32 ``[members, d]``."""
        return self._steps(state, list(range(self.current_population(state))))

    def _steps(self, state: LMMAState, members: list[int]) -> Tensor:
        steps = self._z(state, members)
        for step in steps:
            self._transform(state, step)
        return steps

    @staticmethod
    def _z(state: LMMAState, members: list[int]) -> Tensor:
        key = NoiseKey(state.seed, state.generation)
        return draw(key, members, 0, 0, center_of(state).numel(), dtype=torch.float32)

    @staticmethod
    def _transform(state: LMMAState, d: Tensor) -> None:
        """``d <- (1 - c_d,i) d + c_d,i m_i (m_i^T d)`` for i = 1 … min(t, m), in place."""
        if state.directions is None:
            return
        for i, direction in enumerate(state.directions[: state.learnt]):
            c_d = 1.5**-i / d.numel()
            along = float(torch.dot(direction, d))
            d.mul_(1 - c_d).add_(direction, alpha=c_d * along)

    def learn(
        self, state: LMMAState, population: Population, fitness: Tensor, numel: int
    ) -> tuple[LMMAState, NewCenter]:
        """Center, path, directions and sigma after a generation.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        w = shape(check_fitness(population, fitness), recombination_weights)
        following = replace(state, generation=state.generation + 1)
        if not w.any():
            return following, NewCenter(None)
        n, sigma, members = numel, population.sigma, len(population)
        mu_eff = 1 / float(w.square().sum())
        z = torch.zeros(n, dtype=torch.float32)
        for member, weight in enumerate(w.tolist()):
            if weight:
                z.add_(self._z(state, [member])[0], alpha=weight)
        # p_sigma <- (1 - c) p_sigma + sqrt(mu_eff c (2 - c)) <z>_w
        c = min(0.5, 2 * members / n)
        path = z * math.sqrt(mu_eff * c * (2 - c))
        if state.path is not None:
            path.add_(state.path, alpha=1 - c)
        # m_i <- (1 - c_c,i) m_i + sqrt(mu_eff c_c,i (2 - c_c,i)) <z>_w
        m = self.population_for(n) if self.m is None else self.m
        rates = [min(0.5, members / (4.0**i * n)) for i in range(m)]
        directions = torch.empty(m, n, dtype=torch.float32)
        for i, rate in enumerate(rates):
            torch.mul(z, math.sqrt(mu_eff * rate * (2 - rate)), out=directions[i])
            if state.directions is not None:
                directions[i].add_(state.directions[i], alpha=1 - rate)
        grown = math.exp(min(1.0, c / 2 * (float(path.norm()) ** 2 / n - 1)))
        self._transform(state, z)
        center = center_of(state)
        moved = (center.double() + sigma * z).to(center.dtype)
        following = replace(
            following, path=path, directions=directions, learnt=min(m, state.learnt + 1), sigma=sigma * grown
        )
        return following, NewCenter(moved)


LM_MA_ES = Recipe(
    name="lm_ma_es",
    summary="Learns the shape of the fitness along a few directions; for millions of elements.",
    paper="Loshchilov, Glasmachers & Beyer 2017, arXiv:1705.06693",
    defaults={"sigma": 0.1},
    algorithm=LMMAEvolutionStrategy,
)
