"""Differential evolution: members move by the differences of others, and stay where that is better.

R. Storn and K. Price, "Differential evolution", Journal of Global Optimization 1997,
https://doi.org/10.1023/A:1008202821328 (``rand_1`` and ``best_1``, both with binomial crossover, Eqs. 2 to 5); R.
Tanabe and A. Fukunaga, "Success-history based parameter adaptation for differential evolution", CEC 2013,
https://doi.org/10.1109/CEC.2013.6557555 (SHADE: ``current_to_pbest``, with an archive of parents that were replaced,
and differential weight and crossover rate from the history of those that succeeded, Eqs. 1 to 12 and Algorithm 1).

Departures. Old members are evaluated again beside the new ones, see :mod:`.members`. The differential weight's Cauchy
distribution is cut at zero by its quantiles in place of rejection, which is the same distribution from one random
number. Success counts by the gain in fitness; one over a failed parent counts as the largest gain among the others. The
population that is not given is Storn and Price's ``10 d``, at most SHADE's 100.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.search.members import Generation, MemberSearch, MemberState, uniform
from lightning_evo.algorithms.search.search import center_of
from lightning_evo.utils.options import number, one_of, whole

__all__ = ["DIFFERENTIAL_EVOLUTION", "DEState", "DifferentialEvolution"]

Mutation = Literal["current_to_pbest", "rand_1", "best_1"]
Repair = Literal["midpoint", "reflect"]
_OTHERS, _CROSSING, _ONE, _ADAPTED, _ARCHIVED = 1, 2, 3, 4, 5  # uses of random numbers


@dataclass(frozen=True)
class DEState(MemberState):
    """What the method remembers from one generation to the next.

    Attributes:
        archive: Parents that were replaced, float64 ``[at most members, d]``.
        weight_memory: Differential weights of past successes, float64 ``[history]``.
        crossover_memory: Crossover rates of past successes, float64 ``[history]``.
        slot: The place in both that is written next.
    """

    archive: Tensor | None = field(default=None, repr=False)
    weight_memory: Tensor | None = field(default=None, repr=False)
    crossover_memory: Tensor | None = field(default=None, repr=False)
    slot: int = 0


@dataclass(frozen=True, kw_only=True)
class DifferentialEvolution(MemberSearch[DEState]):
    """Differential evolution with one of three mutations.

    Args:
        population: Number of parents; ``None`` for ``10 d``, at most 100.
        sigma: Deviation of the first generation's members from the center, > 0. The first of them is the center.
        mutation: ``"current_to_pbest"`` (SHADE), ``"rand_1"`` or ``"best_1"``.
        weight: Differential weight F, in (0, 2]; SHADE begins with it.
        crossover: Crossover rate CR, in [0, 1]; SHADE begins with it.
        history: Length H of SHADE's memory of successes.
        reevaluate: In every generation of how many parents are evaluated again beside the new members; 0 for never.
        bounds: The least and the greatest value of an element; ``None`` for no bounds.
        repair: What becomes of a value out of bounds: the ``"midpoint"`` of parent and bound, or ``"reflect"``.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = DifferentialEvolution(population=20, sigma=1.0, reevaluate=0)
        >>> state = algorithm.init(torch.ones(5, dtype=torch.float64), seed=1)
        >>> for _ in range(200):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 1e-6
        True
    """

    mutation: Mutation = "current_to_pbest"
    weight: float = 0.5
    crossover: float = 0.5
    history: int = 100
    reevaluate: int = 1
    repair: Repair = "midpoint"
    name: str = "differential_evolution"

    State: ClassVar[type[State]] = DEState

    def __post_init__(self) -> None:
        super().__post_init__()
        checked: dict[str, Any] = {
            "mutation": one_of("mutation", self.mutation, get_args(Mutation)),
            "weight": number("weight", self.weight, above=0, maximum=2),
            "crossover": number("crossover", self.crossover, minimum=0, maximum=1),
            "history": whole("history", self.history),
            "reevaluate": whole("reevaluate", self.reevaluate, minimum=0),
            "repair": one_of("repair", self.repair, get_args(Repair)),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @staticmethod
    def population_for(dimension: int) -> int:
        """``10 d``, at most 100."""
        return min(10 * dimension, 100)

    def renews(self, state: DEState) -> bool:
        """Whether the coming generation evaluates the parents again."""
        return self.reevaluate > 0 and state.generation % self.reevaluate == 0

    def into_bounds(self, members: Tensor, parents: Tensor) -> Tensor:
        """Members with what is out of bounds between parent and bound, or reflected."""
        if self.bounds is None:
            return members
        lower, upper = self.bounds
        if self.repair == "midpoint":
            members = torch.where(members < lower, (lower + parents.clamp(lower, upper)) / 2, members)
            return torch.where(members > upper, (upper + parents.clamp(lower, upper)) / 2, members)
        width = upper - lower
        return (lower + width - ((members - lower) % (2 * width) - width).abs()).clamp(lower, upper)

    def offspring(self, state: DEState, members: Tensor) -> Tensor:
        """``u_i``: of the mutant ``v_i`` the coordinates that cross over, of the parent the others."""
        count, dimension = members.shape
        F, CR = self._parameters(state, count)
        order = self._others(state, count)
        if self.mutation == "current_to_pbest":
            v = members + F * (self._pbest(state, members) - members) + F * self._difference(state, members, order)
        else:
            base = members[order[:, 0]] if self.mutation == "rand_1" else center_of(state).double()
            v = base + F * (members[order[:, 1]] - members[order[:, 2]])
        crossing = uniform(state, _CROSSING, count, dimension) < CR
        one = (uniform(state, _ONE, count, 2)[:, :1] * dimension).long()  # which crosses over in any case
        return self.into_bounds(torch.where(crossing.scatter(1, one, True), v, members), members)

    @staticmethod
    def _others(state: DEState, count: int) -> Tensor:
        """For each member three others, none twice, ``[members, 3]``."""
        keys = uniform(state, _OTHERS, count, count).fill_diagonal_(2.0)
        return keys.argsort(dim=1, stable=True)[:, :3]

    def _parameters(self, state: DEState, count: int) -> tuple[Tensor, Tensor]:
        """Each member's F and CR, ``[members, 1]`` (SHADE, Eqs. 5 and 6)."""
        if self.mutation != "current_to_pbest":
            one = torch.ones(count, 1, dtype=torch.float64)
            return self.weight * one, self.crossover * one
        weights, crossovers = self._memory(state)
        u = uniform(state, _ADAPTED, count, 4)
        slot = (u[:, 0] * self.history).long()
        below = 0.5 + (-weights[slot] / 0.1).atan() / math.pi  # of the Cauchy distribution that is not positive
        F = weights[slot] + 0.1 * (math.pi * (below + (1 - below) * (u[:, 1] + 2.0**-25) - 0.5)).tan()
        CR = crossovers[slot] + 0.1 * torch.special.ndtri(u[:, 2] + 2.0**-25)
        return F.clamp(2.0**-25, 1)[:, None], CR.clamp(0, 1)[:, None]

    def _memory(self, state: DEState) -> tuple[Tensor, Tensor]:
        if state.weight_memory is None or state.crossover_memory is None:
            start = torch.ones(self.history, dtype=torch.float64)
            return self.weight * start, self.crossover * start
        return state.weight_memory, state.crossover_memory

    @staticmethod
    def _pbest(state: DEState, members: Tensor) -> Tensor:
        """For each member one of the best ``p N``, p random in [2 / N, 0.2] (SHADE, Eq. 7)."""
        assert state.fitness is not None
        count = len(members)
        u = uniform(state, _ADAPTED, count, 6)[:, 4:]
        least = min(2 / count, 0.2)
        best = ((least + (0.2 - least) * u[:, 0]) * count).round().clamp(min=2)
        order = state.fitness.argsort(descending=True, stable=True)
        return members[order[(u[:, 1] * best).long()]]

    @staticmethod
    def _difference(state: DEState, members: Tensor, order: Tensor) -> Tensor:
        """``x_r1 - x_r2`` with r2 also from the archive (SHADE, Eq. 3)."""
        both = members if state.archive is None else torch.cat([members, state.archive])
        first, own = order[:, :1], torch.arange(len(members))[:, None]
        keys = uniform(state, _ARCHIVED, len(members), len(both)).scatter(1, first, -1.0).scatter(1, own, -1.0)
        return members[first[:, 0]] - both[keys.argmax(dim=1)]

    def select(self, state: DEState, generation: Generation) -> DEState:
        """Each parent or its offspring, whichever is better; the offspring where they tie and have not failed."""
        old, old_fitness, new, new_fitness = generation
        wins = (new_fitness >= old_fitness) & new_fitness.isfinite()
        following = replace(
            state,
            members=torch.where(wins[:, None], new, old),
            fitness=new_fitness.where(wins, old_fitness),
        )
        better = wins & (new_fitness > old_fitness)
        if self.mutation != "current_to_pbest" or not better.any():
            return following
        asked = replace(state, generation=state.generation - 1)  # the generation that the offspring are of
        F, CR = (values[better, 0] for values in self._parameters(asked, len(old)))
        gain = (new_fitness - old_fitness)[better]
        finite = gain[gain.isfinite()]
        gain = gain.where(gain.isfinite(), finite.max() if len(finite) else 1.0)
        w = gain / gain.max()
        w = w / w.sum()
        weights, crossovers = (memory.clone() for memory in self._memory(state))
        weights[state.slot] = (w @ F.square()) / (w @ F)
        crossovers[state.slot] = w @ CR
        replaced = old[better] if state.archive is None else torch.cat([state.archive, old[better]])
        if len(replaced) > len(old):  # a random part of it
            replaced = replaced[uniform(asked, _ONE, len(replaced), 2)[:, 1].argsort(stable=True)[: len(old)]]
        return replace(
            following,
            archive=replaced,
            weight_memory=weights,
            crossover_memory=crossovers,
            slot=(state.slot + 1) % self.history,
        )


DIFFERENTIAL_EVOLUTION = Recipe(
    name="differential_evolution",
    summary="Members move by differences of others where that is better, with SHADE's adaptation; for small vectors.",
    paper="Storn and Price 1997; Tanabe and Fukunaga 2013, doi:10.1109/CEC.2013.6557555",
    defaults={"sigma": 0.3},
    algorithm=DifferentialEvolution,
)
