"""Counter-based random numbers: a pure function from (seed, generation, member, parameter, element) to a value.

Nothing is stored and no global generator is touched. An element's value depends only on its address
(:mod:`.philox`), so any slice, on any rank, equals the slice of the whole. How bits become values is told in
:mod:`lightning_evo.kernels.values`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_evo.kernels import Values, backend_for
from lightning_evo.noise.philox import NoiseKey, address_of, check_offsets, check_range

__all__ = ["Distribution", "draw"]

Distribution = Literal["gaussian", "rademacher", "uniform"]
"""What a value looks like: N(0, 1); -1 or +1; or uniform in [0, 1) with 24 bits."""


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
    backend = backend_for(torch.empty(0, device=device))
    return backend.draw(Values(distribution, address_of(key, parameter)), members, start, stop, dtype, device)
