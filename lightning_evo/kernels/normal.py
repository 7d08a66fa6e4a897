"""Normal values from 16 bits: one of sign, 15 that choose one of 32,768 equally likely slices of the half-normal.

The value of a slice is its mean, times a constant that makes the variance 1, approximated by cubic polynomials in
float32, multiplied and added one after the other: they give the same bits wherever arithmetic follows IEEE 754 and no
compiler fuses the two. On a GPU, and on processors without AVX-512, the values are looked up in a table of them.

Slice k is the u-th from the tail, ``u = 2^15 - k = t 2^e`` with t in [1, 2). Every half of an octave, ``t < 1.5`` and
``t >= 1.5``, has a polynomial in t of its own: 32 in all, so that a processor finds a coefficient in two registers.
They were fitted to the exact means, by the largest error of the distribution function (Lawson's algorithm), which is
below 2e-5 together with what the slices themselves cost.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["SLICES", "normal_table"]

SLICES = 1 << 15
"""Magnitudes that a normal value may have."""

# Of t^0 to t^3. In each row the half octave ``2 e + (t >= 1.5)`` is at the place of that number minus 2, modulo 32: the
# lowest five bits of what is left of a float's exponent and uppermost bit of its mantissa.
# fmt: off
_COEFFICIENTS = (
    (
        4.0804305, 3.9572778, 4.123158, 4.0157456, 4.1416574, 4.0407777, 3.9435205, 3.850498,
        3.757522, 3.6658309, 3.5727067, 3.47945, 3.3839035, 3.2874708, 3.1881618, 3.0873737,
        2.9831867, 2.8770041, 2.7668817, 2.6542068, 2.5369759, 2.4165304, 2.2908146, 2.1610508,
        2.025269, 1.8847127, 1.7399685, 1.6089066, 1.9124054e-05, 0.0, 4.3875113, 0.0,
    ),
    (
        0.0, 0.0, -0.24779803, -0.16824034, -0.69813293, -0.4819675, -0.67064893, -0.475873,
        -0.675614, -0.48572835, -0.69690377, -0.5047992, -0.7289295, -0.5308245, -0.77045864, -0.56367874,
        -0.82213736, -0.604434, -0.8864027, -0.65546006, -0.9677071, -0.7208673, -1.0736874, -0.8077357,
        -1.217877, -0.9296821, -1.4348224, -1.1632714, 0.0, 0.0, 0.0, 0.0,
    ),
    (
        0.0, 0.0, 0.0, 0.0, 0.2977815, 0.14231674, 0.2723883, 0.13565604,
        0.2675904, 0.13583283, 0.27200136, 0.13945384, 0.28151962, 0.14522815, 0.294819, 0.15275869,
        0.31144607, 0.16198616, 0.33157977, 0.17308302, 0.35568544, 0.18629919, 0.38420475, 0.20169348,
        0.4167315, 0.21887094, 0.45833823, 0.27003866, 0.0, 0.0, 0.0, 0.0,
    ),
    (
        0.0, 0.0, 0.0, 0.0, -0.056328453, -0.018815521, -0.049641266, -0.01747121,
        -0.047887117, -0.017264895, -0.04822328, -0.017600734, -0.049642645, -0.018251644, -0.051813707, -0.019142587,
        -0.054599345, -0.020251928, -0.058009274, -0.02159782, -0.06213493, -0.02322682, -0.067171626, -0.025246445,
        -0.073760815, -0.028290454, -0.08899455, -0.045312896, 0.0, 0.0, 0.0, 0.0,
    ),
)
# fmt: on


def _magnitudes(coefficients: Tensor) -> Tensor:
    """The polynomials' values of all slices, rising."""
    tail = torch.arange(SLICES, 0, -1, dtype=torch.float32, device=coefficients.device)
    segment = (tail.view(torch.int32) >> 22) & 31
    t = (tail.view(torch.int32) & 0x007FFFFF | 0x3F800000).view(torch.float32)
    value = coefficients[3, segment]
    for power in (2, 1, 0):
        value = value * t + coefficients[power, segment]
    return value


@lru_cache(maxsize=16)
def normal_table(device: torch.device) -> Tensor:
    """The :data:`SLICES` magnitudes, rising, and after them the coefficients that give them: float32 ``[32768 + 128]``.

    Example:
        >>> magnitudes = normal_table(torch.device("cpu"))[:SLICES]
        >>> bool((magnitudes.double().square().mean() - 1).abs() < 1e-7)
        True
    """
    coefficients = torch.tensor(_COEFFICIENTS, dtype=torch.float32, device="cpu")
    return torch.cat([_magnitudes(coefficients), coefficients.flatten()]).to(device)
