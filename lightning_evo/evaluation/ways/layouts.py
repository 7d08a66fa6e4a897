"""How the members of one forward lie in the tensors that the user's code sees."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from lightning_evo.evaluation.places import place_of, set_place
from lightning_evo.evaluation.ways import vmap

__all__ = ["Layout", "OneMember", "RowBlocks", "VmapLevel"]


class Layout(Protocol):
    """Takes members apart and puts them together, so that a rule holds its formula once, for ``[members, ...]``.

    Attributes:
        members: How many there are.
        shares_forward: Whether the members' weights are stacks; one member's weight must lie as the center's does.
    """

    members: int
    shares_forward: bool

    def split(self, tensor: Tensor) -> Tensor:
        """``[members, *shape]`` of a tensor that the user's code has; ``[1, *shape]`` if it is the same for all."""

    def join(self, values: Tensor) -> Tensor:
        """What the user's code gets for ``values [members, *shape]``."""

    def stack(self, tensor: Tensor) -> Tensor:
        """:meth:`split`, with each member's part, ``[members, *shape]``."""

    def flat(self, tensor: Tensor) -> Tensor:
        """``[members, rows, width]`` of ``[..., width]``; ``[1, rows, width]`` if it is the same for all."""

    def shaped(self, values: Tensor, like: Tensor) -> Tensor:
        """What the user's code gets for ``values [members, rows, width]``, made of :meth:`flat` of ``like``."""

    def outside(self) -> AbstractContextManager[object]:
        """A context for operations on what :meth:`split` gives."""


class OneMember:
    """A single member: the user's code sees its tensors."""

    members = 1
    shares_forward = False

    def split(self, tensor: Tensor) -> Tensor:
        """``[1, *shape]``."""
        return tensor[None]

    def join(self, values: Tensor) -> Tensor:
        """The member's."""
        return values[0]

    def stack(self, tensor: Tensor) -> Tensor:
        """``[1, *shape]``."""
        return tensor[None]

    def flat(self, tensor: Tensor) -> Tensor:
        """``[1, rows, width]``."""
        return tensor.reshape(1, -1, tensor.shape[-1])

    def shaped(self, values: Tensor, like: Tensor) -> Tensor:
        """The member's."""
        return values.view(*like.shape[:-1], values.shape[2])

    def outside(self) -> AbstractContextManager[object]:
        """No context is needed."""
        return nullcontext()


class RowBlocks:
    """Members are blocks of rows of one batch, which the user's code sees as a batch that is longer.

    A tensor alone says whether it holds all members (:mod:`~lightning_evo.evaluation.places`). Their weights can't
    be one tensor of a weight's shape.

    Args:
        members: How many there are.
    """

    shares_forward = True

    def __init__(self, members: int) -> None:
        self.members = members

    def split(self, tensor: Tensor) -> Tensor:
        """``[members, rows, ...]`` of ``[members * rows, ...]``; ``[1, *shape]`` if it is the same for all."""
        if place_of(tensor) != -tensor.dim():
            return tensor[None]
        return tensor.view(self.members, len(tensor) // self.members, *tensor.shape[1:])

    def join(self, values: Tensor) -> Tensor:
        """``[members * rows, ...]``."""
        rows = values.flatten(0, 1)
        set_place(rows, -rows.dim())
        return rows

    def flat(self, tensor: Tensor) -> Tensor:
        """``[members, rows, width]``; ``[1, rows, width]`` if it is the same for all."""
        members = self.members if place_of(tensor) == -tensor.dim() else 1
        rows = tensor.numel() // (members * tensor.shape[-1])
        return tensor.reshape(members, rows, tensor.shape[-1])

    def shaped(self, values: Tensor, like: Tensor) -> Tensor:
        """As :meth:`join`."""
        if place_of(like) != -like.dim():
            return self.join(values.view(self.members, *like.shape[:-1], values.shape[2]))
        rows = values.view(*like.shape[:-1], values.shape[2])
        set_place(rows, -rows.dim())
        return rows

    def stack(self, tensor: Tensor) -> Tensor:
        """:meth:`split`, expanded if it is the same for all."""
        values = self.split(tensor)
        return values.expand(self.members, *values.shape[1:])

    def outside(self) -> AbstractContextManager[object]:
        """No context is needed."""
        return nullcontext()


class VmapLevel:
    """Members are the batch dimension of a ``vmap``, which the user's code does not see.

    Args:
        level: Of the innermost ``vmap``.
        members: Its batch size.
    """

    shares_forward = True

    def __init__(self, level: int, members: int) -> None:
        self.level, self.members = level, members

    def split(self, tensor: Tensor) -> Tensor:
        """With the batch dimension in front; ``[1, *shape]`` if this ``vmap`` does not batch the tensor."""
        batched = vmap.batch_first(tensor, self.level)
        return tensor[None] if batched is None else batched

    def join(self, values: Tensor) -> Tensor:
        """Dimension 0 becomes the batch dimension."""
        return vmap.wrap(values, self.level)

    def flat(self, tensor: Tensor) -> Tensor:
        """``[members, rows, width]``; ``[1, rows, width]`` if this ``vmap`` does not batch the tensor."""
        inputs = self.split(tensor)
        with self.outside():
            return inputs.flatten(1, -2) if inputs.dim() > 2 else inputs[:, None]

    def shaped(self, values: Tensor, like: Tensor) -> Tensor:
        """Dimension 0 becomes the batch dimension."""
        with self.outside():
            values = values.view(len(values), *like.shape[:-1], values.shape[2])
        return vmap.wrap(values, self.level)

    def stack(self, tensor: Tensor) -> Tensor:
        """With the batch dimension in front, expanded if this ``vmap`` does not batch the tensor."""
        return self.split(tensor).expand(self.members, *tensor.shape)

    def outside(self) -> AbstractContextManager[object]:
        """Out of the ``vmap``."""
        return vmap.outside()
