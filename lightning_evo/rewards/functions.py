"""Reward functions with TRL's signature: called, weighted, and summed to one number per sample.

A function is called by keywords (``prompts``, ``completions``, ``completion_ids``, every other column of the data,
``trainer_state``, ``log_extra``, ``log_metric``) with the samples of one member, and returns one number for each.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor

from lightning_evo.isolation.snapshots import Handler, Part, handle
from lightning_evo.rewards.calling import (
    Answer,
    Call,
    Problem,
    TrainerState,
    WrongRewards,
    answer,
    answer_later,
    is_coroutine,
)
from lightning_evo.rewards.classifier import ClassifierReward, is_model
from lightning_evo.rewards.gathering import Gathering
from lightning_evo.rewards.loading import judge_named
from lightning_evo.rewards.scored import RewardError, Scored, gave_nan, joined, weighted
from lightning_evo.rewards.unfollowed import unfollowed
from lightning_evo.rewards.workers.pool import Budget, Lost, Pool, Task
from lightning_evo.rewards.workers.sending import code_of_call, dumps
from lightning_evo.utils.messages import shown
from lightning_evo.utils.options import number

__all__ = ["Call", "RewardError", "RewardFunctions", "Scored", "TrainerState", "WrongRewards"]

Outcome = Answer | Problem | Lost


class RewardFunctions:
    """One or several reward functions.

    Without ``timeout`` they run in this process, one after the other, coroutine functions at the same time. With it
    they run in workers (:mod:`~lightning_evo.rewards.workers`), processes without a GPU, as many as there are
    processors, where they can do no harm: what takes longer than ``timeout`` or ends its process is killed with all
    that it started. Then the call's samples are tried once more, one by one, each for at most half of ``timeout`` and
    all of them together for at most twice, so that a call takes a worker no longer than three times ``timeout``. What
    is lost again is missing, and counted. Reward models run in this process. Workers are no sandbox: code that a model
    has written may do what the user may.

    Functions run outside of what evolution does to torch's operations, and without gradients. In workers Python's,
    NumPy's and torch's random numbers start from the same seed for every call of a step.

    Args:
        functions: One or several of: a function, also ``async``, or another callable object; a
            sequence-classification model of transformers, or its name or folder.
        weights: One per function; 1 by default.
        timeout: Seconds that a function may take for one call; ``None`` for no limit.

    Attributes:
        functions: What is called.
        outside: The places of those that run in workers.
        names: The functions' names: of models the last part of theirs. Later ones of the same name have a number.
        weights: One per function.
        timeout: Seconds, or ``None``.
        timed_out_rewards: How many samples had no reward from a function because it took too long, so far.
        crashed_rewards: The same of those because it ended its process.

    Raises:
        TypeError: If a function is none.
        ValueError: If there is none, a name is no model's, weights don't fit, ``timeout`` is not positive or needs
            another system.

    Example:
        >>> def right(completions, answer, **kwargs):
        ...     return [float(text == expected) for text, expected in zip(completions, answer)]
        >>> def brevity(completions, **kwargs):
        ...     return [-len(text) if text else None for text in completions]
        >>> score = RewardFunctions([right, brevity], weights=[1.0, 0.1])
        >>> [scored] = score([Call(["2+2=", "3+3="], ["4", "7"], [[19], [22]], {"answer": ["4", "6"]})])
        >>> scored.values, scored.rewards["right"]
        (tensor([ 0.9000, -0.1000], dtype=torch.float64), [1.0, 0.0])
    """

    def __init__(self, functions: Any, weights: Sequence[float] | None = None, *, timeout: float | None = None) -> None:
        given = list(functions) if isinstance(functions, list | tuple) else [functions]
        if not given:
            raise ValueError("reward_funcs is empty: give at least one reward function.")
        self.functions: list[Callable[..., Any]] = [_as_function(each) for each in given]
        self.names = _different([_name_of(function) for function in self.functions])
        self.weights = _checked_weights(weights, self.names)
        self.timeout = None if timeout is None else number("reward_timeout", timeout, above=0)
        self.timed_out_rewards = self.crashed_rewards = 0
        self.outside = [
            i for i, each in enumerate(self.functions) if self.timeout and not isinstance(each, ClassifierReward)
        ]
        self._said: set[tuple[str, str]] = set()
        self._start()

    def _start(self) -> None:
        self._gathering = Gathering()
        self._pool: Pool | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but workers and threads, which are started where they are needed.

        Functions are pickled with their code, so a module also goes to processes that are spawned with a lambda.
        """
        state = {name: value for name, value in vars(self).items() if name not in ("_gathering", "_pool")}
        with contextlib.suppress(ImportError):
            state["functions"] = [
                each if isinstance(each, ClassifierReward) else dumps(each) for each in self.functions
            ]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the functions."""
        vars(self).update(state)
        self.functions = [pickle.loads(each) if isinstance(each, bytes) else each for each in state["functions"]]
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> RewardFunctions:
        """With copies of functions that have state, and workers of its own."""
        memo[id(self)] = other = type(self).__new__(type(self))
        left_out = ("_gathering", "_pool")
        vars(other).update({name: value for name, value in vars(self).items() if name not in left_out})
        other.functions = [_copied(function, memo) for function in self.functions]
        other._said = set(self._said)
        other._start()
        return other

    @property
    def restarts(self) -> int:
        """How many workers had to be replaced: after a kill, a crash or growth of their memory."""
        return self._pool.restarts if self._pool else 0

    def __call__(self, calls: Sequence[Call]) -> list[Scored]:
        """Rewards of several members.

        Args:
            calls: One for each member.

        Returns:
            What functions gave for each.

        Raises:
            WrongRewards: If a function returned what can't be rewards. The message names it.
            RuntimeError: If workers can't load a function.
        """
        found: list[list[Outcome | None]] = [[None] * len(self.functions) for _ in calls]
        with unfollowed(), torch.no_grad():
            if self.outside:
                self._run_outside(calls, found)
            self._run_here(calls, found)
            return [self._scored(call, row) for call, row in zip(calls, found, strict=True)]

    def _scored(self, call: Call, found: Sequence[Outcome | None]) -> Scored:
        answers = [each for each in found if isinstance(each, Answer | Problem)]
        for name, each in zip(self.names, answers, strict=True):
            if gave_nan(each):
                said = f"Reward function {name!r} returned NaN, which fails the member."
                self._warn(name, "NaN", f"{said} Return None for a sample that is to be skipped.")
        return weighted(call, self.names, self.weights, answers)

    def close(self) -> None:
        """End the workers. They are started again if they are needed."""
        if self._pool is not None:
            self._pool.close()

    def to(self, device: torch.device | str) -> RewardFunctions:
        """Have reward models compute on a device; functions are left alone."""
        for function in self.functions:
            if isinstance(function, ClassifierReward):
                function.to(device)
        return self

    # --- in this process --------------------------------------------------------------------------------------------

    def _run_here(self, calls: Sequence[Call], found: list[list[Outcome | None]]) -> None:
        here = [i for i in range(len(self.functions)) if i not in self.outside]
        later = [i for i in here if is_coroutine(self.functions[i])]
        for call, outcomes in zip(calls, found, strict=True):
            for i in here:
                if i not in later:
                    outcomes[i] = answer(self.names[i], self.functions[i], call, self._gathering.one)
        if later:
            places = [(row, i) for row in range(len(calls)) for i in later]
            coroutines = [answer_later(self.names[i], self.functions[i], calls[row]) for row, i in places]
            for (row, i), outcome in zip(places, self._gathering.all(coroutines), strict=True):
                found[row][i] = outcome

    # --- in workers -------------------------------------------------------------------------------------------------

    def _run_outside(self, calls: Sequence[Call], found: list[list[Outcome | None]]) -> None:
        assert self.timeout is not None
        if self._pool is None:
            self._pool = Pool([(self.names[i], self.functions[i]) for i in self.outside])
        codes = [code_of_call(call) for call in calls]
        places = [(row, place) for row in range(len(calls)) for place in range(len(self.outside))]
        tasks = [Task(place, codes[row], self._is_together(place)) for row, place in places]
        for (row, place), outcome in zip(places, self._pool.run(tasks, self.timeout), strict=True):
            found[row][self.outside[place]] = outcome
        lost = [(row, i) for row, i in places if isinstance(found[row][self.outside[i]], Lost)]
        if lost:
            self._try_singly(calls, found, lost)

    def _try_singly(
        self, calls: Sequence[Call], found: list[list[Outcome | None]], lost: list[tuple[int, int]]
    ) -> None:
        """The samples of calls that were lost, one by one."""
        assert self.timeout is not None
        assert self._pool is not None
        tasks, places = [], []
        for row, place in lost:
            first = found[row][self.outside[place]]
            assert isinstance(first, Lost)
            if len(calls[row]) == 1 and first.timed_out:  # it was alone, and had more time than it would have now
                continue
            budget = Budget(2 * self.timeout)
            for sample in range(len(calls[row])):
                together = self._is_together(place) and not first.killed
                tasks.append(
                    Task(place, code_of_call(calls[row].sample(sample)), together, None if together else budget)
                )
                places.append((row, place))
        outcomes = self._pool.run(tasks, self.timeout / 2)
        for row, place in lost:
            function = self.outside[place]
            first = found[row][function]
            assert isinstance(first, Lost)
            singles = [each for each, at in zip(outcomes, places, strict=True) if at == (row, place)] or [first]
            found[row][function] = self._joined(self.names[function], first, singles)

    def _is_together(self, place: int) -> bool:
        return is_coroutine(self.functions[self.outside[place]])

    def _joined(self, name: str, first: Lost, singles: Sequence[Outcome]) -> Answer | Problem:
        """The answer for a call that was lost, of those for its samples."""
        problem = next((each for each in singles if isinstance(each, Problem)), None)
        if problem:
            return problem
        timed_out = [isinstance(each, Lost) and each.timed_out for each in singles]
        crashed = [isinstance(each, Lost) and not each.timed_out for each in singles]
        self.timed_out_rewards += sum(timed_out)
        self.crashed_rewards += sum(crashed)
        self._warn_of_lost(name, first, sum(timed_out) + sum(crashed), len(singles))
        return joined([each if isinstance(each, Answer) else None for each in singles], timed_out, crashed)

    def _warn_of_lost(self, name: str, lost: Lost, missing: int, samples: int) -> None:
        what = f"took longer than reward_timeout={self.timeout} s" if lost.timed_out else lost.message
        what = what.removeprefix(f"{name!r} ")
        then = (
            f"Tried one by one, {missing} of {samples} samples are missing"
            if missing
            else "Tried one by one, all of its samples have a reward"
        )
        kind = f"{'late' if lost.timed_out else 'crashed'}, {'missing' if missing else 'whole'}"
        self._warn(name, kind, f"Reward function {name!r} {what}. {then}. This is said once; later ones are counted.")

    def _warn(self, name: str, kind: str, message: str) -> None:
        if (name, kind) not in self._said:
            self._said.add((name, kind))
            warnings.warn(message, stacklevel=2)


def _as_function(given: Any) -> Callable[..., Any]:
    if isinstance(given, ClassifierReward):
        return given
    if isinstance(given, str):
        return judge_named(given)
    if is_model(given):
        return ClassifierReward(given)
    if not callable(given) or isinstance(given, type):
        raise TypeError(
            f"A reward function must be a function, a sequence-classification model or a model's name, got "
            f"{shown(given)}{' (a class: give one of its objects)' if isinstance(given, type) else ''}."
        )
    function: Callable[..., Any] = given
    return function


def _copied(function: Callable[..., Any], memo: dict[int, Any]) -> Callable[..., Any]:
    try:
        return copy.deepcopy(function, memo)
    except Exception:  # it holds a client or a lock, which copies share
        return function


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return str(name).strip("<>")


def _different(names: Sequence[str]) -> list[str]:
    """Names, later ones of the same with a number."""
    different: list[str] = []
    for name in names:
        candidates = chain([name], (f"{name}_{again}" for again in count(2)))
        different.append(next(candidate for candidate in candidates if candidate not in different))
    return different


def _checked_weights(weights: Any, names: Sequence[str]) -> list[float]:
    if weights is None:
        return [1.0] * len(names)
    if isinstance(weights, Tensor):
        weights = weights.tolist()
    if not isinstance(weights, list | tuple) or len(weights) != len(names):
        raise ValueError(
            f"reward_weights must be one number for each of the {len(names)} reward functions "
            f"({', '.join(names)}), got {shown(weights)}."
        )
    return [number(f"The weight of reward function {name!r}", each) for name, each in zip(names, weights, strict=True)]


def _parts(functions: RewardFunctions) -> Iterator[Part]:
    """What members may change: functions that run in this process, which may have state of their own."""
    for i, function in enumerate(functions.functions):
        if i not in functions.outside and not isinstance(function, ClassifierReward):
            yield function, (_function_at, i), f".functions[{i}]"


def _function_at(functions: RewardFunctions, place: int) -> Any:
    return functions.functions[place]


handle(RewardFunctions, Handler(parts=_parts))  # the pool is none of the members' state
