"""Counter-based random numbers: a pure function from (seed, generation, member, parameter, element) to a value.

Nothing is stored and no global generator is touched. An element's value depends only on its address, so any
slice, on any rank, equals the slice of the whole.

The bits are those of :mod:`~lightning_evo.noise.philox`. A *row* is 16 consecutive blocks of them. Its 4 x 16 words are
read word-major, and a word's values (two normal ones, or 32 of one bit) follow each other in steps of 16, so that a
compiled kernel writes whole vectors: element ``row_size * row + 16 * (values * word + v) + i`` of a parameter is value
``v`` of word ``word`` of block ``16 * row + i``.

**Bits to normal values.** A normal value takes 16 bits (:mod:`lightning_evo.noise.normal`). The largest is 4.39;
against the exact normal distribution the largest error of the distribution function is below 2e-5 and the kurtosis is
2.9998. More bits a value would cost more time than they are worth.

On the CPU a C++ kernel gives the same bits many times faster (:mod:`lightning_evo.kernels`); on other devices the
operations below are compiled with ``torch.compile``, once a process has drawn enough noise to repay the compiler.
``LIGHTNING_EVO_COMPILE=0`` switches both off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_evo import kernels
from lightning_evo.noise.normal import normal_table
from lightning_evo.noise.philox import NoiseKey, address_of, check_offsets, check_range, philox4x32
from lightning_evo.utils.messages import first_line

__all__ = [
    "Distribution",
    "Kernel",
    "draw",
    "draw_rows",
    "row_size",
    "rows",
]

Distribution = Literal["gaussian", "rademacher", "uniform"]
"""What a value looks like: N(0, 1); -1 or +1; or uniform in [0, 1) with 24 bits."""

_BLOCKS = 16  # blocks in a row: the width of one AVX-512 register of words
_CHUNK_ROWS = 1 << 13  # rows drawn at a time: 1M normal values, so temporaries stay in the cache
_COMPILE_AFTER = 1 << 29  # elements: about as long to draw uncompiled, on one core, as the compiler would run


# --- bits to values -------------------------------------------------------------------------------------------------


def _halves(word: Tensor) -> Tensor:
    """``[rows, 16]`` words to their lower and upper 16 bits, ``[rows, 2, 16]``."""
    return torch.stack([word & 0xFFFF, word >> 16], dim=1)


def _gaussian(word: Tensor, table: Tensor) -> Tensor:
    """Two N(0, 1) values for each word: ``[rows, 2, 16]``."""
    halves = _halves(word)
    # `gather`, unlike indexing, does not look for negative indices.
    magnitude = table.gather(0, (halves & 0x7FFF).flatten()).view(halves.shape)
    return torch.where(halves > 0x7FFF, -magnitude, magnitude)


def _uniform(word: Tensor, table: Tensor) -> Tensor:
    """One value in [0, 1) for each word, a multiple of 2^-24."""
    return (word >> 8).to(torch.float32) * 2.0**-24


def _rademacher(word: Tensor, table: Tensor) -> Tensor:
    """32 values of -1 or +1 for each word ``[rows, 16]``, least significant bit first: ``[rows, 32, 16]``."""
    bit = torch.arange(32, device=word.device)[:, None]
    return (((word[:, None, :] >> bit) & 1) * 2 - 1).to(torch.float32)


def _uniform16(word: Tensor, table: Tensor) -> Tensor:
    """Two values in [0, 1) for each word, multiples of 2^-16: ``[rows, 2, 16]``. Enough to round to 16 bits."""
    return _halves(word).to(torch.float32) * 2.0**-16


_VALUES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {  # function, values per word
    "gaussian": (_gaussian, 2),
    "uniform": (_uniform, 1),
    "uniform16": (_uniform16, 2),
    "rademacher": (_rademacher, 32),
}


def row_size(distribution: str) -> int:
    """Elements in a row."""
    return 4 * _BLOCKS * _VALUES[distribution][1]


def rows(distribution: str, row: Tensor, member: Tensor, address: Tensor, table: Tensor) -> Tensor:
    """Values of whole rows; to be fused, by :class:`Kernel`, with what becomes of them.

    Args:
        distribution: One of :data:`Distribution`, or ``"uniform16"``: uniform in [0, 1) with 16 bits.
        row: Numbers of the rows, int64 ``[rows]``.
        member: The member, int64 ``[]``, or each row's, ``[rows]``.
        address: From :func:`address_of`, int64 ``[4]``.
        table: From :func:`normal_table`.

    Returns:
        float32 ``[rows, row_size(distribution)]``.
    """
    values, _ = _VALUES[distribution]
    block = row[:, None] * _BLOCKS + torch.arange(_BLOCKS, device=row.device)
    parameter, generation, key0, key1 = address.unbind()
    words = philox4x32((block, parameter, generation, member.reshape(-1, 1)), (key0, key1))
    return torch.stack([values(word, table) for word in words], dim=1).flatten(1)


# --- compilation ----------------------------------------------------------------------------------------------------


class Kernel:
    """A function of tensors that makes noise, compiled on other devices than the CPU once that saves time.

    Args:
        function: Tensor operations around :func:`rows`. Dimension 0 of its tensors may have any size but 1, for which
            torch.compile would compile again.
    """

    drawn = 0  # elements drawn by this process, of all kernels
    failed = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: dict[object, Callable[..., Any]] = {}

    def __call__(self, elements: int, *args: Any) -> Any:
        """Call the function with ``args``; it draws ``elements`` elements of noise."""
        Kernel.drawn += elements
        if not self._wanted(args):
            return self._function(*args)
        variant = tuple(map(_variant, args))
        if variant not in self._compiled:
            self._compiled[variant] = self._compile()
        try:
            return self._compiled[variant](*args)
        except Exception as error:  # whatever a missing or broken compiler raises: the plain function gives the same
            Kernel.failed = True
            warnings.warn(
                f"Noise will not be compiled and is slower ({type(error).__name__}: {first_line(error)}). The results "
                "are the same. Set LIGHTNING_EVO_COMPILE=0 to silence this.",
                stacklevel=2,
            )
            return self._function(*args)

    def _compile(self) -> Callable[..., Any]:
        # torch.compile gives up on a function that it had to compile eight times, and there may be more combinations of
        # dtypes and distributions in a process. It recognises functions by their code objects.
        function: Any = self._function
        copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        return torch.compile(copy, dynamic=True)

    @staticmethod
    def _wanted(args: tuple[Any, ...]) -> bool:
        if Kernel.failed or Kernel.drawn < _COMPILE_AFTER or torch.compiler.is_compiling() or not kernels.enabled():
            return False
        return any(isinstance(arg, Tensor) and arg.device.type != "cpu" for arg in args)


def _variant(argument: Any) -> object:
    """What torch.compile compiles a separate version for."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.device, argument.dim()
    return tuple(map(_variant, argument)) if isinstance(argument, list) else argument


