"""Who moves the weights: the user's optimizer, which is given gradients, or the update itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_evo.generation.norms import Norms
from lightning_evo.generation.step import Clipping, Step
from lightning_evo.generation.update import AlongDirections, Update
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["InPlace", "IntoGradients"]


class IntoGradients:
    """``update="optimizer"``: the estimate goes into ``.grad``, before the user's optimizer steps.

    Where there is nothing to learn, ``.grad`` is zero for those who look at it, and the optimizer is not given it: a
    gradient of zero would be a measurement, on which momentum, moments and weight decay go on.

    Args:
        scale: Gives what a gradient is multiplied by: what a gradient scaler will divide by, negative for an optimizer
            that maximizes.
    """

    before_optimizer = True

    def __init__(self, scale: Callable[[], float] = lambda: 1.0) -> None:
        self._scale = scale
        self._hooks: list[RemovableHandle] = []
        self._untaught: SearchSpace | None = None

    def learn(self, update: Update) -> Tensor:
        """Add to the gradients; returns the norm of the estimate, float64 ``[]``, 0 if there is nothing to learn."""
        scale = self._scale()
        if not update:
            self.hold(update.space)
            return torch.zeros((), dtype=torch.float64)
        assert isinstance(update, AlongDirections)  # algorithms that give a new center don't offer this
        self._untaught = None
        return update.add_to_gradients(scale)

    def hold(self, space: SearchSpace) -> None:
        """Let each ``.grad`` be zero, where there is none, until an estimate is added to it or an optimizer steps."""
        if not self._hooks:
            return  # nobody would take the zeros away from the optimizer
        self._untaught = space
        for parameter in space:
            if parameter.tensor.grad is None:
                parameter.tensor.grad = parameter.as_gradient(torch.zeros_like(parameter.local))

    def attach(self, optimizers: Iterable[Any]) -> None:
        """Look after the steps of some optimizers, whoever makes them."""
        self.detach()
        self._hooks = [*_registered(optimizers, "register_step_pre_hook", self._before_step)]

    def detach(self) -> None:
        """Undo :meth:`attach`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._untaught = [], None

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Release the gradients: after the step's closure, which makes them, if it is given one."""

        def releasing(closure: Any) -> Any:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                result = closure(*args, **kwargs)
                self._release()
                return result

            return wrapped

        if len(args) > 1 and callable(args[1]):  # the first is the optimizer itself
            return (args[0], releasing(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": releasing(kwargs["closure"])}
        self._release()
        return args, kwargs

    @torch.no_grad()
    def _release(self) -> None:
        """Take the gradients away from which there is nothing to learn, unless somebody has put something there."""
        space, self._untaught = self._untaught, None
        if space is None:
            return
        others = Norms(space)  # of how many elements are not zero, so that nothing small is overlooked
        for parameter in space:
            gradient: Any = parameter.tensor.grad
            if gradient is not None:
                local: Tensor = gradient if parameter.shard is None else gradient.to_local()
                others.add(parameter, torch.count_nonzero(local).float())
        if not others.total():
            for parameter in space:
                parameter.tensor.grad = None


class InPlace:
    """``update="in_place"``: the weights move themselves, after the optimizer's step, in which nothing moves.

    Args:
        optimizers: Gives those whose learning rates, weight decay and maximize count.
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
        self._hooks: list[RemovableHandle] = []

    def attach(self, optimizers: Iterable[Any], then: Callable[[], None]) -> None:
        """Do something after each step of some optimizers, whoever makes it."""
        self.detach()
        self._hooks = [*_registered(optimizers, "register_step_post_hook", lambda *_: then())]

    def detach(self) -> None:
        """Undo :meth:`attach`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def clip(self, optimizer: Any, clip_val: float | None = 0.0, gradient_clip_algorithm: Any = "norm") -> None:
        """Clip the coming update; takes the arguments of a precision plugin's ``clip_gradients``, in whose place it is.

        There are no gradients that could be clipped.
        """
        if clip_val and clip_val > 0:
            self._clipping = Clipping(
                float(clip_val), getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm)
            )

    def learn(self, update: Update) -> Tensor:
        """Move the weights; returns what :meth:`Update.apply` does, 0 if there is nothing to learn."""
        clipping, self._clipping = self._clipping, None
        step = self._record(update, update.step(self._optimizers(), clipping))
        return update.apply(step) if update else torch.zeros((), dtype=torch.float64)


def _registered(optimizers: Iterable[Any], register: str, hook: Callable[..., Any]) -> Iterator[RemovableHandle]:
    """Give a hook to those of some optimizers that take one: those that are not torch's may not."""
    for optimizer in optimizers:
        try:
            yield getattr(optimizer, register)(hook)
        except AttributeError:  # also of a subclass that never called torch's ``__init__``
            continue
