"""Who moves the weights: the user's optimizer, which is given gradients, or the update itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from lightning_evo.generation.step import Clipping, Step
from lightning_evo.generation.update import AlongDirections, Update

__all__ = ["InPlace", "IntoGradients"]


class IntoGradients:
    """``update="optimizer"``: the estimate goes into ``.grad``, before the user's optimizer steps.

    Args:
        scale: Gives what a gradient scaler will divide gradients by.
    """

    before_optimizer = True

    def __init__(self, scale: Callable[[], float] = lambda: 1.0) -> None:
        self._scale = scale

    def learn(self, update: Update) -> float:
        """Add to the gradients; returns the norm of the estimate, 0 if there is nothing to learn."""
        scale = self._scale()
        if not update:
            return 0.0
        assert isinstance(update, AlongDirections)  # algorithms that give a new center don't offer this
        return update.add_to_gradients(scale)


class InPlace:
    """``update="in_place"``: the weights move themselves, after the optimizer's step, in which nothing moves.

    Args:
        optimizers: Gives those whose learning rates count.
        record: Is given the update and its step before the weights move, and gives the step to move them with.
    """

    before_optimizer = False

    def __init__(
        self,
        optimizers: Callable[[], Iterable[torch.optim.Optimizer]],
        record: Callable[[Update, Step], Step] = lambda update, step: step,
    ) -> None:
        self._optimizers, self._record = optimizers, record
        self._clipping: Clipping | None = None

    def clip(self, optimizer: Any, clip_val: float | None = 0.0, gradient_clip_algorithm: Any = "norm") -> None:
        """Clip the coming update; takes the arguments of a precision plugin's ``clip_gradients``, in whose place it is.

        There are no gradients that could be clipped.
        """
        if clip_val and clip_val > 0:
            self._clipping = Clipping(
                float(clip_val), getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm)
            )

    def learn(self, update: Update) -> float:
        """Move the weights; returns what :meth:`Update.apply` does, 0 if there is nothing to learn."""
        clipping, self._clipping = self._clipping, None
        step = self._record(update, update.step(self._optimizers(), clipping))
        return update.apply(step) if update else 0.0
