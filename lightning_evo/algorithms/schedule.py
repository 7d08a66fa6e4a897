"""Values that change from generation to generation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_evo.utils.options import number, one_of, whole

__all__ = ["Schedule"]

Kind = Literal["linear", "cosine", "exponential"]


@dataclass(frozen=True)
class Schedule:
    """A value that moves from ``start`` to ``end`` over ``generations`` and then stays there.

    Args:
        kind: ``"linear"``, ``"cosine"`` (half a cosine wave) or ``"exponential"`` (the same factor each generation).
        start: Value in generation 0, > 0.
        end: Value from generation ``generations`` on, > 0 (a learning rate that is not exponential may end at 0).
        generations: How many it takes to get there, > 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sigma = Schedule("exponential", start=0.1, end=0.001, generations=20)
        >>> [round(sigma(generation), 4) for generation in (0, 10, 20, 1000)]
        [0.1, 0.01, 0.001, 0.001]
    """

    kind: Kind
    start: float
    end: float
    generations: int

    def __post_init__(self) -> None:
        kind = one_of("kind of schedule", self.kind, get_args(Kind))
        start = number("Schedule's start", self.start, above=0)
        end = number("Schedule's end", self.end, minimum=0)
        generations = whole("Schedule's generations", self.generations)
        if kind == "exponential" and not 0 < end / start < math.inf:
            never = "never reaches 0" if end == 0 else f"can't go from {start} to {end}, which is too far"
            raise ValueError(f"An exponential schedule {never}; give another end > 0 or use linear or cosine.")
        for name, value in (("kind", kind), ("start", start), ("end", end), ("generations", generations)):
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def __call__(self, generation: int) -> float:
        """The value in a generation."""
        done = min(generation / self.generations, 1.0)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * done
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2
        return float(self.start * (self.end / self.start) ** done)
