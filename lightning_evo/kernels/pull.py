"""A pull towards where a tensor began, as part of a move, in plain tensor operations.

Anchored weight decay (https://arxiv.org/abs/2605.30148) shortens ``delta = theta - theta_0`` after each update: by a
share of it (L2) or by a soft threshold (L1). Here it is part of the update, so that 16-bit weights are rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Pull", "drawn_back"]


_LARGEST = torch.finfo(torch.float32).max


@dataclass
class Pull:
    """What draws a moving tensor back: ``center <- round(anchor + shrink(center - anchor + step - decay center))``.

    ``shrink(delta)`` is ``(1 - amount) delta`` with L2 and ``sign(delta) max(|delta| - amount, 0)`` with L1. Where it
    is 0 the center becomes the anchor, bit for bit.

    Attributes:
        anchor: Where the tensor began: ``[elements]``, contiguous, of the center's dtype, on any device.
        by: ``"l2"`` or ``"l1"``.
        amount: The share of delta, in [0, 1), or the threshold: learning rate times strength.
        decay: The share of the center that ordinary weight decay takes away.
        distance: The norm of ``center - anchor`` after the move, which sets it: float64 ``[]``, where the center is.
    """

    anchor: Tensor
    by: Literal["l2", "l1"]
    amount: float
    decay: float = 0.0
    distance: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def keep(self) -> float:
        """What delta is multiplied by."""
        return 1.0 - self.amount if self.by == "l2" else 1.0

    @property
    def threshold(self) -> float:
        """What is taken off each element's magnitude."""
        return min(self.amount, _LARGEST) if self.by == "l1" else 0.0

    def part(self, start: int, stop: int) -> Pull:
        """The same for the elements ``start <= offset < stop``."""
        return replace(self, anchor=self.anchor[start:stop])


def drawn_back(center: Tensor, anchor: Tensor, step: Tensor, pull: Pull) -> Tensor:
    """``shrink(center - anchor + step - decay center)``; where the center is by now close to the anchor, exactly.

    Args:
        center: ``[elements]`` in float32 or float64.
        anchor: Of the shape and dtype of ``center``.
        step: Of the shape and dtype of ``center``.
        pull: How it is drawn back.

    Example:
        >>> center, step = torch.tensor([2.0, 1.5, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> drawn_back(center, torch.ones(3), step, Pull(torch.ones(3), "l2", amount=0.25))
        tensor([1.5000, 0.3750, 0.0000])
        >>> drawn_back(center, torch.ones(3), step, Pull(torch.ones(3), "l1", amount=0.75))
        tensor([1.2500, 0.0000, 0.0000])
    """
    away = (center - anchor) + (step - center * pull.decay)
    if pull.by == "l2":
        return away * pull.keep
    magnitude = away.abs() - pull.threshold
    return torch.where(magnitude <= 0, 0.0, torch.copysign(magnitude, away))
