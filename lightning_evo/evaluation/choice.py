"""Which evaluation is used: chosen by the model and its noise, proven against the plain loop, replaced where it fails.

:mod:`~lightning_evo.evaluation.candidates` lists the ways that can be tried. The first one that
:mod:`~lightning_evo.evaluation.check` does not refute runs the members (:mod:`~lightning_evo.evaluation.running`). A
batch that proves nothing is run by the plain loop, and the choice waits for the next one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import nn

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.candidates import (
    EvaluationName,
    brings_nothing,
    candidates,
    hidden_modules,
    is_slower,
)
from lightning_evo.evaluation.center import LARGEST_COPY, CenterMoved, NeedsWeights
from lightning_evo.evaluation.check import MembersFail, NothingToCompare, find_mismatch
from lightning_evo.evaluation.faults import Failure, limited, timeout_of_members
from lightning_evo.evaluation.heap import keep_freed_memory
from lightning_evo.evaluation.isolation import Isolation
from lightning_evo.evaluation.running import Job, Way, name_of, run
from lightning_evo.evaluation.ways.batched import Batched
from lightning_evo.evaluation.ways.in_forward import InForward
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.utils.messages import first_line
from lightning_evo.utils.options import one_of, whole_or_auto

__all__ = ["Evaluation", "EvaluationName"]

_TRIES = 10  # batches on which exceptions of the user's code may interrupt the check


class Evaluation:
    """Runs a population through the user's code in the best way that gives what the plain loop gives.

    Args:
        name: ``"auto"``, or the way to use as long as it works.
        members_per_forward: For ``"batched"``: members that run at once, or ``"auto"``.
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
        self._ways: list[Way] | None = None  # best first
        self._proven = False
        self._is_open = True  # until a way is chosen here or restored
        self._tries = 0
        self._evolving: list[int] = []
        self._failures: list[str] = []

    @property
    def group_size(self) -> int:
        """Members that run at once; 0 until a way is chosen; a huge number if this process has no members to run."""
        if not self._proven or self._ways is None:
            return 0
        way = self._ways[0]
        if not isinstance(way, Batched):
            return 1
        return 1 << 30 if way.members_per_forward == "auto" else way.members_per_forward

    def limit_groups(self, size: int) -> None:
        """Run ``size`` members at once, if members run together."""
        way = self._ways[0] if self._ways else None
        if isinstance(way, Batched) and size > 1:
            way.members_per_forward = size
            if self._proven:
                self._announce()

    def __call__(
        self,
        module: nn.Module,
        space: SearchSpace,
        population: Population,
        fitness: Callable[[], Any],
        isolation: Isolation,
        members: Sequence[int] | None = None,
    ) -> list[Any]:
        """The fitness of members.

        Args:
            module: The user's module.
            space: Its evolving parameters.
            population: All members.
            fitness: Runs the user's code and gives its fitness.
            isolation: Entered by the caller.
            members: Numbers of the members to evaluate; ``None`` for all.

        Returns:
            What ``fitness`` gave for each of them, in their order; a :class:`~lightning_evo.evaluation.faults.Failure`
            where it raised an exception.
        """
        members = range(len(population)) if members is None else members
        self._find_ways(module, space, population)
        job = Job(space, population, fitness, isolation, members, self.member_timeout)
        assert self._ways is not None
        if not self._proven:
            return self._choose(job, self._ways, self._obstacles(module, space))
        way, *others = self._ways
        try:
            return run(way, job, job.in_forward)
        except CenterMoved:
            raise
        except Exception as error:
            if way is None:
                raise
            return self._choose(job, others, [], {_reason(error): [way.name]})

    def _find_ways(self, module: nn.Module, space: SearchSpace, population: Population) -> None:
        """List the ways to choose from, and note whether what was proven still holds."""
        if self._ways not in (None, [None]) and space.is_sharded:  # restored from a run with whole weights
            self._ways = None
        if self._ways is None:
            if space[0].tensor.device.type == "cpu":
                keep_freed_memory()
            self._ways = candidates(self.name, self._size, module, space, population)
        evolving = [parameter.index for parameter in space]
        if evolving != self._evolving:  # parameters were frozen or unfrozen
            self._evolving, self._proven, self._tries = evolving, False, 0

    def _obstacles(self, module: nn.Module, space: SearchSpace) -> list[str]:
        """Why only the plain loop can be tried; empty if other ways can."""
        if self.name == "plain" or self._ways != [None]:
            return []
        hidden = hidden_modules(module)[:1]
        obstacles = [f"{name} is compiled or scripted, which hides its weights" for name in hidden]
        if space.is_sharded:
            obstacles.append("weights are sharded over processes, and each writes its own part")
        return obstacles

    # --- the choice ---

    def _choose(
        self, job: Job, ways: list[Way], obstacles: list[str], refuted: dict[str, list[str]] | None = None
    ) -> list[Any]:
        """A batch's members by the first way that works, which is chosen; by the plain loop if the batch can't tell.

        Args:
            job: The batch's members.
            ways: What to try.
            obstacles: Why no other ways can be tried.
            refuted: Names of the ways that don't work, by the reason; to be added to.
        """
        refuted = {} if refuted is None else refuted
        for number, way in enumerate(ways):
            if way is None:
                break
            try:
                mismatch = self._find_mismatch(way, job)
                if mismatch is None and self._brings_nothing(way, job):
                    continue
                values = self._first_run(way, job) if mismatch is None else []
            except CenterMoved:
                raise
            except NothingToCompare as nothing:
                if not self._gives_up(nothing):
                    return run(None, job)
                obstacles = [*obstacles, f"the check was interrupted in {_TRIES} batches: {_reason(nothing)}"]
                break
            except Exception as error:  # whatever vmap raises
                mismatch = _reason(error)
            if mismatch is None:
                found: list[Way] = [None] if self._is_slower(way, job) else ways[number:]
                self._decide(found, job, _reasons(refuted, obstacles))
                return values
            refuted.setdefault(mismatch, []).append(way.name)
        values = run(None, job)
        if not values or not all(isinstance(value, Failure) for value in values):  # if all failed, it proves nothing
            self._decide([None], job, _reasons(refuted, obstacles))
        return values

    def _find_mismatch(self, way: InForward | Batched, job: Job) -> str | None:
        timeout = None if job.timeout is None else 2 * job.timeout  # a pair at most runs at once
        return find_mismatch(way, job.space, job.population, limited(job.fitness, timeout), job.isolation)

    def _first_run(self, way: InForward | Batched, job: Job) -> list[Any]:
        """All members, which may find what the check did not."""

        def judge(members: list[int]) -> list[Any]:
            """Run members whose forward raised once more; then by the plain loop, which shows whose fault it is."""
            try:
                return run(way, replace(job, members=members))
            except NeedsWeights:
                raise
            except Exception as error:
                if job.space.numel > LARGEST_COPY:
                    raise
                values = job.by_plain_loop(members)
                if any(isinstance(value, Failure) for value in values):
                    return values
                raise error

        return run(way, job, judge)

    def _gives_up(self, nothing: NothingToCompare) -> bool:
        """Whether the user's own exceptions have interrupted enough checks."""
        self._tries += isinstance(nothing, MembersFail)
        return self._tries >= _TRIES

    def _decide(self, ways: list[Way], job: Job, failures: list[str]) -> None:
        self._ways, self._proven, self._is_open, self._failures = ways, True, False, failures
        way = ways[0]
        if isinstance(way, Batched) and way.members_per_forward != "auto":
            way.members_per_forward = way.group_size(job.population)
        self._announce()
        if failures and self.name != "auto":
            warnings.warn(f"evaluation={self.name!r} does not work with this module. {self.summary}.", stacklevel=5)

    def _brings_nothing(self, way: InForward | Batched, job: Job) -> bool:
        asked_for = self.name != "auto" or self._size != "auto" or not self._is_open
        return isinstance(way, Batched) and not asked_for and brings_nothing(way, job.space, job.population)

    def _is_slower(self, way: InForward | Batched, job: Job) -> bool:
        return isinstance(way, InForward) and self.name == "auto" and self._is_open and is_slower(way, job)

    def forget(self) -> None:
        """Choose again: the module is another one."""
        self._ways, self._proven, self._is_open, self._tries = None, False, True, 0

    def _announce(self) -> None:
        assert self._ways is not None
        way = self._ways[0]
        self.summary = f"evaluation: {name_of(way)}"
        if isinstance(way, Batched):
            self.summary += f", {way.members_per_forward} members per forward"
        self.summary = "; ".join([self.summary, *self._failures])

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """The choice, so that a resumed run rounds as the first one did; empty before there is one."""
        if not self._proven or self._ways is None:
            return {}
        way = self._ways[0]
        state: dict[str, Any] = {"evaluation": name_of(way)}
        if isinstance(way, Batched):
            state["members_per_forward"] = way.members_per_forward
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over another run's choice, unless one was asked for here."""
        name = state.get("evaluation")
        size = state.get("members_per_forward", "auto") if self._size == "auto" else self._size
        if name is None or self.name not in ("auto", name):
            return
        ways: list[Way] = [None]
        if name in ("in_forward", "batched"):
            ways.insert(0, InForward())
        if name == "batched":
            ways.insert(0, Batched(size))
        self._ways, self._proven, self._is_open = ways, False, False


def _reasons(refuted: dict[str, list[str]], obstacles: list[str]) -> list[str]:
    """Why other ways are not used: each reason once."""
    impossible = [
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not possible: {reason}"
        for reason, names in refuted.items()
    ]
    return [*impossible, *obstacles]


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, NeedsWeights):
        return str(error)
    if isinstance(error, MembersFail) and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"
