"""The fitness of one generation's members: averaged over its batches, and reports about those that failed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_evo.algorithms.shaping import evaluated
from lightning_evo.evaluation.faults import Failure
from lightning_evo.evaluation.fitness import as_fitnesses
from lightning_evo.generation.update import Update
from lightning_evo.utils.messages import first_line

__all__ = ["Reports", "Scores", "results_of"]


class Scores:
    """The fitness of the members so far.

    Args:
        members: How many there are.

    Attributes:
        fitness_sum: Of the batches so far, each times its weight, float64 ``[members]``; NaN where a member has failed.
        weight: The sum of the batches' weights.
        failed: Which members have failed by an exception or the timeout, bool ``[members]``.

    Example:
        >>> scores = Scores(2)
        >>> scores.add(torch.tensor([[1.0, 1.0], [5.0, 1.0]]))
        True
        >>> scores.add(torch.tensor([[3.0, 1.0], [math.nan, -1.0]]))
        True
        >>> scores.fitness, scores.failed
        (tensor([2., nan], dtype=torch.float64), tensor([False,  True]))
        >>> scores.statistics()["failed_members"]
        1.0
    """

    def __init__(self, members: int) -> None:
        # One zero stands for all: no memory is taken for members before there are results of them.
        self.fitness_sum = torch.zeros((), dtype=torch.float64).expand(members)
        self.failed = torch.zeros((), dtype=torch.bool).expand(members)
        self.weight = 0.0

    def add(self, results: Tensor) -> bool:
        """Take one more batch into account.

        Args:
            results: Fitness and weight ``[members, 2]``, as :meth:`~lightning_evo.processes.ranks.Ranks.gather` gives
                them.

        Returns:
            Whether it counts; not if every member declined it.
        """
        weight = float(results[:, 1].max())  # of all processes, so the same on each
        if weight <= 0:
            return False
        self.failed = self.failed | (results[:, 1] < 0)
        self.fitness_sum = self.fitness_sum + results[:, 0].masked_fill(results[:, 1] <= 0, math.nan) * weight
        self.weight += weight
        return True

    @property
    def fitness(self) -> Tensor:
        """The mean over batches, float64 ``[members]``; NaN before the first one."""
        return self.fitness_sum / self.weight

    def statistics(self) -> dict[str, float]:
        """Mean, deviation and best fitness so far over the members that did not fail, and how many did."""
        fitness = self.fitness
        finite = fitness[fitness.isfinite()]
        failed = {"failed_members": float(len(fitness) - len(finite))}
        if not len(finite):
            return {"fitness_mean": math.nan, "fitness_std": math.nan, "fitness_best": math.nan, **failed}
        return {
            **failed,
            "fitness_mean": float(finite.mean()),
            "fitness_std": float(finite.std(correction=0)),
            "fitness_best": float(finite.max()),
        }


def results_of(values: Sequence[Any], weight: float) -> Tensor:
    """Fitness and weight of members, float64 ``[members, 2]``: weight 0 if a member declined, -1 if it failed.

    Args:
        values: What members gave: a fitness, ``None``, or a Failure.
        weight: Of the batch.
    """
    weights = torch.tensor(
        [-1.0 if isinstance(value, Failure) else weight * (value is not None) for value in values], dtype=torch.float64
    )
    fitness = torch.full((len(values),), math.nan, dtype=torch.float64)
    given = [value for value, own in zip(values, weights.tolist(), strict=True) if own > 0]
    if given:
        fitness[weights > 0] = as_fitnesses(given, source="fitness").cpu().to(torch.float64)
    return torch.stack([fitness, weights], dim=1)


class Reports:
    """Reports what went wrong in a generation; what may repeat in every generation only once."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def failures(self, generation: int, failed: Tensor, errors: list[Exception], minimum: float) -> None:
        """Stop if too many members failed by an exception or the timeout; on their own processes with that exception.

        Args:
            generation: Its number.
            failed: Which members failed on this batch, bool ``[members]``.
            errors: The exceptions of those of this process.
            minimum: The share of members that must not fail.

        Raises:
            Exception: The first of ``errors``.
            RuntimeError: If only members of other processes failed.
        """
        count = int(failed.sum())
        if not count:
            return
        if len(failed) - count < minimum * len(failed) or count == len(failed):
            if errors:
                raise errors[0]
            raise RuntimeError(
                f"Generation {generation}: {count} of {len(failed)} members failed on other processes; "
                "their messages say why."
            )
        if errors and "raised" not in self._shown:
            self._shown.add("raised")
            warnings.warn(
                f"Generation {generation}: {count} of {len(failed)} members failed and are left out, the first with "
                f"{type(errors[0]).__name__}: {first_line(errors[0])}. Shown once; evo/failed_members counts "
                "them.",
                stacklevel=4,
            )

    def moved(self, generation: int) -> None:
        """Warn that weights are not the center that an algorithm holds."""
        if "moved" not in self._shown:
            self._shown.add("moved")
            warnings.warn(
                f"Generation {generation}: the weights were moved by something else than evolution (for example a "
                "callback), so the search goes on from where they are now. Shown once.",
                stacklevel=5,
            )

    def learning(self, generation: int, update: Update, failed: Tensor) -> None:
        """Warn of fitness that is not finite, or from which nothing can be learnt.

        Args:
            generation: Its number.
            update: What is learnt from it.
            failed: Which members failed by an exception or the timeout, bool ``[members]``: they were reported before.
        """
        infinite = int((~update.fitness.isfinite()).sum())
        if infinite == len(update.fitness):
            warnings.warn(
                f"Generation {generation}: the fitness of every member is NaN or infinite. Nothing is "
                "changed, and the run goes on. Is sigma too large, or the center itself broken?",
                stacklevel=3,
            )
        elif infinite > int(failed.sum()) and "failed" not in self._shown:
            self._shown.add("failed")
            warnings.warn(
                f"Generation {generation}: the fitness of {infinite} of {len(update.fitness)} members is NaN "
                "or infinite; NaN is left out, infinite ranks worst. Shown once.",
                stacklevel=3,
            )
        elif not update and not evaluated(update.fitness, update.population.per_direction).any():
            warnings.warn(
                f"Generation {generation}: of every antithetic pair a member failed, so there is nothing to "
                "compare and nothing is changed.",
                stacklevel=3,
            )
        elif not update and "tied" not in self._shown:
            self._shown.add("tied")
            warnings.warn(
                f"Generation {generation}: members that should be compared have the same fitness, so there "
                "is nothing to learn. If this goes on, use a larger sigma, larger batches or a finer fitness. Shown "
                "once.",
                stacklevel=3,
            )
