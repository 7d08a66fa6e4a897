"""The norm of many tensors together, of which processes may hold shards."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.spaces.shards import global_sum

__all__ = ["Norms"]


class Norms:
    """The norm of all tensors together, from the norm of each piece.

    Args:
        space: Whose tensors they are.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._norms: list[Tensor] = []
        self._squares = 0.0
        # All groups from the start: each of a group's processes must join in its sum, also one that holds no elements.
        self._shards: dict[Any, tuple[list[Tensor], torch.device]] = {
            parameter.shard.group: ([], parameter.tensor.device) for parameter in space if parameter.shard is not None
        }

    def add(self, parameter: EvolvingParameter, norm: Tensor | float) -> None:
        """Count a piece of a parameter, whose norm is given."""
        if not isinstance(norm, Tensor):
            self._squares += norm * norm
        elif parameter.shard is None:
            self._norms.append(norm)
        else:
            self._shards[parameter.shard.group][0].append(norm)

    def total(self) -> float:
        """The norm. Only here an update waits for the device, and for the processes that hold other shards."""
        squares = _squares(self._norms) + self._squares
        for group, (norms, device) in self._shards.items():
            squares += global_sum(_squares(norms).to(device), group).cpu()
        return math.sqrt(float(squares))


def _squares(norms: list[Tensor]) -> Tensor:
    return torch.stack(norms).cpu().double().square().sum() if norms else torch.zeros((), dtype=torch.float64)
