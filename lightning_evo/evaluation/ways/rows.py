"""Many members in one ordinary forward, each with its own rows of the batch.

The batch is repeated for the members, and layers with evolving weights add each member's part to its rows: with
low-rank noise ``x W^T + (x B) A^T``, where all rows share the product with ``W``. So members can do together what
``vmap`` can't: generate text with a cache, make Python numbers, stop early. ``fitness_step`` has to give one value per
sample, and samples must not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from lightning_evo.evaluation.job import Job, Refusal
from lightning_evo.evaluation.memory import Allocated, is_low
from lightning_evo.evaluation.ways.perturbed_rows import PerturbedRows
from lightning_evo.evaluation.ways.remembered_rows import RememberedRows
from lightning_evo.evaluation.ways.routes import Routes, Summary, alike
from lightning_evo.evaluation.ways.together import Together, free_memory

__all__ = ["Rows"]

_ENOUGH = 256  # rows in one forward on a CPU: more would save nothing
_TRIES = 3  # to prove that rows need not be followed
_IN_VAIN = 8  # remembered forwards one after the other that had to be followed after all; then all are
_LOOK = 256  # calls after which a CPU's free memory is looked at


class Rows(Together):
    """Evaluates members in groups, one batch for each.

    In the first forwards rows are followed through all torch functions. Then it is tried whether a forward in which
    they are remembered (:mod:`.routes`) gives the same. From there on those are used, and in generations 1, 2, 4, 8
    and every 16th one forward is followed again.
    """

    name = "rows"
    as_rows = True

    def __init__(self, members_per_forward: int | Literal["auto"] = "auto") -> None:
        super().__init__(members_per_forward)
        self._routes = Routes()
        self._proven = False  # that remembered forwards give what followed ones give
        self._tries = self._in_vain = 0
        self._followed = -1  # the last generation in which a forward was followed

    def _forward(self, job: Job, members: list[int]) -> list[Any]:
        generation = job.population.generation
        if job.rerun is None:  # the check, which wants to see rows followed
            return self._run(job, members, PerturbedRows)
        due = generation != self._followed and (generation % 16 == 0 or generation & (generation - 1) == 0)
        usable = len(members) > 1 and not self._routes.reason
        if usable and self._proven and not due:
            try:
                values = self._run(job, members, RememberedRows)
                self._in_vain = 0
                return values
            except Refusal as refusal:  # followed, it may not be one
                self._in_vain += 1
                if self._in_vain == _IN_VAIN:
                    self._routes.reason = str(refusal)
        trace: list[Summary] | None = [] if usable and not self._proven and self._tries < _TRIES else None
        values = self._run(job, members, PerturbedRows, trace)
        self._followed = generation
        if trace is not None and not self._routes.reason and self.members_per_forward != "auto":
            self._prove(job, members, trace)
        return values

    def _prove(self, job: Job, members: list[int], followed: list[Summary]) -> None:
        """Try whether layers give in a remembered forward what they gave in a followed one."""
        trace: list[Summary] = []
        self._tries += 1  # numbers in other memory may round differently, and another token be written
        try:
            self._run(job, members, RememberedRows, trace)
        except Refusal as refusal:
            self._routes.reason = str(refusal)
        except Exception:  # as of a judge that was asked once more; the followed forward's values count
            pass
        else:
            self._proven = alike(followed, trace)

    def _run(
        self, job: Job, members: list[int], kind: type[PerturbedRows], trace: list[Summary] | None = None
    ) -> list[Any]:
        fitness = job.as_rows(len(members))
        assert job.rows is not None  # else it raises
        center = job.space[0].tensor
        measures = self.members_per_forward == "auto"
        allocated = Allocated(center.device)
        after_call = allocated.look if measures else _guard(center.device) if len(members) > 1 else None
        torch.clear_autocast_cache()  # so that an enclosing autocast does not reuse what it cast before
        job.isolation.start_member()
        mode = kind(job.space, job.population, members, job.rows.samples, after_call, self._routes, trace)
        try:
            with mode:
                values = fitness()
        finally:
            torch.clear_autocast_cache()
        self.noise_made = mode.noise_made / len(members)
        if measures:
            self.room = free_memory(center.device) // 2 // max(1, allocated.peak // len(members))
            if center.device.type == "cpu":
                self.room = min(self.room, max(1, _ENOUGH // job.rows.samples))
        return [None] * len(members) if values is None else values


def _guard(device: torch.device) -> Callable[[], None] | None:
    """Looks now and then whether memory ends; a GPU says so itself.

    Generated texts may be longer than those by which the size of a group was chosen.
    """
    if device.type != "cpu":
        return None
    calls = 0

    def look() -> None:
        nonlocal calls
        calls += 1
        if not calls % _LOOK and is_low():
            raise torch.OutOfMemoryError("Memory is about to end.")

    return look
