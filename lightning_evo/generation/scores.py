"""The fitness of one generation's members: reduced to one number each, and reports about those that failed.

A generation's samples are those of all its batches and, where processes of a group have data of their own, of all of
these. Member j has the value :math:`v_{ij}` for sample i, unless it is missing. A batch's weight is divided equally
among its samples, which gives each a weight :math:`u_i`; a batch that travels as one mean is one sample. With
:math:`m_i` the mean of sample i over the members that have it,

    f_j = sum_i u_i (v_ij - m_i) / sum_i u_i + sum_i u_i m_i / sum_i u_i

where the first two sums are over the samples that j has and the last two over those that any member has. So a member
that misses hard samples gains nothing, and one that has all has its plain mean. Samples that all members miss count for
nothing; a member that misses all has failed.

With a tie breaker t, members are ordered by fitness, and within equal fitness by t:

    f'_j = f_j + gap r_j / 2

where the gap is the smallest between two different values of f, and r_j is the centered rank of t_j, in [-1/2, 1/2].
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_evo.algorithms.shaping import centered_ranks, evaluated
from lightning_evo.evaluation.faults import Failure
from lightning_evo.generation.update import Update
from lightning_evo.processes.ranks import ALIKE, kinds_of
from lightning_evo.utils.messages import first_line

__all__ = ["Reports", "Scores", "break_ties", "results_of"]

_EQUAL = 1e-10  # of the largest fitness: members whose fitness differs by less, as sums in another order do, are tied


class Scores:
    """The fitness of the members so far.

    Args:
        members: How many there are.

    Attributes:
        sums: Over the samples so far, float64 ``[members + 1, 4]``: of each member's values, of the means of the
            samples that it has, of the weights of these, and of its tie breakers; all weighted. The last row is that of
            a member that misses nothing, is average everywhere, and has the tie breaker 1, or 0 in batches without
            tie breakers. Values are NaN where a member has failed.
        weight: The sum of the batches' weights.
        failed: Which members have failed by an exception or the timeout, bool ``[members]``.

    Example:
        >>> scores = Scores(2)
        >>> scores.add(torch.tensor([[[1.0, 1.0], [5.0, 1.0]]]))
        True
        >>> scores.add(torch.tensor([[[3.0, 1.0], [math.nan, -1.0]]]))
        True
        >>> scores.fitness, scores.failed
        (tensor([2., nan], dtype=torch.float64), tensor([False,  True]))
        >>> scores.statistics()["failed_members"]
        1.0
    """

    def __init__(self, members: int) -> None:
        # One zero stands for all: no memory is taken for members before there are results of them.
        self.sums = torch.zeros((), dtype=torch.float64).expand(members + 1, 4)
        self.failed = torch.zeros((), dtype=torch.bool).expand(members)
        self.weight = 0.0

    def add(self, results: Tensor) -> bool:
        """Take one more batch into account.

        Args:
            results: ``[data, members, columns]``, as :meth:`~lightning_evo.processes.ranks.Ranks.gather` gives them;
                for the columns see :func:`results_of`.

        Returns:
            Whether it counts; not if every member declined it.
        """
        weight = float(results[..., 1].clamp(min=0).sum(0).max())  # of all processes, so the same on each
        if weight <= 0:
            return False
        self.failed = self.failed | (results[..., 1] < 0).any(0)
        self.sums = self.sums + _sums(results.to(torch.float64))
        self.weight += weight
        return True

    def recall(self, fitness: Tensor) -> None:
        """Take what :attr:`fitness` was, ``[members]``, in place of any batch."""
        each = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64).repeat(len(fitness) + 1, 1)
        each[:-1, 0] = fitness
        self.sums, self.weight = each, 1.0

    @property
    def fitness(self) -> Tensor:
        """What members are compared by, float64 ``[members]``: reduced, ties broken; NaN before the first batch."""
        _, levels, weights, _ = self.sums.unbind(1)
        fitness, partial, tie_breaker = self._raw, (weights != weights[-1])[:-1], self._tie_breaker
        if partial.any():
            level = levels / weights
            fitness = torch.where(partial & fitness.isfinite(), fitness + (level[-1] - level[:-1]), fitness)
        return fitness if tie_breaker is None else break_ties(fitness, tie_breaker)

    @property
    def _raw(self) -> Tensor:
        """The mean over the samples that a member has."""
        return self.sums[:-1, 0] / self.sums[:-1, 2]

    @property
    def _tie_breaker(self) -> Tensor | None:
        means = self.sums[:, 3] / self.sums[:, 2]
        return means[:-1] if means[-1] == 1 else None

    def statistics(self) -> dict[str, float]:
        """Mean, deviation and best fitness so far over the members that did not fail, and how many did.

        The fitness is each member's mean over the samples that it has, before it is compared with others. With a tie
        breaker there is that one's mean, too.
        """
        fitness, tie_breaker = self._raw, self._tie_breaker
        evaluated = fitness.isfinite()
        finite = fitness[evaluated]
        found = {
            "failed_members": float(len(fitness) - len(finite)),
            "fitness_mean": float(finite.mean()),
            "fitness_std": float(finite.std(correction=0)) if len(finite) else math.nan,
            "fitness_best": float(finite.max()) if len(finite) else math.nan,
        }
        if tie_breaker is not None:
            found["tie_breaker_mean"] = float(tie_breaker[evaluated & tie_breaker.isfinite()].mean())
        return found

    def state_dict(self) -> dict[str, Any]:
        """The batches so far, as plain numbers and a tensor."""
        batches = {"fitness_sums": self.sums.clone(), "failed": self.failed.clone()} if self.weight else {}
        return {"fitness_weight": self.weight, **batches}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue after the batches of :meth:`state_dict`.

        Raises:
            ValueError: If they were evaluated by another number of members.
        """
        if not saved["fitness_weight"]:
            return
        if saved["fitness_sums"].shape != self.sums.shape:
            raise ValueError(
                f"This checkpoint was written in the middle of a generation of {len(saved['fitness_sums']) - 1} "
                f"members; this run has population={len(self.sums) - 1}. Resume with the same population."
            )
        self.sums, self.weight = saved["fitness_sums"].cpu().clone(), saved["fitness_weight"]
        self.failed = saved["failed"].cpu().clone()


