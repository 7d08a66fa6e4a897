"""Compares records of two forwards, call by call, up to where they go different ways.

Two runs of the same member that are rounded differently agree to rounding, until a choice that hangs on the last digit
falls differently: another token is generated, another branch is taken. What follows can't be compared. So a difference
counts where floating-point numbers differ and no such choice came before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_evo.evaluation.recording import Call, Samples

__all__ = ["Comparison", "compare", "same", "unlike"]


@dataclass(frozen=True)
class Comparison:
    """What two records of a member say.

    Attributes:
        compared: Calls with evolving parameters, and the fitness, that are the same, and not what ``other`` has.
        difference: The first call that was not the same, if the ways are to blame for it.
        in_output: Whether it was given the same.
    """

    compared: int
    difference: Call | None = None
    in_output: bool = False


def compare(
    expected: Sequence[Call],
    found: Sequence[Call],
    other: Sequence[Call],
    positions: tuple[int, int, int] = (0, 0, 0),
    *,
    share: float,
    rounding: float,
) -> Comparison:
    """Compare two records of a member, up to where a choice that hangs on rounding falls differently.

    Args:
        expected: By the plain loop.
        found: By another way.
        other: Of another member, or the center: how far it is from ``expected`` says how large a difference may be.
        positions: The member's among those that share a forward, in each of the three.
        share: Of that distance, which a difference may be.
        rounding: How many times the numbers' spacing it may be, in addition.
    """
    first, second, third = positions

    def agree(e: Samples, f: Samples, o: Samples | None, eps: float) -> bool:
        others = [None] * len(e) if o is None else [sample.of(third) for sample in o]
        return all(
            _close(sample.of(first), same.of(second), c, share, rounding * eps, same.rows)
            for sample, same, c in zip(e, f, others, strict=True)
            if sample.floating
        )

    def equal(e: Samples, f: Samples) -> bool:
        pairs = [(a.of(first), b.of(second)) for a, b in zip(e, f, strict=True) if not a.floating]
        return all(a is None or b is None or torch.equal(a, b) for a, b in pairs)

    compared, chosen, left = 0, False, False  # `chosen`: whole numbers differ; `left`: Python may have chosen
    same_way = 0  # calls for which `other` goes the same way
    while same_way < min(len(expected), len(other)) and expected[same_way].signature == other[same_way].signature:
        same_way += 1
    for number, (e, f) in enumerate(zip(expected, found, strict=False)):
        o, eps = other[number] if number < same_way else None, max(e.eps, f.eps)
        if e.signature != f.signature or not equal(e.inputs, f.inputs):
            e, f, o = expected[-1], found[-1], other[-1]  # if nothing explains it, the fitness tells
            unexplained = not chosen and not left and not agree(e.inputs, f.inputs, o.inputs, eps)
            return Comparison(compared, e if unexplained else None)
        if not agree(e.inputs, f.inputs, None if o is None else o.inputs, eps):
            return Comparison(compared, None if chosen else e)
        shapes, others = [sample.shape for sample in e.outputs], None if o is None else o.outputs
        if shapes != [sample.shape for sample in f.outputs]:
            return Comparison(compared, e if e.parameters else None, in_output=True)
        if others is not None and shapes != [sample.shape for sample in others]:
            others = None
        if not agree(e.outputs, f.outputs, others, eps):
            return Comparison(compared, e, in_output=True)
        chosen, left = chosen or not equal(e.outputs, f.outputs), left or e.leaves
        told, others = (e.outputs, others) if e.parameters else (e.inputs, None if o is None else o.inputs)
        moved = others is None or any(
            not same_values(a.of(first), c.of(third)) for a, c in zip(told, others, strict=True) if a.floating
        )
        compared += moved and (bool(e.parameters and e.outputs) or e.function == "fitness")
    return Comparison(compared)


def same(first: Sequence[Call], second: Sequence[Call]) -> bool:
    """Whether two records hold the same bits."""

    def alike(a: Call, b: Call) -> bool:
        samples, others = a.inputs + a.outputs, b.inputs + b.outputs
        equal = len(samples) == len(others) and all(
            same_values(p.values, q.values) for p, q in zip(samples, others, strict=False)
        )
        return equal and a.signature == b.signature

    return len(first) == len(second) and all(map(alike, first, second))


def same_values(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two samples hold the same numbers; NaN counts as one."""
    if first is None or second is None:
        return first is second
    return torch.equal(first.nan_to_num(nan=math.pi), second.nan_to_num(nan=math.pi))


def unlike(first: Sequence[Call], second: Sequence[Call], members: tuple[int, int], *, rounding: float) -> Call | None:
    """The first call that does not hold the same numbers for a member, as far as two records go the same way.

    The same product may be rounded differently all the same: some libraries do so by where its operands lie in memory.

    Args:
        first: One record.
        second: The other one.
        members: The member's position in each.
        rounding: How many times the numbers' spacing they may differ.
    """
    exact = True
    for a, b in zip(first, second, strict=False):
        if a.signature != b.signature:
            break
        for p, q in zip(a.inputs + a.outputs, b.inputs + b.outputs, strict=True):
            one, other = p.of(members[0]), q.of(members[1])
            if same_values(one, other):
                continue
            if not p.floating:
                return a if exact else None  # a choice may hang on what was rounded differently before
            if not _close(one, other, None, 0.0, rounding * max(a.eps, b.eps), p.rows):
                return a
            exact = False
    return None


def _close(
    expected: Tensor | None,
    found: Tensor | None,
    other: Tensor | None,
    share: float,
    rounding: float,
    rows: int,
) -> bool:
    """Whether two samples are the same to rounding, row by row; those that can't be looked into count as such."""
    if expected is None or found is None or torch.equal(expected, found):
        return True
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return False
    row = (torch.arange(len(expected)) * rows // len(expected))[finite]
    a, b = expected[finite], found[finite]
    c = torch.zeros_like(a) if other is None else other[finite].nan_to_num(0, 0, 0)

    def norms(values: Tensor) -> Tensor:
        return torch.zeros(rows, dtype=torch.float64).index_add_(0, row, values.square()).sqrt()

    size = torch.maximum(norms(a), norms(c)).max()
    return bool((norms(a - b) <= share * norms(a - c) + rounding * size).all())
