"""The first generation's proof that a fast evaluation gives what the plain loop gives.

Some members are evaluated both ways, and the center too, and what torch functions gave that were given evolving
parameters is compared call by call (:mod:`~lightning_evo.evaluation.recording`): the differences must be small compared
with what the perturbation changed. The members are farther from the center than real ones, so that the change stands
out from rounding. The fitness is only the last of what is compared: it may tie.

An exception counts against a way of evaluating only if the way raises it twice in a row and the plain loop, with
the same members and batch, does not: if not, the user's own code may raise it, always or sometimes, and it proves
nothing.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.center import CenterMoved, Writes, kept
from lightning_evo.evaluation.comparison import Comparison, compare, same, unlike
from lightning_evo.evaluation.fitness import number_of
from lightning_evo.evaluation.job import Job, Refusal, Way
from lightning_evo.evaluation.recording import Call, CallRecorder, Detail
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.isolation.contents import LARGEST_COPY
from lightning_evo.perturbations import noise_dtype
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.utils.messages import preview

__all__ = ["MembersFail", "NothingToCompare", "Verdict", "judge"]

T = TypeVar("T")

_MEMBERS = 3  # a pair, and one of another direction
_DIRECTIONS = 3  # of members that are rows of one batch, at least
_CALLS = 2  # of a layer, where members are rows: a text's first step, and one with a cache
_NOTHING = 1e-30  # a sigma that changes no weight


class NothingToCompare(Exception):
    """The batch is declined, or no function gives anything that depends on an evolving parameter."""


class _TooFar(NothingToCompare):
    """Members so far away from the center show nothing, closer ones may."""


class MembersFail(NothingToCompare):
    """The user's own code raises exceptions, by the plain loop, too; the cause is one of them."""


class _CenterFails(MembersFail):
    """So it does for members at any distance."""


_SAID_AT_ONCE = (Refusal, CenterMoved, NothingToCompare)


@dataclass(frozen=True)
class Verdict:
    """What the check has found.

    Attributes:
        mismatch: Why the way can't be trusted, naming parameters; ``None`` if it can be.
        exact: Whether it gave the plain loop's bits.
        noise_made: Elements of noise that it made for a member.
    """

    mismatch: str | None = None
    exact: bool = False
    noise_made: float = 0.0


def judge(way: Way, job: Job) -> Verdict:
    """Whether a fast evaluation can be trusted with this module.

    Args:
        way: The way to try.
        job: The members, of which the first of the population are tried.

    Raises:
        NothingToCompare: If the batch can't show a difference.
        MembersFail: If the batch can't show one because the user's own code raises.
        Refusal: If the way can't do what members' code asks for, or members write to the weights. The center is
            put back.
        CenterMoved: If it writes to a parameter of which there is no copy, because the model is too large for one.
        Exception: What only this way raises, twice.
    """
    trial, sigma = _Trial(way, job), job.population.sigma
    nothing = NothingToCompare()
    # Far enough away for the change to stand out from rounding; or, if that is too far, as far as real members.
    far = max(sigma, 0.3 * _root_mean_square(_representatives(job.space)))
    for distance in dict.fromkeys((far, 0.3, sigma)):
        try:
            population = replace(job.population, sigma=distance)
            return _judge(trial, job.space, population, may_overflow=distance == sigma)
        except _CenterFails:
            raise
        except (MembersFail, _TooFar) as error:
            nothing = error
    raise nothing


