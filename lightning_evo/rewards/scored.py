"""What several reward functions gave for one call, put together: one number per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_evo.rewards.calling import Answer, Call, Problem, WrongRewards
from lightning_evo.rewards.writing import Written

__all__ = ["Judged", "Partial", "RewardError", "Scored", "gave_nan", "joined", "weighted"]


class RewardError(RuntimeError):
    """A reward function raised an exception. The message names it, and has its traceback."""


@dataclass(frozen=True)
class Scored:
    """What reward functions gave for one call.

    Attributes:
        values: float64 ``[samples]``, the weighted sum over functions: 0 where missing; NaN for all samples if a
            function gave NaN or raised an exception.
        missing: bool ``[samples]``: every function gave ``None``, or one timed out or crashed. False for all samples
            where values are NaN.
        rewards: Those of each function by its name, without weights; ``None`` where it gave none.
        timed_out: bool ``[samples]``: a function took too long, also alone.
        crashed: bool ``[samples]``: a function ended its process, also alone.
        extras: What functions gave to ``log_extra``, one entry per sample (``None`` where there is none), by column.
        metrics: What functions gave to ``log_metric``, averaged, by name.
        error: What a function raised for this call, the first of them.
    """

    values: Tensor
    missing: Tensor
    rewards: dict[str, list[float | None]]
    timed_out: Tensor
    crashed: Tensor
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None


@dataclass
class Partial(Answer):
    """An answer for samples that were tried one by one.

    Attributes:
        timed_out: Whether each took too long.
        crashed: Whether each ended the process.
    """

    timed_out: list[bool] = field(default_factory=list)
    crashed: list[bool] = field(default_factory=list)


def joined(singles: Sequence[Answer | None], timed_out: list[bool], crashed: list[bool]) -> Partial:
    """The answer for a call, of those for its samples; ``None`` for what was lost.

    Example:
        >>> joined([Answer([1.0]), None], [False, True], [False, False]).rewards
        [1.0, None]
    """
    whole = Partial([None] * len(singles), timed_out=timed_out, crashed=crashed)
    for sample, single in enumerate(singles):
        if single is None:
            continue
        whole.rewards[sample] = single.rewards[0]
        for column, values in single.extras.items():
            whole.extras.setdefault(column, [None] * len(singles))[sample] = values[0]
        for metric, logged in single.metrics.items():
            whole.metrics.setdefault(metric, []).extend(logged)
    return whole


def gave_nan(found: Answer | Problem) -> bool:
    """Whether a function gave NaN for a sample."""
    return isinstance(found, Answer) and any(reward is not None and math.isnan(reward) for reward in found.rewards)


def weighted(call: Call, names: Sequence[str], weights: Sequence[float], found: Sequence[Answer | Problem]) -> Scored:
    """The weighted sum over functions.

    Args:
        call: The samples.
        names: Of the functions.
        weights: One per function.
        found: What each gave.

    Raises:
        WrongRewards: If one returned what can't be rewards.

    Example:
        >>> call = Call(["a", "b", "c"], ["d", "e", "f"], [[1], [2], [3]])
        >>> found = [Answer([1.0, None, None]), Answer([2.0, 3.0, None])]
        >>> scored = weighted(call, ["right", "short"], [1.0, 0.5], found)
        >>> scored.values, scored.missing
        (tensor([2.0000, 1.5000, 0.0000], dtype=torch.float64), tensor([False, False,  True]))
    """
    values = torch.zeros(len(call), dtype=torch.float64)
    has, timed_out, crashed = (torch.zeros(len(call), dtype=torch.bool) for _ in range(3))
    rewards: dict[str, list[float | None]] = {}
    extras: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}
    error: RewardError | None = None
    for name, weight, each in zip(names, weights, found, strict=True):
        if isinstance(each, Problem):
            if each.is_mistake:
                raise WrongRewards(each.message)
            error = error or RewardError(f"{each.message}\n{each.trace}".rstrip())
            rewards[name] = [None] * len(call)
            continue
        rewards[name] = each.rewards
        given = torch.tensor([reward is not None for reward in each.rewards], dtype=torch.bool)
        numbers = torch.tensor([reward or 0.0 for reward in each.rewards], dtype=torch.float64)
        values += torch.where(given, weight * numbers, 0.0)
        has |= given
        if isinstance(each, Partial):
            timed_out |= torch.tensor(each.timed_out)
            crashed |= torch.tensor(each.crashed)
        extras.update(each.extras)
        for metric, logged in each.metrics.items():
            metrics.setdefault(metric, []).extend(logged)
    missing = ~has | timed_out | crashed
    if error or any(map(gave_nan, found)):
        values, missing = torch.full_like(values, math.nan), torch.zeros_like(missing)
    means = {metric: math.fsum(logged) / len(logged) for metric, logged in metrics.items()}
    return Scored(values.masked_fill(missing, 0.0), missing, rewards, timed_out, crashed, extras, means, error)


@dataclass(frozen=True)
class Judged:
    """What was written, for all samples of all members, and how good each member's part is.

    Attributes:
        written: The completions.
        scored: For each member.
    """

    written: Written
    scored: list[Scored]

    @property
    def values(self) -> Tensor:
        """float64 ``[members * samples]``."""
        return torch.cat([scored.values for scored in self.scored])

    @property
    def missing(self) -> Tensor:
        """Bool ``[members * samples]``."""
        return torch.cat([scored.missing for scored in self.scored])

    @property
    def mean(self) -> float:
        """Over the samples that have a reward; NaN if none has."""
        return float(self.values[~self.missing].mean())

    def details(self) -> list[dict[str, Any]]:
        """One dictionary for each sample."""
        samples = len(self.written.texts) // len(self.scored)
        places = [(scored, sample) for scored in self.scored for sample in range(samples)]
        written, timed_out = self.written, torch.cat([scored.timed_out for scored in self.scored])
        rewards = self.values.tolist(), self.missing.tolist(), timed_out.tolist()
        rows = zip(places, written.prompts, written.texts, written.truncated, *rewards, strict=True)
        return [
            {
                "prompt": prompt,
                "completion": text,
                "rewards": {name: values[sample] for name, values in scored.rewards.items()},
                "reward": None if missing else value,
                "truncated": truncated,
                "timed_out": late,
                "extras": {name: values[sample] for name, values in scored.extras.items()},
            }
            for (scored, sample), prompt, text, truncated, value, missing, late in rows
        ]
