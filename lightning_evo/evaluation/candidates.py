"""Which ways of evaluating can be tried for a model and its noise, best first: the rule of ``"auto"``.

* With low-rank noise members share their matrix products: ``batched``, if more than a pair of them fits; where that
  does not work and the fitness gives one value per sample, ``rows``.
* With dense noise a pair shares its noise: ``batched``, too, for models of up to 67 million evolving numbers, if a pair
  fits and there are no convolutions and recurrent layers, whose stacks of weights run no faster than one by one.
* In all other cases ``in_forward``; or ``plain`` if that is faster, as it can be for many small operations. For dense
  noise these two give the same bits, so only speed depends on which was faster.

Modules that are compiled or scripted hide their weights and are run by the plain loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.fitness import number_of
from lightning_evo.evaluation.job import Job, Way
from lightning_evo.evaluation.reasons import faster_plain
from lightning_evo.evaluation.ways.batched import Batched
from lightning_evo.evaluation.ways.in_forward import InForward
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.evaluation.ways.rows import Rows
from lightning_evo.evaluation.ways.together import free_memory
from lightning_evo.spaces.search_space import SearchSpace

__all__ = [
    "EvaluationName",
    "brings_nothing",
    "candidates",
    "hidden_modules",
    "is_slower",
    "repeats_noise",
    "ways_from",
]

EvaluationName = Literal["auto", "plain", "in_forward", "batched", "rows"]

_HUGE = 1 << 26  # evolving elements from which memory counts for more than a pair's shared noise
_REPEATS = 2.0  # times that a member's noise may be made
_LARGE = 1 << 24  # evolving elements from which copying all weights is slower, without measuring it


_WAYS: dict[str, Callable[[int | Literal["auto"]], Way]] = {  # best first: each may be replaced by those after it
    "batched": Batched,
    "rows": Rows,
    "in_forward": lambda _: InForward(),
    "plain": lambda _: Plain(),
}


def ways_from(name: str, size: int | Literal["auto"] = "auto") -> tuple[Way, ...]:
    """The way of a name, and those that can take its place; the last one is the plain loop, which always works.

    Args:
        name: Of the first one.
        size: Members per forward, if they run together.

    Example:
        >>> [way.name for way in ways_from("in_forward")]
        ['in_forward', 'plain']
    """
    names = list(_WAYS)
    return tuple(_WAYS[each](size) for each in names[names.index(name) :])


def candidates(
    name: EvaluationName,
    size: int | Literal["auto"],
    module: nn.Module,
    space: SearchSpace,
    population: Population,
    has_rows: bool,
) -> tuple[Way, ...]:
    """The ways to try, best first; the last one is the plain loop, which always works.

    Args:
        name: What the user asks for.
        size: Members per forward, if they run together.
        module: The user's module.
        space: Its evolving parameters.
        population: The members.
        has_rows: Whether there is a batch that can be repeated.
    """
    if space.is_sharded or hidden_modules(module):
        return ways_from("plain")
    if name == "auto":
        name = "batched" if size != "auto" or _profits_from_batching(module, space, population) else "in_forward"
    ways = ways_from(name, size)
    as_rows = name == "rows" or (has_rows and _is_low_rank(space, population))
    return ways if as_rows else tuple(way for way in ways if not way.as_rows)


def hidden_modules(module: nn.Module) -> list[str]:
    """The names of submodules whose weights only the plain loop reaches: they are compiled or scripted."""
    return [name or "the module" for name, part in module.named_modules() if _hides_its_weights(part)]


def brings_nothing(way: Way, space: SearchSpace, population: Population) -> bool:
    """Whether so few members fit into one forward that they may as well run one by one."""
    size = way.members_per_forward
    return size == 1 or (not way.as_rows and size == population.per_direction and _is_low_rank(space, population))


def repeats_noise(way: Way, noise_made: float, space: SearchSpace) -> str | None:
    """Why the plain loop is better: it makes a member's noise once, however often the weights are read. Else ``None``.

    Args:
        way: Another one.
        noise_made: Elements of noise that it made for a member.
        space: The evolving parameters.
    """
    times, needed = noise_made / max(1, space.numel), sum(parameter.local.nbytes for parameter in space)
    if times <= _REPEATS or 2 * needed > free_memory(space[0].tensor.device):  # for the plain loop's copy
        return None
    return (
        f"{way.name} would make each member's noise {round(times, 1):g} times, as its weights are read again and again"
    )


def is_slower(way: Way, job: Job) -> str | None:
    """Why the plain loop is better: it is faster, and gives the same bits (if not, a time would decide results).

    The check says whether calls do; the fitness may differ all the same, by a kernel that is not there for members.
    """
    if job.space.numel >= _LARGE:
        return None
    seconds: dict[Way, list[float]] = {way: [], Plain(): []}
    for member in range(min(3, len(job.population))):
        values = []
        for candidate, times in seconds.items():
            start = time.perf_counter()
            try:
                (value,) = candidate.run(replace(job, members=[member], rerun=None))
            except Exception:  # raised by the user's code: both ways are known to work
                return None
            values.append(number_of(value))  # waits for a GPU
            times.append(time.perf_counter() - start)
        if repr(values[0]) != repr(values[1]):
            return None
    other, plain = map(min, seconds.values())
    return faster_plain(way.name, other, plain) if other > plain else None


def _hides_its_weights(module: nn.Module) -> bool:
    compiled = getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
    compiled = compiled or getattr(module, "_compiler_ctx", None) is not None  # where Lightning unwraps it
    return compiled or isinstance(module, torch.jit.ScriptModule)


def _is_low_rank(space: SearchSpace, population: Population) -> bool:
    largest = max(space, key=lambda parameter: parameter.tensor.numel())
    return population.perturbation.factors([0], largest.index, largest.tensor.detach()) is not None


def _profits_from_batching(module: nn.Module, space: SearchSpace, population: Population) -> bool:
    if _is_low_rank(space, population):
        return True
    slow = (nn.modules.conv._ConvNd, nn.RNNBase)  # stacks of their weights run no faster than one after the other
    return space.numel <= _HUGE and not any(isinstance(part, slow) for part in module.modules())
