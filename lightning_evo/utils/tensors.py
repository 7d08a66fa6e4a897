"""Numbers of Python's as tensors of a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["uploaded"]


def uploaded(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Some numbers where they are needed, ``[values]``, without waiting for the device.

    ``torch.tensor(values, device="cuda")`` copies from ordinary memory, and waits until all that was asked of the GPU
    before is done.

    Args:
        values: The numbers.
        dtype: Of the tensor.
        device: Where it lies.

    Example:
        >>> uploaded([0.5, -0.5], torch.float32, torch.device("cpu"))
        tensor([ 0.5000, -0.5000])
    """
    pinned = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, device="cpu", pin_memory=pinned).to(device, non_blocking=pinned)
