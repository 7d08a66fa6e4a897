"""Rounding float32 to a shorter float so that its expectation is kept, in plain tensor operations."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stochastic_round"]


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
