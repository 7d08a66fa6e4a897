"""The plain loop: write a member into the weights, run it, restore the weights from a copy.

The slowest way and the reference: every other evaluation must give what this one gives. It is also the way of sharded
weights: each process writes its own part, and the forward gathers the member as it would gather the weights.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_evo.evaluation.center import Center
from lightning_evo.evaluation.job import Job
from lightning_evo.perturbations import Part
from lightning_evo.spaces.search_space import EvolvingParameter

__all__ = ["Plain"]


class Plain:
    """Evaluates members one by one, in the weights."""

    name = "plain"
    in_place = True
    as_rows = False

    def __init__(self) -> None:
        self.members_per_forward: int | Literal["auto"] | None = None
        self.noise_made = 0.0

    @torch.no_grad()
    def run(self, job: Job) -> list[Any]:
        """The fitness of members, one by one."""
        center, fitness, perturbation = Center(job.space), job.alone, job.population.perturbation
        self.noise_made = job.space.numel
        parts = [_part(*pair) for pair in zip(job.space, center.values, strict=True)]
        strided = [(part, parameter) for part, parameter in zip(parts, job.space, strict=True) if part.out is None]
        parts = [part for part in parts if part.out is not None]
        values = []
        try:
            for number in job.members:
                center.take_memory_back()
                direction, step = job.population.address(number)
                perturbation.members([direction], [step], parts)  # into the weights themselves
                for part, parameter in strided:
                    parameter.local.copy_(perturbation.members([direction], [step], [part])[0][0])
                torch.clear_autocast_cache()  # without this, an enclosing autocast would reuse weights that it cast
                job.isolation.start_member()
                values.append(fitness())
        finally:
            center.restore()
            torch.clear_autocast_cache()
        return values


def _part(parameter: EvolvingParameter, center: Tensor) -> Part:
    """What is made of a parameter, in the weight's own memory if that is contiguous.

    Args:
        parameter: The parameter.
        center: A copy of what this process holds of it.
    """
    local, shard = parameter.local, parameter.shard
    whole, start = (center, 0) if shard is None else (shard.whole, shard.start)
    return Part(parameter.index, whole, start, center, local.view(1, -1) if local.is_contiguous() else None)
