"""Which evaluation is used: chosen by the model and its noise, proven against the plain loop, replaced where it fails.

:mod:`~lightning_evo.evaluation.candidates` lists the ways that can be tried. The first one that
:mod:`~lightning_evo.evaluation.check` does not refute runs the members (:mod:`~lightning_evo.evaluation.running`). A
batch that proves nothing is run by the plain loop, and the choice waits for the next one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import nn

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.candidates import (
    EvaluationName,
    brings_nothing,
    candidates,
    hidden_modules,
    is_slower,
    repeats_noise,
    ways_from,
)
from lightning_evo.evaluation.center import CenterMoved
from lightning_evo.evaluation.check import MembersFail, NothingToCompare, Verdict, judge
from lightning_evo.evaluation.faults import Failure, timeout_of_members
from lightning_evo.evaluation.heap import keep_freed_memory
from lightning_evo.evaluation.job import BatchOfRows, Job, Refusal, Way
from lightning_evo.evaluation.reasons import reason_of
from lightning_evo.evaluation.running import checked, run
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.isolation import Isolation
from lightning_evo.isolation.contents import LARGEST_COPY
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.utils.messages import first_sentence
from lightning_evo.utils.options import one_of, whole_or_auto

__all__ = ["Evaluation", "EvaluationName"]

_TRIES = 10  # batches that may prove nothing


@dataclass(frozen=True)
class Choice:
    """Which way runs the members.

    Attributes:
        ways: Those that are left, best first; the last one is the plain loop. Empty before they are listed.
        evolving: Indices of the parameters that the proof is about.
        proven: Whether the first way was found right.
        fixed: Whether a way was chosen here or restored: from then on one is replaced only if it does not work.
        tries: Batches that proved nothing.
        reasons: Why better ways are not used.
    """

    ways: tuple[Way, ...] = ()
    evolving: tuple[int, ...] = ()
    proven: bool = False
    fixed: bool = False
    tries: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def way(self) -> Way:
        """The best one that is left."""
        return self.ways[0]

    def with_ways(self, ways: tuple[Way, ...], reasons: list[str], **changes: Any) -> Choice:
        """Fewer ways, and why others are not used, in addition to what is known."""
        return replace(self, ways=ways, reasons=tuple(dict.fromkeys([*self.reasons, *reasons])), **changes)

    @property
    def summary(self) -> str:
        """The way and the reasons in one line."""
        size = self.way.members_per_forward
        together = "" if size is None else f", {size} members per forward"
        return "; ".join([f"evaluation: {self.way.name}{together}", *self.reasons])


class Evaluation:
    """Runs a population through the user's code in the best way that gives what the plain loop gives.

    Args:
        name: ``"auto"``, or the way to use as long as it works.
        members_per_forward: For ``"batched"`` and ``"rows"``: members that run at once, or ``"auto"``.
        member_timeout: Seconds after which a member has failed; members that share a forward have the sum of theirs.

    Raises:
        ValueError: If the name is unknown, or ``members_per_forward`` is neither ``"auto"`` nor a whole number >= 1, or
            is given without being used, or ``member_timeout`` is not positive.
    """

    def __init__(
        self,
        name: EvaluationName = "auto",
        members_per_forward: int | Literal["auto"] | None = None,
        member_timeout: float | None = None,
    ) -> None:
        self.name: EvaluationName = one_of("evaluation", name, get_args(EvaluationName))
        if members_per_forward is not None:
            members_per_forward = whole_or_auto("members_per_forward", members_per_forward)
            if name in ("plain", "in_forward"):
                raise ValueError(
                    f"members_per_forward has no effect with evaluation={name!r}, which runs one at a time."
                )
        self.member_timeout = None if member_timeout is None else timeout_of_members(member_timeout)
        self.summary = ""
        """The choice and its reasons in one line; empty before the first generation."""
        self._size: int | Literal["auto"] = "auto" if members_per_forward is None else members_per_forward
        self._choice = Choice()

    @property
    def group_size(self) -> int:
        """Members that run at once; 0 until a way is chosen; a huge number if this process has no members to run."""
        if not self._choice.proven:
            return 0
        size = self._choice.way.members_per_forward
        return 1 if size is None else 1 << 30 if size == "auto" else size

    def limit_groups(self, size: int) -> None:
        """Run ``size`` members at once, if members run together."""
        if self._choice.ways and self._choice.way.members_per_forward is not None and size > 1:
            self._choice.way.members_per_forward = size
            if self._choice.proven:
                self.summary = self._choice.summary

    def __call__(
        self,
        module: nn.Module,
        space: SearchSpace,
        population: Population,
        fitness: Callable[[], Any],
        isolation: Isolation,
        members: Sequence[int] | None = None,
        rows: BatchOfRows | None = None,
    ) -> list[Any]:
        """The fitness of members.

        Args:
            module: The user's module.
            space: Its evolving parameters.
            population: All members.
            fitness: Runs the user's code and gives its fitness.
            isolation: Entered by the caller.
            members: Numbers of the members to evaluate; ``None`` for all.
            rows: The batch, to be repeated for members; ``None`` if there is none that can be.

        Returns:
            What ``fitness`` gave for each of them, in their order; a :class:`~lightning_evo.evaluation.faults.Failure`
            where it raised an exception.
        """
        members = range(len(population)) if members is None else members
        job = Job(space, population, fitness, isolation, members, rows, self.member_timeout)
        choice = self._choice = self._current(module, space, population, has_rows=rows is not None)
        if not choice.proven:
            return self._choose(job, choice.ways, self._obstacles(module, space))
        try:
            return run(choice.way, job)
        except CenterMoved:
            raise
        except Exception as error:
            if choice.way.in_place:
                raise
            return self._choose(job, choice.ways[1:], [], {_reason(error): [choice.way.name]})

    def _current(self, module: nn.Module, space: SearchSpace, population: Population, *, has_rows: bool) -> Choice:
        """The choice as it is for these parameters, with a list of ways."""
        choice, evolving = self._choice, tuple(parameter.index for parameter in space)
        if not choice.ways or (space.is_sharded and not choice.way.in_place):  # the latter from a run of whole weights
            if space[0].tensor.device.type == "cpu":
                keep_freed_memory()
            choice = replace(choice, ways=candidates(self.name, self._size, module, space, population, has_rows))
        if evolving != choice.evolving:  # parameters were frozen or unfrozen
            choice = replace(choice, evolving=evolving, proven=False, tries=0)
        return choice

    def _obstacles(self, module: nn.Module, space: SearchSpace) -> list[str]:
        """Why only the plain loop can be tried; empty if other ways can."""
        if self.name == "plain" or not self._choice.way.in_place:
            return []
        hidden = hidden_modules(module)[:1]
        obstacles = [f"{name} is compiled or scripted, which hides its weights: leave that out" for name in hidden]
        if space.is_sharded:
            obstacles.append("weights are sharded over processes, and each writes its own part")
        return obstacles

    # --- the choice ---

    def _choose(
        self, job: Job, ways: tuple[Way, ...], obstacles: list[str], refuted: dict[str, list[str]] | None = None
    ) -> list[Any]:
        """A batch's members by the first way that works, which is chosen; by the plain loop if the batch can't tell.

        Args:
            job: The batch's members.
            ways: What to try; the last one is the plain loop.
            obstacles: Why no other ways can be tried.
            refuted: Names of the ways that don't work, by the reason; to be added to.
        """
        refuted = {} if refuted is None else refuted
        plain = ways[-1:]
        for number, way in enumerate(ways[:-1]):
            try:
                verdict = judge(way, job)
                if verdict.mismatch is None and not self._asked_for:
                    repeats = repeats_noise(way, verdict.noise_made, job.space)
                    if repeats:
                        obstacles = [*obstacles, repeats]
                        break
                    if brings_nothing(way, job.space, job.population):
                        continue
                values = self._first_run(way, job) if verdict.mismatch is None else []
            except CenterMoved:
                raise
            except NothingToCompare as nothing:
                if not self._gives_up(ways[number:], _reasons(refuted, obstacles)):
                    return run(plain[0], job)
                obstacles = [*obstacles, _nothing_proven(nothing)]
                break
            except Exception as error:  # whatever vmap raises
                verdict = Verdict(_reason(error))
            if verdict.mismatch is None:
                measured = verdict.exact and way.members_per_forward is None and not self._asked_for
                slower = is_slower(way, job) if measured else None
                obstacles = [*obstacles, slower] if slower else obstacles
                self._decide(plain if slower else ways[number:], _reasons(refuted, obstacles))
                return values
            refuted.setdefault(verdict.mismatch, []).append(way.name)
        values = run(plain[0], job)
        if not values or not all(isinstance(value, Failure) for value in values):  # if all failed, it proves nothing
            self._decide(plain, _reasons(refuted, obstacles))
        return values

    def _first_run(self, way: Way, job: Job) -> list[Any]:
        """All members, which may find what the check did not."""

        def again(members: list[int]) -> list[Any]:
            """Run members whose forward raised once more; then by the plain loop, which shows whose fault it is."""
            some = replace(job, members=members)
            try:
                return checked(way, some)
            except Refusal:
                raise
            except Exception as error:
                if job.space.numel > LARGEST_COPY:
                    raise
                values = run(Plain(), some)
                if any(isinstance(value, Failure) for value in values):
                    return values
                raise error

        return run(way, job, again)

    @property
    def _asked_for(self) -> bool:
        """Whether the way is the user's choice, or an earlier one of this run's."""
        return self.name != "auto" or self._size != "auto" or self._choice.fixed

    def _gives_up(self, ways: tuple[Way, ...], reasons: list[str]) -> bool:
        """Whether enough batches proved nothing; if not, the next one goes on with these ways."""
        tries = self._choice.tries + 1
        if tries < _TRIES:
            self._choice = self._choice.with_ways(ways, reasons, tries=tries)
        return tries >= _TRIES

    def _decide(self, ways: tuple[Way, ...], reasons: list[str]) -> None:
        self._choice = choice = self._choice.with_ways(ways, reasons, proven=True, fixed=True)
        self.summary = choice.summary
        if choice.reasons and self.name != "auto":
            warnings.warn(f"evaluation={self.name!r} does not work with this module. {self.summary}.", stacklevel=5)

    def forget(self) -> None:
        """Choose again: the module is another one."""
        self._choice = Choice()

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """The choice, so that a resumed run rounds as the first one did; empty before there is one."""
        if not self._choice.proven:
            return {}
        way = self._choice.way
        size = way.members_per_forward
        return {"evaluation": way.name} if size is None else {"evaluation": way.name, "members_per_forward": size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over another run's choice, unless one was asked for here."""
        name = state.get("evaluation")
        size = state.get("members_per_forward", "auto") if self._size == "auto" else self._size
        if name is not None and self.name in ("auto", name):
            self._choice = Choice(ways_from(name, size), fixed=True)


def _reasons(refuted: dict[str, list[str]], obstacles: list[str]) -> list[str]:
    """Why other ways are not used: each reason once."""
    impossible = [
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not possible: {reason}"
        for reason, names in refuted.items()
    ]
    return [*impossible, *obstacles]


def _nothing_proven(nothing: NothingToCompare) -> str:
    if isinstance(nothing, MembersFail):
        error = nothing.__cause__ or nothing
        return f"the check was interrupted in {_TRIES} batches: {type(error).__name__}: {first_sentence(error)}"
    return f"{_TRIES} batches gave the check nothing to compare"


def _reason(error: Exception) -> str:
    """Why a way is not possible."""
    return str(error) if isinstance(error, Refusal) else reason_of(error)
