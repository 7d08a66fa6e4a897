"""Random values in registers: Philox's words, and what values are made of them; see ``philox.py`` and ``normal.py``.

A kernel's program works on ``BLOCKS / 16`` consecutive *rounding rows* of 128 elements: on ``[8, BLOCKS]`` of them,
where ``[k, b]`` is element ``128 (b / 16) + 16 k + b % 16``. A rounding row is a row of normal values, two rows of
uniform ones and a sixteenth of a row of signs, so every distribution fits that layout, and 16 elements that lie side by
side in memory are always in lanes that lie side by side.
"""

from __future__ import annotations

from lightning_evo.kernels.triton.language import jit, tl

__all__ = ["elements", "noise", "philox", "rounding_numbers", "uniform_values"]


@jit
def philox(x0, x1, x2, x3, key0, key1):
    """Philox4x32-10: four words of 32 bits for each counter; all are uint32."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(x0, 0xD2511F53), x0 * 0xD2511F53
        high1, low1 = tl.umulhi(x2, 0xCD9E8D57), x2 * 0xCD9E8D57
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0
        key0, key1 = key0 + 0x9E3779B9, key1 + 0xBB67AE85
    return x0, x1, x2, x3


@jit
def words(block, direction, address):
    """Philox's words of some blocks.

    Args:
        block: uint32.
        direction: Of all of them, uint32.
        address: Where words 1 and 2 of the counter and the key's two are, int64.
    """
    zero = block * 0
    parameter = zero + tl.load(address).to(tl.uint32)
    generation = zero + tl.load(address + 1).to(tl.uint32)
    key0, key1 = tl.load(address + 2).to(tl.uint32), tl.load(address + 3).to(tl.uint32)
    return philox(block, parameter, generation, zero + direction, key0, key1)


@jit
def chosen(number, x0, x1, x2, x3):
    """One of four words. Where the number is known to the compiler, nothing is left of the choice."""
    return tl.where(number < 2, tl.where(number == 0, x0, x1), tl.where(number == 2, x2, x3))


@jit
def elements(BLOCKS: tl.constexpr):
    """Which element of its rounding rows each lane has: int32 ``[8, BLOCKS]``."""
    k, b = tl.arange(0, 8)[:, None], tl.arange(0, BLOCKS)[None, :]
    return b // 16 * 128 + k * 16 + b % 16


@jit
def halves(row, direction, address, BLOCKS: tl.constexpr):
    """16 random bits for each element of the rounding rows from ``row`` on, uint32 ``[8, BLOCKS]``."""
    block = (row * 16).to(tl.uint32) + tl.arange(0, BLOCKS).to(tl.uint32)
    x0, x1, x2, x3 = words(block, direction, address)
    k = tl.arange(0, 8)[:, None]
    word = chosen(k // 2, x0[None, :], x1[None, :], x2[None, :], x3[None, :])
    return (word >> (k % 2 * 16).to(tl.uint32)) & 0xFFFF


@jit
def rounding_numbers(row, address, BLOCKS: tl.constexpr):
    """What rounds each element: uniform numbers in units of 2^-16, uint32."""
    return halves(row, tl.full((), 0, tl.uint32), address, BLOCKS)


@jit
def magnitude(slice, coefficients):
    """The magnitudes of normal values, by the polynomials of ``normal.py``: 15 bits choose the slice.

    They take four loads from a single line of the cache. The table of magnitudes would take one, from a line of its own
    for almost every lane.
    """
    tail = (32768 - slice).to(tl.float32).to(tl.uint32, bitcast=True)  # u = t 2^e
    line = coefficients + ((tail >> 22) & 31)  # of the segment
    t = ((tail & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    value = tl.load(line + 96)
    for power in tl.static_range(2, -1, -1):
        value = value * t + tl.load(line + 32 * power)
    return value


@jit
def gaussian(row, direction, address, coefficients, BLOCKS: tl.constexpr):
    """Normal values; the 16th bit is the sign."""
    half = halves(row, direction, address, BLOCKS)
    magnitudes = magnitude(half & 0x7FFF, coefficients).to(tl.uint32, bitcast=True)
    return (magnitudes | ((half & 0x8000) << 16)).to(tl.float32, bitcast=True)


@jit
def rademacher(row, direction, address, BLOCKS: tl.constexpr):
    """-1 or +1. A row of signs has 16 rounding rows; a word's 32 signs are in four of them, eight in each."""
    b = tl.arange(0, BLOCKS)
    rounding_row = row + b // 16
    block = rounding_row // 16 * 16 + b % 16
    x0, x1, x2, x3 = words(block.to(tl.uint32), direction, address)
    word = chosen(rounding_row // 4 % 4, x0, x1, x2, x3)
    bit = (rounding_row % 4 * 8)[None, :] + tl.arange(0, 8)[:, None]
    return (((word[None, :] >> bit.to(tl.uint32)) & 1).to(tl.int32) * 2 - 1).to(tl.float32)


@jit
def uniform_values(row, direction, address, BLOCKS: tl.constexpr):
    """In [0, 1), multiples of 2^-24. Two rows of them have the elements of a rounding row."""
    b = tl.arange(0, BLOCKS)
    first = (row * 32).to(tl.uint32) + (b // 16 * 32 + b % 16).to(tl.uint32)
    x0, x1, x2, x3 = words(first, direction, address)
    y0, y1, y2, y3 = words(first + 16, direction, address)
    k = tl.arange(0, 8)[:, None]
    lower = chosen(k % 4, x0[None, :], x1[None, :], x2[None, :], x3[None, :])
    upper = chosen(k % 4, y0[None, :], y1[None, :], y2[None, :], y3[None, :])
    return (tl.where(k < 4, lower, upper) >> 8).to(tl.float32) * 5.9604644775390625e-08


@jit
def noise(row, direction, address, coefficients, DISTRIBUTION: tl.constexpr, BLOCKS: tl.constexpr):
    """Noise of the rounding rows from ``row`` on, with mean 0 and variance 1: float32 ``[8, BLOCKS]``."""
    if DISTRIBUTION == "gaussian":
        values = gaussian(row, direction, address, coefficients, BLOCKS)
    elif DISTRIBUTION == "rademacher":
        values = rademacher(row, direction, address, BLOCKS)
    else:
        values = (uniform_values(row, direction, address, BLOCKS) - 0.5) * 3.4641016151377544
    return values
