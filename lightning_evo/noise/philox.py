"""The address of a random number, and the bits that stand there.

The bits come from Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11,
https://doi.org/10.1145/2063384.2063405), written in plain integer tensor operations. One call turns a 128-bit counter
and a 64-bit key into four 32-bit words. The address is laid out as::

    key      = seed (64 bits)
    counter  = [block, parameter + 2^28 * stream, generation, member]     (4 x 32 bits)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["NoiseKey", "Stream", "address_of", "check_offsets", "check_range", "philox4x32"]

_MASK = 0xFFFFFFFF


class Stream:
    """Independent uses of one key's random numbers."""

    PERTURBATION = 0
    ROUNDING = 1
    SUBSET = 2


@dataclass(frozen=True)
class NoiseKey:
    """The part of an address that all elements of a generation share.

    Args:
        seed: The run's seed, any integer; taken modulo 2^64.
        generation: Number of the generation, 0 <= generation < 2^32.
        stream: One of :class:`Stream`, 0 <= stream < 16.

    Raises:
        ValueError: If ``generation`` or ``stream`` is out of range.
    """

    seed: int
    generation: int
    stream: int = Stream.PERTURBATION

    def __post_init__(self) -> None:
        check_range("generation", self.generation, 32)
        check_range("stream", self.stream, 4)


def check_range(name: str, value: int, bits: int) -> None:
    """Raise a ValueError unless a part of an address fits into ``bits`` bits."""
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} must be in [0, 2^{bits}), got {value}.")


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


def address_of(key: NoiseKey, parameter: int) -> list[int]:
    """What all elements of a parameter share: four 32-bit words.

    Raises:
        ValueError: If ``parameter`` is not in [0, 2^28).
    """
    check_range("parameter", parameter, 28)
    return [parameter | key.stream << 28, key.generation, key.seed & _MASK, key.seed >> 32 & _MASK]


def check_offsets(start: int, stop: int) -> None:
    """Raise a ValueError unless all blocks of a range of elements have numbers of 32 bits."""
    if not 0 <= start <= stop <= 1 << 34:
        raise ValueError(f"Offsets must satisfy 0 <= start <= stop <= 2^34, got start={start}, stop={stop}.")
