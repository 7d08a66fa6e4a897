"""Floats of 32 and 16 bits, by integer arithmetic: to nearest, and stochastically as ``rounding.py`` of the reference.

bfloat16 and float16 are stored as 16 bits, uint16.
"""

from __future__ import annotations

from lightning_evo.kernels.triton.language import jit, tl

__all__ = ["narrow", "pointer", "stochastic", "widen"]


@jit
def pointer(address, offset, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A pointer to an element, from the address of the first one; aligned, it points to a multiple of 16 bytes."""
    if DTYPE == "float32":
        first = address.to(tl.pointer_type(tl.float32))
    else:
        first = address.to(tl.pointer_type(tl.uint16))
    element = first + offset
    if ALIGNED:
        element = tl.multiple_of(element, 16)
    return element


@jit
def widen(stored, DTYPE: tl.constexpr):
    """To float32, exactly."""
    if DTYPE == "bfloat16":
        value = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == "float16":
        value = stored.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = stored
    return value


@jit
def narrow(value, DTYPE: tl.constexpr):
    """From float32 to the nearest, ties to even."""
    if DTYPE == "bfloat16":
        bits = value.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        stored = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, nearest).to(tl.uint16)
    elif DTYPE == "float16":
        bits = value.to(tl.uint32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        # In units of 2^-24, below 2^-14: the sum has no bits for less.
        small = (magnitude.to(tl.float32, bitcast=True) + 0.5).to(tl.uint32, bitcast=True) - 0x3F000000
        nearest = (magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13
        nearest = tl.where(magnitude < 0x38800000, small, nearest)
        nearest = tl.where(magnitude >= 0x47800000, tl.where(magnitude > 0x7F800000, 0x7E00, 0x7C00), nearest)
        stored = (nearest | ((bits >> 31) << 15)).to(tl.uint16)
    else:
        stored = value
    return stored


@jit
def stochastic(value, random, DTYPE: tl.constexpr):
    """From float32 to one of the two neighbours, to the nearer one with the higher probability.

    Args:
        value: float32.
        random: Uniform, in units of 2^-16: uint32.
        DTYPE: Of the result.
    """
    bits = value.to(tl.uint32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    if DTYPE == "bfloat16":
        stored = tl.where(finite, ((bits + random) >> 16).to(tl.uint16), narrow(value, DTYPE))
    elif DTYPE == "float16":
        # Below 2^-14 float16 is a fixed grid of step 2^-24, not a shorter mantissa.
        small = (bits & 0x7FFFFFFF) < 0x38800000
        steps = tl.where(small, tl.abs(value) * 16777216.0, 0.0)
        whole = steps.to(tl.uint32)
        away = random.to(tl.float32) * 1.52587890625e-05 < steps - whole.to(tl.float32)
        subnormal = whole + away.to(tl.uint32) + ((bits >> 31) << 15)
        rounded = tl.where(finite, (bits + (random >> 3)) & 0xFFFFE000, bits).to(tl.float32, bitcast=True)
        stored = tl.where(small, subnormal.to(tl.uint16), narrow(rounded, DTYPE))
    else:
        stored = value
    return stored
