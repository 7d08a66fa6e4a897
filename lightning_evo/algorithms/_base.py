"""What an algorithm is: ask for a population, tell its fitness."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

__all__ = ["Algorithm", "PopulationOfVectors", "State"]


class PopulationOfVectors(Protocol):
    """What ``ask`` returns: a generation's members, which can be made vectors."""

    def __len__(self) -> int: ...

    def vectors(self) -> Tensor:
        """The members, ``[members, d]``."""


State = TypeVar("State")


class Algorithm(ABC, Generic[State]):
    """An evolutionary algorithm as three pure functions on a small state. Higher fitness is better.

    Example:
        >>> import torch, lightning_evo.algorithms as algorithms
        >>> algorithm = algorithms.get("openai_es")(population=32, learning_rate=0.1)
        >>> state = algorithm.init(torch.ones(5), sigma=0.1, seed=0)
        >>> for _ in range(100):
        ...     population = algorithm.ask(state)
        ...     fitness = -population.vectors().square().sum(1)
        ...     state = algorithm.tell(state, population, fitness)
        >>> bool(state.center.norm() < 0.2)
        True
    """

    name: str
    """The name under which it is registered; checkpoints store it."""

    @abstractmethod
    def init(self, center: Tensor | None, *, sigma: Any = None, seed: int = 0) -> State:
        """The state before the first generation, around ``center`` ``[d]``."""

    @abstractmethod
    def ask(self, state: State) -> PopulationOfVectors:
        """The next population. The same state gives the same population."""

    @abstractmethod
    def tell(self, state: State, population: Any, fitness: Tensor) -> State:
        """The state after a generation, from ``fitness`` ``[members]``. Leaves ``state`` as it is."""
