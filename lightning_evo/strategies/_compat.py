"""Every private piece of Lightning that this package touches, and the two names that Lightning goes by.

Checked against Lightning 2.4 to 2.6.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch

__all__ = ["Namespace", "backward_is_skipped", "gradient_scale", "lightning_module_class", "parent_strategy"]

Namespace = Literal["lightning.pytorch", "pytorch_lightning"]


def parent_strategy(namespace: Namespace, name: str) -> type[Any]:
    """A strategy class of Lightning, such as ``SingleDeviceStrategy``, from one of its two packages."""
    strategies = importlib.import_module(f"{namespace}.strategies")
    return getattr(strategies, name)  # type: ignore[no-any-return]


def lightning_module_class(module: object) -> type[Any]:
    """The ``LightningModule`` class that a module derives from, whichever package it is from."""
    return next(cls for cls in type(module).__mro__ if cls.__name__ == "LightningModule")


def gradient_scale(precision_plugin: Any, device: torch.device) -> float:
    """What a mixed-precision plugin's gradient scaler divides gradients by; 1 if it has none."""
    scaler = getattr(precision_plugin, "scaler", None)
    # Scaling a one also sets the scaler up, which it demands before it unscales.
    return 1.0 if scaler is None else float(scaler.scale(torch.ones((), device=device)))


def backward_is_skipped(trainer: Any) -> bool:
    """Whether this epoch only runs forward passes (stochastic weight averaging's extra epoch for BatchNorm)."""
    return bool(trainer.fit_loop._skip_backward)