def _judge(trial: _Trial, space: SearchSpace, population: Population, *, may_overflow: bool) -> Verdict:
    found = trial.by_way(space, population, watch_memory=True)
    outliving = trial.outliving(found)
    if outliving is not None:
        return Verdict(
            f"a tensor that {outliving} gives is kept where it can't be taken back, after a forward in which it stood "
            "for many members; keep it in an attribute of the module, or nowhere"
        )
    aliases = {p.name: p for run in found for p in run.recorder.aliases.values()}
    if aliases:
        return Verdict(f"{_names(list(aliases.values()))} is read through another tensor that shares its memory")
    noise_made, center = trial.way.noise_made, trial.center()
    seen, everything = {index for run in found for index in run.recorder.seen}, space
    space = _representatives(space.subset(p for p in space if p.index in seen) or space)
    if everything.numel > LARGEST_COPY:  # the plain loop perturbs these only
        found = trial.by_way(space, population)
    still = trial.by_way(space, replace(population, sigma=_NOTHING), members=1)
    if everything.numel <= LARGEST_COPY:  # by now it is known what is worth keeping
        noise_made = trial.way.noise_made
    seen |= center.recorder.seen | still[0].recorder.seen  # it may go another way than members do
    unseen = _representatives(everything.subset(p for p in everything if p.index not in seen))
    if unseen and not same(trial.by_plain_loop(unseen, population, members=1)[0].calls, center.calls):
        where = "where no call of a PyTorch function shows it: by a thread, NumPy, C++ code, or a view kept from before"
        return Verdict(f"{_names(list(unseen))} is read {where}")
    expected = trial.by_plain_loop(space, population)
    coarse = _is_coarse(expected[0])
    if not coarse:  # in which rounding would hide that the center itself is evaluated differently
        moved = expected[0]
        first = _compare(center, still[0], moved, share=1e-4, rounding=100).difference
        if first is not None:
            where = "in its fitness" if first.function == "fitness" else f"first in {first.function}"
            of_rows = "samples are compared or counted (len(x), a mean over the batch), " if trial.way.as_rows else ""
            return Verdict(
                f"the center itself comes out differently, {where}: {of_rows}random numbers differ (dropout, or a "
                "generator of the module's own), or something is kept from one forward to the next"
            )

    def compared(expected: _Run, found: _Run) -> Comparison:
        return _compare(expected, found, center, share=0.25 if coarse else 0.01, rounding=_rounding(expected))

    def agrees(some: SearchSpace) -> bool:
        reference, tried = trial.by_plain_loop(some, population, members=1), trial.by_way(some, population, members=1)
        return compared(reference[0], tried[0]).difference is None

    comparisons = [compared(*runs) for runs in zip(expected, found, strict=True)]
    for different in comparisons:
        if different.difference is not None:
            return Verdict(_reason(different, different.difference, space, agrees, as_rows=trial.way.as_rows))
    if not any(call.parameters for run in found for call in run.calls):
        raise NothingToCompare
    overflow = math.isfinite(center.fitness) and not all(math.isfinite(run.fitness) for run in expected)
    if (overflow and not may_overflow) or not any(one.compared for one in comparisons):
        raise _TooFar
    influenced = trial.influenced(found, space, population) if trial.way.as_rows else None
    if influenced is not None:
        return Verdict(
            f"rows influence each other: what {influenced} is given or gives for a member depends on the members "
            "beside it, so samples of a batch do not stand for themselves"
        )
    exact = all(same(a.calls, b.calls) for a, b in zip(expected, found, strict=True))
    return Verdict(exact=exact, noise_made=noise_made)


def _reason(
    different: Comparison, call: Call, space: SearchSpace, agrees: Callable[[SearchSpace], bool], *, as_rows: bool
) -> str:
    if different.in_output:
        culprits = [parameter for parameter in space if parameter.index in call.parameters]
        return f"{call.function} gives something else than in the plain loop where {_names(culprits)} is perturbed"
    if call.function == "fitness" and as_rows:
        return (
            "its fitness differs from the plain loop's, and no call before shows why: it must not use other samples' "
            "values, nor count what members that write together have in common, such as padding after shorter texts"
        )
    subject = "its fitness" if call.function == "fitness" else f"what {call.function} is given"
    return f"{subject} differs from the plain loop's where {_names(_culprits(space, agrees))} is perturbed"


@dataclass(frozen=True)
class _Run:
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


def _is_coarse(run: _Run) -> bool:
    """Whether it has numbers of 16 bits."""
    return run.calls[-1].eps > 1e-4


def _rounding(run: _Run) -> float:
    """How many times the numbers' spacing two ways of computing the same may differ."""
    return 4 if _is_coarse(run) else 100


def _compare(expected: _Run, found: _Run, other: _Run, *, share: float, rounding: float) -> Comparison:
    positions = expected.member, found.member, other.member
    return compare(expected.calls, found.calls, other.calls, positions, share=share, rounding=rounding)


