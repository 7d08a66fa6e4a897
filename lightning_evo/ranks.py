"""Who evaluates which members, where several processes share a generation.

Processes form a grid. Its *groups* divide the members among them; the processes of one group evaluate the same
members, each on data of its own (or, of a sharded model, each with a part of the weights). The process of rank r
belongs to group ``r // data``. All processes draw the same noise, so nothing but fitness has to travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_evo.algorithms import Population

__all__ = ["Ranks", "no_collectives"]


def _alone(values: Tensor) -> list[Tensor]:
    return [values]


def _same(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them. By default there is only this one.

    Attributes:
        population: Groups that divide the members among them.
        data: Processes of a group.
        rank: Number of this process, below ``population * data``.
        gather_from_all: Gives the tensors of all processes, by rank, for one of this process; all of the same shape.
        sum_over_all: Gives the sum of the tensors of all processes; may write to the one of this process.
        chunk: Members that stay together, so that they are evaluated in the same forward however many ranks there are;
            rounded down to whole pairs where members come in pairs.

    Raises:
        ValueError: If ``rank`` is outside the grid.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> population = get("openai_es")(population=10).ask(get("openai_es")(population=10).init())
        >>> [Ranks(population=3, rank=rank).share(population) for rank in range(3)]
        [range(0, 4), range(4, 8), range(8, 10)]
    """

    population: int = 1
    data: int = 1
    rank: int = 0
    gather_from_all: Callable[[Tensor], list[Tensor]] = _alone
    sum_over_all: Callable[[Tensor], Tensor] = _same
    chunk: int = 1

    def __post_init__(self) -> None:
        if self.population < 1 or self.data < 1 or not 0 <= self.rank < self.population * self.data:
            raise ValueError(f"Rank {self.rank} is outside a grid of {self.population} x {self.data} processes.")

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.population * self.data

    def share(self, population: Population, group: int | None = None) -> range:
        """The members of a group, in whole chunks: consecutive numbers, by default those of this process's group."""
        group = self.rank // self.data if group is None else group
        chunk = max(population.per_direction, self.chunk // population.per_direction * population.per_direction)
        chunks, members = -(-len(population) // chunk), len(population)
        each, more = divmod(chunks, self.population)
        start = group * each + min(group, more)
        stop = start + each + (group < more)
        return range(min(members, start * chunk), min(members, stop * chunk))

    def gather(self, results: Tensor, population: Population) -> Tensor:
        """What all processes found, for all members.

        Args:
            results: Of this process's members: fitness and weight, float64 ``[members, 2]``. The weight is positive; 0
                for a member that declined, so that its fitness does not count; -1 for one that failed.
            population: The members.

        Returns:
            The same for all members of the population: the mean over a group's processes, by their weights, and the sum
            of these; a member that failed on one of them has failed.
        """
        if self.world_size == 1:
            return results
        shares = [self.share(population, group) for group in range(self.population)]
        padded = results.new_zeros(max(map(len, shares)), 2)
        padded[: len(results)] = results
        everything = self.gather_from_all(padded)
        merged = []
        for group, share in enumerate(shares):
            found = torch.stack([of_rank[: len(share)] for of_rank in everything[group * self.data :][: self.data]])
            fitness, weight = found.unbind(2)
            failed, total = (weight < 0).any(0), weight.clamp(min=0).sum(0)
            mean = fitness.where(weight > 0, 0).sum(0) / total
            merged.append(torch.stack([mean, torch.where(failed, -1, total)], dim=1))
        return torch.cat(merged)


# Public functions that talk to other processes.
_COLLECTIVES = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
    "recv",
    "isend",
    "irecv",
    "batch_isend_irecv",
)


@contextmanager
def no_collectives() -> Iterator[None]:
    """Calls of ``torch.distributed`` raise a RuntimeError in this context.

    While ranks evaluate different members, a sum over ranks would mix these; and where some have more members than
    others, it would wait for ever.
    """
    import torch.distributed as distributed

    def refusal(name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(
                f"torch.distributed.{name} was called while members are evaluated. Each process evaluates other "
                "members, which it would mix, and not the same number of them, so some would wait for ever. Evaluate "
                "all members on every process (shard='data'), or leave the call out of `training_step` and "
                "`fitness_step`."
            )

        return refuse

    homes = [distributed, distributed.distributed_c10d]
    originals = [(home, name, getattr(home, name)) for home in homes for name in _COLLECTIVES if hasattr(home, name)]
    for home, name, _ in originals:
        setattr(home, name, refusal(name))
    try:
        yield
    finally:
        for home, name, original in originals:
            setattr(home, name, original)
