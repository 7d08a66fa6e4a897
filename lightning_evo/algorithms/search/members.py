"""What searches by a stored population share: differential evolution, particle swarms, genetic algorithms.

**The center** is the best member found (the elite), and the weights of a module are that member's. A center that was
moved from outside takes the elite's place.

**Fitness that changes with the batch.** Whether a member is better than another is known where both saw the same batch.
So where a method compares new members with old ones, the old ones are evaluated again beside the new ones: in every
generation by default (twice the members), in every k-th with ``reevaluate=k``, never with ``reevaluate=0``, which is
the published method, for fitness that does not change. In between, old members keep the fitness that they had, and
one that was lucky stays.

**Failures.** A member that failed is worse than any other. A generation whose members all tie changes nothing.

**Random numbers** have an address (use, member, coordinate), so the same state gives the same members.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State, check_fitness
from lightning_evo.algorithms.lesson import NewCenter
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.search.search import Search, center_of
from lightning_evo.algorithms.shaping import comparable
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.utils.options import number

__all__ = ["Generation", "MemberSearch", "MemberState", "checked_bounds", "uniform"]


@dataclass(frozen=True)
class MemberState(State):
    """What a search remembers of its members.

    Attributes:
        members: float64 ``[members, d]``; ``None`` before the first generation.
        fitness: Theirs, as last evaluated, float64 ``[members]``; minus infinity for one that failed.
        best: The elite's number, whose place the center has.
        unit: The first generation's sigma, in which steps are told.
    """

    members: Tensor | None = field(default=None, repr=False)
    fitness: Tensor | None = field(default=None, repr=False)
    best: int = 0
    unit: float | None = None


AnyMembers = TypeVar("AnyMembers", bound=MemberState)


class Generation(NamedTuple):
    """Members that were evaluated.

    Attributes:
        old: The stored ones, float64 ``[members, d]``.
        old_fitness: Theirs: of this batch where they were evaluated again.
        new: The new ones, float64 ``[members, d]``.
        new_fitness: Theirs.
    """

    old: Tensor
    old_fitness: Tensor
    new: Tensor
    new_fitness: Tensor


@dataclass(frozen=True, kw_only=True)
class MemberSearch(Search[AnyMembers]):
    """A search that stores its members.

    Args:
        population: Number of members that are stored; ``None`` for the method's own.
        sigma: Deviation of the first generation's members from the center, > 0. The first of them is the center.
        bounds: The least and the greatest value of an element; ``None`` for no bounds.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.
    """

    bounds: tuple[float, float] | None = None

    smallest: ClassVar[tuple[int, str]] = (4, "each member is changed by others")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bounds", checked_bounds(self.bounds))  # the dataclass is frozen

    def renews(self, state: AnyMembers) -> bool:
        """Whether the coming generation evaluates the stored members again, behind the new ones."""
        return False

    def _stored(self, state: AnyMembers) -> int:
        """How many members are stored."""
        return super().current_population(state) if state.members is None else len(state.members)

    def current_population(self, state: AnyMembers) -> int:
        """Members of the coming generation."""
        stored = self._stored(state)
        return 2 * stored if state.members is not None and self.renews(state) else stored

    def current_sigma(self, state: AnyMembers) -> float:
        """The deviation of the first generation's members, also later: from then on members say how far they are."""
        return super().current_sigma(state) if state.unit is None else state.unit

    def steps(self, state: AnyMembers) -> Tensor:
        """``(x - center) / sigma`` of the generation's members x, float64 ``[members, d]``.

        Raises:
            ValueError: If the state has no center.
        """
        center, sigma = center_of(state).double(), self.current_sigma(state)
        if state.members is None:
            steps = self.normal(state)
            steps[0] = 0
            if self.bounds is None:
                return steps
            members = self.into_bounds(center + sigma * steps, center)
        else:
            stored = self.members(state)
            members = self.offspring(state, stored)
            if self.renews(state):
                members = torch.cat([members, stored])
        return (members - center) / sigma

    def members(self, state: AnyMembers) -> Tensor:
        """The stored members, with the center in the elite's place, float64 ``[members, d]``."""
        assert state.members is not None
        members = state.members.clone()
        members[state.best] = center_of(state)
        return members

    @abstractmethod
    def offspring(self, state: AnyMembers, members: Tensor) -> Tensor:
        """The new members, float64 ``[members, d]``, within the bounds.

        Args:
            state: The search's.
            members: The stored ones, not to be written to.
        """

    @abstractmethod
    def select(self, state: AnyMembers, generation: Generation) -> AnyMembers:
        """The state with the members, and their fitness, that are kept; ``best`` is the elite's, where it ties.

        Args:
            state: Before.
            generation: What was evaluated.
        """

    def into_bounds(self, members: Tensor, parents: Tensor) -> Tensor:
        """Members with what is out of bounds set to the nearest bound."""
        return members if self.bounds is None else members.clamp(*self.bounds)

    def learn(
        self, state: AnyMembers, population: Population, fitness: Tensor, numel: int
    ) -> tuple[AnyMembers, NewCenter]:
        """The members that are kept, and the best of them as the center.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        compared = comparable(check_fitness(population, fitness))
        following = replace(state, generation=state.generation + 1)
        if compared is None:
            return following, NewCenter(None)
        center = center_of(state)
        if state.members is None:
            members = center.double() + population.sigma * self.steps_of(population, state)
            following = replace(following, members=members, fitness=compared, unit=population.sigma)
        else:
            old = self.members(state)
            new = self.offspring(state, old)
            assert state.fitness is not None
            old_fitness = compared[len(new) :] if self.renews(state) else state.fitness
            following = self.select(following, Generation(old, old_fitness, new, compared[: len(new)]))
        assert following.members is not None
        assert following.fitness is not None
        best = following.best
        if following.fitness[best] < following.fitness.max():
            best = int(following.fitness.argmax())
        return replace(following, best=best), NewCenter(following.members[best].to(center.dtype, copy=True))


def uniform(state: State, use: int, rows: int, columns: int) -> Tensor:
    """Random numbers in [0, 1) of a generation, float64 ``[rows, columns]``.

    Args:
        state: Its seed and generation count.
        use: What for, >= 1: each use of a generation has others.
        rows: How many rows.
        columns: How many columns.

    Example:
        >>> uniform(State(seed=1), 1, 2, 3).shape
        torch.Size([2, 3])
    """
    key = NoiseKey(state.seed, state.generation)
    return draw(key, range(rows), use, 0, columns, distribution="uniform", dtype=torch.float64)


def checked_bounds(bounds: object) -> tuple[float, float] | None:
    """Bounds as two numbers, the lower one first.

    Raises:
        ValueError: If they are something else.

    Example:
        >>> checked_bounds([-1, 1])
        (-1.0, 1.0)
    """
    if bounds is None:
        return None
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"bounds must be two numbers, the least and the greatest value, got {bounds!r}.")
    lower, upper = (float(number("bounds", bound)) for bound in bounds)
    if lower >= upper:
        raise ValueError(f"bounds must be two numbers, the lower one first, got {bounds!r}.")
    return lower, upper
