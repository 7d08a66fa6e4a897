"""Many members in one forward: ``torch.func.vmap`` over the unchanged code.

With low-rank noise all members share every large matrix product. With dense noise a layer's weights are a stack, and
the two members of a pair share the noise in it. Random numbers, for example those of dropout, are the same for all
members, as in the plain loop. What ``vmap`` can't do (data-dependent control flow, ``.item()``, writes of members into
shared tensors) raises, and the caller falls back to another evaluation.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.job import Job
from lightning_evo.evaluation.ways import vmap
from lightning_evo.evaluation.ways.layouts import VmapLevel
from lightning_evo.evaluation.ways.perturbed import Perturbed
from lightning_evo.evaluation.ways.rules import HUGE, SMALL
from lightning_evo.spaces.memory import Scratch
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["Batched", "free_memory"]

_LARGEST = 1 << 26  # bytes of the largest tensor of one forward on a CPU: larger ones come from the system page by page
_ENOUGH = 128  # members in one forward on a CPU: more would save nothing, and exceed its cache
_STACKED = 1 << 25  # bytes of all members' weights of one layer on a CPU
_LIVE = 4  # tensors of the largest size that one member's forward holds at a time, as a rule of thumb


class Batched:
    """Evaluates members in groups, one forward for each.

    Args:
        members_per_forward: Size of a group; ``"auto"`` chooses by the memory that the first two members need and the
            memory that is free, a power of two. Where memory runs out it is halved.

    Attributes:
        members_per_forward: The size in use, or ``"auto"`` before it is chosen.
    """

    name = "batched"
    in_place = False

    def __init__(self, members_per_forward: int | Literal["auto"] = "auto") -> None:
        self.members_per_forward: int | Literal["auto"] | None = members_per_forward
        self.noise_made = 0.0
        self._scratch = Scratch()
        self._repeated: set[int] = set()

    def _group_size(self, population: Population) -> int:
        """Members of a group: whole pairs, one at least, and no more than there are. A pair before it is chosen."""
        pair = population.per_direction
        if not isinstance(self.members_per_forward, int):
            return pair
        return min(len(population), max(pair, self.members_per_forward // pair * pair))

    @torch.no_grad()
    def run(self, job: Job) -> list[Any]:
        """The fitness of members, which run in groups."""
        population, numbers, pair = job.population, list(job.members), job.population.per_direction
        if self.members_per_forward != "auto":
            self.members_per_forward = self._group_size(population)
        values: list[Any] = []
        while len(values) < len(numbers):
            size = self._group_size(population)
            group = numbers[len(values) : len(values) + size]
            try:
                found, perturbed = self._forward(job, group)
            except Exception as error:
                if size <= pair or not _is_out_of_memory(error):
                    if job.rerun is None:
                        raise
                    values += job.rerun(group)
                    continue
                self.members_per_forward = size // 2 // pair * pair
                warnings.warn(
                    f"{size} members in one forward need more memory than there is. Going on with "
                    f"{self.members_per_forward}.",
                    stacklevel=2,
                )
                continue
            values += found
            if self.members_per_forward == "auto":
                self.members_per_forward = _choose_size(job.space, population, perturbed)
        return values

    def _forward(self, job: Job, members: list[int]) -> tuple[list[Any], Perturbed]:
        fitness, declined = job.together(len(members)), False
        modes: list[Perturbed] = []

        def run(number: Tensor) -> Tensor:
            nonlocal declined
            layout = VmapLevel(vmap.level_of(number), len(members))
            with Perturbed(
                job.space, job.population, members, layout, scratch=self._scratch, repeated=self._repeated
            ) as perturbed:
                modes.append(perturbed)
                value = fitness()
            declined = value is None
            return torch.zeros_like(number) if value is None else value

        torch.clear_autocast_cache()  # so that an enclosing autocast does not reuse what it cast before
        job.isolation.start_member()
        numbers = torch.tensor(members, dtype=torch.float32, device=job.space[0].tensor.device)
        try:
            with vmap.without_fallback_warnings():
                fitnesses = torch.func.vmap(run, randomness="same")(numbers)
        finally:
            torch.clear_autocast_cache()
        self.noise_made = modes[0].noise_made / len(members)
        return [None] * len(members) if declined else list(fitnesses.unbind()), modes[0]


def _choose_size(space: SearchSpace, population: Population, first: Perturbed) -> int:
    """Members per forward, by what the first ones needed: all, a power of two, or 1 if not even a pair fits."""
    center = space[0].tensor
    wide = max(4, center.element_size())
    needed = (first.largest * _LIVE + sum(_noise_size(space, first))) * wide
    fitting = free_memory(center.device) // 2 // max(1, needed)
    if center.device.type == "cpu":
        dense = [parameter.tensor for parameter in space if first.factors(parameter) is None]
        stacked = max((min(tensor.numel(), HUGE) * tensor.element_size() for tensor in dense), default=1)
        fitting = min(fitting, _ENOUGH, _LARGEST // max(1, first.largest * wide), _STACKED // max(1, stacked))
    if fitting < population.per_direction:
        return 1
    if fitting >= len(population):
        return len(population)
    size = population.per_direction
    while size * 2 <= fitting:
        size *= 2
    return size


def _noise_size(space: SearchSpace, first: Perturbed) -> Iterable[int]:
    """Elements of one member's noise, of each tensor; large matrices are made one at a time."""
    large = 0
    for parameter in space:
        factors, size = first.factors(parameter), parameter.tensor.numel()
        if factors is not None:
            yield sum(factor[0].numel() for factor in factors)
        elif size <= SMALL:
            yield size
        else:
            large = max(large, min(size, HUGE))
    yield large


def free_memory(device: torch.device) -> int:
    """In bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not everywhere
        return 1 << 30


def _is_out_of_memory(error: Exception) -> bool:
    shortage = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return shortage or isinstance(error, torch.OutOfMemoryError)
