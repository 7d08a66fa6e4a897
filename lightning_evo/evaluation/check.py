"""The first generation's proof that a fast evaluation gives what the plain loop gives.

Some members are evaluated both ways, and the center too, and what torch functions gave that were given evolving
parameters is compared call by call (:mod:`~lightning_evo.evaluation.recording`): the differences must be small compared
with what the perturbation changed. The members are farther from the center than real ones, so that the change stands
out from rounding. The fitness is only the last of what is compared: it may tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.comparison import Comparison, compare, same
from lightning_evo.evaluation.job import Job, Way
from lightning_evo.evaluation.recording import Call
from lightning_evo.evaluation.trial import (
    CenterFails,
    MembersFail,
    NothingToCompare,
    Run,
    Trial,
    is_large,
    representatives,
)
from lightning_evo.perturbations import noise_dtype
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.utils.messages import preview

__all__ = ["MembersFail", "NothingToCompare", "Verdict", "judge"]

_NOTHING = 1e-30  # a sigma that changes no weight


class _TooFar(NothingToCompare):
    """Members so far away from the center show nothing, closer ones may."""


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
    trial, sigma = Trial(way, job), job.population.sigma
    nothing = NothingToCompare()
    # Far enough away for the change to stand out from rounding; or, if that is too far, as far as real members.
    far = max(sigma, 0.3 * _root_mean_square(representatives(job.space)))
    for distance in dict.fromkeys((far, 0.3, sigma)):
        try:
            population = replace(job.population, sigma=distance)
            return _judge(trial, job.space, population, may_overflow=distance == sigma)
        except CenterFails:
            raise
        except (MembersFail, _TooFar) as error:
            nothing = error
    raise nothing


def _judge(trial: Trial, space: SearchSpace, population: Population, *, may_overflow: bool) -> Verdict:
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
    space = representatives(space.subset(p for p in space if p.index in seen) or space)
    if is_large(everything):  # the plain loop perturbs these only
        found = trial.by_way(space, population)
    still = trial.by_way(space, replace(population, sigma=_NOTHING), members=1)
    if not is_large(everything):  # by now it is known what is worth keeping
        noise_made = trial.way.noise_made
    seen |= center.recorder.seen | still[0].recorder.seen  # it may go another way than members do
    unseen = representatives(everything.subset(p for p in everything if p.index not in seen))
    if unseen and not same(trial.by_plain_loop(unseen, population, members=1)[0].calls, center.calls):
        where = "where no call of a PyTorch function shows it: by a thread, NumPy, C++ code, or a view kept from before"
        return Verdict(f"{_names(list(unseen))} is read {where}")
    expected = trial.by_plain_loop(space, population)
    coarse = expected[0].is_coarse
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

    def compared(expected: Run, found: Run) -> Comparison:
        return _compare(expected, found, center, share=0.25 if coarse else 0.01, rounding=expected.rounding)

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


def _compare(expected: Run, found: Run, other: Run, *, share: float, rounding: float) -> Comparison:
    positions = expected.member, found.member, other.member
    return compare(expected.calls, found.calls, other.calls, positions, share=share, rounding=rounding)


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
