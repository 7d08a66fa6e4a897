"""What searches share: the population by dimension, sigma, and random numbers by their address."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import Algorithm, AnyState
from lightning_evo.algorithms.population import Population
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.perturbations import Perturbation, Vectors
from lightning_evo.perturbations.vectors import table_of
from lightning_evo.utils.options import number, whole

__all__ = ["Search", "center_of", "expected_length"]


@dataclass(frozen=True, kw_only=True)
class Search(Algorithm[AnyState]):
    """An algorithm that samples vectors around a center of its own.

    Member k is ``center + sigma * steps[k]``. A search says in :meth:`steps` what the steps are, and in ``learn`` where
    the center goes.

    Args:
        population: Number of members; ``None`` for :meth:`population_for` the dimension.
        sigma: Step size of the first generation, > 0.
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range.
    """

    population: int | None = None
    sigma: float
    name: str

    smallest: ClassVar[tuple[int, str]] = (4, "half of them are the parents of the next")
    """The smallest population, and why."""

    def __post_init__(self) -> None:
        smallest, why = self.smallest
        if self.population is not None:
            population = whole("population", self.population, minimum=smallest, why=why)
            object.__setattr__(self, "population", population)  # the dataclass is frozen
        object.__setattr__(self, "sigma", number("sigma", self.sigma, above=0))

    @staticmethod
    def population_for(dimension: int) -> int:
        """The population for a dimension, where none is given: ``4 + floor(3 ln d)`` (arXiv:1604.00772, Eq. 48)."""
        return 4 + math.floor(3 * math.log(dimension))

    def current_population(self, state: AnyState) -> int:
        """Members of the coming generation."""
        return self.population_for(center_of(state).numel()) if self.population is None else self.population

    def current_sigma(self, state: AnyState) -> float:
        """Sigma of the coming generation."""
        return self.sigma if state.sigma is None else state.sigma

    def ask(self, state: AnyState) -> Population:
        """Members ``center + sigma * steps``.

        Raises:
            ValueError: If the state has no center.
        """
        return self.population_of(state, Vectors(self.steps(state)))

    def population_of(self, state: AnyState, perturbation: Perturbation) -> Population:
        """The members that a perturbation, whose noise are their steps, gives in a state."""
        return Population(
            perturbation=perturbation,
            sigma=self.current_sigma(state),
            directions=self.current_population(state),
            antithetic=False,
            center=state.center,
            seed=state.seed,
            generation=state.generation,
        )

    @abstractmethod
    def steps(self, state: AnyState) -> Tensor:
        """The generation's steps in units of sigma, ``[members, d]``: a function of the state.

        Raises:
            ValueError: If the state has no center.
        """

    def steps_of(self, population: Population, state: AnyState) -> Tensor:
        """The steps that a population was made of, without making them once more. Not to be written to.

        Args:
            population: From :meth:`ask`, also where it is laid over a module.
            state: The one that it was asked from.
        """
        table = table_of(population.perturbation)
        return self.steps(state) if table is None else table

    def normal(self, state: AnyState, dtype: torch.dtype = torch.float64) -> Tensor:
        """The generation's standard normal numbers, ``[members, d]``.

        Raises:
            ValueError: If the state has no center.
        """
        key, dimension = NoiseKey(state.seed, state.generation), center_of(state).numel()
        return draw(key, range(self.current_population(state)), 0, 0, dimension, dtype=dtype)


def center_of(state: AnyState) -> Tensor:
    """A state's center, ``[d]``.

    Raises:
        ValueError: If it has none.
    """
    if state.center is None:
        raise ValueError("This search has no center yet. Give `init` a vector.")
    return state.center


def expected_length(dimension: int) -> float:
    """The expected length of a standard normal vector.

    Example:
        >>> round(expected_length(1) ** 2 * math.pi, 12)  # sqrt(2 / pi)
        2.0
    """
    return math.sqrt(2) * math.exp(math.lgamma((dimension + 1) / 2) - math.lgamma(dimension / 2))
