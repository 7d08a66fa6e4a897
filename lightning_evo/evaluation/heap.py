"""Lets the C library keep the memory that a forward has freed, for the next one.

A population is the same forward over and over. By default glibc gives the memory of each large activation back to the
system and asks for it again a moment later, page by page: on a CPU that can take a fifth of the time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGEST = 1 << 25  # bytes: above it, and glibc knows no higher limit, every block comes from the system and returns


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let this process keep freed blocks of up to 32 MB instead of returning them.

    Its memory then stays at the highest it was. Nothing happens with another C library, or where the environment says
    something else: ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` or ``glibc.malloc`` in ``GLIBC_TUNABLES``.

    Returns:
        Whether it was done.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # other C libraries have a `mallopt` that does something else
        return bool(library.mallopt(_MMAP_THRESHOLD, _LARGEST) and library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
    except (OSError, AttributeError):
        return False
