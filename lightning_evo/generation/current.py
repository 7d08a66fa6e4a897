"""The generation that is being evaluated: its members, and what they have found so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_evo.algorithms import Algorithm, Population, State
from lightning_evo.generation.laying import laid_over
from lightning_evo.generation.scores import Scores
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["Current"]


class Current:
    """One generation, from its first batch until it is learnt from.

    Attributes:
        scores: The members' fitness so far; of none before they are asked for.
    """

    def __init__(self) -> None:
        self.scores = Scores(0)
        self._population: Population | None = None
        self._sigma: float | None = None  # that was recorded
        self._sigma_set_since: float | None = None  # by hand, after its members were asked for

    def population(self, algorithm: Algorithm[Any], state: State, space: SearchSpace) -> Population:
        """The members, asked for when they are first needed.

        Args:
            algorithm: Is asked.
            state: Before the generation.
            space: The evolving parameters.
        """
        if self._population is None:
            asked_from = state if self._sigma is None else replace(state, sigma=self._sigma)
            self._population = laid_over(algorithm.ask(asked_from), space)
            if not self.scores.weight:
                self.scores = Scores(len(self._population))
        return self._population

    def recall(self, fitness: Tensor, sigma: float | None) -> None:
        """Take a recorded fitness ``[members]``, and the sigma that it was found with, in place of any batch."""
        if sigma is not None:
            self._sigma, self._population = sigma, None
        self.scores.recall(fitness)

    def set_sigma(self, sigma: float) -> None:
        """Sigma was set by hand: members that were asked for keep theirs, and it counts from the next generation on."""
        if self._population is not None:
            self._sigma_set_since = sigma

    def following(self, state: State) -> State:
        """The state after this generation, with a sigma that was set by hand, whatever was learnt about it."""
        return state if self._sigma_set_since is None else replace(state, sigma=self._sigma_set_since)

    def load_state_dict(self, saved: Mapping[str, Any], algorithm: Algorithm[Any], state: State) -> None:
        """Continue after the batches of an interrupted generation.

        Args:
            saved: From :meth:`Scores.state_dict`, and the sigma of the members that were evaluated.
            algorithm: The run's.
            state: That the run goes on with.

        Raises:
            ValueError: If they were evaluated by another number of members.
        """
        sigma = algorithm.current_sigma(state)
        if saved["fitness_weight"]:
            self.scores = Scores(algorithm.current_population(state))
            self.scores.load_state_dict(saved)
        self._sigma = saved.get("generation_sigma")
        if self._sigma not in (None, sigma):
            self._sigma_set_since = sigma
