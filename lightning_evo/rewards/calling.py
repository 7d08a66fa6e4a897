"""How one reward function is called, with the arguments that TRL gives, and what its result must be.

Workers import this file, so it imports nothing large: no torch, no Lightning.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from typing import Any

from lightning_evo.utils.messages import first_line, preview, shown

__all__ = [
    "RESERVED",
    "Answer",
    "Call",
    "Problem",
    "TrainerState",
    "WrongRewards",
    "answer",
    "answer_later",
    "is_coroutine",
]

RewardFunction = Callable[..., Any]

RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Arguments of reward functions that are no columns of the data."""


class WrongRewards(ValueError):
    """A reward function returned, or logged, what can't be rewards: a mistake in its code, so that the run ends."""


@dataclass(frozen=True)
class TrainerState:
    """Where the training is, under the names that TRL's ``trainer_state`` has.

    Attributes:
        global_step: Optimizer steps so far.
        epoch: The epoch, from 0.
        max_steps: The steps after which the training ends; -1 if no number was given.
    """

    global_step: int
    epoch: int
    max_steps: int


@dataclass(frozen=True)
class Call:
    """The samples of one member: what reward functions are called with.

    Attributes:
        prompts: Text, or lists of messages ``{"role": …, "content": …}``; one per sample.
        completions: Text; ``[{"role": "assistant", "content": …}]`` where prompts are messages.
        completion_ids: The completions' tokens.
        columns: All other columns of the data by their names, with one entry per sample.
        trainer_state: Where the training is.

    Raises:
        ValueError: If lengths differ, or a column has the name of another argument.

    Example:
        >>> call = Call(["2+2=", "3+3="], ["4", "5"], [[19], [20]], {"answer": ["4", "6"]})
        >>> len(call), call.sample(1).arguments()["answer"]
        (2, ['6'])
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    trainer_state: Any = None

    def __post_init__(self) -> None:
        taken = sorted(self.columns.keys() & set(RESERVED))
        if taken:
            raise ValueError(
                f"The data has a column named {taken[0]!r}, which reward functions get as an argument of its own. "
                "Rename the column."
            )
        per_sample = {"completions": self.completions, "completion_ids": self.completion_ids, **self.columns}
        for name, entries in per_sample.items():
            if len(entries) != len(self.prompts):
                raise ValueError(f"{name} has {len(entries)} entries for {len(self.prompts)} prompts.")

    def __len__(self) -> int:
        return len(self.prompts)

    def sample(self, index: int) -> Call:
        """A call with one of its samples."""
        part = slice(index, index + 1)
        columns = {name: entries[part] for name, entries in self.columns.items()}
        ids = self.completion_ids[part]
        return Call(self.prompts[part], self.completions[part], ids, columns, self.trainer_state)

    def arguments(self) -> dict[str, Any]:
        """All arguments but ``log_extra`` and ``log_metric``. Lists are copies: a function may change its own."""
        return {
            **{name: list(entries) for name, entries in self.columns.items()},
            "prompts": list(self.prompts),
            "completions": list(self.completions),
            "completion_ids": list(self.completion_ids),
            "trainer_state": self.trainer_state,
        }


@dataclass
class Answer:
    """What a function gave for one call.

    Attributes:
        rewards: One per sample; ``None`` where it skips the sample.
        extras: What it gave to ``log_extra``: one entry per sample, by column.
        metrics: What it gave to ``log_metric``, by name.
    """

    rewards: list[float | None]
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Why a function gave no answer: text only, so that it can be sent whatever was raised.

    Attributes:
        message: Names the function.
        is_mistake: Whether it returned what can't be rewards (:class:`WrongRewards`).
        trace: The traceback; empty if it is a mistake.
    """

    message: str
    is_mistake: bool = False
    trace: str = ""


