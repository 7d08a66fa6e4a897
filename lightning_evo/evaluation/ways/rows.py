"""Many members in one ordinary forward, each with its own rows of the batch.

The batch is repeated for the members, and layers with evolving weights add each member's part to its rows: with
low-rank noise ``x W^T + (x B) A^T``, where all rows share the product with ``W``. So members can do together what
``vmap`` can't: generate text with a cache, make Python numbers, stop early. ``fitness_step`` has to give one value per
sample, and samples must not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_evo.evaluation.job import Job
from lightning_evo.evaluation.memory import Allocated, is_low
from lightning_evo.evaluation.ways.perturbed_rows import PerturbedRows
from lightning_evo.evaluation.ways.together import Together, free_memory

__all__ = ["Rows"]

_ENOUGH = 256  # rows in one forward on a CPU: more would save nothing
_LOOK = 256  # calls after which a CPU's free memory is looked at


class Rows(Together):
    """Evaluates members in groups, one batch for each."""

    name = "rows"
    as_rows = True

    def _forward(self, job: Job, members: list[int]) -> list[Any]:
        fitness = job.as_rows(len(members))
        assert job.rows is not None  # else it raises
        center = job.space[0].tensor
        measures = self.members_per_forward == "auto"
        allocated = Allocated(center.device)
        after_call = allocated.look if measures else _guard(center.device) if len(members) > 1 else None
        torch.clear_autocast_cache()  # so that an enclosing autocast does not reuse what it cast before
        job.isolation.start_member()
        mode = PerturbedRows(job.space, job.population, members, job.rows.samples, after_call)
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
