"""The norm of many tensors together, of which processes may hold shards."""

from __future__ import annotations

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
        # All groups from the start: each of a group's processes must join in its sum, also one that holds no elements.
        self._shards: dict[Any, tuple[list[Tensor], torch.device]] = {
            parameter.shard.group: ([], parameter.tensor.device) for parameter in space if parameter.shard is not None
        }

    def add(self, parameter: EvolvingParameter, norm: Tensor) -> None:
        """Count a piece of a parameter, whose norm ``[]`` is given."""
        norms = self._norms if parameter.shard is None else self._shards[parameter.shard.group][0]
        norms.append(norm)

    def total(self) -> Tensor:
        """The norm, float64 ``[]``, on the device of the first piece, for which nobody waits who does not read it.

        Where processes hold other shards, it is waited for those.
        """
        found = [_squares(self._norms)] if self._norms else []
        found += [global_sum(_squares(norms).to(device), group) for group, (norms, device) in self._shards.items()]
        squares = found[0] if found else _squares([])
        for more in found[1:]:
            squares = squares + more.to(squares.device)
        return squares.sqrt()


def _squares(norms: list[Tensor]) -> Tensor:
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([norm.to(norms[0].device) for norm in norms]).double().square().sum()