def is_coroutine(function: RewardFunction) -> bool:
    """Whether a function is ``async``: itself, what a partial wraps, or an object's ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def answer(
    name: str, function: RewardFunction, call: Call, wait: Callable[[Awaitable[Any]], Any] | None = None
) -> Answer | Problem:
    """What a function gives for a call.

    Args:
        name: The function's, for messages.
        function: It gets those arguments that its signature names; all of them if it takes ``**kwargs``.
        call: The samples.
        wait: Waits for what a coroutine function returns.

    Example:
        >>> def brevity(completions, log_metric, **kwargs):
        ...     log_metric("longest", max(map(len, completions)))
        ...     return [-len(text) for text in completions]
        >>> answer("brevity", brevity, Call(["a", "b"], ["yes", "no"], [[1], [2]]))
        Answer(rewards=[-3.0, -2.0], extras={}, metrics={'longest': [3.0]})
        >>> answer("brevity", lambda completions: [0.0], Call(["a", "b"], ["yes", "no"], [[1], [2]])).message
        "Reward function 'brevity' returned 1 reward for 2 completions. It must return one for each, None where ...
    """
    logged = _Logged(name, len(call))
    try:
        result = function(**_passed(name, function, {**call.arguments(), **logged.functions()}))
        if inspect.isawaitable(result):
            if wait is None:
                raise WrongRewards(f"Reward function {name!r} returned something to await. Write `async def`.")
            result = wait(result)
        return logged.answer(result)
    except (Exception, SystemExit) as error:
        return problem_of(name, error)


async def answer_later(name: str, function: RewardFunction, call: Call) -> Answer | Problem:
    """What a coroutine function gives for a call."""
    logged = _Logged(name, len(call))
    try:
        return logged.answer(await function(**_passed(name, function, {**call.arguments(), **logged.functions()})))
    except (Exception, SystemExit) as error:
        return problem_of(name, error)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and getattr(task, "cancelling", lambda: True)():  # from outside, as on Ctrl-C
            raise
        return problem_of(name, error)


def problem_of(name: str, error: BaseException) -> Problem:
    """A problem in words."""
    if isinstance(error, WrongRewards):
        return Problem(str(error), is_mistake=True)
    said = first_line(error)
    message = f"Reward function {name!r} raised {type(error).__name__}{said and f': {said}'}"
    return Problem(message, trace="".join(traceback.format_exception(type(error), error, error.__traceback__)))


def _passed(name: str, function: RewardFunction, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that a function takes.

    Raises:
        WrongRewards: If it needs one that there is not.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # many functions written in C have no signature
        return dict(arguments)
    for parameter in parameters:
        is_one = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if is_one and parameter.default is parameter.empty and parameter.name not in arguments:
            raise WrongRewards(
                f"Reward function {name!r} needs an argument {parameter.name!r}, which is no column of the data. "
                f"There are {preview(sorted(arguments))}."
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(arguments)
    return {parameter.name: arguments[parameter.name] for parameter in parameters if parameter.name in arguments}


class _Logged:
    """What a function logs during one call, and its answer."""

    def __init__(self, name: str, samples: int) -> None:
        self._name, self._samples = name, samples
        self._extras: dict[str, list[Any]] = {}
        self._metrics: dict[str, list[float]] = {}

    def functions(self) -> dict[str, Any]:
        return {"log_extra": self._extra, "log_metric": self._metric}

    def answer(self, result: Any) -> Answer:
        return Answer(as_rewards(self._name, result, self._samples), self._extras, self._metrics)

    def _extra(self, column: str, values: Any) -> None:
        entries = _entries(values)
        if entries is None or len(entries) != self._samples:
            raise WrongRewards(
                f"Reward function {self._name!r} called log_extra({column!r}, …) with {shown(values)}: it takes a list "
                f"with one entry for each of the {self._samples} completions."
            )
        self._extras[str(column)] = entries

    def _metric(self, metric: str, value: Any) -> None:
        found = _number(value)
        if found is None:
            raise WrongRewards(
                f"Reward function {self._name!r} called log_metric({metric!r}, {shown(value)}): it takes a number."
            )
        self._metrics.setdefault(str(metric), []).append(found)


def as_rewards(name: str, result: Any, samples: int) -> list[float | None]:
    """Rewards as Python's own numbers, one per sample, ``None`` where a sample is skipped.

    Args:
        name: The function's, for messages.
        result: A list, tuple, iterator, NumPy array or tensor of numbers, also of NumPy's and torch's, or ``None``.
        samples: How many there must be.

    Raises:
        WrongRewards: If it is anything else.

    Example:
        >>> as_rewards("correct", (True, None, 0.5), 3)
        [1.0, None, 0.5]
        >>> as_rewards("judge", ["good"], 1)
        Traceback (most recent call last):
        ...
        lightning_evo.rewards.calling.WrongRewards: Reward function 'judge' returned 'good' (str) for sample 0. ...
    """
    entries = _entries(result)
    if entries is None:
        raise WrongRewards(
            f"Reward function {name!r} returned {shown(result)} ({type(result).__name__}). It must return a list with "
            f"one number for each of the {samples} completions, None where it skips one."
        )
    if len(entries) != samples:
        rewards = "reward" if len(entries) == 1 else "rewards"
        raise WrongRewards(
            f"Reward function {name!r} returned {len(entries)} {rewards} for {samples} completions. It must return one "
            "for each, None where it skips one."
        )
    rewards_: list[float | None] = []
    for index, entry in enumerate(entries):
        reward = None if entry is None else _number(entry)
        if reward is None and entry is not None:
            raise WrongRewards(
                f"Reward function {name!r} returned {shown(entry)} ({type(entry).__name__}) for sample {index}. It "
                "must be a number, or None to skip the sample."
            )
        rewards_.append(reward)
    return rewards_


def _entries(values: Any) -> list[Any] | None:
    if hasattr(values, "tolist"):  # NumPy's arrays and torch's tensors, on any device
        values = values.tolist()
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        return None
    return list(values)


def _number(value: Any) -> float | None:
    """A real number of any kind; ``None`` if it is none."""
    if not isinstance(value, Real | Decimal) and callable(getattr(value, "item", None)):
        try:
            value = value.item()  # of a NumPy array or a tensor with one element
        except (TypeError, ValueError, RuntimeError):
            return None
    try:
        return float(value) if isinstance(value, Real | Decimal) else None
    except OverflowError:
        return None
