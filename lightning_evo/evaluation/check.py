"""The first generation's proof that a fast evaluation gives what the plain loop gives.

A member is evaluated both ways, and the center too: the difference between the two ways must be small compared with
what the perturbation changed. The member is farther from the center than real ones, so that the change stands out from
rounding.

An exception counts against a way of evaluating only if the way raises it twice in a row and the plain loop, with
the same members and batch, does not: if not, the user's own code may raise it, always or sometimes, and it proves
nothing.
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

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.center import LARGEST_COPY, CenterMoved, NeedsWeights, Writes, kept
from lightning_evo.evaluation.fitness import number_of
from lightning_evo.evaluation.isolation import Isolation
from lightning_evo.evaluation.ways import plain, vmap
from lightning_evo.evaluation.ways.batched import Batched
from lightning_evo.evaluation.ways.in_forward import InForward
from lightning_evo.perturbations import noise_dtype
from lightning_evo.spaces.memory import extent
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.utils.messages import preview

__all__ = ["MembersFail", "NothingToCompare", "find_mismatch"]


_NOTHING = 1e-30  # a sigma that changes no weight


class NothingToCompare(Exception):
    """The fitness is not a number, or the same for the center and a member: this batch can't show a difference."""


class MembersFail(NothingToCompare):
    """The user's own code raises exceptions, by the plain loop, too; the cause is one of them."""


def find_mismatch(
    evaluation: InForward | Batched,
    space: SearchSpace,
    population: Population,
    fitness: Callable[[], Any],
    isolation: Isolation,
) -> str | None:
    """Why a fast evaluation can't be trusted with this module.

    Args:
        evaluation: The way to try.
        space: The evolving parameters.
        population: The members.
        fitness: Runs the user's code.
        isolation: Entered by the caller.

    Returns:
        The reason, naming parameters; ``None`` if it can be trusted.

    Raises:
        NothingToCompare: If the batch can't show a difference.
        MembersFail: If the batch can't show one because the user's own code raises.
        NeedsWeights: If the members' code writes to the weights. The center is put back.
        CenterMoved: If it writes to a parameter of which there is no copy, because the model is too large for one.
        Exception: What only this way raises, twice.
    """
    trial = _Trial(evaluation, space, population, fitness, isolation)
    aliases = _Aliases(space)
    trial.by_way(space, population, aliases.watch)
    if aliases.found:
        return f"{_names(aliases.found)} is read through another tensor that shares its memory"
    unseen = _representatives(space.subset(p for p in space if p.index not in evaluation.seen))
    space = _representatives(space.subset(p for p in space if p.index in evaluation.seen) or space)
    eps = max(torch.finfo(dtype).eps for dtype in {p.tensor.dtype for p in space} | aliases.autocast)
    center = trial.center()
    # Rounding to 16 bits would hide that the center itself is evaluated differently.
    unmoved = center if eps > 1e-4 else trial.by_way(space, replace(population, sigma=_NOTHING))

    def compare(population: Population) -> str | None:
        changed = trial.by_plain_loop(space, population)
        if not math.isfinite(changed - center) or changed == center:
            raise NothingToCompare

        def agrees(some: SearchSpace) -> bool:
            reference = changed if some is space else trial.by_plain_loop(some, population)
            found = trial.by_way(some, population)
            if not math.isfinite(reference) or not math.isfinite(found):
                return repr(reference) == repr(found)
            size = max(abs(reference), abs(center))
            # Losses of 16-bit models are computed in float32, so they are rounded far less than the weights are.
            allowed = 0.01 * abs(reference - center) + 16 * eps * size
            if eps > 1e-4:
                allowed = 0.25 * abs(reference - center) + eps / 8 * size
            return abs(found - reference) <= allowed

        if abs(unmoved - center) > 1e-4 * abs(changed - center) + 16 * eps * abs(center):
            return "the center's fitness differs: are its random numbers (dropout) different?"
        if unseen and repr(trial.by_plain_loop(unseen, population)) != repr(center):
            return f"{_names(list(unseen))} is read where no call of a PyTorch function from Python shows it"
        if agrees(space):
            return None
        return f"its fitness differs from the plain loop's where {_names(_culprits(space, agrees))} is perturbed"

    # Far enough away for the change to stand out from rounding; or, if that is too far, as far as real members.
    nothing = NothingToCompare()
    for sigma in (max(population.sigma, 0.3 * _root_mean_square(space)), 0.3, population.sigma):
        try:
            return compare(replace(population, sigma=sigma))
        except NothingToCompare as error:
            nothing = error
    raise nothing