def _sums(results: Tensor) -> Tensor:
    """One batch's part in :attr:`Scores.sums`."""
    fitness, weight = results[..., 0], results[..., 1]  # [data, members]
    mean, one = fitness.sum(0).mean(), weight[0, 0]
    if results.shape[2] < 4 and mean.isfinite() and (weight == one).all():  # nothing is missing: the same, but quick
        sums = torch.stack([mean * one, mean * one, len(results) * one, 0 * one]).repeat(fitness.shape[1] + 1, 1)
        sums[:-1, 0] = fitness.sum(0) * one
        if results.shape[2] == 3:
            sums[:-1, 3], sums[-1, 3] = results[..., 2].sum(0) * one, len(results) * one
        return sums
    values = results[..., 3:] if results.shape[2] > 3 else results[..., :1]  # [data, members, samples]
    samples = (values != math.inf).any(1).sum(1)  # of each process's data; those that it has less than others are inf
    reported = weight > 0
    outcome = fitness.where(reported, 0).sum(0).masked_fill((weight < 0).any(0) | ~reported.any(0), math.nan)
    has = (reported & outcome.isfinite())[..., None] & values.isfinite()
    count = has.sum(1)  # [data, samples], as all that follows
    mean = values.where(has, 0).sum(1) / count.clamp(min=1)
    known = count > 0
    # With one more member, which has all samples that any has, and of each the mean.
    has, values = torch.cat([has, known[:, None]], 1), torch.cat([values, mean[:, None]], 1)
    each = weight.amax(1).clamp(min=0) / samples.clamp(min=1)  # u, [data]
    share = has.sum(2) * each[:, None]
    value = (values.where(has, 0).sum(2) * each[:, None]).sum(0)
    value[:-1] = value[:-1].where(outcome.isfinite(), outcome)
    level = (mean[:, None].where(has, 0).sum(2) * each[:, None]).sum(0)
    tie_breaker = torch.zeros_like(value)
    if results.shape[2] > 2 and not results[..., 2][reported].isnan().all():
        given = torch.cat([results[..., 2], torch.ones_like(weight[:, :1])], 1)
        tie_breaker = (given.where(share > 0, 0) * share).sum(0)
    return torch.stack([value, level, share.sum(0), tie_breaker], dim=1)