class _Trial:
    """Members, and the center, evaluated in both ways and recorded. It leaves the center as it was."""

    def __init__(self, way: Way, job: Job) -> None:
        self.way, self._job = way, replace(job, rerun=None)
        self._copied = _representatives(job.space)
        self._center: _Run | None = None
        self._members, self._detail = _MEMBERS, Detail()
        if way.as_rows and job.rows is not None:
            self._members, self._detail = _DIRECTIONS * job.population.per_direction, Detail(_CALLS, job.rows.samples)

    def by_way(
        self, space: SearchSpace, population: Population, members: int = 0, *, watch_memory: bool = False
    ) -> list[_Run]:
        """The first members, at most ``members`` if that is not 0."""
        shares, pair = self.way.members_per_forward is not None, population.per_direction
        members = members or self._members
        numbers = range(min(len(population), -(-members // pair) * pair if shares else members))
        # One by one, the members of a pair have their small tensors in common.
        together = [numbers] if shares else [numbers[start : start + pair] for start in numbers[::pair]]
        job = replace(self._job, space=space, population=population)
        runs: list[_Run] = []
        for group in together:
            try:
                runs += _twice(partial(self._group, job, group, watch_memory=watch_memory))
            except _SAID_AT_ONCE:
                raise
            except Exception:
                # Raises what the user's own code raises.
                self._plain(_representatives(space), population, group)
                raise
        return runs[:members]

    def _group(self, job: Job, group: Sequence[int], *, watch_memory: bool = False) -> list[_Run]:
        """Members by the way, which may make one forward of them."""
        with kept(self._copied):
            if self.way.as_rows and self.way.members_per_forward == "auto":  # so that all of them share one
                self.way.run(replace(job, members=group[: job.population.per_direction]))
            return self._watched(lambda: self._record(self.way, job, group, watch_memory=watch_memory))

    def influenced(self, found: list[_Run], space: SearchSpace, population: Population) -> str | None:
        """The function that shows that a member's rows depend on those beside them; ``None`` if none does.

        The same forward with copies of one member in all places must give the same numbers in its own place.
        """
        job = replace(self._job, space=space, population=population)
        together = [run for run in found if run.recorder is found[0].recorder]
        for run in (together[0], together[-1]):
            copies = self._group(job, [run.member] * len(together))
            call = unlike(run.calls, copies[run.member].calls, (run.member, run.member), rounding=_rounding(run))
            if call is not None:
                return call.function
        return None

    def outliving(self, runs: list[_Run]) -> str | None:
        """The function that gave a tensor of a ``vmap`` that is there after the forwards, whatever was put back."""
        self._job.isolation.start_member()
        found = [run.recorder.outliving() for run in runs]
        if any(found):
            gc.collect()  # it may only lie in a cycle
            found = [run.recorder.outliving() for run in runs]
        return next(filter(None, found), None)

    def by_plain_loop(self, space: SearchSpace, population: Population, members: int = 0) -> list[_Run]:
        """The first members, at most ``members`` if that is not 0."""
        return self._plain(space, population, range(min(len(population), members or self._members)))

    def _plain(self, space: SearchSpace, population: Population, members: Sequence[int]) -> list[_Run]:
        perturbed = {parameter.index for parameter in space}  # which the loop itself puts back
        rest = self._copied.subset(parameter for parameter in self._copied if parameter.index not in perturbed)
        job = replace(self._job, space=space, population=population)

        def run(member: int) -> list[_Run]:
            with kept(rest):
                return self._record(Plain(), job, [member], each=self._watched)

        return [_own(partial(run, member))[0] for member in members]

    def center(self) -> _Run:
        """The center, which is the same in all tries."""

        def run() -> _Run:
            recorder = CallRecorder(self._job.space, detail=self._detail)
            self._job.isolation.start_member()
            with kept(self._copied), torch.no_grad():
                value = self._watched(lambda: recorder.run(self._job.together(1)))
            recorder.finish([_number(value)])
            return _Run(recorder)

        if self._center is None:
            try:
                self._center = _own(run)
            except MembersFail as error:
                raise _CenterFails from error.__cause__
        return self._center

    def _record(
        self,
        way: Way,
        job: Job,
        members: Sequence[int],
        *,
        each: Callable[[Callable[[], Any]], Any] | None = None,
        watch_memory: bool = False,
    ) -> list[_Run]:
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
        runs: list[_Run] = []
        for recorder in recorders:
            recorder.finish(fitness[len(runs) :][: recorder.members])
            runs += [_Run(recorder, member) for member in range(recorder.members)]
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


def _representatives(space: SearchSpace) -> SearchSpace:
    """Of a large model one parameter of each name and shape; layers that differ in number only share their code.

    The plain loop keeps a copy of what it perturbs, and there may be no memory for one of all weights.
    """
    if space.numel <= LARGEST_COPY:
        return space
    kinds = {(re.sub(r"\d+", "#", p.name), p.tensor.shape): p for p in reversed(space)}
    return space.subset(p for p in space if kinds[re.sub(r"\d+", "#", p.name), p.tensor.shape] is p)


def _culprits(space: SearchSpace, agrees: Callable[[SearchSpace], bool]) -> list[EvolvingParameter]:
    """The parameters to blame, by halving; all of them if neither half explains it on its own."""
    suspects = list(space)
    while len(suspects) > 1:
        half = len(suspects) // 2
        for part in (suspects[:half], suspects[half:]):
            if not agrees(space.subset(part)):
                suspects = part
                break
        else:
            break
    return suspects


def _names(parameters: list[EvolvingParameter]) -> str:
    return preview([parameter.name for parameter in parameters])


def _root_mean_square(space: SearchSpace) -> float:
    norms = [float(torch.linalg.vector_norm(p.tensor.detach(), dtype=noise_dtype(p.tensor))) for p in space]
    return math.hypot(*norms) / math.sqrt(max(1, space.numel))


def _number(value: Any) -> float:
    if value is None:
        raise NothingToCompare
    return number_of(value)