class _Trial:
    """Members, and the center, evaluated in both ways; the first of a pair counts. It leaves the center as it was."""

    def __init__(
        self,
        evaluation: InForward | Batched,
        space: SearchSpace,
        population: Population,
        fitness: Callable[[], Any],
        isolation: Isolation,
    ) -> None:
        self._evaluation, self._isolation = evaluation, isolation
        self._first = list(range(population.per_direction))
        self._copied = _representatives(space)
        self._space, self._fitness = space, fitness

    def by_way(
        self,
        space: SearchSpace,
        population: Population,
        watch: Callable[[Callable[[], Any]], Callable[[], Any]] = lambda fitness: fitness,
    ) -> float:
        def evaluate() -> Any:
            return self._evaluation(space, population, watch(self._fitness), self._isolation, self._first)[0]

        def run() -> Any:
            with kept(self._copied):
                return self._watched(evaluate)()

        try:
            return number_of(_twice(run))
        except (NeedsWeights, CenterMoved):
            raise
        except Exception:
            self._plain(_representatives(space), population, self._first)  # raises what the user's own code raises
            raise

    def by_plain_loop(self, space: SearchSpace, population: Population) -> float:
        return number_of(self._plain(space, population, self._first[:1]))

    def center(self) -> float:
        def run() -> Any:
            self._isolation.start_member()
            with kept(self._copied), torch.no_grad():
                return self._watched(self._fitness)()

        return number_of(_own(run))

    def _plain(self, space: SearchSpace, population: Population, members: list[int]) -> Any:
        perturbed = {parameter.index for parameter in space}  # which the loop itself puts back
        rest = self._copied.subset(parameter for parameter in self._copied if parameter.index not in perturbed)

        def run() -> Any:
            with kept(rest):
                return plain.evaluate(space, population, self._watched(self._fitness), self._isolation, members)[0]

        return _own(run)

    def _watched(self, evaluate: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            writes = Writes(self._space, self._copied)
            try:
                return evaluate()
            finally:
                writes.check()

        return run


def _twice(run: Callable[[], Any]) -> Any:
    """What ``run`` gives at its first or second try; what it raises at the second one.

    Raises:
        NeedsWeights: At the first try, since it would be raised again; also CenterMoved.
    """
    try:
        return run()
    except (NeedsWeights, CenterMoved):
        raise
    except Exception:
        pass
    return run()


def _own(run: Callable[[], Any]) -> Any:
    """Run the user's code as it is; what it raises twice is its own fault."""
    try:
        return _twice(run)
    except (NeedsWeights, CenterMoved):
        raise
    except Exception as error:
        raise MembersFail from error


def _representatives(space: SearchSpace) -> SearchSpace:
    """Of a large model one parameter of each name and shape; layers that differ in number only share their code.

    The plain loop keeps a copy of what it perturbs, and there may be no memory for one of all weights.
    """
    if space.numel <= LARGEST_COPY:
        return space
    kinds = {(re.sub(r"\d+", "#", p.name), p.tensor.shape): p for p in reversed(space)}
    return space.subset(p for p in space if kinds[re.sub(r"\d+", "#", p.name), p.tensor.shape] is p)


class _Aliases(TorchFunctionMode):
    """Notes which parameters are read through tensors that are not parameters: views made before the forward.

    Attributes:
        autocast: The dtypes that an autocast inside the fitness computed in.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._known = space.by_identity()
        self._memory = [(parameter, *extent(parameter.tensor)) for parameter in space if parameter.tensor.numel()]
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
                start, stop = extent(argument)
                for parameter, first, last in self._memory:
                    if start < last and first < stop:
                        self._read[parameter.index] = parameter
        return function(*args, **kwargs)


def _has_memory(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and not tensor.is_meta and not torch.nn.parameter.is_lazy(tensor)
    return strided and not vmap.is_wrapped(tensor) and tensor.numel() > 0


def _culprits(space: SearchSpace, agrees: Callable[[SearchSpace], bool]) -> list[EvolvingParameter]:
    """The parameters to blame, by halving; all of them if neither half explains it on its own."""
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
    return math.hypot(*norms) / math.sqrt(max(1, space.numel))