def break_ties(fitness: Tensor, tie_breaker: Tensor) -> Tensor:
    """Fitness whose equal values differ by the members' tie breakers: ``f' = f + gap r / 2``.

    The gap is the smallest between two different values, and r the centered rank of the tie breaker, in [-1/2, 1/2],
    among members whose fitness is finite; equal tie breakers share the mean of their ranks. So f' moves by a quarter of
    the gap at most, and no member passes one of higher fitness. Fitness that differs by less than 1e-10 of the largest
    counts as equal: that is rounding. If all fitness is equal, f' is the tie breaker itself, as if it were the fitness.

    Args:
        fitness: float64 ``[members]``; NaN and infinite values stay as they are.
        tie_breaker: float64 ``[members]``; minus infinity ranks worst.

    Returns:
        float64 ``[members]``.

    Example:
        >>> f, t = torch.tensor([3.0, 1.0, 1.0, 2.0, 1.0]), torch.tensor([0.0, -9.0, 7.0, 5.0, -8.0])
        >>> break_ties(f.double(), t.double()).tolist()
        [3.0, 0.75, 1.25, 2.125, 0.875]
    """
    finite = fitness.isfinite()
    if not finite.any():
        return fitness
    ordered, order = fitness[finite].sort()
    steps = ordered.diff()
    apart = steps > ordered.abs().max() * _EQUAL
    if not apart.any():
        alone = tie_breaker[finite]
        known = alone.isfinite()
        if not known.any():
            return fitness
        worst = torch.nextafter(alone[known].min(), torch.tensor(-math.inf, dtype=alone.dtype))
        return fitness.masked_scatter(finite, alone.where(known, worst))
    first = torch.cat([apart.new_ones(1), apart])
    ordered = ordered[first][first.cumsum(0) - 1]  # of values that count as equal, the smallest
    ranks = centered_ranks(tie_breaker[finite])[order]
    broken = torch.empty_like(ordered)
    broken[order] = ordered + steps[apart].min() / 2 * ranks
    return fitness.masked_scatter(finite, broken)


def results_of(values: Sequence[Any], weight: float) -> Tensor:
    """What members found on a batch, float64 ``[members, columns]``.

    Columns are the fitness (NaN if there is none); the weight, 0 for a member that declined and -1 for one that failed;
    and as far as members report them the tie breaker (NaN if there is none) and the value of each sample (NaN where it
    is missing).

    Args:
        values: What members reported: a record of :func:`~lightning_evo.evaluation.fitness.as_record`, ``None`` from
            one that declined, or a Failure.
        weight: Of the batch.

    Raises:
        ValueError: If members reported records of different kinds.
    """
    weights = torch.tensor(
        [-1.0 if isinstance(value, Failure) else weight * (value is not None) for value in values], dtype=torch.float64
    )
    records = [value for value in values if isinstance(value, Tensor)]
    lengths = sorted({record.numel() for record in records})
    if len(lengths) > 1:
        raise ValueError(f"Members reported {kinds_of(lengths)} for the same batch. {ALIKE}")
    length = lengths[0] if lengths else 1
    results = torch.full((len(values), 1 + length), math.nan, dtype=torch.float64)
    results[:, 1] = weights
    if records:
        found = torch.stack(records).cpu().to(torch.float64).view(len(records), length)
        reported = ~torch.tensor([value is None or isinstance(value, Failure) for value in values])
        results[reported, 0] = found[:, 0]
        results[reported, 2:] = found[:, 1:]
        without = found[:, 1].isnan() if length > 1 else found[:0, 0].bool()
        if without.any() and not without.all():
            raise ValueError(f"Some members reported a tie breaker for a batch, and others none. {ALIKE}")
    return results


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
