"""A population as an algorithm gives it, laid over the parameters of a module."""

from __future__ import annotations

from dataclasses import replace

from lightning_evo.algorithms import Population
from lightning_evo.perturbations import without_padding
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["laid_over"]


def laid_over(population: Population, space: SearchSpace) -> Population:
    """The same members, whose vectors, if they are vectors, are cut into the module's parameters.

    Rows that stand for padding are left alone.
    """
    perturbation = population.perturbation.over(space.offsets)
    return replace(population, perturbation=without_padding(perturbation, space))
