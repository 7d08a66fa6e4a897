"""What a journal records: of its run, of what seldom changes, and of each generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from lightning_evo.generation.step import Clipping, Step
from lightning_evo.utils.messages import preview

__all__ = [
    "Conditions",
    "Header",
    "JournalError",
    "Record",
    "RecordedParameter",
    "meddled",
    "parameter_names",
    "recorded_step",
    "same_parameters",
]


class JournalError(RuntimeError):
    """A journal that can't be read, or does not belong to the run it is used with."""


@dataclass(frozen=True)
class RecordedParameter:
    """An evolving parameter, as a journal describes it.

    Attributes:
        names: All of its names; more than one for tied weights.
        index: Its number among all parameters of the module, which addresses its noise.
        shape: Its shape.
        dtype: ``"float32"``, ``"bfloat16"``, ….
        padding_row: The row of an embedding that does not learn.
        group: The number of its parameter group, over all optimizers; 0 without any.
    """

    names: tuple[str, ...]
    index: int
    shape: tuple[int, ...]
    dtype: str
    padding_row: int | None = None
    group: int = 0


@dataclass(frozen=True)
class Conditions:
    """What seldom changes, and is written only when it does.

    Attributes:
        seed: Of the noise, 0 to 2^64 - 1.
        parameters: What evolves.
        clipping: ``None``, or ``(limit, "norm")`` or ``(limit, "value")``.
        evaluation: The way members are run, as a checkpoint holds it; empty until it is chosen.
        accumulate: Training steps for each step of the optimizer; an epoch's last may take fewer.
        decays: The optimizer's weight decay: one for all parameters, or one for each parameter group; none without.
    """

    seed: int
    parameters: tuple[RecordedParameter, ...]
    clipping: tuple[float, Literal["norm", "value"]] | None = None
    evaluation: tuple[tuple[str, Any], ...] = ()
    accumulate: int = 1
    decays: tuple[float, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a journal records of its run.

    Attributes:
        run: A random number of 64 bits that identifies this journal; checkpoints store it.
        generation: The first generation.
        algorithm: From :func:`~lightning_evo.journal.describe_algorithm`.
        start: From :func:`~lightning_evo.journal.weights_checksum`: the weights before the first generation.
        conditions: In force from the first generation on.
        anchor: What draws the weights back, if anything: ``strength``, ``by``, and ``start``, a checksum of the weights
            that the run's script had built, which need not be those of the first generation here.
    """

    run: int
    generation: int
    algorithm: dict[str, Any]
    start: str
    conditions: Conditions
    anchor: dict[str, Any] | None = None


@dataclass(frozen=True)
class Record:
    """One generation.

    Attributes:
        generation: Its number.
        fitness: Of each member, float64; NaN or infinite where it failed.
        sigma: The distance of members from the center.
        learning_rates: One for all parameters, or one for each parameter group, negative where the fitness should fall;
            none for an update to a center.
        coefficient: What clipping by norm multiplied the estimate by.
        batches: Training steps that the generation took: more than one if batches accumulate or were declined.
        check: 16 bits from :func:`~lightning_evo.journal.check_of`, by which a replay sees that it makes the same
            update.
    """

    generation: int
    fitness: tuple[float, ...]
    sigma: float
    learning_rates: tuple[float, ...]
    coefficient: float = 1.0
    batches: int = 1
    check: int = 0

    def same_as(self, other: Record) -> bool:
        """Whether both hold the same; NaN equals NaN."""
        return _comparable(self) == _comparable(other)


def _comparable(record: Record) -> tuple[Any, ...]:
    values = tuple(None if math.isnan(value) else value for value in record.fitness)
    return (values, *(getattr(record, f.name) for f in fields(record) if f.name != "fitness"))


def recorded_step(record: Record, conditions: Conditions) -> Step:
    """How the update of a recorded generation moved the weights."""
    clipping = None
    if conditions.clipping is not None:
        limit, by = conditions.clipping
        clipping = Clipping(limit, by, record.coefficient)
    groups = {p.index: p.group for p in conditions.parameters}
    return Step(record.learning_rates, groups, clipping, conditions.decays)


def meddled(owns_center: bool) -> str:
    """The further reason, as a part of a message, why an algorithm with a center of its own learns something else."""
    return ", or something else than evolution (a callback) moved the weights, which its search follows" * owns_center


def same_parameters(some: Sequence[RecordedParameter], others: Sequence[RecordedParameter]) -> bool:
    """Whether both are the same tensors; an optimizer may have them in other groups.

    Example:
        >>> weight = RecordedParameter(("weight",), 0, (2, 3), "float32")
        >>> same_parameters([weight], [replace(weight, group=1)]), same_parameters([weight], [])
        (True, False)
    """
    return [replace(parameter, group=0) for parameter in some] == [replace(parameter, group=0) for parameter in others]


def parameter_names(parameters: Sequence[RecordedParameter]) -> str:
    """The first few, for a message.

    Example:
        >>> parameter_names([RecordedParameter(("weight",), 0, (2, 3), "float32")])
        'weight float32 [2, 3]'
    """
    return preview([f"{p.names[0]} {p.dtype} {list(p.shape)}" for p in parameters], 5)
