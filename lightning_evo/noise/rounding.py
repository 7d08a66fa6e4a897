"""Rounding float32 to a shorter float so that its expectation is kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_evo.kernels import backend_for
from lightning_evo.kernels.pull import Pull
from lightning_evo.kernels.rounding import stochastic_round
from lightning_evo.kernels.values import noise_dtype, row_size
from lightning_evo.noise.philox import NoiseKey, Stream, address_of, check_offsets

__all__ = ["move", "stochastic_round"]


def move(
    center: Tensor,
    step: Tensor,
    key: NoiseKey,
    parameter: int,
    start: int = 0,
    *,
    stream: int = Stream.ROUNDING,
    pull: Pull | None = None,
) -> Tensor | None:
    """``center += step`` in place, of a part of a tensor; bfloat16 and float16 are rounded stochastically.

    Where ``step`` is zero not a bit changes, unless the tensor is drawn back.

    Args:
        center: Consecutive elements of a tensor, floating ``[elements]``.
        step: ``[elements]`` in float32, or float64 for float64.
        key: Seed and generation of the rounding's random numbers.
        parameter: Index of the tensor.
        start: The flat offset of the first element in the tensor.
        stream: The use of the key's random numbers: another one for a second move of the same weights.
        pull: Draws these elements back to where they began, with the one rounding.

    Returns:
        With a pull, the norm of the way from there, float64 ``[]``.

    Raises:
        ValueError: If ``step`` does not fit ``center``.

    Example:
        >>> center = torch.ones(100_000, dtype=torch.bfloat16)
        >>> for generation in range(100):
        ...     move(center, torch.full((100_000,), 2.0**-14), NoiseKey(seed=0, generation=generation), parameter=0)
        >>> bool((center.double().mean() - 1 - 100 * 2**-14).abs() < 2e-4)  # plain rounding would have stayed at 1
        True
    """
    size, address = row_size("uniform16"), address_of(replace(key, stream=stream), parameter)
    check_offsets(start, start + len(center))
    dtype = noise_dtype(center)
    if step.shape != center.shape or step.dtype != dtype:
        raise ValueError(
            f"move needs a step of {dtype} for each element, got {tuple(step.shape)} of {step.dtype} for "
            f"{tuple(center.shape)}."
        )
    if not len(center):
        return None if pull is None else center.new_zeros((), dtype=torch.float64)
    before = start % size
    if before and center.dtype in (torch.bfloat16, torch.float16):  # a shard may begin within a row of random numbers
        head = min(size - before, len(center))
        row, steps = center.new_zeros(before + head), step.new_zeros(before + head)
        row[before:], steps[before:] = center[:head], step[:head]
        first = None
        if pull is not None:
            anchor = pull.anchor.new_zeros(before + head)
            anchor[before:] = pull.anchor[:head]
            first, pull = replace(pull, anchor=anchor), pull.part(head, len(center))
        way = move(row, steps, key, parameter, start - before, stream=stream, pull=first)
        center[:head] = row[before:]
        rest = move(center[head:], step[head:], key, parameter, start + head, stream=stream, pull=pull)
        return None if way is None or rest is None else torch.hypot(way, rest)
    if pull is not None:
        return backend_for(center, step).pull(address, start, center, step, pull)
    backend_for(center, step).move(address, start, center, step)
    return None
