"""How an update moves the weights: learning rate and weight decay of each parameter group, and clipping.

A step is made from the user's optimizers, recorded in a journal, taken from there for a replay, and applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace

__all__ = ["Clipping", "Step", "maximizes"]


@dataclass(frozen=True)
class Clipping:
    """Gradient clipping for in-place updates, which have no gradient that torch could clip.

    Attributes:
        limit: Largest norm of the whole estimate, or largest absolute value of an element.
        by: ``"norm"`` or ``"value"``.
        coefficient: What clipping by norm multiplies the estimate by, if that is known; else it is measured. A tensor,
            float64 ``[]``, if it was measured on another device than the CPU.
    """

    limit: float
    by: Literal["norm", "value"] = "norm"
    coefficient: float | Tensor | None = None


def maximizes(optimizers: Iterable[torch.optim.Optimizer]) -> bool:
    """Whether what ``training_step`` returns is better the higher: every parameter group has ``maximize=True``.

    Example:
        >>> weight, bias = torch.nn.Linear(2, 1).parameters()
        >>> maximizes([torch.optim.SGD([weight, bias], lr=0.1, maximize=True)])
        True
        >>> maximizes([torch.optim.SGD([{"params": [weight]}, {"params": [bias], "maximize": True}], lr=0.1)])
        False
    """
    wanted = [bool(group.get("maximize")) for group in _groups(optimizers) if group["params"]]
    return bool(wanted) and all(wanted)


def _groups(optimizers: Iterable[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


@dataclass(frozen=True)
class Step:
    """Learning rates, weight decay and clipping of one update along directions: ``theta + lr g - |lr| decay theta``.

    Attributes:
        rates: One learning rate for all parameters, or one for each parameter group; negative where the fitness should
            fall.
        groups: The number of each parameter's group, over all optimizers, by its index in the search space; without an
            entry 0.
        clipping: Limits the estimate ``g``, not the decay.
        decays: One weight decay for all parameters, or one for each parameter group; none if there is no decay.

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
    decays: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        optimizers: Iterable[torch.optim.Optimizer],
        space: SearchSpace,
        default: float,
        clipping: Clipping | None = None,
    ) -> Step:
        """The step that some optimizers' parameter groups ask for.

        Weight decay is ``theta -= lr decay theta``, whether the optimizer adds it to the gradient (SGD) or keeps it
        apart (AdamW): without momentum and adaptivity both are the same, and clipping, which precedes both, spares it.
        A group with ``maximize=True`` among others without goes the other way than these; where all have it, the
        fitness is what ``training_step`` returns instead of its negative, see :func:`maximizes`.

        Args:
            optimizers: Of these the learning rates, weight decay and maximize count.
            space: The evolving parameters.
            default: The learning rate without optimizers.
            clipping: Limits the estimate.

        Raises:
            ValueError: If a group has no learning rate that is a number, or weight decay takes away a whole weight.
        """
        optimizers = list(optimizers)
        groups = _groups(optimizers)
        number = {id(parameter): i for i, group in enumerate(groups) for parameter in group["params"]}
        upwards = maximizes(optimizers)
        rates, decays = [], []
        for group in groups:
            if group.get("lr") is None:
                raise ValueError(
                    "The optimizer has no learning rate that update='in_place' could use (lr=None, as of Adafactor "
                    "with relative steps). Give it one, or use update='optimizer'."
                )
            rate, decay = float(group["lr"]), float(group.get("weight_decay") or 0.0)
            if rate * decay >= 1:
                raise ValueError(
                    f"weight_decay={decay} with lr={rate} takes {rate * decay:.0%} of each weight away in every step. "
                    "Their product must be below 1."
                )
            rates.append(-rate if group.get("maximize") and not upwards else rate)
            decays.append(decay)
        return cls(
            _shortened(tuple(rates)) or (default,),
            {parameter.index: number.get(id(parameter.tensor), 0) for parameter in space},
            clipping,
            _shortened(tuple(decays)) if any(decays) else (),
        )

    def rate(self, parameter: EvolvingParameter) -> float:
        """A parameter's learning rate."""
        return self._of_group(self.rates, parameter)

    def decay(self, parameter: EvolvingParameter) -> float:
        """The share of a parameter that the step takes away from it: ``|lr| decay``."""
        return abs(self.rate(parameter)) * self._of_group(self.decays, parameter) if self.decays else 0.0

    def _of_group(self, values: tuple[float, ...], parameter: EvolvingParameter) -> float:
        return values[0] if len(values) == 1 else values[self.groups[parameter.index]]


def _shortened(values: tuple[float, ...]) -> tuple[float, ...]:
    """One for all, if all are the same."""
    return values[:1] if len(set(values)) == 1 else values
