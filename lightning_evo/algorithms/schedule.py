"""Values that change from generation to generation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A value that moves from ``start`` to ``end`` over ``generations`` and then stays there.

    Args:
        kind: ``"linear"``, ``"cosine"`` (half a cosine wave) or ``"exponential"`` (the same factor each generation).
        start: Value in generation 0, > 0.
        end: Value from generation ``generations`` on, > 0 (for a learning rate and not exponential, >= 0).
        generations: Length of the way, > 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sigma = Schedule("exponential", start=0.1, end=0.001, generations=20)
        >>> [round(sigma(generation), 4) for generation in (0, 10, 20, 1000)]
        [0.1, 0.01, 0.001, 0.001]
    """

    kind: Literal["linear", "cosine", "exponential"]
    start: float
    end: float
    generations: int

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "cosine", "exponential"):
            raise ValueError(f"Unknown schedule {self.kind!r}; choose linear, cosine or exponential.")
        if not (math.isfinite(self.start) and self.start > 0 and math.isfinite(self.end) and self.end >= 0):
            raise ValueError(f"A schedule goes from start > 0 to end >= 0; got start={self.start}, end={self.end}.")
        if self.kind == "exponential" and self.end == 0:
            raise ValueError("An exponential schedule never reaches 0; give an end > 0 or use linear or cosine.")
        if self.generations < 1:
            raise ValueError(f"A schedule needs generations >= 1, got {self.generations}.")

    def __call__(self, generation: int) -> float:
        """The value in a generation."""
        done = min(generation / self.generations, 1.0)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * done
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2
        return float(self.start * (self.end / self.start) ** done)
