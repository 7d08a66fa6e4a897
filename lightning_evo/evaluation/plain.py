"""The plain loop: write a member into the weights, run it, restore the weights from a copy.

The slowest way and the reference: every other evaluation must give what this one gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.isolation import Isolation
from lightning_evo.perturbations.dense import noise_dtype
from lightning_evo.search_space import SearchSpace

__all__ = ["evaluate"]

_KEEP = 1 << 24  # a generation's noise is kept for the update if it has no more elements: 64 MB of float32


@torch.no_grad()
def evaluate(space: SearchSpace, population: Population, fitness: Callable[[], Any], isolation: Isolation) -> list[Any]:
    """The fitness of every member.

    Args:
        space: The evolving parameters. They hold the center before and after, bit for bit, whatever happens.
        population: The members.
        fitness: Runs the user's code with the weights as they are and gives its fitness.
        isolation: Entered by the caller.

    Returns:
        What ``fitness`` gave for each member, in the population's order.
    """
    if population.directions * space.numel <= _KEEP:
        for parameter in space:
            population.perturbation.keep(population.directions, parameter.index, parameter.tensor)
    centers = [parameter.tensor.detach().clone() for parameter in space]
    values = []
    try:
        for direction in range(population.directions):
            for sign in (1, -1) if population.antithetic else (1,):
                for parameter, center in zip(space, centers, strict=True):
                    noise = population.perturbation.noise([direction], parameter.index, center)[0]
                    step = parameter.without_padding(noise * (sign * population.sigma))
                    perturbed = center.to(noise_dtype(center)) + step
                    parameter.tensor.copy_(perturbed)
                torch.clear_autocast_cache()  # else an enclosing autocast would go on using the weights that it cast
                isolation.start_member()
                values.append(fitness())
    finally:
        for parameter, center in zip(space, centers, strict=True):
            parameter.tensor.copy_(center)
        torch.clear_autocast_cache()
    return values
