"""Members, and the center, evaluated by a way and by the plain loop, and recorded.

An exception counts against a way of evaluating only if the way raises it twice in a row and the plain loop, with
the same members and batch, does not: if not, the user's own code may raise it, always or sometimes, and it proves
nothing.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.center import CenterMoved, Writes, kept
from lightning_evo.evaluation.comparison import unlike
from lightning_evo.evaluation.fitness import number_of
from lightning_evo.evaluation.job import Job, Refusal, Way
from lightning_evo.evaluation.recording import Call, CallRecorder, Detail
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.isolation.contents import LARGEST_COPY
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["CenterFails", "MembersFail", "NothingToCompare", "Run", "Trial", "is_large", "representatives"]

T = TypeVar("T")

_MEMBERS = 3  # a pair, and one of another direction
_DIRECTIONS = 3  # of members that are rows of one batch, at least
_CALLS = 2  # of a layer, where members are rows: a text's first step, and one with a cache


class NothingToCompare(Exception):
    """The batch is declined, or no function gives anything that depends on an evolving parameter."""


class MembersFail(NothingToCompare):
    """The user's own code raises exceptions, by the plain loop, too; the cause is one of them."""


class CenterFails(MembersFail):
    """So it does for members at any distance."""


_SAID_AT_ONCE = (Refusal, CenterMoved, NothingToCompare)


@dataclass(frozen=True)
class Run:
    """One member's evaluation, or the center's.

    Attributes:
        recorder: What its forward did.
        member: Its position among the members of the forward.
    """

    recorder: CallRecorder
    member: int = 0

    @property
    def calls(self) -> Sequence[Call]:
        """The forward's."""
        return self.recorder.calls

    @property
    def fitness(self) -> float:
        """What the user's code gave for it."""
        value = self.calls[-1].inputs[0].of(self.member)
        assert value is not None
        return float(value)

    @property
    def is_coarse(self) -> bool:
        """Whether it has numbers of 16 bits."""
        return self.calls[-1].eps > 1e-4

    @property
    def rounding(self) -> float:
        """How many times the numbers' spacing two ways of computing the same may differ."""
        return 4 if self.is_coarse else 100


