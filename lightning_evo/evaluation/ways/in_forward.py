"""One member at a time, without touching the weights: each is perturbed in a scratch tensor where it is used.

The extra memory is that of the largest tensor's noise, or less: huge matrices are made block by block.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from lightning_evo.evaluation.job import Job
from lightning_evo.evaluation.ways.layouts import OneMember
from lightning_evo.evaluation.ways.perturbed import Perturbed
from lightning_evo.spaces.memory import Scratch

__all__ = ["InForward"]


class InForward:
    """Evaluates members one by one, in other memory than the weights'."""

    name = "in_forward"
    in_place = False
    as_rows = False

    def __init__(self) -> None:
        self.members_per_forward: int | Literal["auto"] | None = None
        self.noise_made = 0.0
        self._scratch = Scratch()
        self._repeated: set[int] = set()

    @torch.no_grad()
    def run(self, job: Job) -> list[Any]:
        """The fitness of members, one by one."""
        fitness, population, values = job.alone, job.population, []
        direction = -1
        shared: dict[Any, Any] = {}  # what the members of one direction have in common
        try:
            for number in job.members:
                if population.address(number)[0] != direction:
                    direction, shared = population.address(number)[0], {}
                torch.clear_autocast_cache()  # so that an enclosing autocast does not reuse what it cast before
                job.isolation.start_member()
                member = Perturbed(job.space, population, [number], OneMember(), shared, self._scratch, self._repeated)
                with member:
                    values.append(fitness())
                self.noise_made = member.noise_made
        finally:
            torch.clear_autocast_cache()
        return values
