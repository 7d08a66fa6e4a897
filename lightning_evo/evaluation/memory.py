"""How much memory a forward needs, and whether the system's ends."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch

__all__ = ["Allocated", "is_low"]

_LEFT = 1 / 32  # of the system's memory


class Allocated:
    """The memory that is in use, compared with the moment at which this was made.

    Args:
        device: A GPU, or the CPU, where the C library is asked (glibc from 2.33 on; with another one all is 0).

    Attributes:
        peak: The most that was seen, in bytes.

    Example:
        >>> allocated = Allocated(torch.device("cpu"))
        >>> x = torch.ones(1 << 20)
        >>> allocated.look()
        >>> allocated.peak == 0 or allocated.peak >= 4 << 20
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._in_use()
        self.peak = 0

    def look(self) -> None:
        """Look at it now."""
        self.peak = max(self.peak, self._in_use() - self._start)

    def _in_use(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        ask = _mallinfo()
        if ask is None:
            return 0
        found = ask()
        return int(found.uordblks + found.hblkhd)


class _Info(ctypes.Structure):
    """<malloc.h>: struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")
        + ("fsmblks", "uordblks", "fordblks", "keepcost")
    ]


@lru_cache(maxsize=1)
def _mallinfo() -> Callable[[], _Info] | None:
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return None
    function.restype = _Info
    return function


def is_low() -> bool:
    """Whether less than a 32nd of the system's memory is available. A CPU raises nothing when memory ends."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        total, available = (int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):  # not everywhere
        return False
    return available < total * _LEFT
