"""Runs members in the way that was chosen; members that fail or hang don't stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.center import Writes
from lightning_evo.evaluation.faults import guarded, limited
from lightning_evo.evaluation.isolation import Isolation
from lightning_evo.evaluation.ways import plain
from lightning_evo.evaluation.ways.batched import Batched
from lightning_evo.evaluation.ways.in_forward import InForward
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["Job", "Way", "name_of", "run"]

Way = InForward | Batched | None
"""A way of evaluating; ``None`` is the plain loop."""


@dataclass(frozen=True)
class Job:
    """What is to be evaluated.

    Attributes:
        space: The evolving parameters.
        population: All members.
        fitness: Runs the user's code and gives its fitness.
        isolation: Entered by the caller.
        members: Numbers of the members to evaluate.
        timeout: Seconds after which a member has failed; ``None`` means no limit.
    """

    space: SearchSpace
    population: Population
    fitness: Callable[[], Any]
    isolation: Isolation
    members: Sequence[int]
    timeout: float | None = None

    @property
    def guarded(self) -> Callable[[], Any]:
        """The fitness of one member; a :class:`~lightning_evo.evaluation.faults.Failure` where it raises."""
        return guarded(self.fitness, self.timeout)

    def by_plain_loop(self, members: Sequence[int]) -> list[Any]:
        """Some members by the plain loop."""
        # Processes that hold a model together can't continue after one of them failed within a forward: it would give
        # parts of the next member to those that still wait for this one's.
        fitness = self.fitness if self.space.is_sharded else self.guarded
        return plain.evaluate(self.space, self.population, fitness, self.isolation, members)

    def in_forward(self, members: Sequence[int]) -> list[Any]:
        """Some members one by one, without touching the weights."""
        return InForward()(self.space, self.population, self.guarded, self.isolation, members)


def name_of(way: Way) -> str:
    """The name of a way of evaluating."""
    return "plain" if way is None else way.name


def run(way: Way, job: Job, one_by_one: Callable[[list[int]], list[Any]] | None = None) -> list[Any]:
    """The fitness of a job's members.

    Args:
        way: How they are evaluated.
        job: What is evaluated.
        one_by_one: Evaluates members whose common forward raised an exception.

    Returns:
        What the fitness gave for each member, in their order; a Failure where it raised an exception.

    Raises:
        NeedsWeights: If this way can't do what a member's code asks for.
        CenterMoved: If a member's code wrote to the center.
        Exception: Without ``one_by_one`` whatever a common forward raises; with sharded weights what the fitness does.
    """
    if way is None:
        return job.by_plain_loop(job.members)

    writes = Writes(job.space)

    def again(members: list[int]) -> list[Any]:
        assert one_by_one is not None
        writes.check()
        values = one_by_one(members)
        writes.start()  # the plain loop may write to the weights: it puts them back
        return values

    if isinstance(way, InForward):
        values = way(job.space, job.population, job.guarded, job.isolation, job.members)
    else:
        fitness = _shared_fitness(way, job)
        values = way(
            job.space, job.population, fitness, job.isolation, job.members, None if one_by_one is None else again
        )
    writes.check()
    return values


def _shared_fitness(way: Batched, job: Job) -> Callable[[], Any]:
    """The fitness of members that share a forward; their time limit is the timeout times their number."""

    def run_together() -> Any:
        return limited(job.fitness, None if job.timeout is None else job.timeout * way.running)()

    return run_together