class Trial:
    """Members, and the center, evaluated in both ways and recorded. It leaves the center as it was.

    Args:
        way: The way that is tried; the other one is the plain loop.
        job: The members, of which the first of the population are tried.
    """

    def __init__(self, way: Way, job: Job) -> None:
        self.way, self._job = way, replace(job, rerun=None)
        self._copied = representatives(job.space)
        self._center: Run | None = None
        self._members, self._detail = _MEMBERS, Detail()
        if way.as_rows and job.rows is not None:
            self._members, self._detail = _DIRECTIONS * job.population.per_direction, Detail(_CALLS, job.rows.samples)

    def by_way(
        self, space: SearchSpace, population: Population, members: int = 0, *, watch_memory: bool = False
    ) -> list[Run]:
        """The first members, at most ``members`` if that is not 0."""
        shares, pair = self.way.members_per_forward is not None, population.per_direction
        members = members or self._members
        numbers = range(min(len(population), -(-members // pair) * pair if shares else members))
        # One by one, the members of a pair have their small tensors in common.
        together = [numbers] if shares else [numbers[start : start + pair] for start in numbers[::pair]]
        job = replace(self._job, space=space, population=population)
        runs: list[Run] = []
        for group in together:
            try:
                runs += _twice(partial(self._group, job, group, watch_memory=watch_memory))
            except _SAID_AT_ONCE:
                raise
            except Exception:
                # Raises what the user's own code raises.
                self._plain(representatives(space), population, group)
                raise
        return runs[:members]

    def _group(self, job: Job, group: Sequence[int], *, watch_memory: bool = False) -> list[Run]:
        """Members by the way, which may make one forward of them."""
        with kept(self._copied):
            if self.way.as_rows and self.way.members_per_forward == "auto":  # so that all of them share one
                self.way.run(replace(job, members=group[: job.population.per_direction]))
            return self._watched(lambda: self._record(self.way, job, group, watch_memory=watch_memory))

    def influenced(self, found: list[Run], space: SearchSpace, population: Population) -> str | None:
        """The function that shows that a member's rows depend on those beside them; ``None`` if none does.

        The same forward with copies of one member in all places must give the same numbers in its own place.
        """
        job = replace(self._job, space=space, population=population)
        together = [run for run in found if run.recorder is found[0].recorder]
        for run in (together[0], together[-1]):
            copies = self._group(job, [run.member] * len(together))
            call = unlike(run.calls, copies[run.member].calls, (run.member, run.member), rounding=run.rounding)
            if call is not None:
                return call.function
        return None

    def outliving(self, runs: list[Run]) -> str | None:
        """The function that gave a tensor of a ``vmap`` that is there after the forwards, whatever was put back."""
        self._job.isolation.start_member()
        found = [run.recorder.outliving() for run in runs]
        if any(found):
            gc.collect()  # it may only lie in a cycle
            found = [run.recorder.outliving() for run in runs]
        return next(filter(None, found), None)

    def by_plain_loop(self, space: SearchSpace, population: Population, members: int = 0) -> list[Run]:
        """The first members, at most ``members`` if that is not 0."""
        return self._plain(space, population, range(min(len(population), members or self._members)))

    def _plain(self, space: SearchSpace, population: Population, members: Sequence[int]) -> list[Run]:
        perturbed = {parameter.index for parameter in space}  # which the loop itself puts back
        rest = self._copied.subset(parameter for parameter in self._copied if parameter.index not in perturbed)
        job = replace(self._job, space=space, population=population)

        def run(member: int) -> list[Run]:
            with kept(rest):
                return self._record(Plain(), job, [member], each=self._watched)

        return [_own(partial(run, member))[0] for member in members]

    def center(self) -> Run:
        """The center, which is the same in all tries."""

        def run() -> Run:
            recorder = CallRecorder(self._job.space, detail=self._detail)
            self._job.isolation.start_member()
            with kept(self._copied), torch.no_grad():
                value = self._watched(lambda: recorder.run(self._job.together(1)))
            recorder.finish([_number(value)])
            return Run(recorder)

        if self._center is None:
            try:
                self._center = _own(run)
            except MembersFail as error:
                raise CenterFails from error.__cause__
        return self._center

    def _record(
        self,
        way: Way,
        job: Job,
        members: Sequence[int],
        *,
        each: Callable[[Callable[[], Any]], Any] | None = None,
        watch_memory: bool = False,
    ) -> list[Run]:
        recorders: list[CallRecorder] = []

        def recorded(fitness: Callable[[], Any], as_rows: int | None = None) -> Any:
            recorder = CallRecorder(self._job.space, watch_memory=watch_memory, detail=self._detail, members=as_rows)
            value = recorder.run(fitness) if each is None else each(lambda: recorder.run(fitness))
            recorders.append(recorder)
            return value

        rows = job.rows
        if rows is not None:
            given = rows.fitness
            rows = replace(rows, fitness=lambda members: recorded(partial(given, members), members))
        job = replace(job, fitness=partial(recorded, job.fitness), rows=rows, members=members)
        fitness = [_number(value) for value in way.run(job)]
        runs: list[Run] = []
        for recorder in recorders:
            recorder.finish(fitness[len(runs) :][: recorder.members])
            runs += [Run(recorder, member) for member in range(recorder.members)]
        return runs

    def _watched(self, evaluate: Callable[[], T]) -> T:
        writes = Writes(self._job.space, self._copied)
        try:
            return evaluate()
        finally:
            writes.check()


def _twice(run: Callable[[], T]) -> T:
    """What ``run`` gives at its first or second try; what it raises at the second one.

    Raises:
        Refusal: At the first try, since it would be raised again; also CenterMoved and NothingToCompare.
    """
    try:
        return run()
    except _SAID_AT_ONCE:
        raise
    except Exception:
        pass
    return run()


def _own(run: Callable[[], T]) -> T:
    """Run the user's code as it is; what it raises twice is its own fault."""
    try:
        return _twice(run)
    except _SAID_AT_ONCE:
        raise
    except Exception as error:
        raise MembersFail from error


def is_large(space: SearchSpace) -> bool:
    """Whether there may be no memory for a copy of all weights."""
    return space.numel > LARGEST_COPY


def representatives(space: SearchSpace) -> SearchSpace:
    """Of a large model one parameter of each name and shape; layers that differ in number only share their code.

    The plain loop keeps a copy of what it perturbs, and there may be no memory for one of all weights.
    """
    if not is_large(space):
        return space
    kinds = {(re.sub(r"\d+", "#", p.name), p.tensor.shape): p for p in reversed(space)}
    return space.subset(p for p in space if kinds[re.sub(r"\d+", "#", p.name), p.tensor.shape] is p)


def _number(value: Any) -> float:
    if value is None:
        raise NothingToCompare
    return number_of(value)
