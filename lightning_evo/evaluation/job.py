"""What is to be evaluated, and what a way of evaluating it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.faults import guarded, limited
from lightning_evo.isolation import Isolation
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["BatchOfRows", "Job", "Refusal", "Way"]


class Refusal(RuntimeError):
    """A way of evaluating can't do what a member's code asks for, and another one must; the message says why."""


@dataclass(frozen=True)
class BatchOfRows:
    """A batch that can be repeated, so that each member has rows of its own in it.

    Attributes:
        samples: Rows of one member.
        fitness: Runs the user's code on the batch, repeated for so many members, and gives each one's fitness, or
            ``None``. Raises a Refusal if it does not give one value per sample.
    """

    samples: int
    fitness: Callable[[int], list[Any] | None]


@dataclass(frozen=True)
class Job:
    """Members to evaluate.

    Attributes:
        space: The evolving parameters. They hold the center before and after, bit for bit, whatever happens.
        population: All members.
        fitness: Runs the user's code and gives its fitness.
        isolation: Entered by the caller.
        members: Numbers of the members to evaluate. Ways in which members share a forward need whole pairs.
        rows: The batch, to be repeated for members; ``None`` if there is none that can be.
        timeout: Seconds after which a member has failed; members that share a forward have the sum of theirs. ``None``
            means no limit.
        rerun: Evaluates members once more whose common forward raised an exception; a member that was alone in its
            forward has failed. ``None`` means that exceptions are raised.
    """

    space: SearchSpace
    population: Population
    fitness: Callable[[], Any]
    isolation: Isolation
    members: Sequence[int]
    rows: BatchOfRows | None = None
    timeout: float | None = None
    rerun: Callable[[list[int]], list[Any]] | None = None

    def together(self, members: int) -> Callable[[], Any]:
        """The fitness of some members that share a forward, within their time."""
        return limited(self.fitness, None if self.timeout is None else self.timeout * members)

    def as_rows(self, members: int) -> Callable[[], list[Any] | None]:
        """The fitness of some members whose rows share a batch, within their time.

        Raises:
            Refusal: If there is no batch that can be repeated.
        """
        if self.rows is None:
            raise Refusal("the batch holds no tensor, array or list with an entry per sample that could be repeated")
        return limited(partial(self.rows.fitness, members), None if self.timeout is None else self.timeout * members)

    @property
    def alone(self) -> Callable[[], Any]:
        """The fitness of one member, within its time; a :class:`~.faults.Failure` where exceptions are not raised."""
        # Processes that hold a model together can't continue after one of them failed within a forward: it would give
        # parts of the next member to those that still wait for this one's.
        raises = self.rerun is None or self.space.is_sharded
        return self.together(1) if raises else guarded(self.together(1))


class Way(Protocol):
    """A way of evaluating members. A new one is a file in :mod:`~.ways` and a line in :mod:`~.candidates`.

    Attributes:
        name: What users ask for it by.
        in_place: Whether members are written into the weights.
        as_rows: Whether members are rows of a repeated batch.
        members_per_forward: How many share a forward, or ``"auto"`` before it is chosen; ``None`` if they never do.
        noise_made: Elements of noise that were made for a member of the last forward.
    """

    name: str
    in_place: bool
    as_rows: bool
    members_per_forward: int | Literal["auto"] | None
    noise_made: float

    def run(self, job: Job) -> list[Any]:
        """What the fitness gave for each member of a job, in their order; a Failure where it raised an exception.

        Raises:
            Exception: What the user's code or this way raises, if the job has no ``rerun``.
            Refusal: If this way can't do what a member's code asks for.
        """
