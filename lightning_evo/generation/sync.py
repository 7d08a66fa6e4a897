"""Which process makes the noise of an update, where several hold the same weights.

An update is a sum over D directions, of d elements each. Two ways of making it with R processes, each of which makes
r elements of noise a second, connected at b bytes a second:

=================  =====================================  ==========================  ===========================
``update_sync``    what a process does                    seconds                     bytes received by a process
=================  =====================================  ==========================  ===========================
``"replicated"``   all directions of all elements         D d / r                     0
``"sharded"``      all directions of its share of the     D d / (R r) + 4 d / b       4 d (R - 1) / R
                   elements; then all gather the sums
=================  =====================================  ==========================  ===========================

Both give the same bits. They differ only in how noise is summed, so the second is a perturbation that wraps the one
that makes it; what uses the sum (clipping, rounding, gradients) is the same for both. (To divide the directions
instead, and add the sums up, would take twice the bytes, and round differently.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_evo.algorithms import Term
from lightning_evo.generation.update import AlongDirections
from lightning_evo.perturbations import Perturbation
from lightning_evo.processes.ranks import Ranks

__all__ = ["CostModel", "UpdateSync", "choose", "measure", "synchronized"]

UpdateSync = Literal["auto", "replicated", "sharded"]

_WORTHWHILE = 1 << 16  # elements below which a message takes longer than the noise
_MARGIN = 1.5  # of messages: many small ones cost more than the formula knows
_PROBE = 1 << 20  # elements that a measurement makes and sends


@dataclass(frozen=True)
class CostModel:
    """The table at the head of this file.

    Attributes:
        noise: Elements of noise, summed, that a process makes in a second.
        bandwidth: Bytes that a process receives in a second.

    Example:
        >>> model = CostModel(noise=1e9, bandwidth=1e9)
        >>> model.choose(directions=2, elements=10**9, ranks=2)  # 2 s against 1 s + 4 s
        'replicated'
        >>> model.choose(directions=64, elements=10**9, ranks=8)
        'sharded'
    """

    noise: float
    bandwidth: float

    def seconds(self, name: UpdateSync, directions: int, elements: int, ranks: int) -> float:
        """The time of one update."""
        work = directions * elements / self.noise
        return work if name == "replicated" else work / ranks + 4 * elements * (ranks - 1) / ranks / self.bandwidth

    def choose(self, directions: int, elements: int, ranks: int) -> Literal["replicated", "sharded"]:
        """The faster of the two; ``"sharded"`` only if it is clearly faster."""
        replicated, sharded = (self.seconds(name, directions, elements, ranks) for name in ("replicated", "sharded"))
        return "sharded" if sharded * _MARGIN < replicated else "replicated"


def choose(update: AlongDirections, ranks: Ranks) -> tuple[Literal["replicated", "sharded"], str]:
    """What ``"auto"`` takes, and why, in one line. All processes must call it."""
    elements = sum(parameter.tensor.numel() for parameter in update.space)
    directions = sum(len(weights) for _, weights in update.lesson.terms)
    if max(parameter.tensor.numel() for parameter in update.space) < _WORTHWHILE:
        return "replicated", f"update_sync: replicated, as no tensor has {_WORTHWHILE:,} elements."
    model = measure(update, ranks)
    name = model.choose(directions, elements, ranks.world_size)
    return name, (
        f"update_sync: {name}, for {directions} directions of {elements:,} elements on {ranks.world_size} processes, "
        f"each of which makes {model.noise:.2g} elements of noise and receives {model.bandwidth:.2g} bytes in a second."
    )


def measure(update: AlongDirections, ranks: Ranks) -> CostModel:
    """The constants of this run: the mean over the processes of a short measurement. All of them must call it."""
    perturbation, largest = update.lesson.terms[0].perturbation, max(update.space, key=lambda p: p.tensor.numel())
    center, elements = largest.tensor.detach(), min(_PROBE, largest.tensor.numel())
    directions = min(4, update.population.directions)
    device = center.device

    def seconds(function: Callable[[], object]) -> float:
        function()  # warm-up
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        return time.perf_counter() - start

    weights = [1.0] * directions
    noise = seconds(lambda: perturbation.weighted_sum(weights, largest.index, center, 0, elements))
    values = torch.zeros(max(1, _PROBE // ranks.world_size), device=device)
    traffic = seconds(lambda: ranks.gather_from_all(values))
    measured = torch.tensor([noise, traffic], dtype=torch.float64)
    noise, traffic = torch.stack(ranks.gather_from_all(measured)).mean(0).tolist()
    received = 4 * len(values) * (ranks.world_size - 1)
    return CostModel(noise=directions * elements / max(noise, 1e-9), bandwidth=received / max(traffic, 1e-9))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synchronized(update: AlongDirections, name: UpdateSync, ranks: Ranks) -> AlongDirections:
    """The same update, with its noise made by all processes together. All of them must then apply it in the same way.

    Args:
        update: The update of one generation.
        name: ``"replicated"`` or ``"sharded"``.
        ranks: The processes, which hold the same weights.
    """
    if name == "replicated" or ranks.world_size == 1:
        return update
    terms = tuple(Term(_Sharded(perturbation, ranks), weights) for perturbation, weights in update.lesson.terms)
    return replace(update, lesson=replace(update.lesson, terms=terms))


class _Sharded(Perturbation):
    """A perturbation whose sums are made by all processes: each sums its share of the elements, and all gather."""

    def __init__(self, inner: Perturbation, ranks: Ranks) -> None:
        self._inner, self._ranks = inner, ranks

    def noise_of_range(
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        return self._inner.noise_of_range(directions, parameter, center, start, stop)

    def weighted_sum(
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        stop = center.numel() if stop is None else stop
        if stop - start < _WORTHWHILE:
            return self._inner.weighted_sum(weights, parameter, center, start, stop)
        each = -(-(stop - start) // self._ranks.world_size)
        first = min(stop, start + self._ranks.rank * each)
        own = self._inner.weighted_sum(weights, parameter, center, first, min(stop, first + each))
        padded = own.new_zeros(each)
        padded[: len(own)] = own
        return torch.cat(self._ranks.gather_from_all(padded))[: stop - start]
