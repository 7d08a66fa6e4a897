"""The first generation's proof that a fast evaluation gives what the plain loop gives.

A member is evaluated both ways, and the center too: what the two ways differ by must be small beside what the
perturbation changed. The member is farther from the center than real ones, so that the change stands out from rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_evo._messages import preview
from lightning_evo.algorithms import Population
from lightning_evo.evaluation import _functorch, plain
from lightning_evo.evaluation.batched import Batched
from lightning_evo.evaluation.in_forward import InForward
from lightning_evo.evaluation.isolation import Isolation
from lightning_evo.fitness import as_fitness
from lightning_evo.perturbations._base import noise_dtype
from lightning_evo.search_space import EvolvingParameter, SearchSpace

__all__ = ["NothingToCompare", "find_mismatch"]


_LARGE = 1 << 26  # evolving elements above which only one of many like layers is compared


class NothingToCompare(Exception):
    """The fitness is not a number, or the same for the center and a member: this batch can't tell right from wrong."""


def find_mismatch(
    evaluation: InForward | Batched,
    space: SearchSpace,
    population: Population,
    fitness: Callable[[], Any],
    isolation: Isolation,
) -> str | None:
    """Why a fast evaluation can't be trusted with this module.

    Args:
        evaluation: It has run without an error.
        space: The evolving parameters.
        population: The members.
        fitness: Runs the user's code.
        isolation: Entered by the caller.

    Returns:
        The reason, naming parameters; ``None`` if it can be trusted.

    Raises:
        NothingToCompare: If the batch can't tell.
    """
    first = list(range(population.per_direction))
    aliases = _Aliases(space)
    evaluation(space, population, aliases.watch(fitness), isolation, first)
    if aliases.found:
        return f"{_names(aliases.found)} is read through another tensor that shares its memory"
    unseen = _representatives(space.subset(p for p in space if p.index not in evaluation.seen))
    space = _representatives(space.subset(p for p in space if p.index in evaluation.seen) or space)
    eps = max(torch.finfo(dtype).eps for dtype in {p.tensor.dtype for p in space} | aliases.autocast)
    isolation.start_member()
    with torch.no_grad():
        center = _number(fitness())

    def by_plain_loop(some: SearchSpace) -> float:
        return _number(plain.evaluate(some, population, fitness, isolation, first[:1])[0])

    # Far enough away for the change to stand out from rounding; or, if that is too far, as far as real members.
    for sigma in (max(population.sigma, 0.3 * _root_mean_square(space)), 0.3, population.sigma):
        population = replace(population, sigma=sigma)
        changed = by_plain_loop(space)
        if math.isfinite(changed - center) and changed != center:
            break
    else:
        raise NothingToCompare

    def agrees(some: SearchSpace) -> bool:
        reference, found = by_plain_loop(some), _number(evaluation(some, population, fitness, isolation, first)[0])
        if not math.isfinite(reference) or not math.isfinite(found):
            return repr(reference) == repr(found)
        size = max(abs(reference), abs(center))
        # Losses of 16-bit models are computed in float32, so they are rounded far less than the weights are.
        allowed = 0.01 * abs(reference - center) + 16 * eps * size
        if eps > 1e-4:
            allowed = 0.25 * abs(reference - center) + eps / 8 * size
        return abs(found - reference) <= allowed

    if unseen and repr(by_plain_loop(unseen)) != repr(center):
        return f"{_names(list(unseen))} is read where no call of a PyTorch function from Python shows it"
    if agrees(space):
        return None
    return f"its fitness differs from the plain loop's where {_names(_culprits(space, agrees))} is perturbed"


def _representatives(space: SearchSpace) -> SearchSpace:
    """Of a large model one parameter of each name and shape, whatever the layers' numbers: they share their code.

    The plain loop keeps a copy of what it perturbs, and there may be no memory for one of all weights.
    """
    if space.numel <= _LARGE:
        return space
    kinds = {(re.sub(r"\d+", "#", p.name), p.tensor.shape): p for p in reversed(space)}
    return space.subset(p for p in space if kinds[re.sub(r"\d+", "#", p.name), p.tensor.shape] is p)


class _Aliases(TorchFunctionMode):
    """Notes whose memory is read through tensors that are no parameters: views that were made before the forward.

    Attributes:
        autocast: The dtypes that an autocast inside the fitness computed in.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._known = space.by_identity()
        self._memory = [(parameter, *_extent(parameter.tensor)) for parameter in space if parameter.tensor.numel()]
        self._read: dict[int, EvolvingParameter] = {}
        self._device = space[0].tensor.device.type
        self.autocast: set[torch.dtype] = set()

    @property
    def found(self) -> list[EvolvingParameter]:
        return list(self._read.values())

    def watch(self, fitness: Callable[[], Any]) -> Callable[[], Any]:
        def watched() -> Any:
            with self:
                return fitness()

        return watched

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled(self._device):
            self.autocast.add(torch.get_autocast_dtype(self._device))
        for argument in tree_leaves((args, kwargs)):
            if isinstance(argument, Tensor) and id(argument) not in self._known and _has_memory(argument):
                start, stop = _extent(argument)
                for parameter, first, last in self._memory:
                    if start < last and first < stop:
                        self._read[parameter.index] = parameter
        return function(*args, **kwargs)


def _has_memory(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and not tensor.is_meta and not torch.nn.parameter.is_lazy(tensor)
    return strided and not _functorch.is_wrapped(tensor) and tensor.numel() > 0


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First and last address of a tensor's memory."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size()


def _culprits(space: SearchSpace, agrees: Callable[[SearchSpace], bool]) -> list[EvolvingParameter]:
    """The parameters to blame, by halving; all of them if no half is to blame alone."""
    suspects = list(space)
    while len(suspects) > 1:
        half = len(suspects) // 2
        for part in (suspects[:half], suspects[half:]):
            if not agrees(space.subset(part)):
                suspects = part
                break
        else:
            break
    return suspects


def _names(parameters: list[EvolvingParameter]) -> str:
    return preview([parameter.name for parameter in parameters])


def _root_mean_square(space: SearchSpace) -> float:
    norms = [float(torch.linalg.vector_norm(p.tensor.detach(), dtype=noise_dtype(p.tensor))) for p in space]
    return math.hypot(*norms) / math.sqrt(space.numel)


def _number(value: Any) -> float:
    return math.nan if value is None else float(as_fitness(value, source="fitness"))
