"""Runs members in the way that was chosen; members that fail or hang don't stop the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning_evo.evaluation.center import Writes
from lightning_evo.evaluation.job import Job, Way
from lightning_evo.evaluation.ways.in_forward import InForward

__all__ = ["checked", "run"]


def run(way: Way, job: Job, rerun: Callable[[list[int]], list[Any]] | None = None) -> list[Any]:
    """The fitness of a job's members.

    Args:
        way: How they are evaluated.
        job: What is evaluated.
        rerun: Evaluates members whose common forward raised an exception; by default one by one, in the forward.

    Returns:
        What the fitness gave for each member, in their order; a Failure where it raised an exception.

    Raises:
        Refusal: If this way can't do what a member's code asks for.
        CenterMoved: If a member's code wrote to the center.
        Exception: What ``rerun`` raises; with sharded weights what the fitness does.
    """
    writes = Writes(job.space)

    def again(members: list[int]) -> list[Any]:
        writes.check()
        values = InForward().run(replace(guarded, members=members)) if rerun is None else rerun(members)
        writes.start()  # the plain loop may write to the weights: it puts them back
        return values

    guarded = replace(job, rerun=again)
    return _checked(way, guarded, writes)


def checked(way: Way, job: Job) -> list[Any]:
    """:func:`run`, but an exception of the user's code is raised."""
    return _checked(way, replace(job, rerun=None), Writes(job.space))


def _checked(way: Way, job: Job, writes: Writes) -> list[Any]:
    values = way.run(job)
    if not way.in_place:
        writes.check()
    return values
