"""One member at a time, without touching the weights: each is perturbed in a scratch tensor where it is used.

The extra memory is that of the largest tensor's noise, or less: huge matrices are made block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.isolation import Isolation
from lightning_evo.evaluation.ways.perturbed import Perturbed
from lightning_evo.spaces.memory import Scratch
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["InForward"]


class InForward:
    """Evaluates members one by one.

    Attributes:
        seen: Indices of the parameters that the last member's forward asked for.
    """

    name = "in_forward"

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self._scratch = Scratch()

    @torch.no_grad()
    def __call__(
        self,
        space: SearchSpace,
        population: Population,
        fitness: Callable[[], Any],
        isolation: Isolation,
        members: Iterable[int] | None = None,
    ) -> list[Any]:
        """The fitness of members, one by one; the weights are not touched.

        Args:
            space: The evolving parameters, which hold the center.
            population: All members.
            fitness: Runs the user's code and gives its fitness.
            isolation: Entered by the caller.
            members: Numbers of the members; ``None`` for all.

        Returns:
            What ``fitness`` gave for each member.
        """
        values = []
        direction = -1
        shared: dict[Any, Any] = {}  # what the members of one direction have in common
        try:
            for number in range(len(population)) if members is None else members:
                if population.address(number)[0] != direction:
                    direction, shared = population.address(number)[0], {}
                torch.clear_autocast_cache()  # so that an enclosing autocast does not reuse what it cast before
                isolation.start_member()
                perturbed = Perturbed(space, population, [number], shared=shared, scratch=self._scratch)
                with perturbed:
                    values.append(fitness())
                self.seen = perturbed.seen
        finally:
            torch.clear_autocast_cache()
        return values
