"""Which evaluation is used: chosen by the model and its noise, proven against the plain loop, replaced where it fails.

The rule of ``"auto"``:

* With low-rank noise members share their matrix products: ``batched``, if more than a pair of them fits.
* With dense noise a pair shares its noise: ``batched``, too, for models of up to 67 million evolving numbers, if a pair
  fits and there are no convolutions and recurrent layers, whose stacks of weights run no faster than one by one.
* Else ``in_forward``; or ``plain``, should that be faster, as it can be for many small operations. For
  dense noise these two give the same bits, so nothing but speed depends on what was faster.

Modules that are compiled or scripted hide their weights and are run by the plain loop.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from lightning_evo._messages import did_you_mean
from lightning_evo.algorithms import Population
from lightning_evo.evaluation import plain
from lightning_evo.evaluation.batched import Batched
from lightning_evo.evaluation.check import NothingToCompare, find_mismatch
from lightning_evo.evaluation.faults import Failure, Pace, check_timeout, guarded, time_limit
from lightning_evo.evaluation.heap import keep_freed_memory
from lightning_evo.evaluation.in_forward import InForward
from lightning_evo.evaluation.isolation import Isolation
from lightning_evo.fitness import as_fitness
from lightning_evo.search_space import SearchSpace

__all__ = ["Evaluation", "EvaluationName"]

EvaluationName = Literal["auto", "plain", "in_forward", "batched"]

_HUGE = 1 << 26  # evolving elements from which memory counts for more than a pair's shared noise
_LARGE = 1 << 24  # evolving elements from which nobody need measure that copying all weights is slower


class Evaluation:
    """Runs a population through the user's code in the best way that gives what the plain loop gives.

    Args:
        name: ``"auto"``, or the way to use as long as it works.
        members_per_forward: For ``"batched"``: members that run at once, or ``"auto"``.
        member_timeout: Seconds after which a member has failed; those of one forward have as many times longer.

    Raises:
        ValueError: If the name is unknown, or ``members_per_forward`` is neither ``"auto"`` nor a whole number >= 1, or
            is given without being used, or ``member_timeout`` is not positive.
    """

    def __init__(
        self,
        name: EvaluationName = "auto",
        members_per_forward: int | Literal["auto"] | None = None,
        member_timeout: float | None = None,
    ) -> None:
        if name not in get_args(EvaluationName):
            raise ValueError(
                f"Unknown evaluation {name!r}.{did_you_mean(str(name), get_args(EvaluationName))} "
                f"Choose one of {', '.join(get_args(EvaluationName))}."
            )
        size: object = members_per_forward
        if size is not None and size != "auto" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"members_per_forward must be 'auto' or a whole number >= 1, got {size!r}.")
        if size is not None and name in ("plain", "in_forward"):
            raise ValueError(f"members_per_forward has no effect with evaluation={name!r}, which runs one at a time.")
        check_timeout(member_timeout)
        self.name = name
        self.member_timeout = member_timeout
        self.pace: Pace | None = None
        """Lets members be left out, where processes share the population; a strategy sets it."""
        self.summary = ""
        """The choice and its reasons in one line; empty before the first generation."""
        self._size: int | Literal["auto"] = "auto" if members_per_forward is None else members_per_forward
        self._ways: list[InForward | Batched | None] | None = None  # best first; None is the plain loop
        self._proven = False
        self._hidden: list[str] = []  # modules that nothing but the plain loop can run
        self._evolving: list[int] = []

    def __call__(
        self,
        module: nn.Module,
        space: SearchSpace,
        population: Population,
        fitness: Callable[[], Any],
        isolation: Isolation,
        members: Sequence[int] | None = None,
    ) -> list[Any]:
        """The fitness of members.

        Args:
            module: The user's module.
            space: Its evolving parameters.
            population: All members.
            fitness: Runs the user's code and gives its fitness.
            isolation: Entered by the caller.
            members: Numbers of the members to evaluate; ``None`` for all.

        Returns:
            What ``fitness`` gave for each of them, in their order; a :class:`~lightning_evo.evaluation.faults.Failure`
            where it raised an exception.
        """
        members = range(len(population)) if members is None else members
        fresh = self._ways is None
        if self._ways not in (None, [None]) and space.is_sharded:  # taken over from a run of whole weights
            self._ways = None
        if self._ways is None:
            if space[0].tensor.device.type == "cpu":
                keep_freed_memory()
            self._ways = self._candidates(module, space, population)
        evolving = [parameter.index for parameter in space]
        if evolving != self._evolving:  # frozen or unfrozen since
            self._evolving, self._proven = evolving, False
        ways, proven = self._ways, self._proven  # as they stay, should the plain loop raise, too
        failures = [f"{name} is compiled or scripted, which hides its weights" for name in self._hidden]
        if space.is_sharded and self.name != "plain":
            failures.append("weights are sharded over processes, and each writes its own part")

        def limited() -> Any:  # of the check, which runs a pair at most at once
            with time_limit(self.member_timeout and 2 * self.member_timeout):
                return fitness()

        while True:
            way = ways[0]
            if way is None:
                # Processes that hold a model together can't go on when one of them failed within a forward: it would
                # give parts of the next member to those that still wait for this one's.
                pace = self.pace if self._proven else None
                run = fitness if space.is_sharded else guarded(fitness, self.member_timeout, pace)
                values = plain.evaluate(space, population, run, isolation, members)
                if values and all(isinstance(value, Failure) for value in values):  # which proves nothing of any way
                    return values
                break
            try:
                reason = None if proven else find_mismatch(way, space, population, limited, isolation)
                if reason is None and fresh and self._brings_nothing(way, space, population):
                    ways = ways[1:]
                    continue
                if reason is None:
                    values = self._run(way, space, population, fitness, isolation, members)
                    break
            except NothingToCompare:  # the choice waits for a batch that tells
                return plain.evaluate(space, population, guarded(fitness, self.member_timeout), isolation, members)
            except Exception as error:  # whatever vmap raises; an error of the user's own comes up again, by itself
                first_line = (str(error).strip().splitlines() or [""])[0]
                reason = f"{type(error).__name__}: {first_line:.200}"
            failures.append(f"{way.name} is not possible: {reason}")
            ways, proven = ways[1:], False
        if not proven:
            if isinstance(way, InForward) and self.name == "auto" and fresh and space.numel < _LARGE:
                ways = [self._faster(way, space, population, fitness, isolation)]
            self._ways, self._proven = ways, True
            self._announce(failures)
        return values

    def _run(
        self,
        way: InForward | Batched,
        space: SearchSpace,
        population: Population,
        fitness: Callable[[], Any],
        isolation: Isolation,
        members: Sequence[int],
    ) -> list[Any]:
        """Members by a way that is known to work. A forward of which one member fails is run again, one by one."""
        pace = self.pace if self._proven else None  # nobody is hurried while the choice is made
        alone = guarded(fitness, self.member_timeout, pace)
        if isinstance(way, InForward):
            return way(space, population, alone, isolation, members)
        if not self._proven:  # this generation may find what the check did not
            return way(space, population, fitness, isolation, members)
        size = population.per_direction if way.members_per_forward == "auto" else way.members_per_forward
        timeout = None if self.member_timeout is None else self.member_timeout * size
        together = fitness if pace is None else pace.counted(fitness, size)

        def limited() -> Any:
            with time_limit(timeout):
                return together()

        def one_by_one(group: list[int]) -> list[Any]:
            return InForward()(space, population, alone, isolation, group)

        return way(space, population, limited, isolation, members, one_by_one)

    def _brings_nothing(self, way: InForward | Batched, space: SearchSpace, population: Population) -> bool:
        """Whether so few members fit into one forward that they may as well run one by one."""
        if not isinstance(way, Batched) or self.name != "auto" or self._size != "auto":
            return False
        size = way.members_per_forward
        return size == 1 or (size == population.per_direction and _is_low_rank(space, population))

    def forget(self) -> None:
        """Choose anew: the module is another one."""
        self._ways, self._proven = None, False

    def _candidates(
        self, module: nn.Module, space: SearchSpace, population: Population
    ) -> list[InForward | Batched | None]:
        hidden = [name or "the module" for name, part in module.named_modules() if _hides_its_weights(part)]
        self._hidden = [] if self.name == "plain" else hidden[:1]
        if hidden or space.is_sharded:
            return [None]
        ways: dict[str, list[InForward | Batched | None]] = {
            "plain": [None],
            "in_forward": [InForward(), None],
            "batched": [Batched(self._size), InForward(), None],
        }
        if self.name != "auto":
            return ways[self.name]
        return ways[
            "batched" if self._size != "auto" or _profits_from_batching(module, space, population) else "in_forward"
        ]

    def _faster(
        self,
        way: InForward,
        space: SearchSpace,
        population: Population,
        fitness: Callable[[], Any],
        isolation: Isolation,
    ) -> InForward | None:
        """The plain loop, should it be faster and give the same bits: else runs would depend on how fast they were."""
        seconds: dict[InForward | None, list[float]] = {way: [], None: []}
        for member in range(min(3, len(population))):
            values = []
            for candidate, times in seconds.items():
                start = time.perf_counter()
                (value,) = (candidate or plain.evaluate)(space, population, fitness, isolation, [member])
                values.append(math.nan if value is None else float(as_fitness(value)))  # waits for a GPU
                times.append(time.perf_counter() - start)
            if repr(values[0]) != repr(values[1]):
                return way
        return way if min(seconds[way]) <= min(seconds[None]) else None

    def _announce(self, failures: list[str]) -> None:
        assert self._ways is not None
        way = self._ways[0]
        self.summary = f"evaluation: {'plain' if way is None else way.name}"
        if isinstance(way, Batched):
            self.summary += f", {way.members_per_forward} members per forward"
        self.summary = "; ".join([self.summary, *failures])
        if failures and self.name != "auto":
            warnings.warn(f"evaluation={self.name!r} does not work with this module. {self.summary}.", stacklevel=4)

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """The choice, so that a resumed run rounds as the first one did; empty before it is made."""
        if not self._proven or self._ways is None:
            return {}
        way = self._ways[0]
        state: dict[str, Any] = {"evaluation": "plain" if way is None else way.name}
        if isinstance(way, Batched):
            state["members_per_forward"] = way.members_per_forward
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the choice over, where it was left open here."""
        name = state.get("evaluation")
        size = state.get("members_per_forward", "auto") if self._size == "auto" else self._size
        if name is None or self.name not in ("auto", name):
            return
        ways: list[InForward | Batched | None] = [None]
        if name in ("in_forward", "batched"):
            ways.insert(0, InForward())
        if name == "batched":
            ways.insert(0, Batched(size))
        self._ways, self._proven = ways, False


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
