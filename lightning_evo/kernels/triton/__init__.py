"""Kernels in Triton for GPUs, with the bits of the reference and of ``noise.cpp``.

- ``language.py``: Triton, where it is installed;
- ``noise.py``: Philox and values in registers; ``rounding.py``: floats of 16 bits;
- ``members.py``, ``update.py``, ``low_rank.py``: the kernels;
- ``tables.py``: what they read of many tensors in one launch; ``backend.py``: the operations.

No product and sum is contracted to one operation, none is approximate, and no operation depends on how a program is
divided among threads; so the bits are the same on every GPU, and in Triton's interpreter on a CPU.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from lightning_evo.kernels.backend import Backend, Moved, Values
from lightning_evo.utils.messages import first_line

__all__ = ["proven"]


@lru_cache(maxsize=64)
def proven(device: torch.device) -> Backend | str:
    """The backend, if its kernels compile for a device and give the reference's bits there; or why it can't be used.

    Asked for the first time it waits for the device.
    """
    try:
        from lightning_evo.kernels.triton import language
        from lightning_evo.kernels.triton.backend import Triton

        if language.missing is not None:
            return language.missing
        results = []
        for subject in (Triton(), Backend()):
            center = torch.arange(300, device=device).bfloat16()
            subject.update([Moved(Values("gaussian", (1, 2, 3, 4)), (5, 6, 7, 8), center, 0.25)], [0], [1.0])
            results.append(center)
        return Triton() if torch.equal(*results) else "its kernels give other values than plain tensor operations"
    except Exception as error:  # whatever a missing or broken compiler or driver raises
        return f"{type(error).__name__}: {first_line(error)}"
