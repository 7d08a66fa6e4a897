"""What a fitness is: a number, one value per sample, or a :class:`Fitness`; higher is better.

A member reports no more than was asked for: the mean of its values, a tie breaker, or each sample's value where some
are missing. This is the only place where a loss turns into a fitness, by its sign.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.numbers import as_tensor, is_several
from lightning_evo.evaluation.places import Lost, made_of, place_of

__all__ = [
    "Fitness",
    "as_fitness",
    "as_record",
    "as_records",
    "details_of",
    "fitness_of_loss",
    "fitness_of_step",
    "number_of",
    "token_log_probability",
]


@dataclass(frozen=True)
class Fitness:
    """What ``fitness_step`` returns if a number or one value per sample is not enough.

    Attributes:
        values: A number, or one value per sample ``[samples]``; higher is better. A NaN fails the member.
        tie_breaker: A number, or one per sample, that orders members of equal fitness; higher is better. It never
            outweighs a difference in fitness. Its mean counts; a mean that is NaN or infinite ranks worst.
        missing: Bool ``[samples]``, true where a sample has no value, for example because a reward function timed
            out. Then members are compared on the samples that each of them has: from every value that sample's mean
            over the members is taken off, so that a member that misses hard samples gains nothing. If one member
            gives it, all must, and each its value for the same samples.
        details: One object per sample, for example the text that was generated: what a callback may show. It can be
            pickled, and decides nothing. :attr:`Evolution.details <lightning_evo.Evolution.details>` has it for those
            who ask; members that ``"batched"`` evaluates have none, as their code runs once for all of them.

    Example:
        >>> correct = torch.tensor([True, False, True, True])
        >>> log_probability = torch.tensor([-0.1, -2.3, -0.2, -0.4])
        >>> fitness = Fitness(correct, tie_breaker=log_probability)
    """

    values: Any
    tie_breaker: Any = None
    missing: Any = None
    details: Sequence[Any] | None = None


def as_fitness(value: Any, *, source: str = "fitness_step") -> Tensor:
    """A member's fitness as one number, from what ``fitness_step`` returned.

    Args:
        value: A number, or one value per sample ``[samples]``, which are averaged: a tensor, a NumPy array, or a list
            or tuple of numbers. Booleans and integers (correct or not, points) count as numbers.
        source: Name of the method, for error messages.

    Returns:
        0-dimensional tensor, float32 or float64, on the device of ``value``.

    Raises:
        TypeError: If it is nothing of these, or its numbers are not real.
        ValueError: If it has more than one dimension or no element.

    Example:
        >>> as_fitness(torch.tensor([True, False, True, True]))
        tensor(0.7500, dtype=torch.float64)
        >>> as_fitness([0.5, 1, True, 0.0])
        tensor(0.6250, dtype=torch.float64)
    """
    if _is_scalar(value):
        return value.detach().clone()  # the quick way for a scalar; a copy, as a mean would be
    value = _checked(value, source)
    # float32 holds the half floats exactly, but not all whole numbers.
    exact = value.dtype == torch.float64 or not value.is_floating_point()
    return torch.mean(value.detach().to(_exact(value) if exact else torch.float32))


def _checked(value: Any, source: str, what: str = "fitness") -> Tensor:
    """One number or one per sample as a tensor, if they are real; a tensor as it is."""
    given, value = value, as_tensor(value, source, what)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`{source}` returned {type(given).__name__} ({given!r:.80}), which can't be compared. Return a tensor: "
            "one number, or one per sample; higher is better."
        )
    if value.is_complex():
        raise TypeError(f"`{source}` returned a complex tensor ({value.dtype}); {what} must be real numbers.")
    if value.dim() > 1:
        raise ValueError(
            f"`{source}` returned {_kind(given)} of shape {list(value.shape)}. Return one number, or one per sample "
            "([samples]); reduce the other dimensions first, for example with `.mean(dim=1)`."
        )
    if value.numel() == 0:
        raise ValueError(f"`{source}` returned {_kind(given, 'empty')}; there is nothing to compare.")
    return value


def _kind(value: Any, adjective: str = "") -> str:
    kind = "tensor" if isinstance(value, Tensor) else type(value).__name__.removeprefix("nd")
    first = f"{adjective} {kind}".strip()
    return f"an {first}" if first[0] in "aeiou" else f"a {first}"


def _is_scalar(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 0 and value.dtype in (torch.float32, torch.float64)


def as_record(value: Any, *, source: str = "fitness_step") -> Tensor:
    """What a member reports, from what ``fitness_step`` returned: one tensor, so that members can share a forward.

    Args:
        value: A :class:`Fitness`, or what :func:`as_fitness` takes.
        source: Name of the method, for error messages.

    Returns:
        Without tie breaker and missing samples the fitness, 0-dimensional, as :func:`as_fitness` gives it. With a tie
        breaker ``[fitness, tie breaker]``; with ``missing`` ``[fitness, tie breaker, values…]``: the means over the
        samples that the member has (0 if it has none) and each sample's value, NaN where it is missing. The tie breaker
        is NaN if there is none, and minus infinity in place of one that is not finite. float64 (float32 on MPS).

    Raises:
        TypeError: If values are not real numbers, or ``missing`` are not bools.
        ValueError: If a value has more than one dimension or no element, or shapes differ.

    Example:
        >>> as_record(Fitness(torch.tensor([1.0, 5.0, 3.0]), missing=torch.tensor([False, True, False])))
        tensor([2., nan, 1., nan, 3.], dtype=torch.float64)
    """
    if not isinstance(value, Fitness):
        return as_fitness(value, source=source)
    record = _record(value, source)
    if value.details is not None:
        record._details_of_samples = _checked_details(value, source)  # type: ignore[attr-defined]
    return record


def details_of(record: Any) -> list[Any] | None:
    """The :attr:`Fitness.details` that a member's record carries; ``None`` if it has none.

    Example:
        >>> details_of(as_record(Fitness([1.0, 0.0], details=["a right answer", "a wrong one"])))
        ['a right answer', 'a wrong one']
    """
    return getattr(record, "_details_of_samples", None)


def _checked_details(value: Fitness, source: str) -> list[Any]:
    details, values = value.details, as_tensor(value.values, source, "fitness")
    samples = len(values) if values is not None and values.dim() else None
    if not isinstance(details, list | tuple) or len(details) != samples:
        found = f"{len(details)} of them" if isinstance(details, list | tuple) else type(details).__name__
        wanted = "one value per sample" if samples is None else f"a list of {samples}"
        raise ValueError(f"`{source}` returned as details {found}. They go with values: {wanted}, one for each sample.")
    return list(details)


def _record(value: Fitness, source: str) -> Tensor:
    if value.tie_breaker is None and value.missing is None:
        return as_fitness(value.values, source=source)
    values = _checked(value.values, source)
    values = values.detach().to(_exact(values))
    has = None
    if value.missing is not None:
        has = ~_checked_missing(value.missing, values, source).to(values.device)
    tie_breaker = values.new_full((), math.nan)
    if value.tie_breaker is not None:
        each = _checked(value.tie_breaker, source, "tie breaker").detach().to(values)
        if each.dim() and each.shape != values.shape:
            raise ValueError(
                f"`{source}` returned a tie breaker of shape {list(each.shape)} for values of shape "
                f"{list(values.shape)}. Return one number, or one per sample."
            )
        tie_breaker = _mean(each, has) if each.dim() else each
        tie_breaker = tie_breaker.nan_to_num(-math.inf, -math.inf, -math.inf)
    record = torch.stack([_mean(values, has), tie_breaker])
    return record if has is None else torch.cat([record, values.where(has, math.nan)])


def as_records(value: Any, members: int, samples: int = 1, *, source: str = "the fitness") -> list[Tensor]:
    """What members report whose rows share a batch, member by member.

    Args:
        value: What :func:`as_record` takes, with one value for each row of the batch.
        members: How many there are.
        samples: Rows of each; there may be several values for a row, one after the other.
        source: What gave it, for messages.

    Raises:
        Refusal: If there is not one value for each row.

    Example:
        >>> as_records(torch.tensor([1.0, 3.0, 5.0, 5.0]), members=2)
        [tensor(2.), tensor(5.)]
    """
    if not isinstance(value, Fitness):
        return [as_record(part) for part in _of_members(value, members, samples, source)]
    count = {"values": value.values, "tie_breaker": value.tie_breaker, "missing": value.missing}
    parts: dict[str, Sequence[Any]] = {
        name: _of_members(each, members, samples, f"{source}'s {name}")
        for name, each in count.items()
        if each is not None
    }
    if value.details is not None:
        each = len(_checked_details(value, source)) // members
        parts["details"] = [value.details[i * each : (i + 1) * each] for i in range(members)]
    return [as_record(Fitness(**{name: part[i] for name, part in parts.items()})) for i in range(members)]


_GIVE = "return one value per sample from `fitness_step`, or `loss_per_sample` with `loss` from `training_step`"


def _of_members(value: Any, members: int, samples: int, source: str) -> list[Tensor]:
    values = as_tensor(value, source, "fitness")
    if not isinstance(values, Tensor) or not values.dim():
        raise Refusal(f"{source} is one number for the whole batch: {_GIVE}")
    place = place_of(values)
    if isinstance(place, Lost):
        raise Refusal(f"{source} comes from {place}, after which rows can't be told apart: {_GIVE}")
    if made_of(values) is not None:  # it holds the center's
        raise Refusal(f"{source} comes from weights alone, without the batch: {_GIVE}")
    if len(values) % (members * samples):
        raise Refusal(f"{source} has {len(values)} values for {members * samples} rows of members: {_GIVE}")
    return list(values.reshape(members, -1, *values.shape[1:]))


def _mean(values: Tensor, has: Tensor | None) -> Tensor:
    return values.mean() if has is None else values.where(has, 0).sum() / has.sum().clamp(min=1)


def _checked_missing(missing: Any, values: Tensor, source: str) -> Tensor:
    given, missing = missing, as_tensor(missing, source, "`missing`")
    if not isinstance(missing, Tensor) or missing.dtype != torch.bool:
        kind = missing.dtype if isinstance(missing, Tensor) else type(given).__name__
        raise TypeError(
            f"`{source}` returned `missing` as {kind}. Return a bool tensor, true where a sample has no value."
        )
    if missing.shape != values.shape or not values.dim():
        raise ValueError(
            f"`{source}` returned `missing` of shape {list(missing.shape)} for values of shape {list(values.shape)}. "
            "Return both as [samples]."
        )
    return missing


def number_of(record: Any) -> float:
    """One number to compare ways of evaluating by: the fitness of a record, with its tie breaker; NaN if declined."""
    if isinstance(record, Tensor) and record.dim() == 1:
        record = record[:2].nansum() if record[0].isfinite() else record[0]
    return math.nan if record is None else float(as_fitness(record))


def fitness_of_step(fitness_step: Callable[..., Any], batch_idx: int) -> Callable[[Any], Any]:
    """A function from a batch to what ``fitness_step(batch, batch_idx)`` or ``fitness_step(batch)`` returns.

    It raises TypeError where the step returns ``None``: only a ``training_step`` declines a batch.
    """
    index = (batch_idx,) if _wants_index(fitness_step) else ()

    def fitness(batch: Any) -> Any:
        value = fitness_step(batch, *index)
        return as_fitness(value) if value is None else value  # which says what is wrong

    return fitness


def _wants_index(fitness_step: Callable[..., Any]) -> bool:
    """Whether the second parameter is for the batch's number: one by position that is named so or has no default."""
    second = list(inspect.signature(fitness_step).parameters.values())[1:2]
    if not second:
        return False
    parameter = second[0]
    if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL):
        return False
    return parameter.name == "batch_idx" or parameter.default is parameter.empty


