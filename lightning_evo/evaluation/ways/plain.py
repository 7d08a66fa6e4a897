"""The plain loop: write a member into the weights, run it, restore the weights from a copy.

The slowest way and the reference: every other evaluation must give what this one gives. It is also the way of sharded
weights: each process writes its own part, and the forward gathers the member as it would gather the weights.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.center import Center
from lightning_evo.evaluation.job import Job
from lightning_evo.perturbations import Part
from lightning_evo.spaces.search_space import EvolvingParameter

__all__ = ["Plain"]


class Plain:
    """Evaluates members one by one, in the weights."""

    name = "plain"
    in_place = True

    def __init__(self) -> None:
        self.members_per_forward: int | Literal["auto"] | None = None
        self.noise_made = 0.0

    @torch.no_grad()
    def run(self, job: Job) -> list[Any]:
        """The fitness of members, one by one."""
        center, fitness = Center(job.space), job.alone
        self.noise_made = job.space.numel
        values = []
        try:
            for number in job.members:
                center.take_memory_back()
                for parameter, value in zip(job.space, center.values, strict=True):
                    parameter.local.copy_(_member(job.population, number, parameter, value))
                torch.clear_autocast_cache()  # without this, an enclosing autocast would reuse weights that it cast
                job.isolation.start_member()
                values.append(fitness())
        finally:
            center.restore()
            torch.clear_autocast_cache()
        return values


def _member(population: Population, number: int, parameter: EvolvingParameter, center: Tensor) -> Tensor:
    """A member's values of what this process holds of a parameter, whose own are ``center``."""
    direction, step = population.address(number)
    part = Part(parameter.index, center)
    if parameter.shard is not None:
        part = Part(parameter.index, parameter.shard.whole, parameter.shard.start, center)
    return population.perturbation.members([direction], [step], [part])[0][0]
