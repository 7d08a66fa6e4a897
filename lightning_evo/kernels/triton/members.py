"""Kernels that write random values, and members of tensors.

Tables are int64, one row of :data:`FIELDS` numbers a tensor. The fields of every table begin with those of its noise:
four words of the address; the rounding row where it begins, and between which two offsets from there; and the first of
its parts, each a program's. Then follow what the kernel names. ``numbers`` are how many directions there are, their
numbers, and the bits of a float32 for each member.
"""

from __future__ import annotations

from lightning_evo.kernels.triton.language import jit, tl
from lightning_evo.kernels.triton.noise import elements, halves, noise, uniform_values
from lightning_evo.kernels.triton.rounding import narrow, pointer, widen

__all__ = ["bounded", "chosen_rows_kernel", "draw_kernel", "float_at", "members_kernel", "part_of"]


@jit
def part_of(parts, tensors, part, BLOCKS: tl.constexpr):
    """Where the row of a part's tensor is, its first rounding row and the offset of that, int64."""
    tensor = tensors + tl.load(parts + part) * 20
    base = (part - tl.load(tensor + 7)) * (8 * BLOCKS)
    return tensor, tl.load(tensor + 4) + base // 128, base


@jit
def bounded(lane, lower, upper, base, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr):
    """Which elements are between two offsets; if aligned, they are from 0 to a multiple of 16."""
    stop = tl.minimum(upper - base, 8 * BLOCKS).to(tl.int32)
    if ALIGNED:
        inside = lane < tl.multiple_of(stop, 16)
    else:
        inside = (lane < stop) & (lane >= tl.maximum(lower - base, 0).to(tl.int32))
    return inside


@jit
def float_at(numbers):
    """The float32 whose bits are there."""
    return tl.load(numbers).to(tl.uint32).to(tl.float32, bitcast=True)


@jit
def write_members(
    center,
    out,
    stride,
    eps,
    lane,
    inside,
    steps,
    EACH: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``out[m] = center + steps[m] * eps``: all members of a direction from one noise."""
    middle = widen(tl.load(center + lane, mask=inside), DTYPE)
    for m in tl.static_range(EACH):
        to = out + m * stride
        if ALIGNED:
            to = tl.multiple_of(to, 16)
        tl.store(to + lane, narrow(middle + eps * float_at(steps + m), DTYPE), mask=inside)


@jit
def members_kernel(
    parts,
    tensors,
    numbers,
    coefficients,
    DISTRIBUTION: tl.constexpr,
    DTYPE: tl.constexpr,
    EACH: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Members of whole tensors or parts of them. Fields from 8: center, members, elements from a member to the next."""
    count = tl.load(numbers)
    program = tl.program_id(0).to(tl.int64)
    d = program % count
    tensor, row, base = part_of(parts, tensors, program // count, BLOCKS)
    eps = noise(row, tl.load(numbers + 1 + d).to(tl.uint32), tensor, coefficients, DISTRIBUTION, BLOCKS)
    lane = elements(BLOCKS)
    inside = bounded(lane, tl.load(tensor + 5), tl.load(tensor + 6), base, BLOCKS, ALIGNED)
    stride = tl.load(tensor + 10)
    center = pointer(tl.load(tensor + 8), base, DTYPE, ALIGNED)
    out = pointer(tl.load(tensor + 9), base + d * EACH * stride, DTYPE, ALIGNED)
    write_members(center, out, stride, eps, lane, inside, numbers + 1 + count + d * EACH, EACH, DTYPE, ALIGNED)


@jit
def chosen_rows_kernel(
    chosen,
    tensor,
    numbers,
    coefficients,
    DISTRIBUTION: tl.constexpr,
    DTYPE: tl.constexpr,
    EACH: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Members of some rows of a matrix. Fields from 8: center, members, a row's width, rows, programs for a row."""
    count, width, each = tl.load(numbers), tl.load(tensor + 10), tl.load(tensor + 12)
    program = tl.program_id(0).to(tl.int64)
    d, piece = program % count, program // count
    j, base = piece // each, piece % each * (8 * BLOCKS)
    first = tl.load(chosen + j) * width
    lower = first % 128
    direction = tl.load(numbers + 1 + d).to(tl.uint32)
    eps = noise((first + base) // 128, direction, tensor, coefficients, DISTRIBUTION, BLOCKS)
    lane = elements(BLOCKS)
    inside = bounded(lane, lower, lower + width, base, BLOCKS, ALIGNED)
    stride = tl.load(tensor + 11) * width
    center = pointer(tl.load(tensor + 8), first - lower + base, DTYPE, ALIGNED)
    out = pointer(tl.load(tensor + 9), d * EACH * stride + j * width - lower + base, DTYPE, ALIGNED)
    write_members(center, out, stride, eps, lane, inside, numbers + 1 + count + d * EACH, EACH, DTYPE, ALIGNED)


@jit
def draw_kernel(
    parts,
    tensors,
    numbers,
    coefficients,
    DISTRIBUTION: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Values, not standardised, in some directions. Fields from 8: where they go, from a direction to the next."""
    count = tl.load(numbers)
    program = tl.program_id(0).to(tl.int64)
    d = program % count
    tensor, row, base = part_of(parts, tensors, program // count, BLOCKS)
    direction = tl.load(numbers + 1 + d).to(tl.uint32)
    if DISTRIBUTION == "uniform":
        values = uniform_values(row, direction, tensor, BLOCKS)
    elif DISTRIBUTION == "uniform16":
        values = halves(row, direction, tensor, BLOCKS).to(tl.float32) * 1.52587890625e-05
    else:
        values = noise(row, direction, tensor, coefficients, DISTRIBUTION, BLOCKS)
    lane = elements(BLOCKS)
    inside = bounded(lane, tl.load(tensor + 5), tl.load(tensor + 6), base, BLOCKS, ALIGNED)
    out = pointer(tl.load(tensor + 8), base + d * tl.load(tensor + 9), "float32", ALIGNED)
    tl.store(out + lane, values, mask=inside)
