"""Policy gradients with parameter-based exploration: a gradient of the distribution's mean and deviations, in pairs.

F. Sehnke et al., "Parameter-exploring policy gradients", Neural Networks 2010,
https://doi.org/10.1016/j.neunet.2009.12.004 (symmetric sampling, Section 3.3), with the ClipUp optimizer and centered
ranks of N. Toklu, P. Liskowski and R. Srivastava, "ClipUp", PPSN 2020, https://arxiv.org/abs/2008.02387 (Algorithms 1
and 2, and the rules of their Section 3: the largest speed is the first search radius ``sigma sqrt(d)`` over 15, the
step 3/4 of it as in their published runs). A deviation changes by at most 20 % in a generation.

Departures. A pair with a failed member is left out. A generation whose members all tie changes nothing. Deviations are
kept as ``sigma * scales``, so that sigma can be set.
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
from lightning_evo.algorithms.search.search import center_of
from lightning_evo.algorithms.search.separable import SeparableSearch, SeparableState, moments
from lightning_evo.algorithms.shaping import centered_ranks, evaluated, shape
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.utils.options import number

__all__ = ["PGPE", "PGPEState", "ParameterExploringGradients"]


@dataclass(frozen=True)
class PGPEState(SeparableState):
    """What the method remembers from one generation to the next.

    Attributes:
        velocity: ClipUp's, float64 ``[d]``; ``None`` stands for zero.
        max_speed: The greatest length of the velocity, set by the first generation; ``None`` before it.
    """

    velocity: Tensor | None = field(default=None, repr=False)
    max_speed: float | None = None


@dataclass(frozen=True, kw_only=True)
class ParameterExploringGradients(SeparableSearch[PGPEState]):
    """PGPE with symmetric sampling and ClipUp.

    Args:
        population: Number of members, an even number; ``None`` for ``4 + floor(3 ln d)``, or one more.
        sigma: The first generation's deviations, > 0.
        max_speed: The longest step of the center, > 0; ``None`` for ``sigma sqrt(d) / 15``.
        step: Length of the step that a gradient adds to the velocity, as a share of ``max_speed``, > 0.
        momentum: Share of the velocity that stays, in [0, 1).
        sigma_learning_rate: Of the deviations, >= 0; 0 leaves them as they are.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = ParameterExploringGradients(population=20, sigma=0.5)
        >>> state = algorithm.init(torch.ones(5, dtype=torch.float64), seed=1)
        >>> for _ in range(200):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 0.2
        True
    """

    max_speed: float | None = None
    step: float = 0.75
    momentum: float = 0.9
    sigma_learning_rate: float = 0.1
    name: str = "pgpe"

    State: ClassVar[type[State]] = PGPEState

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population is not None and self.population % 2:
            raise ValueError(f"population must be an even number (members come in pairs), got {self.population}.")
        checked = {
            "max_speed": None if self.max_speed is None else number("max_speed", self.max_speed, above=0),
            "step": number("step", self.step, above=0),
            "momentum": number("momentum", self.momentum, minimum=0, below=1),
            "sigma_learning_rate": number("sigma_learning_rate", self.sigma_learning_rate, minimum=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def current_population(self, state: PGPEState) -> int:  # noqa: D102
        return (super().current_population(state) + 1) // 2 * 2

    def ask(self, state: PGPEState) -> Population:
        """Members ``center + sigma * steps`` and ``center - sigma * steps``.

        Raises:
            ValueError: If the state has no center.
        """
        pairs = self.current_population(state) // 2
        return replace(super().ask(state), directions=pairs, antithetic=True)

    def normal(self, state: PGPEState, dtype: torch.dtype = torch.float64) -> Tensor:
        """The generation's standard normal numbers, ``[pairs, d]``.

        Raises:
            ValueError: If the state has no center.
        """
        key, dimension = NoiseKey(state.seed, state.generation), center_of(state).numel()
        return draw(key, range(self.current_population(state) // 2), 0, 0, dimension, dtype=dtype)

    def learn(
        self, state: PGPEState, population: Population, fitness: Tensor, numel: int
    ) -> tuple[PGPEState, NewCenter]:
        """``mu <- mu + v`` with ClipUp's v, and the deviations along their gradient.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        fitness = check_fitness(population, fitness)
        r = shape(fitness, centered_ranks, per_direction=2)
        following = replace(state, generation=state.generation + 1)
        if not r.any():
            return following, NewCenter(None)
        center, sigma = center_of(state), population.sigma
        kept = evaluated(fitness, 2)[::2].double()
        plus, minus = r.view(-1, 2).unbind(1)
        steps = self.steps_of(population, state)
        scales = torch.ones(numel, dtype=torch.float64) if state.scales is None else state.scales
        g, _ = moments((plus - minus) / 2, steps)
        above = kept * ((plus + minus) / 2 - r.sum() / (2 * kept.sum()))
        _, square = moments(above / kept.sum(), steps)
        grad_sigma = square / scales.square()  # sum of above (z^2 - 1), of which the ones cancel; per deviation

        largest = self.max_speed or state.max_speed or sigma * math.sqrt(numel) / 15
        v = torch.zeros(numel, dtype=torch.float64) if state.velocity is None else state.velocity
        length = float(g.norm())
        v = self.momentum * v + (self.step * largest / length * g if length > 0 else 0.0)
        v = v * min(1.0, largest / max(float(v.norm()), 1e-300))
        growth = (1 + (self.sigma_learning_rate * grad_sigma).clamp(-0.2, 0.2)).log()
        following = self.grown(replace(following, velocity=v, max_speed=largest), sigma, growth)
        return following, NewCenter((center.double() + v).to(center))


PGPE = Recipe(
    name="pgpe",
    summary="Gradients of a normal distribution's mean and deviations from pairs of members, with ClipUp.",
    paper="Sehnke et al. 2010; Toklu et al. 2020, arXiv:2008.02387",
    defaults={"population": 32, "sigma": 0.1},
    algorithm=ParameterExploringGradients,
)
