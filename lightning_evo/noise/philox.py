"""The address of a random number, in the counter and key of Philox4x32-10 (:mod:`lightning_evo.kernels.philox`).

One call of Philox turns a 128-bit counter and a 64-bit key into four 32-bit words. The address is laid out as::

    key      = seed (64 bits)
    counter  = [block, parameter + 2^28 * stream, generation, member]     (4 x 32 bits)
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NoiseKey", "Stream", "address_of", "check_offsets", "check_range"]

_MASK = 0xFFFFFFFF


class Stream:
    """Independent uses of one key's random numbers."""

    PERTURBATION = 0
    ROUNDING = 1
    SUBSET = 2
    DECAY = 3  # rounding of weight decay
    SAMPLING = 4  # of texts


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


def address_of(key: NoiseKey, parameter: int) -> tuple[int, int, int, int]:
    """What all elements of a parameter share: four 32-bit words.

    Raises:
        ValueError: If ``parameter`` is not in [0, 2^28).
    """
    check_range("parameter", parameter, 28)
    return parameter | key.stream << 28, key.generation, key.seed & _MASK, key.seed >> 32 & _MASK


def check_offsets(start: int, stop: int) -> None:
    """Raise a ValueError unless all blocks of a range of elements have numbers of 32 bits."""
    if not 0 <= start <= stop <= 1 << 34:
        raise ValueError(f"Offsets must satisfy 0 <= start <= stop <= 2^34, got start={start}, stop={stop}.")
