"""Code that differentiates by itself: what to do where there is no graph, and what members leave in ``.grad``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["autograd_explained", "gradients_kept"]

_SAID_BY_TORCH = (  # where a tensor has no graph
    "does not require grad",
    "doesn't require gradient",
    "has requires_grad=False",
)
_WHAT_TO_DO = (
    "Evolution runs training_step and fitness_step under torch.no_grad(). Put what needs gradients there, the forward "
    "included, under `with torch.enable_grad():`."
)


@contextmanager
def autograd_explained() -> Iterator[None]:
    """Let torch's errors of what has no graph end with what to do.

    Example:
        >>> import torch
        >>> try:
        ...     with autograd_explained():
        ...         torch.zeros(()).backward()
        ... except RuntimeError as error:
        ...     print(str(error).splitlines()[-1][-34:])
        under `with torch.enable_grad():`.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if any(text in said for text in _SAID_BY_TORCH) and _WHAT_TO_DO not in said:
            error.args = (f"{said}\n{_WHAT_TO_DO}",)  # notes are of Python 3.11, and no part of what is said
        raise


@contextmanager
def gradients_kept(module: nn.Module) -> Iterator[None]:
    """In this context no parameter has a gradient, and afterwards each has the one that it had before.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with gradients_kept(layer):
        ...     layer.weight.sum().backward()
        >>> layer.weight.grad is None
        True
    """
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
