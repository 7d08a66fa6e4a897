"""Kernels that sum noise and move weights: one pass over each weight. Their tables are told of in ``members.py``."""

from __future__ import annotations

from lightning_evo.kernels.triton.language import jit, tl
from lightning_evo.kernels.triton.members import bounded, float_at, part_of
from lightning_evo.kernels.triton.noise import elements, noise, rounding_numbers
from lightning_evo.kernels.triton.rounding import pointer, stochastic, widen

__all__ = ["move_kernel", "squares_kernel", "sum_kernel", "update_kernel"]


@jit
def weighted_sum(row, tensor, numbers, coefficients, DISTRIBUTION: tl.constexpr, BLOCKS: tl.constexpr):
    """``sum_d weights[d] eps_d``, added up one by one, in this order: float32 ``[8, BLOCKS]``."""
    count = tl.load(numbers).to(tl.int32)
    total = tl.zeros((8, BLOCKS), tl.float32)
    for d in range(count):
        direction = tl.load(numbers + 1 + d).to(tl.uint32)
        eps = noise(row, direction, tensor, coefficients, DISTRIBUTION, BLOCKS)
        total += eps * float_at(numbers + 1 + count + d)
    return total


@jit
def pulled(middle, home, step, tensor):
    """``shrink(center - anchor + step - decay center)``; see ``pull.py``. Fields 15 to 17: decay, keep, threshold."""
    before = (middle - home) + (step - middle * float_at(tensor + 15))
    magnitude = tl.abs(before) - float_at(tensor + 17)
    away = tl.where(before < 0, -magnitude, magnitude)
    return tl.where(magnitude <= 0, 0.0, away) * float_at(tensor + 16)


@jit
def move(
    tensor,
    row,
    base,
    lane,
    inside,
    step,
    DTYPE: tl.constexpr,
    PULL: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``center += step``, drawn back if anything does, rounded where there is something to round.

    Returns:
        How far it has come from what draws it back, squared, float32 ``[8, BLOCKS]``; 0 without.
    """
    center = pointer(tl.load(tensor + 8), base, DTYPE, ALIGNED)
    stored = tl.load(center + lane, mask=inside)
    middle = widen(stored, DTYPE)
    if DTYPE == "float32":
        random = tl.zeros((8, BLOCKS), tl.uint32)
    else:
        random = rounding_numbers(row, tensor + 9, BLOCKS)
    if PULL:
        anchor = tl.load(pointer(tl.load(tensor + 14), base, DTYPE, ALIGNED) + lane, mask=inside)
        home = widen(anchor, DTYPE)
        away = pulled(middle, home, step, tensor)
        moved = tl.where(away == 0, anchor, stochastic(home + away, random, DTYPE))
        way = widen(moved, DTYPE) - home
        squares = tl.where(inside, way * way, 0.0)
    else:
        # A center that is not to move keeps its sign of zero.
        moved = tl.where(step == 0, stored, stochastic(middle + step, random, DTYPE))
        squares = tl.zeros((8, BLOCKS), tl.float32)
    tl.store(center + lane, moved, mask=inside)
    return squares


@jit
def total_of(values):
    """The sum of all elements."""
    return tl.sum(tl.sum(values, axis=0), axis=0)


@jit
def update_kernel(
    parts,
    tensors,
    numbers,
    coefficients,
    squares,
    DISTRIBUTION: tl.constexpr,
    DTYPE: tl.constexpr,
    PULL: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``center += coefficient * sum_d weights[d] eps_d``.

    Fields from 8: center; the rounding's address, four words; coefficient; then anchor, decay, keep and threshold.
    ``squares`` float32 ``[2, parts]``: of the sum, and of the way from the anchor.
    """
    part = tl.program_id(0).to(tl.int64)
    tensor, row, base = part_of(parts, tensors, part, BLOCKS)
    lane = elements(BLOCKS)
    inside = bounded(lane, tl.load(tensor + 5), tl.load(tensor + 6), base, BLOCKS, ALIGNED)
    total = weighted_sum(row, tensor, numbers, coefficients, DISTRIBUTION, BLOCKS)
    tl.store(squares + part, total_of(tl.where(inside, total * total, 0.0)))
    way = move(tensor, row, base, lane, inside, total * float_at(tensor + 13), DTYPE, PULL, BLOCKS, ALIGNED)
    if PULL:
        tl.store(squares + tl.num_programs(0) + part, total_of(way))


@jit
def move_kernel(
    parts,
    tensors,
    numbers,
    squares,
    DTYPE: tl.constexpr,
    PULL: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``center += step``. Fields as for ``update_kernel``, and 18: the steps. ``squares`` float32 ``[parts]``."""
    part = tl.program_id(0).to(tl.int64)
    tensor, row, base = part_of(parts, tensors, part, BLOCKS)
    lane = elements(BLOCKS)
    inside = bounded(lane, tl.load(tensor + 5), tl.load(tensor + 6), base, BLOCKS, ALIGNED)
    step = tl.load(pointer(tl.load(tensor + 18), base, "float32", ALIGNED) + lane, mask=inside)
    way = move(tensor, row, base, lane, inside, step, DTYPE, PULL, BLOCKS, ALIGNED)
    if PULL:
        tl.store(squares + part, total_of(way))


@jit
def sum_kernel(
    parts,
    tensors,
    numbers,
    coefficients,
    DISTRIBUTION: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``sum_d weights[d] eps_d``. Field 8: where it goes."""
    part = tl.program_id(0).to(tl.int64)
    tensor, row, base = part_of(parts, tensors, part, BLOCKS)
    lane = elements(BLOCKS)
    inside = bounded(lane, tl.load(tensor + 5), tl.load(tensor + 6), base, BLOCKS, ALIGNED)
    total = weighted_sum(row, tensor, numbers, coefficients, DISTRIBUTION, BLOCKS)
    tl.store(pointer(tl.load(tensor + 8), base, "float32", ALIGNED) + lane, total, mask=inside)


@jit
def squares_kernel(squares, bounds, out, KINDS: tl.constexpr, PARTS: tl.constexpr):
    """The sum of each tensor's parts in float64, in a fixed order.

    Args:
        squares: float32 ``[kinds, parts]``.
        bounds: How many parts there are, then where each tensor's begin and, after them, end: int64.
        out: float64 ``[kinds, tensors]``.
        KINDS: How many sums there are for each tensor.
        PARTS: How many are added at a time.
    """
    tensor, kind = tl.program_id(0) // KINDS, tl.program_id(0) % KINDS
    first, last = tl.load(bounds + 1 + tensor), tl.load(bounds + 2 + tensor)
    of_kind = squares + kind * tl.load(bounds)
    total = tl.zeros((PARTS,), tl.float64)
    for start in range(first, last, PARTS):
        part = start + tl.arange(0, PARTS)
        total += tl.load(of_kind + part, mask=part < last, other=0.0).to(tl.float64)
    tl.store(out + kind * (tl.num_programs(0) // KINDS) + tensor, tl.sum(total, axis=0))
