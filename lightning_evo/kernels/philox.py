"""Philox4x32-10: 128-bit counters and a 64-bit key to random words, in plain integer tensor operations.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11,
https://doi.org/10.1145/2063384.2063405.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["philox4x32"]

_MASK = 0xFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: tuple[Tensor, Tensor], rounds: int = 10) -> list[Tensor]:
    """Philox4x32: four random words for each counter.

    Args:
        counter: Four int64 tensors that broadcast together, each value in [0, 2^32).
        key: Two int64 tensors, each value in [0, 2^32).
        rounds: Number of rounds; 10 is the published default.

    Returns:
        Four int64 tensors with values in [0, 2^32).

    Example:
        >>> import torch
        >>> zero = torch.tensor(0)
        >>> [f"{int(word):08x}" for word in philox4x32([zero] * 4, (zero, zero))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The 64-bit product may wrap to a negative number; shift and mask still give its high and low words.
        product0, product1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (
            ((product1 >> 32) & _MASK) ^ x1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ x3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return [x0, x1, x2, x3]
