"""Checkpoints of an epoch's end hold the step of ``ReduceLROnPlateau`` that belongs to it.

Lightning saves before it steps these schedulers, and a resumed run can't catch up, as it has no metric any more. So the
step is taken for what is saved, and undone.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from lightning_evo.strategies import _compat

__all__ = ["step_plateaus_of"]


def step_plateaus_of(checkpoint: dict[str, Any], trainer: Any) -> None:
    """Put the state after their coming step into a checkpoint, of schedulers whose metric is known by now.

    Args:
        checkpoint: As the Trainer is about to save it.
        trainer: Its schedulers and learning rates stay as they are.
    """
    states, optimizers = checkpoint.get("lr_schedulers", []), checkpoint.get("optimizer_states", [])
    for number, scheduler, metric in _compat.coming_plateau_steps(trainer):
        which = next((i for i, optimizer in enumerate(trainer.optimizers) if optimizer is scheduler.optimizer), None)
        if which is None or not number < len(states) or not which < len(optimizers):
            continue
        groups = scheduler.optimizer.param_groups
        before, rates = copy.deepcopy(scheduler.state_dict()), [copy.deepcopy(group["lr"]) for group in groups]
        try:
            scheduler.step(metric)
            states[number] = copy.deepcopy(scheduler.state_dict())
            for saved, group in zip(optimizers[which].get("param_groups", []), groups, strict=False):
                saved["lr"] = copy.deepcopy(group["lr"])
        finally:
            scheduler.load_state_dict(before)
            for group, rate in zip(groups, rates, strict=True):
                if isinstance(group["lr"], Tensor) and isinstance(rate, Tensor):
                    group["lr"].copy_(rate)
                else:
                    group["lr"] = rate
