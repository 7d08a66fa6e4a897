"""How an update moves the weights: the learning rate of each parameter group, and clipping.

A step is made from the user's optimizers, recorded in a journal, taken from there for a replay, and applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace

__all__ = ["Clipping", "Step"]


@dataclass(frozen=True)
class Clipping:
    """Gradient clipping for in-place updates, which have no gradient that torch could clip.

    Attributes:
        limit: Largest norm of the whole estimate, or largest absolute value of an element.
        by: ``"norm"`` or ``"value"``.
        coefficient: What clipping by norm multiplies the estimate by, if that is known; else it is measured.
    """

    limit: float
    by: Literal["norm", "value"] = "norm"
    coefficient: float | None = None


@dataclass(frozen=True)
class Step:
    """Learning rates and clipping of one update along directions.

    Attributes:
        rates: One learning rate for all parameters, or one for each parameter group.
        groups: The number of each parameter's group, over all optimizers, by its index in the search space; without an
            entry 0.
        clipping: Limits the estimate.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD([{"params": model.weight}, {"params": model.bias, "lr": 0.5}], lr=0.1)
        >>> step = Step.of([optimizer], SearchSpace(model), default=1.0)
        >>> step.rates, step.groups
        ((0.1, 0.5), {0: 0, 1: 1})
    """

    rates: tuple[float, ...] = (1.0,)
    groups: Mapping[int, int] = field(default_factory=dict)
    clipping: Clipping | None = None

    @classmethod
    def of(
        cls,
        optimizers: Iterable[torch.optim.Optimizer],
        space: SearchSpace,
        default: float,
        clipping: Clipping | None = None,
    ) -> Step:
        """The step that some optimizers' parameter groups ask for.

        Args:
            optimizers: Of these only the learning rates count.
            space: The evolving parameters.
            default: The learning rate without optimizers.
            clipping: Limits the estimate.
        """
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        number = {id(parameter): i for i, group in enumerate(groups) for parameter in group["params"]}
        rates = tuple(float(group["lr"]) for group in groups) or (default,)
        return cls(
            rates[:1] if len(set(rates)) == 1 else rates,
            {parameter.index: number.get(id(parameter.tensor), 0) for parameter in space},
            clipping,
        )

    def rate(self, parameter: EvolvingParameter) -> float:
        """A parameter's learning rate."""
        return self.rates[0] if len(self.rates) == 1 else self.rates[self.groups[parameter.index]]
