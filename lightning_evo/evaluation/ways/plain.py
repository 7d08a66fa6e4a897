"""The plain loop: write a member into the weights, run it, restore the weights from a copy.

The slowest way and the reference: every other evaluation must give what this one gives. It is also the way of sharded
weights: each process writes its own part, and the forward gathers the member as it would gather the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.center import Center
from lightning_evo.evaluation.isolation import Isolation
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    space: SearchSpace,
    population: Population,
    fitness: Callable[[], Any],
    isolation: Isolation,
    members: Iterable[int] | None = None,
) -> list[Any]:
    """The fitness of members.

    Args:
        space: The evolving parameters. They hold the center before and after, bit for bit, whatever happens.
        population: The members.
        fitness: Runs the user's code with the weights as they are and gives its fitness.
        isolation: Entered by the caller.
        members: Numbers of the members; ``None`` for all.

    Returns:
        What ``fitness`` gave for each member.
    """
    center = Center(space)
    values = []
    try:
        for number in range(len(population)) if members is None else members:
            center.take_memory_back()
            for parameter, value in zip(space, center.values, strict=True):
                member = _member(population, number, parameter, value)
                parameter.local.copy_(parameter.keep_padding(member, value))
            torch.clear_autocast_cache()  # without this, an enclosing autocast would reuse weights that it cast
            isolation.start_member()
            values.append(fitness())
    finally:
        center.restore()
        torch.clear_autocast_cache()
    return values


def _member(population: Population, number: int, parameter: EvolvingParameter, center: Tensor) -> Tensor:
    """A member's values of what this process holds of a parameter, whose own are ``center``."""
    perturbation, index, shard = population.perturbation, parameter.index, parameter.shard
    direction, step = population.address(number)
    if shard is None:
        return perturbation.members([direction], [step], index, center)[0]
    return perturbation.members_of_range([direction], [step], index, shard.whole, center, shard.start)[0]
