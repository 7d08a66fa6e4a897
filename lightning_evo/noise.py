"""Counter-based random numbers: a pure function from (seed, generation, member, parameter, element) to a value.

Nothing is stored and no global generator is touched. An element's value depends on nothing but its address, so any
slice, on any rank, equals the slice of the whole.

The bits come from Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11,
https://doi.org/10.1145/2063384.2063405), written in plain integer tensor operations. One call turns a 128-bit counter
and a 64-bit key into four 32-bit words. The address is laid out as::

    key      = seed (64 bits)
    counter  = [block, parameter + 2^28 * stream, generation, member]     (4 x 32 bits)

A *row* is 16 consecutive blocks. Its 4 x 16 words are read word-major, so that a compiled kernel writes each of the
four words to neighbouring addresses: element ``64 * row + 16 * word + i`` of a parameter is word ``word`` of block
``16 * row + i``. A Rademacher value needs one bit, not one word, so there a row holds 32 times as many elements.

**Bits to normal values.** The inverse of the normal distribution function is tabulated once (2049 knots, 64 to each
halving of the tail probability) and interpolated linearly in integers, so that CPU, GPU, compiled and uncompiled code
give the same bits. Values are multiples of 2^-20 in [-6.4, 6.4]. Against the exact normal distribution the largest
error of the distribution function is below 4e-6, the variance is 1 to within 1e-7 and the kurtosis 3 to within 2e-5.

The same operations are compiled with ``torch.compile`` once a process has drawn enough noise to repay the compiler
(``LIGHTNING_EVO_COMPILE=0`` never, ``=1`` at once). The bits are the same, so the switch can't be seen in a result.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Distribution", "NoiseKey", "Stream", "draw", "philox4x32"]

Distribution = Literal["gaussian", "rademacher", "uniform"]
"""What a value looks like: N(0, 1); -1 or +1; or uniform in [0, 1) with 24 bits."""

_MASK = 0xFFFFFFFF
_BLOCKS = 16  # blocks in a row: the width of one AVX-512 register of words
_CHUNK_ROWS = 1 << 14  # rows drawn at a time: 1M normal values, so temporaries stay in the cache
_COMPILE_AFTER = 1 << 30  # words: about as long to draw uncompiled, on one core, as the compiler would run


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
        _check_range("generation", self.generation, 32)
        _check_range("stream", self.stream, 4)


def _check_range(name: str, value: int, bits: int) -> None:
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


# --- bits to values -------------------------------------------------------------------------------------------------

_OCTAVES = 32  # the tail probability spans 2^-33 .. 2^-1
_KNOTS = 64  # knots per octave
_FRACTION = 17  # bits left of a float's 23-bit mantissa once 6 have chosen the knot
_UNIT = 20  # values are multiples of 2^-20


@lru_cache(maxsize=1)
def _knots() -> Tensor:
    """Knots of |z| in units of 2^-20, int32 ``[2050]``, falling; the last is repeated for the right-hand neighbour."""
    tail = [2.0 ** (i // _KNOTS - 33) * (1 + i % _KNOTS / _KNOTS) for i in range(_OCTAVES * _KNOTS + 1)]
    z = [-NormalDist().inv_cdf(p) for p in tail]
    # Between knots the density is constant, so E[z^2] is a finite sum. Chords lie above the convex curve; dividing by
    # the root of E[z^2] makes the variance exactly one again.
    second_moment = 2 * math.fsum(
        (p1 - p0) * (z0 * z0 + z0 * z1 + z1 * z1) / 3 for p0, p1, z0, z1 in zip(tail, tail[1:], z, z[1:], strict=False)
    )
    units = [round(value / math.sqrt(second_moment) * (1 << _UNIT)) for value in z]
    return torch.tensor([*units, units[-1]], dtype=torch.int32)


@lru_cache(maxsize=16)
def _knots_on(device: torch.device) -> Tensor:
    return _knots().to(device)


def _gaussian(word: Tensor, knots: Tensor) -> Tensor:
    """One N(0, 1) value for each word: 1 bit of sign, 31 bits of tail probability (2m + 1) / 2^33."""
    # The bits of a float are its exponent and mantissa, that is, a piecewise linear logarithm: an index into knots
    # that lie evenly within each octave. From here on everything is integer arithmetic, hence exact.
    log2_tail = ((word & 0x7FFFFFFF) * 2 + 1).to(torch.float32).view(torch.int32) - (127 << 23)
    knot, fraction = log2_tail >> _FRACTION, log2_tail & ((1 << _FRACTION) - 1)
    above, below = knots[knot], knots[knot + 1]
    magnitude = above - (((above - below) * fraction + (1 << _FRACTION - 1)) >> _FRACTION)
    return torch.where(word > 0x7FFFFFFF, -magnitude, magnitude).to(torch.float32) * 2.0**-_UNIT


def _uniform(word: Tensor, knots: Tensor) -> Tensor:
    """One value in [0, 1) for each word, a multiple of 2^-24."""
    return (word >> 8).to(torch.float32) * 2.0**-24


def _rademacher(word: Tensor, knots: Tensor) -> Tensor:
    """32 values of -1 or +1 for each word ``[rows, 16]``, least significant bit first: ``[rows, 32, 16]``."""
    bit = torch.arange(32, device=word.device)[:, None]
    return (((word[:, None, :] >> bit) & 1) * 2 - 1).to(torch.float32)


_VALUES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {  # function, values per word
    "gaussian": (_gaussian, 1),
    "uniform": (_uniform, 1),
    "rademacher": (_rademacher, 32),
}


def _rows(
    name: str,
    row: Tensor,
    member: Tensor,
    address: Tensor,
    generation: Tensor,
    key0: Tensor,
    key1: Tensor,
    knots: Tensor,
) -> Tensor:
    """Values of whole rows: int64 ``row`` and ``member`` of shape ``[rows]`` to float32 ``[rows, values per row]``."""
    values, _ = _VALUES[name]
    block = row[:, None] * _BLOCKS + torch.arange(_BLOCKS, device=row.device)
    words = philox4x32((block, address, generation, member[:, None]), (key0, key1))
    return torch.stack([values(word, knots) for word in words], dim=1).flatten(1)


# --- compilation ----------------------------------------------------------------------------------------------------


class _Kernel:
    """``_rows``, compiled as soon as that pays; the uncompiled function when there is no compiler."""

    def __init__(self) -> None:
        self.words = 0
        self.compiled: Callable[..., Tensor] | None = None
        self.failed = False

    def __call__(self, name: str, *args: Tensor) -> Tensor:
        self.words += args[0].numel() * 4 * _BLOCKS
        if not self._wanted():
            return _rows(name, *args)
        if self.compiled is None:
            self.compiled = torch.compile(_rows, dynamic=True)
        row, member, *rest = args
        count = row.numel()
        if count == 1:  # torch.compile would specialise, and compile anew, for a single row
            row, member = row.repeat(2), member.repeat(2)
        try:
            return self.compiled(name, row, member, *rest)[:count]
        except Exception as error:  # whatever a missing or broken compiler raises: the plain function gives the same
            self.failed = True
            first_line = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                f"Noise will not be compiled and is slower ({type(error).__name__}: {first_line}). The results are "
                "the same. Install a C++ compiler, or set LIGHTNING_EVO_COMPILE=0 to silence this.",
                stacklevel=2,
            )
            return _rows(name, *args)

    def _wanted(self) -> bool:
        setting = os.environ.get("LIGHTNING_EVO_COMPILE", "auto")
        if setting not in ("0", "1", "auto"):
            raise ValueError(f"LIGHTNING_EVO_COMPILE must be 0, 1 or auto, got {setting!r}.")
        if self.failed or setting == "0" or torch.compiler.is_compiling():
            return False
        return setting == "1" or self.words > _COMPILE_AFTER


_kernel = _Kernel()


# --- the one public function ----------------------------------------------------------------------------------------


def draw(
    key: NoiseKey,
    members: Sequence[int],
    parameter: int,
    start: int,
    stop: int,
    *,
    distribution: Distribution = "gaussian",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise of the elements ``start <= offset < stop`` of one parameter, for several members.

    Args:
        key: Seed, generation and stream.
        members: Numbers of the members, each in [0, 2^32).
        parameter: Index of the parameter, in [0, 2^28).
        start: First flat element offset.
        stop: One past the last flat element offset, at most 2^34 (block numbers have 32 bits).
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"uniform"``.
        dtype: A floating dtype. Values are made in float32. float64 holds them exactly; bfloat16 and float16 get the
            nearest value, ties to even.
        device: Where to make them. The values do not depend on it.

    Returns:
        Tensor ``[len(members), stop - start]``.

    Raises:
        ValueError: If an index is out of range, the distribution is unknown or ``dtype`` is not floating.

    Example:
        >>> key = NoiseKey(seed=0, generation=3)
        >>> whole = draw(key, [0, 7], parameter=2, start=0, stop=1000)
        >>> whole.shape
        torch.Size([2, 1000])
        >>> torch.equal(draw(key, [7], parameter=2, start=123, stop=456)[0], whole[1, 123:456])
        True
    """
    if distribution not in _VALUES:
        raise ValueError(f"Unknown distribution {distribution!r}; choose one of {', '.join(get_args(Distribution))}.")
    if not dtype.is_floating_point:
        raise ValueError(f"Noise needs a floating dtype, got {dtype}.")
    if not 0 <= start <= stop <= 1 << 34:
        raise ValueError(f"Offsets must satisfy 0 <= start <= stop <= 2^34, got start={start}, stop={stop}.")
    _check_range("parameter", parameter, 28)
    for member in (min(members), max(members)) if members else ():
        _check_range("member", member, 32)

    device = torch.device(device)
    out = torch.empty(len(members), stop - start, dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    words = [parameter | key.stream << 28, key.generation, key.seed & _MASK, key.seed >> 32 & _MASK]
    address, generation, key0, key1 = torch.tensor(words, device=device).unbind()
    per_row = 4 * _BLOCKS * _VALUES[distribution][1]
    all_members = torch.tensor(members, device=device)
    first, last = start // per_row, -(-stop // per_row)
    members_at_once = max(1, _CHUNK_ROWS // (last - first))
    for begin in range(first, last, _CHUNK_ROWS):
        end = min(begin + _CHUNK_ROWS, last)
        lower, upper = max(start, begin * per_row), min(stop, end * per_row)
        rows = torch.arange(begin, end, device=device)
        for i in range(0, len(members), members_at_once):
            chunk = all_members[i : i + members_at_once]
            row = rows.repeat(len(chunk))
            # A copy, not a view: torch.compile would tell them apart.
            member_of_row = chunk.repeat_interleave(len(rows)).clone()
            values = _kernel(distribution, row, member_of_row, address, generation, key0, key1, _knots_on(device))
            values = values.view(len(chunk), -1)[:, lower - begin * per_row : upper - begin * per_row]
            out[i : i + len(chunk), lower - start : upper - start] = values
    return out
