"""A population as an algorithm gives it, laid over the parameters of a module."""

from __future__ import annotations

from dataclasses import replace

from lightning_evo.algorithms import Population
from lightning_evo.perturbations import Perturbation, without_padding
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["laid_over", "noise_over"]


def laid_over(population: Population, space: SearchSpace) -> Population:
    """The same members, with the noise of :func:`noise_over`."""
    return replace(population, perturbation=noise_over(population.perturbation, space))


def noise_over(perturbation: Perturbation, space: SearchSpace) -> Perturbation:
    """The same noise, whose vectors, if it is one of vectors, are cut into the module's parameters.

    Rows that stand for padding are left alone.
    """
    laid = without_padding(perturbation.over(space.offsets), space)
    if not space.is_sharded:
        laid.look_at({parameter.index: parameter.tensor for parameter in space})
    return laid