_kernel = Kernel(rows)


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
    if distribution not in get_args(Distribution):
        raise ValueError(f"Unknown distribution {distribution!r}; choose one of {', '.join(get_args(Distribution))}.")
    if not dtype.is_floating_point:
        raise ValueError(f"Noise needs a floating dtype such as torch.float32, got {dtype}.")
    check_offsets(start, stop)
    for member in (min(members), max(members)) if members else ():
        check_range("member", member, 32)

    device = torch.device(device)
    size = row_size(distribution)
    first, last = start // size, -(-stop // size)
    if len(members) * (stop - start) and dtype == torch.float32 and kernels.library_for(normal_table(device)):
        values = _draw_rows(key, members, parameter, first, last, distribution, device)
        return values[:, start - first * size : stop - first * size]
    out = torch.empty(len(members), stop - start, dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    members_at_once = max(1, _CHUNK_ROWS // (last - first))
    for begin in range(first, last, _CHUNK_ROWS):
        end = min(begin + _CHUNK_ROWS, last)
        lower, upper = max(start, begin * size), min(stop, end * size)
        for i in range(0, len(members), members_at_once):
            chunk = members[i : i + members_at_once]
            values = _draw_rows(key, chunk, parameter, begin, end, distribution, device)
            values = values[:, lower - begin * size : upper - begin * size]
            out[i : i + len(chunk), lower - start : upper - start] = values
    return out


def _draw_rows(
    key: NoiseKey, members: Sequence[int], parameter: int, begin: int, end: int, distribution: str, device: torch.device
) -> Tensor:
    """Rows ``begin <= row < end`` for several members: float32 ``[len(members), elements]``."""
    address, table, size = address_of(key, parameter), normal_table(device), row_size(distribution)
    library = kernels.library_for(table)
    if library:
        out = torch.empty(len(members), end - begin, size, dtype=torch.float32)  # whatever the default dtype
        library.draw(distribution, address, table, begin, members, out)
        return out.flatten(1)
    return draw_rows(key, members, parameter, torch.arange(begin, end, device=device), distribution=distribution)


def draw_rows(
    key: NoiseKey, members: Sequence[int], parameter: int, numbers: Tensor, *, distribution: str = "gaussian"
) -> Tensor:
    """Whole rows of noise, in any order, made where ``numbers`` is.

    Args:
        key: Seed, generation and stream.
        members: Numbers of the members, each in [0, 2^32).
        parameter: Index of the parameter, in [0, 2^28).
        numbers: Numbers of the rows, int64 ``[rows]``.
        distribution: One of :data:`Distribution`, or ``"uniform16"``.

    Returns:
        float32 ``[len(members), rows * row_size(distribution)]``.
    """
    device, count = numbers.device, len(numbers)
    row, member = numbers.repeat(len(members)), torch.tensor(members, device=device).repeat_interleave(count)
    if len(row) == 1:
        row, member = row.repeat(2), member.repeat(2)
    address, table = torch.tensor(address_of(key, parameter), device=device), normal_table(device)
    values = _kernel(len(row) * row_size(distribution), distribution, row, member, address, table)
    return values[: len(members) * count].view(len(members), -1)  # type: ignore[no-any-return]
