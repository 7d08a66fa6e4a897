"""Many members in one forward: ``torch.func.vmap`` over the unchanged code.

With low-rank noise all members share every large matrix product. With dense noise a layer's weights are a stack, and
the two members of a pair share the noise in it. Random numbers, for example those of dropout, are the same for all
members, as in the plain loop. What ``vmap`` can't do (data-dependent control flow, ``.item()``, writes of members into
shared tensors) raises, and the caller falls back to another evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_evo.evaluation.job import Job
from lightning_evo.evaluation.ways import vmap
from lightning_evo.evaluation.ways.layouts import VmapLevel
from lightning_evo.evaluation.ways.perturbed import Perturbed
from lightning_evo.evaluation.ways.rules import HUGE, SMALL
from lightning_evo.evaluation.ways.together import Together, free_memory
from lightning_evo.spaces.memory import Scratch
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.utils.tensors import uploaded

__all__ = ["Batched"]

_LARGEST = 1 << 26  # bytes of the largest tensor of one forward on a CPU: larger ones come from the system page by page
_ENOUGH = 128  # members in one forward on a CPU: more would save nothing, and exceed its cache
_STACKED = 1 << 25  # bytes of all members' weights of one layer on a CPU
_LIVE = 4  # tensors of the largest size that one member's forward holds at a time, as a rule of thumb


class Batched(Together):
    """Evaluates members in groups, one ``vmap`` for each."""

    name = "batched"
    as_rows = False

    def __init__(self, members_per_forward: int | Literal["auto"] = "auto") -> None:
        super().__init__(members_per_forward)
        self._scratch = Scratch()
        self._repeated: set[int] = set()

    def _forward(self, job: Job, members: list[int]) -> list[Any]:
        fitness, declined = job.together(len(members)), False
        modes: list[Perturbed] = []

        def run(number: Tensor) -> Tensor:
            nonlocal declined
            layout = VmapLevel(vmap.level_of(number), len(members))
            with Perturbed(
                job.space, job.population, members, layout, scratch=self._scratch, repeated=self._repeated
            ) as perturbed:
                modes.append(perturbed)
                value = fitness()
            declined = value is None
            return torch.zeros_like(number) if value is None else value

        torch.clear_autocast_cache()  # so that an enclosing autocast does not reuse what it cast before
        job.isolation.start_member()
        numbers = uploaded(members, torch.float32, job.space[0].tensor.device)
        try:
            with vmap.without_fallback_warnings():
                fitnesses = torch.func.vmap(run, randomness="same")(numbers)
        finally:
            torch.clear_autocast_cache()
        self.noise_made = modes[0].noise_made / len(members)
        if self.members_per_forward == "auto":
            self.room = _room(job.space, modes[0])
        return [None] * len(members) if declined else list(fitnesses.unbind())


def _room(space: SearchSpace, first: Perturbed) -> int:
    """Members that there is room for in one forward, by what the first ones needed."""
    center = space[0].tensor
    wide = max(4, center.element_size())
    needed = (first.largest * _LIVE + sum(_noise_size(space, first))) * wide
    fitting: int = free_memory(center.device) // 2 // max(1, needed)
    if center.device.type == "cpu":
        dense = [parameter.tensor for parameter in space if first.factors(parameter) is None]
        stacked = max((min(tensor.numel(), HUGE) * tensor.element_size() for tensor in dense), default=1)
        fitting = min(fitting, _ENOUGH, _LARGEST // max(1, first.largest * wide), _STACKED // max(1, stacked))
    return fitting


def _noise_size(space: SearchSpace, first: Perturbed) -> Iterable[int]:
    """Elements of one member's noise, of each tensor; large matrices are made one at a time."""
    large = 0
    for parameter in space:
        factors, size = first.factors(parameter), parameter.tensor.numel()
        if factors is not None:
            yield sum(factor[0].numel() for factor in factors)
        elif size <= SMALL:
            yield size
        else:
            large = max(large, min(size, HUGE))
    yield large
