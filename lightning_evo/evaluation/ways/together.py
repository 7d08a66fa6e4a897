"""Members that share forwards, in groups: how large a group is, and what happens where memory ends."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.job import Job, Refusal

__all__ = ["Together", "free_memory"]


class Together(ABC):
    """Evaluates members in groups, one forward for each.

    Args:
        members_per_forward: Size of a group; ``"auto"`` chooses by the memory that the first two members need and the
            memory that is free, a power of two. Where memory runs out it is halved.

    Attributes:
        members_per_forward: The size in use, or ``"auto"`` before it is chosen.
        room: How many members may share a forward, by what the last group needed; 0 if not even one.
    """

    in_place = False

    def __init__(self, members_per_forward: int | Literal["auto"] = "auto") -> None:
        self.members_per_forward: int | Literal["auto"] | None = members_per_forward
        self.noise_made = 0.0
        self.room = 0

    @abstractmethod
    def _forward(self, job: Job, members: list[int]) -> list[Any]:
        """The fitness of one group; sets :attr:`room` where it was the first one."""

    def group_size(self, population: Population) -> int:
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
            self.members_per_forward = self.group_size(population)
        values: list[Any] = []
        while len(values) < len(numbers):
            size = self.group_size(population)
            group = numbers[len(values) : len(values) + size]
            try:
                values += self._forward(job, group)
            except Refusal:
                raise
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
            if self.members_per_forward == "auto":
                self.members_per_forward = _fitting_size(self.room, population)
        return values


def _fitting_size(fitting: int, population: Population) -> int:
    """Members per forward: all, a power of two, or 1 if not even a pair fits.

    Args:
        fitting: How many there is room for.
        population: All of them.
    """
    if fitting < population.per_direction:
        return 1
    if fitting >= len(population):
        return len(population)
    size = population.per_direction
    while size * 2 <= fitting:
        size *= 2
    return size


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
