"""Cross-entropy method: mean and deviations of the best members are the next distribution's.

P.-T. de Boer, D. Kroese, S. Mannor and R. Rubinstein, "A tutorial on the cross-entropy method", 2005,
https://doi.org/10.1007/s10479-005-5724-z (Algorithm 2.2 with smoothing, Eq. 27), with noise that is added to the
variance and decays (I. Szita and A. Lorincz, 2006, https://doi.org/10.1162/neco.2006.18.12.2936; in the form of
https://arxiv.org/abs/1810.01222). The population and the share of the elites are those of Transformer^2
(https://arxiv.org/abs/2501.06252), which also evaluates the best member again: it is the next generation's first.

Departures. Members that tie at the elites' edge share the places that are left; failed ones have none. A generation
whose members all tie changes nothing.
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
from lightning_evo.algorithms.search.ranks import by_rank
from lightning_evo.algorithms.search.search import center_of
from lightning_evo.algorithms.search.separable import SeparableSearch, SeparableState, moments
from lightning_evo.algorithms.shaping import centered_ranks, shape
from lightning_evo.utils.options import flag, number

__all__ = ["CEM", "CEMState", "CrossEntropyMethod"]


@dataclass(frozen=True)
class CEMState(SeparableState):
    """What the method remembers from one generation to the next.

    Attributes:
        best: The last generation's best member, float64 ``[d]``.
        start_sigma: The first generation's sigma, the unit of the noise.
        noise: The variance to add to the next distribution, in units of its square; ``None`` for the option's.
    """

    best: Tensor | None = field(default=None, repr=False)
    start_sigma: float | None = None
    noise: float | None = None


@dataclass(frozen=True, kw_only=True)
class CrossEntropyMethod(SeparableSearch[CEMState]):
    """The cross-entropy method with normal distributions.

    Args:
        population: Number of members; ``None`` for ``4 + floor(3 ln d)``.
        sigma: The first generation's deviations, > 0: half the range where the optimum may be.
        elites: Share of the members that make the next distribution, in (0, 1): at least two of them.
        smoothing: How much of the new distribution counts, in (0, 1]; the rest is the old one's.
        noise: Variance added to the new distribution, in units of ``sigma^2``, >= 0.
        noise_decay: Factor on it in each generation, in [0, 1]; 1 makes it a floor.
        keep_best: Whether the best member is the next generation's first, and evaluated again.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = CrossEntropyMethod(population=32, sigma=1.0)
        >>> state = algorithm.init(torch.ones(5, dtype=torch.float64), seed=1)
        >>> for _ in range(100):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 1e-2
        True
    """

    elites: float = 0.2
    smoothing: float = 1.0
    noise: float = 0.01
    noise_decay: float = 0.95
    keep_best: bool = True
    name: str = "cem"

    State: ClassVar[type[State]] = CEMState

    def __post_init__(self) -> None:
        super().__post_init__()
        checked = {
            "elites": number("elites", self.elites, above=0, below=1),
            "smoothing": number("smoothing", self.smoothing, above=0, maximum=1),
            "noise": number("noise", self.noise, minimum=0),
            "noise_decay": number("noise_decay", self.noise_decay, minimum=0, maximum=1),
            "keep_best": flag("keep_best", self.keep_best),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def steps(self, state: CEMState) -> Tensor:
        """``scales * z``, and the best member of the last generation as the first, float64 ``[members, d]``."""
        steps = super().steps(state)
        if self.keep_best and state.best is not None:
            steps[0] = (state.best - center_of(state).double()) / self.current_sigma(state)
        return steps

    def _elite_weights(self, fitness: Tensor, per_direction: int = 1) -> Tensor:
        count = min(len(fitness), max(2, round(self.elites * len(fitness))))
        return by_rank(fitness, (torch.arange(len(fitness)) < count).double() / count)

    def learn(self, state: CEMState, population: Population, fitness: Tensor, numel: int) -> tuple[CEMState, NewCenter]:
        """``mu <- a mean + (1 - a) mu`` and ``s^2 <- (a deviation + (1 - a) s)^2 + noise``, of the elites.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        fitness = check_fitness(population, fitness)
        w = shape(fitness, self._elite_weights)
        following = replace(state, generation=state.generation + 1)
        if not w.any() or (w > 0).sum() < 2:
            return following, NewCenter(None)
        center, sigma, a = center_of(state), population.sigma, self.smoothing
        steps = self.steps_of(population, state)
        mean, square = moments(w, steps)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        scales = torch.ones_like(mean) if state.scales is None else state.scales
        unit = sigma if state.start_sigma is None else state.start_sigma
        noise = self.noise if state.noise is None else state.noise
        spread = ((a * deviation + (1 - a) * scales).mul(sigma).square() + noise * unit**2).sqrt()
        mean_square = float(spread.square().mean())
        grown = math.sqrt(mean_square) if mean_square > 0 else sigma
        moved = center.double() + a * sigma * mean
        best = center.double() + sigma * steps[int(shape(fitness, centered_ranks).argmax())]
        following = replace(
            following,
            sigma=grown,
            scales=spread / grown,
            best=best if self.keep_best else None,
            start_sigma=unit,
            noise=noise * self.noise_decay,
        )
        return following, NewCenter(moved.to(center))


CEM = Recipe(
    name="cem",
    summary="Mean and deviations of the best members make the next distribution; for small vectors.",
    paper="de Boer et al. 2005, doi:10.1007/s10479-005-5724-z",
    defaults={"population": 32, "sigma": 0.3},
    algorithm=CrossEntropyMethod,
)
