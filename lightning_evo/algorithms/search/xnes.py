"""Exponential natural evolution strategy: natural gradients of a normal distribution with full covariance.

T. Glasmachers, T. Schaul, Y. Sun, D. Wierstra and J. Schmidhuber, "Exponential natural evolution strategies", GECCO
2010, https://doi.org/10.1145/1830483.1830557 (Algorithm 1), also in https://arxiv.org/abs/1106.4487 (Algorithm 5 and
Table 1: ``eta_mu = 1``, ``eta_sigma = eta_B = 3 (3 + ln d) / (5 d sqrt(d))``). Members are ``mu + sigma B z``, where B
has determinant 1, and learns as ``B <- B exp(eta_B / 2 grad_B)``: it can't become singular.

Departures. Equal members share their utilities; failed ones have none. A generation whose members all tie changes
nothing.
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
from lightning_evo.algorithms.search.ranks import utilities
from lightning_evo.algorithms.search.search import Search, center_of
from lightning_evo.algorithms.shaping import shape

__all__ = ["XNES", "ExponentialNES", "XNESState"]


@dataclass(frozen=True)
class XNESState(State):
    """What the strategy remembers from one generation to the next.

    Attributes:
        B: The distribution's shape, float64 ``[d, d]`` of determinant 1; ``None`` stands for the identity.
    """

    B: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class ExponentialNES(Search[XNESState]):
    """The exponential natural evolution strategy, for some hundreds of elements at most.

    Args:
        population: Number of members, lambda; ``None`` for ``4 + floor(3 ln d)``.
        sigma: Step size of the first generation, > 0.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = ExponentialNES(sigma=0.5)
        >>> state = algorithm.init(torch.ones(4, dtype=torch.float64), seed=1)
        >>> for _ in range(300):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 1e-6
        True
    """

    name: str = "xnes"

    State: ClassVar[type[State]] = XNESState
    learns_alike: ClassVar[bool] = False

    def steps(self, state: XNESState) -> Tensor:
        """``B z``, float64 ``[members, d]``."""
        z = self.normal(state)
        return z if state.B is None else z @ state.B.T

    def learn(
        self, state: XNESState, population: Population, fitness: Tensor, numel: int
    ) -> tuple[XNESState, NewCenter]:
        """``mu``, ``sigma`` and ``B`` along the natural gradient of the expected utility.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        u = shape(check_fitness(population, fitness), utilities)
        following = replace(state, generation=state.generation + 1)
        if not u.any():
            return following, NewCenter(None)
        center, sigma, z, identity = center_of(state), population.sigma, self.normal(state), torch.eye(numel).double()
        eta = 3 * (3 + math.log(numel)) / (5 * numel * math.sqrt(numel))
        B = identity if state.B is None else state.B
        grad_delta = u @ z
        grad_M = (u[:, None] * z).T @ z - u.sum() * identity
        grad_sigma = float(grad_M.trace()) / numel
        grad_B = grad_M - grad_sigma * identity
        moved = (center.double() + sigma * (B @ grad_delta)).to(center)
        B = B @ torch.linalg.matrix_exp(eta / 2 * grad_B)
        return replace(following, sigma=sigma * math.exp(eta / 2 * grad_sigma), B=B), NewCenter(moved)


XNES = Recipe(
    name="xnes",
    summary="Natural gradients of a normal distribution with full covariance; for small vectors.",
    paper="Glasmachers et al. 2010, doi:10.1145/1830483.1830557",
    defaults={"sigma": 0.1},
    algorithm=ExponentialNES,
)
