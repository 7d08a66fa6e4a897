"""A genetic algorithm on vectors: the best stay, and the children of selected parents are crossed and mutated.

A. Eiben and J. Smith, "Introduction to Evolutionary Computing", 2015, https://doi.org/10.1007/978-3-662-44874-8
(generational model with elitism; tournament selection, uniform crossover, nonuniform mutation with a normal
distribution: chapters 4 and 5); truncation selection and its shares as in F. Such et al., "Deep neuroevolution", 2017,
https://arxiv.org/abs/1712.06567 (Algorithm 1).

Departures. Elites are members of the next generation, and evaluated again with it: nobody's fitness is ever older than
the batch. Members that failed have no children. A generation whose members all tie changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.search.members import Generation, MemberSearch, MemberState, uniform
from lightning_evo.algorithms.search.search import Search
from lightning_evo.utils.options import number, one_of, whole

__all__ = ["GENETIC", "GeneticAlgorithm"]

Selection = Literal["truncation", "tournament"]
_PARENTS, _CROSSING, _WHETHER = 1, 2, 3  # uses of random numbers


@dataclass(frozen=True, kw_only=True)
class GeneticAlgorithm(MemberSearch[MemberState]):
    """A genetic algorithm with elites.

    Args:
        population: Number of members.
        sigma: Deviation of a mutation, and of the first generation's members from the center, > 0. The first of these
            is the center.
        elites: How many of the best stay as they are, >= 1.
        selection: ``"truncation"``: parents are drawn from the best ``parents``; ``"tournament"``: a parent is the
            best of ``tournament`` that are drawn from all.
        parents: Share of the members that truncation keeps, in (0, 1].
        tournament: Members of a tournament, >= 2.
        crossover: Probability that a child has two parents, each coordinate from one of them, in [0, 1].
        bounds: The least and the greatest value of an element; ``None`` for no bounds.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = GeneticAlgorithm(population=40, sigma=0.1)
        >>> state = algorithm.init(torch.ones(5, dtype=torch.float64), seed=1)
        >>> for _ in range(100):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> float(state.center.norm()) < 0.2
        True
    """

    elites: int = 1
    selection: Selection = "truncation"
    parents: float = 0.25
    tournament: int = 2
    crossover: float = 0.5
    name: str = "genetic"

    State: ClassVar[type[State]] = MemberState

    def __post_init__(self) -> None:
        super().__post_init__()
        most = (1 << 63) - 1 if self.population is None else self.population - 1
        checked: dict[str, Any] = {
            "elites": whole("elites", self.elites, maximum=most),
            "selection": one_of("selection", self.selection, get_args(Selection)),
            "parents": number("parents", self.parents, above=0, maximum=1),
            "tournament": whole("tournament", self.tournament, minimum=2),
            "crossover": number("crossover", self.crossover, minimum=0, maximum=1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def current_sigma(self, state: MemberState) -> float:
        """Deviation of the coming generation's mutations."""
        return Search.current_sigma(self, state)

    def offspring(self, state: MemberState, members: Tensor) -> Tensor:
        """The elites, and children: a parent or two of them crossed, plus ``sigma`` times noise."""
        assert state.fitness is not None
        count, dimension = members.shape
        order = state.fitness.argsort(descending=True, stable=True)
        order = order[: int(state.fitness.isfinite().sum())]
        elites = min(self.elites, count - 1, len(order))
        first, second = (self._parents(state, order, use, count) for use in (0, 1))
        both = uniform(state, _WHETHER, count, 1) < self.crossover
        crossed = both & (uniform(state, _CROSSING, count, dimension) < 0.5)
        children = torch.where(crossed, members[second], members[first])
        children += self.current_sigma(state) * self.normal(state)
        children = self.into_bounds(children, members[first])
        children[:elites] = members[order[:elites]]
        return children

    def _parents(self, state: MemberState, order: Tensor, use: int, count: int) -> Tensor:
        """A parent for each member, by number."""
        assert state.fitness is not None
        rounds = self.tournament if self.selection == "tournament" else 1
        u = uniform(state, _PARENTS, count, 2 * rounds)[:, use * rounds : (use + 1) * rounds]
        if self.selection == "truncation":
            kept = order[: max(1, math.ceil(self.parents * len(order)))]
            return kept[(u[:, 0] * len(kept)).long()]
        drawn = order[(u * len(order)).long()]
        return drawn.gather(1, state.fitness[drawn].argmax(dim=1, keepdim=True))[:, 0]

    def select(self, state: MemberState, generation: Generation) -> MemberState:
        """All new members, of which the first is the elite."""
        return replace(state, members=generation.new, fitness=generation.new_fitness, best=0)


GENETIC = Recipe(
    name="genetic",
    summary="The best stay, and children of selected parents are crossed and mutated; for small vectors.",
    paper="Such et al. 2017, arXiv:1712.06567",
    defaults={"population": 64, "sigma": 0.1},
    algorithm=GeneticAlgorithm,
)
