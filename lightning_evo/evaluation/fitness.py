"""What a fitness is: one number per member, higher is better.

This is the only place where a loss turns into a fitness, by its sign.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["as_fitness", "as_fitnesses", "fitness_of_loss", "fitness_of_step", "token_log_probability"]


def as_fitness(value: Any, *, source: str = "fitness_step") -> Tensor:
    """A member's fitness as one number, from what ``fitness_step`` returned.

    Args:
        value: A tensor or a number: a scalar, or one value per sample ``[samples]``, which are averaged. Booleans and
            integers (correct or not, points) count as numbers.
        source: Name of the method, for error messages.

    Returns:
        0-dimensional tensor, float32 or float64, on the device of ``value``.

    Raises:
        TypeError: If it is not a real number or tensor.
        ValueError: If it has more than one dimension or no element.

    Example:
        >>> as_fitness(torch.tensor([True, False, True, True]))
        tensor(0.7500, dtype=torch.float64)
    """
    if _is_scalar(value):
        return value.detach().clone()  # the quick way for a scalar; a copy, as a mean would be
    if isinstance(value, Real) or type(value).__name__ in ("bool_", "bool"):  # NumPy's bool is no Real
        value = torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`{source}` returned {type(value).__name__} ({value!r:.80}), which can't be compared. Return a tensor: "
            "one number, or one per sample; higher is better."
        )
    if value.is_complex():
        raise TypeError(f"`{source}` returned a complex tensor ({value.dtype}); fitness must be real numbers.")
    if value.dim() > 1:
        raise ValueError(
            f"`{source}` returned a tensor of shape {list(value.shape)}. Return one number, or one per sample "
            "([samples]); reduce the other dimensions first, for example with `.mean(dim=1)`."
        )
    if value.numel() == 0:
        raise ValueError(f"`{source}` returned an empty tensor; there is nothing to compare.")
    # float32 holds the half floats exactly, but not all whole numbers; the MPS device has nothing longer.
    exact = value.dtype == torch.float64 or (not value.is_floating_point() and value.device.type != "mps")
    return torch.mean(value.detach().to(torch.float64 if exact else torch.float32))


def _is_scalar(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 0 and value.dtype in (torch.float32, torch.float64)


def as_fitnesses(values: Sequence[Any], *, source: str = "fitness_step") -> Tensor:
    """:func:`as_fitness` of several members, ``[members]``."""
    if not all(map(_is_scalar, values)):
        values = [as_fitness(value, source=source) for value in values]
    return torch.stack(list(values)).detach()


def fitness_of_step(fitness_step: Callable[..., Any], batch_idx: int) -> Callable[[Any], Tensor]:
    """A function from a batch to the fitness that ``fitness_step(batch, batch_idx)`` or ``fitness_step(batch)`` gives.

    It raises TypeError where the step returns anything but a real number or tensor, ``None`` included, and ValueError
    where it returns more than one dimension or no element.
    """
    index = (batch_idx,) if _wants_index(fitness_step) else ()
    return lambda batch: as_fitness(fitness_step(batch, *index))


def _wants_index(fitness_step: Callable[..., Any]) -> bool:
    """Whether the second parameter is for the batch's number: one by position that is named so or has no default."""
    second = list(inspect.signature(fitness_step).parameters.values())[1:2]
    if not second:
        return False
    parameter = second[0]
    if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL):
        return False
    return parameter.name == "batch_idx" or parameter.default is parameter.empty


def fitness_of_loss(output: Any) -> Tensor | None:
    """Minus the loss that ``training_step`` returned, or ``None`` if it returned ``None`` (a skipped step).

    Args:
        output: A loss tensor, a mapping with the key ``"loss"``, or ``None``.

    Raises:
        TypeError: If it is none of these, or not a real number.
        ValueError: If the loss is not a scalar.
    """
    if isinstance(output, Mapping):
        if "loss" not in output:
            raise TypeError("`training_step` returned a dictionary without the key 'loss'; evolution needs the loss.")
        output = output["loss"]
    if output is None:
        return None
    if isinstance(output, Tensor) and output.numel() != 1:
        raise ValueError(
            f"`training_step` returned a loss of shape {list(output.shape)}; return one number, or define "
            "`fitness_step` to give one value per sample."
        )
    if isinstance(output, Tensor):
        output = output.reshape(())
    return -as_fitness(output, source="training_step")


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