def fitness_of_loss(output: Any, maximize: bool = False) -> Tensor | None:
    """Minus the loss that ``training_step`` returned, or ``None`` if it returned ``None`` (a skipped step).

    Args:
        output: A loss tensor, a mapping with the key ``"loss"``, or ``None``. With the key ``"loss_per_sample"`` in
            addition, one value per sample ``[samples]``, these are the fitness, and ``"loss"`` is not.
        maximize: Whether what it calls a loss is better the higher, and so is the fitness itself.

    Returns:
        0-dimensional, float32 or float64; with ``"loss_per_sample"`` ``[samples]``, in its own dtype, or float64 if
        that holds whole numbers.

    Raises:
        TypeError: If it is none of these, or not a real number.
        ValueError: If the loss is not a scalar, or ``"loss_per_sample"`` does not have one dimension.

    Example:
        >>> fitness_of_loss({"loss": torch.tensor(2.0), "loss_per_sample": torch.tensor([1.0, 3.0])})
        tensor([-1., -3.])
    """
    per_sample = None
    if isinstance(output, Mapping):
        if "loss" not in output:
            raise TypeError("`training_step` returned a dictionary without the key 'loss'; evolution needs the loss.")
        per_sample, output = output.get("loss_per_sample"), output["loss"]
    if output is None:
        return None
    if per_sample is not None:
        fitness = _of_samples(per_sample)
    elif isinstance(output, Tensor) and output.numel() != 1:
        raise ValueError(f"`training_step` returned a loss of shape {list(output.shape)}; {_ONE_OR_ALL}")
    elif not isinstance(output, Tensor) and is_several(output):
        raise TypeError(f"`training_step` returned {_kind(output)} ({output!r:.80}) as the loss; {_ONE_OR_ALL}")
    else:
        fitness = as_fitness(output.reshape(()) if isinstance(output, Tensor) else output, source="training_step")
    return fitness if maximize else -fitness


