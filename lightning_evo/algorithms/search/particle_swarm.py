"""Particle swarm optimization: particles are drawn to the best place that they have seen, and that the swarm has seen.

J. Kennedy and R. Eberhart, "Particle swarm optimization", ICNN 1995, https://doi.org/10.1109/ICNN.1995.488968, with a
global best; inertia and pulls are those of M. Clerc and J. Kennedy's constriction, "The particle swarm", IEEE
Transactions on Evolutionary Computation 2002, https://doi.org/10.1109/4235.985692 (Type 1'': ``chi = 0.7298`` times the
velocity, and ``chi phi / 2 = 1.49618`` times each pull). Other inertia weights are options.

Departures. Places that were the best are evaluated again beside the particles, see :mod:`.members`. Particles begin
without velocity. Where a bound stops one, its velocity along that coordinate is zero. Where no population is given, it
is ``10 + floor(2 sqrt(d))``, of Standard PSO 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.search.members import Generation, MemberSearch, MemberState, uniform
from lightning_evo.algorithms.search.search import center_of
from lightning_evo.utils.options import number, whole

__all__ = ["PARTICLE_SWARM", "ParticleSwarm", "SwarmState"]


@dataclass(frozen=True)
class SwarmState(MemberState):
    """What the swarm remembers; its members are the particles' best places.

    Attributes:
        positions: Where the particles are, float64 ``[members, d]``; ``None`` for their best places.
        velocities: Float64 ``[members, d]``; ``None`` for zero.
    """

    positions: Tensor | None = field(default=None, repr=False)
    velocities: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class ParticleSwarm(MemberSearch[SwarmState]):
    """A particle swarm with a global best.

    Args:
        population: Number of particles; ``None`` for ``10 + floor(2 sqrt(d))``.
        sigma: Deviation of the first generation's particles from the center, > 0. The first of them is the center.
        inertia: Share of the velocity that stays, in [0, 1].
        cognitive: Pull of a particle's own best place, >= 0.
        social: Pull of the swarm's best place, >= 0.
        max_velocity: The greatest velocity along a coordinate, in units of sigma, > 0; ``None`` for no limit.
        reevaluate: In every generation of how many best places are evaluated again beside the particles; 0 for never.
        bounds: The least and the greatest value of an element; ``None`` for no bounds.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = ParticleSwarm(sigma=1.0, reevaluate=0)
        >>> state = algorithm.init(torch.ones(5, dtype=torch.float64), seed=1)
        >>> for _ in range(200):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 1e-3
        True
    """

    inertia: float = 0.7298
    cognitive: float = 1.49618
    social: float = 1.49618
    max_velocity: float | None = None
    reevaluate: int = 1
    name: str = "particle_swarm"

    State: ClassVar[type[State]] = SwarmState

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = self.max_velocity
        checked: dict[str, Any] = {
            "inertia": number("inertia", self.inertia, minimum=0, maximum=1),
            "cognitive": number("cognitive", self.cognitive, minimum=0),
            "social": number("social", self.social, minimum=0),
            "max_velocity": None if limit is None else number("max_velocity", limit, above=0),
            "reevaluate": whole("reevaluate", self.reevaluate, minimum=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @staticmethod
    def population_for(dimension: int) -> int:
        """``10 + floor(2 sqrt(d))``."""
        return 10 + math.floor(2 * math.sqrt(dimension))

    def renews(self, state: SwarmState) -> bool:
        """Whether the coming generation evaluates the best places again."""
        return self.reevaluate > 0 and state.generation % self.reevaluate == 0

    def _velocities(self, state: SwarmState, members: Tensor) -> tuple[Tensor, Tensor]:
        """``v <- w v + c1 r1 (p - x) + c2 r2 (g - x)``, and the positions x."""
        x = members if state.positions is None else state.positions
        v = torch.zeros_like(members) if state.velocities is None else state.velocities
        r1, r2 = (uniform(state, use, *members.shape) for use in (1, 2))
        g = center_of(state).double()
        v = self.inertia * v + self.cognitive * r1 * (members - x) + self.social * r2 * (g - x)
        if self.max_velocity is not None:
            limit = self.max_velocity * self.current_sigma(state)
            v = v.clamp(-limit, limit)
        return v, x

    def offspring(self, state: SwarmState, members: Tensor) -> Tensor:
        """``x <- x + v``, within the bounds."""
        v, x = self._velocities(state, members)
        return self.into_bounds(x + v, x)

    def select(self, state: SwarmState, generation: Generation) -> SwarmState:
        """The particles move, and remember where they are if that is better."""
        old, old_fitness, new, new_fitness = generation
        asked = replace(state, generation=state.generation - 1)  # the generation that the particles are of
        v, x = self._velocities(asked, old)
        wins = new_fitness > old_fitness
        return replace(
            state,
            members=torch.where(wins[:, None], new, old),
            fitness=new_fitness.where(wins, old_fitness),
            positions=new,
            velocities=v.where(new == x + v, 0.0),
        )


PARTICLE_SWARM = Recipe(
    name="particle_swarm",
    summary="Particles are drawn to the best places that they and the swarm have seen; for small vectors.",
    paper="Clerc and Kennedy 2002, doi:10.1109/4235.985692",
    defaults={"sigma": 0.3},
    algorithm=ParticleSwarm,
)
