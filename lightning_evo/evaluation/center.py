"""The center stays as it is, bit for bit, whatever members' code writes into its weights.

A forward may write: it clips a weight, normalises it in place, or looks an embedding up with ``max_norm``. The plain
loop lets it, since members are in the weights and the center comes back from a copy. The other ways leave the center in
the weights and make members in other memory, where such a write is lost, or hits the center. So a model that writes is
run by the plain loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_evo.evaluation.job import Refusal
from lightning_evo.isolation.contents import version_of
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.utils.messages import preview

__all__ = ["Center", "CenterMoved", "NeedsWeights", "Writes", "kept"]


class NeedsWeights(Refusal):
    """A member's code does what works only on the weights themselves: only the plain loop can run it."""


class CenterMoved(RuntimeError):
    """A member's code wrote to the center, and there is no copy of it."""


class Center:
    """A copy of the center.

    Args:
        space: The evolving parameters.

    Attributes:
        values: What each of them holds, of the shape of ``EvolvingParameter.local``.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> center = Center(SearchSpace(model))
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> [parameter.name for parameter in center.changed()]
        ['weight']
        >>> center.restore()
        >>> center.changed()
        []
    """

    def __init__(self, space: SearchSpace) -> None:
        self._parameters = list(space)
        self._memory = [parameter.tensor.data if parameter.shard is None else None for parameter in space]
        self.values = [parameter.local.clone() for parameter in space]

    def take_memory_back(self) -> None:
        """Have all parameters lie where they were: ``weight.data = …`` gives one other memory."""
        for parameter, memory in zip(self._parameters, self._memory, strict=True):
            if memory is not None and parameter.tensor.data_ptr() != memory.data_ptr():
                parameter.tensor.data = memory

    @torch.no_grad()
    def restore(self) -> None:
        """Put the center back, bit for bit."""
        self.take_memory_back()
        for parameter, value in zip(self._parameters, self.values, strict=True):
            parameter.local.copy_(value)

    @torch.no_grad()
    def changed(self) -> list[EvolvingParameter]:
        """The parameters that hold other numbers now."""
        pairs = zip(self._parameters, self.values, strict=True)
        return [p for p, v in pairs if bool(((p.local != v) & ~(p.local.isnan() & v.isnan())).any())]


@contextmanager
def kept(space: SearchSpace) -> Iterator[None]:
    """The center is put back afterwards.

    Raises:
        NeedsWeights: If it was changed.
    """
    center = Center(space)
    try:
        yield
        changed = center.changed()
    finally:
        center.restore()
    if changed:
        raise NeedsWeights(_written(changed))


class Writes:
    """Finds writes to the weights. Tensors count them, and that costs next to nothing to look up.

    Writes through ``weight.data`` and by NumPy are not counted; :func:`kept` finds them.

    Args:
        space: The evolving parameters.
        copied: Those that the caller puts back afterwards; none by default.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> space = SearchSpace(model)
        >>> writes = Writes(space, copied=space)
        >>> _ = torch.nn.init.zeros_(model.bias)
        >>> writes.check()
        Traceback (most recent call last):
        ...
        lightning_evo.evaluation.center.NeedsWeights: bias is written to by the members' code
    """

    def __init__(self, space: SearchSpace, copied: SearchSpace | None = None) -> None:
        self._space = space
        self._copied = {parameter.index for parameter in copied or ()}
        self.start()

    def start(self) -> None:
        """Count from here on."""
        self._before = self._counts()

    def check(self) -> None:
        """Look for writes.

        Raises:
            NeedsWeights: If there was one. The message names the parameters.
            CenterMoved: If there was one to a parameter of which there is no copy.
        """
        counts = zip(self._space, self._before, self._counts(), strict=True)
        written = [parameter for parameter, before, now in counts if before != now]
        if any(parameter.index not in self._copied for parameter in written):
            raise CenterMoved(
                f"{_written(written)}, which moved the center: it did not do so in the first generation's check, or "
                "the model is too large for a copy. Use evaluation='plain', which lets members write to weights."
            )
        if written:
            raise NeedsWeights(_written(written))

    def _counts(self) -> list[tuple[int | None, int]]:
        """How often each parameter was written to, and where it lies."""
        return [(version_of(p.tensor), 0 if p.shard is not None else p.tensor.data_ptr()) for p in self._space]


def _written(parameters: list[EvolvingParameter]) -> str:
    return f"{preview([parameter.name for parameter in parameters])} is written to by the members' code"
