"""Which modules and optimizers can't evolve, and which of their parts have no effect."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_evo.algorithms import UpdateName
from lightning_evo.generation.evolution import Evolution
from lightning_evo.generation.step import maximizes
from lightning_evo.spaces.outside import outside_parameters
from lightning_evo.strategies import _compat
from lightning_evo.strategies._gradient_hooks import hooks_without_gradients
from lightning_evo.utils.messages import preview

__all__ = ["check_module", "unused_options"]


def check_module(module: Any, optimizers: Sequence[Any], evolution: Evolution, update: UpdateName) -> None:
    """Refuse what can't work, and say what has no effect.

    Args:
        module: A LightningModule, optimized automatically.
        optimizers: What its ``configure_optimizers`` returned.
        evolution: What would evolve it.
        update: Who moves the weights.

    Raises:
        ValueError: If it can't be trained by evolution; the message says what to change.
    """
    base = _compat.lightning_module_class(module)
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ValueError(
            "training_step(dataloader_iter) can't evolve: every member would take another batch. Take `batch` instead."
        )
    if type(module).backward is not base.backward:
        rank_zero_warn(f"{type(module).__name__}.backward is not called: evolution has no backward pass.")
    if any(isinstance(optimizer, torch.optim.SparseAdam) for optimizer in optimizers):
        raise ValueError("SparseAdam takes sparse gradients only, and the estimate is dense. Use Adam.")
    complex_names = [name for name, p in module.named_parameters() if p.is_complex() and p.requires_grad]
    if complex_names:
        rank_zero_warn(f"Complex parameters don't evolve and stay as they are: {preview(complex_names)}.")
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise ValueError(
            "LBFGS calls its closure several times and needs exact gradients, so it can't step on a population's "
            "estimate. Use SGD, Adam or any other first-order optimizer."
        )
    has_optimizer = any(group["params"] for optimizer in optimizers for group in optimizer.param_groups)
    if not has_optimizer and update == "optimizer":
        raise ValueError(
            "update='optimizer' needs an optimizer, but `configure_optimizers` returned none. Return one, or use "
            "update='in_place' with learning_rate=…"
        )
    if has_optimizer and evolution.learning_rate_was_given:
        raise ValueError(
            "learning_rate was given to the strategy, but `configure_optimizers` returns an optimizer, whose "
            "learning rate counts. Set it there, or return None and use update='in_place'."
        )
    if has_optimizer:
        outside = outside_parameters(module, optimizers)
        if outside:
            rank_zero_warn(outside)
    if update == "in_place":
        hooks = hooks_without_gradients(module)
        if hooks:
            rank_zero_warn(hooks)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if evolution.algorithm.owns_center and any(group.get("maximize") for group in groups) and not maximizes(optimizers):
        raise ValueError(
            f"Some parameter groups have maximize=True and others not, and {evolution.algorithm.name!r} moves all "
            "weights to where the fitness is best. Use an algorithm that estimates a gradient, such as 'openai_es'."
        )
    if evolution.algorithm.owns_center and module.trainer.gradient_clip_val:
        raise ValueError(
            f"gradient_clip_val has no effect on {evolution.algorithm.name!r}, which has no gradient: it says where "
            "the weights go. Leave it out."
        )


def unused_options(optimizers: Sequence[Any], evolution: Evolution) -> str | None:
    """What to say of an optimizer of which ``update="in_place"`` does not use everything."""
    optimizer = next((o for o in optimizers if any(group["params"] for group in o.param_groups)), None)
    if optimizer is None:
        return None
    name = type(optimizer).__name__
    if evolution.algorithm.owns_center:
        return f"update='in_place': of {name} nothing is used; {evolution.algorithm.name} says where the weights go."
    if not isinstance(optimizer, torch.optim.SGD):
        unused = "momentum and adaptivity"
    elif any(group["momentum"] for group in optimizer.param_groups):
        unused = "momentum"
    else:
        return None
    return (
        f"update='in_place': of {name} the learning rate and its schedule, weight_decay and maximize are used, not its "
        f"{unused}."
    )
