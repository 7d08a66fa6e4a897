"""Rounding float32 to a shorter float so that its expectation is kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_evo import kernels
from lightning_evo.noise.normal import normal_table
from lightning_evo.noise.philox import NoiseKey, Stream, address_of, check_offsets
from lightning_evo.noise.values import Kernel, row_size, rows

__all__ = ["move", "stochastic_round"]


def move(center: Tensor, step: Tensor, key: NoiseKey, parameter: int, start: int = 0) -> None:
    """``center += step`` in place, of a part of a tensor; bfloat16 and float16 are rounded stochastically.

    Where ``step`` is zero not a bit changes.

    Args:
        center: Consecutive elements of a tensor, floating ``[elements]``.
        step: ``[elements]`` in float32, or float64 for float64.
        key: Seed and generation of the rounding's random numbers.
        parameter: Index of the tensor.
        start: The flat offset of the first element in the tensor.

    Raises:
        ValueError: If ``step`` does not fit ``center``.

    Example:
        >>> center = torch.ones(100_000, dtype=torch.bfloat16)
        >>> for generation in range(100):
        ...     move(center, torch.full((100_000,), 2.0**-14), NoiseKey(seed=0, generation=generation), parameter=0)
        >>> bool((center.double().mean() - 1 - 100 * 2**-14).abs() < 2e-4)  # plain rounding would have stayed at 1
        True
    """
    size, address = row_size("uniform16"), address_of(replace(key, stream=Stream.ROUNDING), parameter)
    check_offsets(start, start + len(center))
    dtype = torch.float64 if center.dtype == torch.float64 else torch.float32
    if step.shape != center.shape or step.dtype != dtype:
        raise ValueError(
            f"move needs a step of {dtype} for each element, got {tuple(step.shape)} of {step.dtype} for "
            f"{tuple(center.shape)}."
        )
    before = start % size
    if before and center.dtype in (torch.bfloat16, torch.float16):  # a shard may begin within a row of random numbers
        head = min(size - before, len(center))
        row, steps = center.new_zeros(before + head), step.new_zeros(before + head)
        row[before:], steps[before:] = center[:head], step[:head]
        move(row, steps, key, parameter, start - before)
        center[:head] = row[before:]
        center, step, start = center[head:], step[head:], start + head
    if not len(center):
        return
    library = kernels.library_for(center, step)
    if library:
        library.move(address, start // size, center, step)
        return
    if center.dtype not in (torch.bfloat16, torch.float16):
        # `where` keeps the sign of a negative zero.
        center.copy_(torch.where(step == 0, center, center + step))
        return
    count = max(2, -(-len(center) // size))  # one row alone would be compiled for itself
    words = torch.tensor([start // size, *address], device=center.device)
    uniform = _uniform_rows(count * size, count, words, normal_table(center.device)).flatten()[: len(center)]
    moved = stochastic_round(center.float() + step, center.dtype, uniform)
    center.copy_(torch.where(step == 0, center, moved))


@Kernel
def _uniform_rows(count: int, words: Tensor, table: Tensor) -> Tensor:
    numbers = words[0] + torch.arange(count, device=words.device)
    return rows("uniform16", numbers, torch.zeros_like(words[0]), words[1:], table)


def stochastic_round(values: Tensor, dtype: torch.dtype, uniform: Tensor) -> Tensor:
    """Round to one of the two neighbours in ``dtype``, to the nearer one with the higher probability.

    The expectation over ``uniform`` is the value itself, so an update far smaller than the spacing of bfloat16 still
    acts, on average, in full. A value that ``dtype`` holds exactly stays as it is.

    Args:
        values: float32.
        dtype: ``torch.bfloat16`` or ``torch.float16``.
        uniform: float32 in [0, 1) with at least 16 bits, of the shape of ``values``.

    Returns:
        Tensor of ``dtype``.

    Raises:
        ValueError: If ``dtype`` is another one.

    Example:
        >>> value = torch.full((100_000,), 1 + 2**-10)  # an eighth of the way between neighbours 1 and 1 + 2^-7
        >>> rounded = stochastic_round(value, torch.bfloat16, torch.rand(100_000))
        >>> bool((rounded.double().mean() - (1 + 2**-10)).abs() < 5 * 2**-7 * (1 / 8 * 7 / 8 / 100_000) ** 0.5)
        True
    """
    if dtype == torch.bfloat16:
        return _round_away(values, uniform, dropped=16).to(dtype)
    if dtype == torch.float16:
        # Below 2^-14 float16 is a fixed grid of step 2^-24, not a shorter mantissa.
        steps = values * 2.0**24
        whole = steps.trunc()
        away = uniform < (steps - whole).abs()  # exact: adding `uniform` to `steps` would round
        subnormal = (whole + torch.copysign(away.to(torch.float32), steps)) * 2.0**-24
        return torch.where(values.abs() < 2.0**-14, subnormal, _round_away(values, uniform, dropped=13)).to(dtype)
    raise ValueError(f"stochastic_round rounds to bfloat16 or float16, not {dtype}.")


def _round_away(values: Tensor, uniform: Tensor, dropped: int) -> Tensor:
    """Cut the last ``dropped`` bits after adding random ones: the carry happens with the right probability."""
    bits = values.view(torch.int32)
    noise = (uniform * 2.0**dropped).to(torch.int32)
    rounded = ((bits + noise) & -(1 << dropped)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)
