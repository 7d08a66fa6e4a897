"""What a generation teaches: directions along which to move, or a new center."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from lightning_evo.perturbations import Perturbation

__all__ = ["Directions", "Lesson", "NewCenter", "Term"]


class Term(NamedTuple):
    """``sum_d weights[d] eps_d`` over the directions of one perturbation."""

    perturbation: Perturbation
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Directions:
    """An estimate of the ascent direction, as weights of noise: ``g = sum_t sum_d w_td eps_td - weight_decay theta``.

    It is false if there is nothing to learn.

    Attributes:
        terms: This generation's noise and weights; behind them those of past generations that still count (momentum).
        weight_decay: L2 coefficient.
        learning_rate: The algorithm's own learning rate in this generation.
    """

    terms: tuple[Term, ...]
    weight_decay: float = 0.0
    learning_rate: float = 1.0

    @property
    def weights(self) -> tuple[float, ...]:
        """Those of this generation's directions."""
        return self.terms[0].weights

    def __bool__(self) -> bool:
        return any(self.weights)

    def moved(self, center: Tensor) -> Tensor:
        """``theta + learning_rate g``, of a vector ``[d]``."""
        now, *past = [perturbation.weighted_sum(weights, 0, center) for perturbation, weights in self.terms]
        g = sum(past, now) - self.weight_decay * center
        return (center + self.learning_rate * g).to(center.dtype)


@dataclass(frozen=True)
class NewCenter:
    """Where the center is from now on. It is false if it stays where it is.

    Attributes:
        center: ``[d]``; ``None`` if there is nothing to learn.
    """

    center: Tensor | None = field(repr=False)

    def __bool__(self) -> bool:
        return self.center is not None

    def moved(self, center: Tensor) -> Tensor:
        """The new center."""
        return center if self.center is None else self.center


Lesson = Directions | NewCenter
"""What a generation teaches."""