_ONE_OR_ALL = (
    "return one number. For one value per sample return {'loss': …, 'loss_per_sample': …}, or define `fitness_step`."
)


def _of_samples(losses: Any) -> Tensor:
    """What ``training_step`` returned as ``loss_per_sample``, as a floating tensor ``[samples]``."""
    what = "`loss_per_sample`"
    values = as_tensor(losses, "training_step", what)
    if isinstance(values, Tensor) and values.dim() != 1:
        raise ValueError(
            f"`training_step` returned {what} of shape {list(values.shape)}. Return one value per sample ([samples]), "
            "for example by `reduction='none'`, or leave it out."
        )
    values = _checked(losses if values is None else values, "training_step", what)
    return values if values.is_floating_point() else values.to(_exact(values))


def _exact(values: Tensor) -> torch.dtype:
    """Which floats hold whole numbers; the MPS device has nothing longer than float32."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def token_log_probability(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean log-probability of each sample's tokens given those before them: EA4LLM's fitness.

    ``R(x) = sum_t m_t log p(x_{t+1} | x_{<=t}) / sum_t m_t`` (Liu et al. 2025, arXiv:2510.10603, Eq. 10), where m_t
    says whether token t+1 is real. The loss of a causal language model is its negative, averaged over samples.

    Args:
        logits: ``[samples, length, vocabulary]``, floating.
        tokens: ``[samples, length]``, int64; position t of ``logits`` predicts token t+1.
        mask: ``[samples, length]``, true (or 1) for real tokens and false for padding; ``None`` if all are real.

    Returns:
        ``[samples]`` in float32 (float64 for float64 logits). A sample without a predicted token gives 0.

    Raises:
        ValueError: If the shapes don't fit together.

    Example:
        >>> logits = torch.zeros(2, 5, 10)  # uniform over 10 tokens
        >>> token_log_probability(logits, torch.ones(2, 5, dtype=torch.long))
        tensor([-2.3026, -2.3026])
    """
    if logits.dim() != 3 or tokens.shape != logits.shape[:2] or (mask is not None and mask.shape != tokens.shape):
        raise ValueError(
            "token_log_probability needs logits [samples, length, vocabulary], tokens [samples, length] and mask "
            f"[samples, length]; got {list(logits.shape)}, {list(tokens.shape)} and "
            f"{None if mask is None else list(mask.shape)}."
        )
    real = torch.ones_like(tokens[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:].bool()
    predictions = logits[:, :-1].flatten(0, 1)
    predictions = predictions if logits.dtype == torch.float64 else predictions.float()
    log_probability = -functional.cross_entropy(predictions, tokens[:, 1:].flatten(), reduction="none").view_as(real)
    return log_probability.where(real, 0).sum(1) / real.sum(1).clamp(min=1)
