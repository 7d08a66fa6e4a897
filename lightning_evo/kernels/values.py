"""Bits to values, in plain tensor operations.

A *row* is 16 consecutive blocks of Philox. Its 4 x 16 words are read word-major, and a word's values (two normal ones,
or 32 of one bit) follow each other in steps of 16, so that a compiled kernel writes whole vectors: element
``row_size * row + 16 * (values * word + v) + i`` of a parameter is value ``v`` of word ``word`` of block
``16 * row + i``.

**Bits to normal values.** A normal value takes 16 bits (:mod:`lightning_evo.kernels.normal`). The largest is 4.39;
against the exact normal distribution the largest error of the distribution function is below 2e-5 and the kurtosis is
2.9998. More bits a value would cost more time than they are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_evo.kernels.philox import philox4x32
from lightning_evo.utils.tensors import uploaded

__all__ = ["noise_dtype", "row_size", "rows", "standardised", "write_members"]

_BLOCKS = 16  # blocks in a row: the width of one AVX-512 register of words


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
    """Values of whole rows.

    Args:
        distribution: ``"gaussian"``; ``"rademacher"``; ``"uniform"``, in [0, 1) with 24 bits; ``"uniform16"``, with 16.
        row: Numbers of the rows, int64 ``[rows]``.
        member: The member, int64 ``[]``, or each row's, ``[rows]``.
        address: Words 1 and 2 of the counter and the key's two, int64 ``[4]``.
        table: From :func:`~lightning_evo.kernels.normal.normal_table`.

    Returns:
        float32 ``[rows, row_size(distribution)]``.
    """
    values, _ = _VALUES[distribution]
    block = row[:, None] * _BLOCKS + torch.arange(_BLOCKS, device=row.device)
    parameter, generation, key0, key1 = address.unbind()
    words = philox4x32((block, parameter, generation, member.reshape(-1, 1)), (key0, key1))
    return torch.stack([values(word, table) for word in words], dim=1).flatten(1)


def standardised(distribution: str, values: Tensor) -> Tensor:
    """Mean 0 and variance 1."""
    return (values - 0.5) * math.sqrt(12) if distribution == "uniform" else values


def noise_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which noise is added to a tensor: float64 for float64, float32 for all others."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def write_members(center: Tensor, noise: Tensor, steps: Sequence[float], out: Tensor) -> None:
    """``out[i] = center + steps[i] * noise``, rounded to the dtype of ``out``.

    Args:
        center: ``[elements]``.
        noise: ``[directions, elements]``, in :func:`noise_dtype`.
        steps: The same number for each direction, one after the other.
        out: ``[len(steps), elements]``.
    """
    scales = uploaded(steps, noise.dtype, noise.device).view(len(noise), -1, 1)
    if out.dtype == noise.dtype:
        torch.mul(noise[:, None], scales, out=out.view(*scales.shape[:2], out.shape[1]))
        out.add_(center)
    else:
        out.copy_((noise[:, None] * scales).flatten(0, 1).add_(center))
