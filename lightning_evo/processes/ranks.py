"""Which process evaluates which members, where several share a generation.

Processes form a grid. Its *groups* divide the members among them; the processes of one group evaluate the same
members, each on data of its own (or, of a sharded model, each with a part of the weights). The process of rank r
belongs to group ``r // data``. All processes draw the same noise, so only fitness has to be sent.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_evo.algorithms import Population
from lightning_evo.utils.messages import first_line, preview

__all__ = ["ALIKE", "Ranks", "kinds_of"]


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
            results: Of this process's members: fitness and weight, float64 ``[members, 2]``, or more columns. The
                weight is positive; 0 for a member that declined, so that its fitness does not count; -1 for one that
                failed.
            population: The members.
            size: How many members this process evaluates at once; 0 as long as that is not decided.

        Returns:
            ``[data, members, columns]``: the results of each of a group's processes, for all members of the population,
            with as many columns as the process that has most; infinite where one has fewer. And every process's
            ``size``.

        Raises:
            RuntimeError: If processes have different numbers of batches; on all of them, and before one is missed.
            ValueError: If some report a tie breaker or single samples and others don't; on all of them, too.
        """
        if self.world_size == 1:
            return results[None], [size]
        shares = [self.share(population, group) for group in range(self.groups)]
        members = max(map(len, shares))
        columns = results.shape[1] if (results[:, 1] > 0).any() else 0
        padded = results.new_zeros(members + 2, 2)
        padded[: len(results)] = results[:, :2]
        padded[-2] = torch.tensor([size, columns])  # travels with the fitness, as the next line does: no message more
        padded[-1] = torch.tensor(self.batches())
        everything = self.gather_from_all(padded)
        _compare_batches([tuple(theirs[-1].tolist()) for theirs in everything])
        sizes, widths = torch.stack(everything)[:, -2].int().T.tolist()
        _compare_columns(widths, self.data)
        found = [theirs[:members] for theirs in everything]
        if max(widths) > 2:
            more = results.new_full((members, max(widths) - 2), math.inf)
            more[: len(results), : results.shape[1] - 2] = results[:, 2:]
            found = [torch.cat(both, 1) for both in zip(found, self.gather_from_all(more), strict=True)]
        parts = [
            torch.cat([theirs[: len(share)] for theirs, share in zip(found[part :: self.data], shares, strict=True)])
            for part in range(self.data)
        ]
        return torch.stack(parts), sizes

    def gather_details(self, details: list[list[Any] | None], population: Population) -> list[list[Any]]:
        """What members told about their samples, for all members.

        Args:
            details: Of this process's members: one object per sample, or ``None``.
            population: The members.

        Returns:
            For each member of the population what it told on each of its group's processes, one after the other; empty
            for one that told nothing.

        Raises:
            TypeError: If what a process's members told can't be pickled; on all of them, so that none waits.
        """
        shares = [self.share(population, group) for group in range(self.groups)]
        found: list[list[Any]] = [[] for _ in range(len(population))]
        for rank, theirs in enumerate(self._objects(details)):
            for member, told in zip(shares[rank // self.data], theirs, strict=True):
                found[member] += told or []
        return found

    def of_first(self, own: Any) -> Any:
        """The first process's object, on all processes. It must be one that can be pickled.

        Example:
            >>> Ranks().of_first({"sigma": 0.1})
            {'sigma': 0.1}
        """
        return self._objects(own if self.rank == 0 else None)[0]

    def _objects(self, own: Any) -> list[Any]:
        """An object of each process."""
        if self.world_size == 1:
            return [own]
        try:
            packed = pickle.dumps((own, None))
        except Exception as error:  # of any kind: objects pickle themselves
            packed = pickle.dumps((None, f"{type(error).__name__}: {first_line(error)}"))
        data = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        sizes = [int(size) for size in self.gather_from_all(torch.tensor([len(data)], dtype=torch.float64))]
        padded = data.new_zeros(max(sizes))
        padded[: len(data)] = data
        everyone = zip(self.gather_from_all(padded), sizes, strict=True)
        found = [pickle.loads(theirs[:size].cpu().numpy().tobytes()) for theirs, size in everyone]
        for rank, (_, problem) in enumerate(found):
            if problem is not None:
                raise TypeError(
                    f"The details of process {rank} can't be sent to the others: {problem}. Give `Fitness` details of "
                    "plain values, such as dictionaries of texts and numbers."
                )
        return [theirs for theirs, _ in found]


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


def _compare_columns(widths: list[int], data: int) -> None:
    """Processes that evaluate the same data have the same columns, and all have a tie breaker, or samples, or none."""
    kinds = {min(width, 4) for width in widths if width}
    same = [{width for width in widths[part::data] if width} for part in range(data)]
    if len(kinds) > 1 or any(len(different) > 1 for different in same):
        lengths = sorted({width - 1 for width in widths if width})
        raise ValueError(f"Members of different processes reported {kinds_of(lengths)} for the same batch. {ALIKE}")


ALIKE = (
    "If one member's Fitness has a tie breaker or `missing`, all need it (`missing` false for every sample if none "
    "is), and values for the same samples."
)
"""What to do where members report differently."""


def kinds_of(lengths: list[int]) -> str:
    """What records of these lengths hold, in words.

    Example:
        >>> kinds_of([1, 2, 6])
        'a number, a number with a tie breaker and values of 4 samples'
    """
    kinds = ["a number" if n == 1 else "a number with a tie breaker" if n == 2 else f"values of {n - 2} samples"
             for n in lengths]  # fmt: skip
    return f"{', '.join(kinds[:-1])} and {kinds[-1]}" if len(kinds) > 1 else kinds[0]
