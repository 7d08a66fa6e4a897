"""Which process evaluates which members, where several share a generation.

Processes form a grid. Its *groups* divide the members among them; the processes of one group evaluate the same
members, each on data of its own (or, of a sharded model, each with a part of the weights). The process of rank r
belongs to group ``r // data``. All processes draw the same noise, so only fitness has to be sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_evo.algorithms import Population
from lightning_evo.utils.messages import preview

__all__ = ["Ranks"]


def _only_own(values: Tensor) -> list[Tensor]:
    return [values]


def _unknown() -> tuple[float, bool]:
    return math.inf, False


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them. By default there is only this one.

    Attributes:
        groups: How many divide the members among them.
        data: Processes of a group.
        rank: Number of this process, below ``groups * data``.
        gather_from_all: Gives the tensors of all processes, by rank, for one of this process; all of the same shape.
        chunk: Members that stay together, so that they are evaluated in the same forward with any number of ranks;
            rounded down to whole pairs where members come in pairs.
        batches: Gives how many batches this process has in an epoch, infinite if that is not known, and whether it
            evaluates the last one now.

    Raises:
        ValueError: If ``rank`` is outside the grid.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> population = get("openai_es")(population=10).ask(get("openai_es")(population=10).init())
        >>> [Ranks(groups=3, rank=rank).share(population) for rank in range(3)]
        [range(0, 4), range(4, 8), range(8, 10)]
    """

    groups: int = 1
    data: int = 1
    rank: int = 0
    gather_from_all: Callable[[Tensor], list[Tensor]] = _only_own
    chunk: int = 1
    batches: Callable[[], tuple[float, bool]] = _unknown

    def __post_init__(self) -> None:
        if self.groups < 1 or self.data < 1 or not 0 <= self.rank < self.groups * self.data:
            raise ValueError(f"Rank {self.rank} is outside a grid of {self.groups} x {self.data} processes.")

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.groups * self.data

    def share(self, population: Population, group: int | None = None) -> range:
        """The members of a group, in whole chunks: consecutive numbers, by default those of this process's group."""
        group = self.rank // self.data if group is None else group
        chunk = max(population.per_direction, self.chunk // population.per_direction * population.per_direction)
        chunks, members = -(-len(population) // chunk), len(population)
        each, more = divmod(chunks, self.groups)
        start = group * each + min(group, more)
        stop = start + each + (group < more)
        return range(min(members, start * chunk), min(members, stop * chunk))

    def gather(self, results: Tensor, population: Population, size: int = 0) -> tuple[Tensor, list[int]]:
        """What all processes found, for all members.

        Args:
            results: Of this process's members: fitness and weight, float64 ``[members, 2]``. The weight is positive; 0
                for a member that declined, so that its fitness does not count; -1 for one that failed.
            population: The members.
            size: How many members this process evaluates at once; 0 as long as that is not decided.

        Returns:
            The same for all members of the population: the mean over a group's processes, by their weights, and the sum
            of these; a member that failed on one of them has failed. And every process's ``size``.

        Raises:
            RuntimeError: If processes have different numbers of batches; on all of them, and before one is missed.
        """
        if self.world_size == 1:
            return results, [size]
        shares = [self.share(population, group) for group in range(self.groups)]
        padded = results.new_zeros(max(map(len, shares)) + 2, 2)
        padded[: len(results)] = results
        padded[-2, 0] = size  # travels with the fitness, as the next line does, so it costs no message of its own
        padded[-1] = torch.tensor(self.batches())
        everything = self.gather_from_all(padded)
        _compare_batches([tuple(theirs[-1].tolist()) for theirs in everything])
        merged = []
        for group, share in enumerate(shares):
            found = torch.stack([one[: len(share)] for one in everything[group * self.data :][: self.data]])
            fitness, weight = found.unbind(2)
            failed, total = (weight < 0).any(0), weight.clamp(min=0).sum(0)
            mean = fitness.where(weight > 0, 0).sum(0) / total
            merged.append(torch.stack([mean, torch.where(failed, -1, total)], dim=1))
        return torch.cat(merged), [int(theirs[-2, 0]) for theirs in everything]


def _compare_batches(everyone: list[tuple[float, float]]) -> None:
    """Stop before a process leaves an epoch in which the others wait for it."""
    numbers = [int(number) for number, _ in everyone if math.isfinite(number)]
    last = [rank for rank, (_, is_last) in enumerate(everyone) if is_last == 1]
    if len(numbers) == len(everyone) and len(set(numbers)) > 1:
        has = preview([f"process {rank} has {number}" for rank, number in enumerate(numbers)], 8)
        limit = f"limit_train_batches={min(numbers)}"
    elif 0 < len(last) < len(everyone):
        has = f"this is the last one of processes {preview(list(map(str, last)), 8)}, but not of the others"
        limit = "limit_train_batches=…, to what each of them has"
    else:
        return
    raise RuntimeError(
        f"Processes have different numbers of training batches: {has}. All take part in every step, so they would wait "
        f"without end for those that have finished. Give every process the same number, or limit them: {limit}."
    )
