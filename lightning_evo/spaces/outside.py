"""Parameters that an optimizer holds and the module does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_evo.utils.messages import preview

__all__ = ["outside_parameters"]


def outside_parameters(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> str | None:
    """What to say of parameters that an optimizer holds and the module does not: they don't evolve.

    Frozen ones don't count: they would not learn by backpropagation either.

    Example:
        >>> model, other = nn.Linear(2, 1), nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
        >>> outside_parameters(model, [optimizer])[:62]
        'The optimizer holds 2 parameters (of shape [1, 3], [1]) that L'
        >>> outside_parameters(nn.ModuleList([model, other]), [optimizer]) is None
        True
    """
    own = {id(parameter) for parameter in module.parameters()}
    held = {
        id(parameter): parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    outside = [p for key, p in held.items() if key not in own and p.requires_grad]
    if not outside:
        return None
    shapes = preview([str(list(parameter.shape)) for parameter in outside], 5)
    return (
        f"The optimizer holds {len(outside)} parameter{'s' * (len(outside) > 1)} (of shape {shapes}) that "
        f"{type(module).__name__} does not: a layer in a list or dictionary, or in an object that is no nn.Module. "
        "They are not perturbed and don't learn. Register them, as by self.layers = nn.ModuleList([…]), or leave them "
        "out of the optimizer."
    )
