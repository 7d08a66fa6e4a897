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

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # <malloc.h>


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let this process keep freed blocks, whatever their size, instead of returning them.

    Its memory then stays near the highest it was. (What is free at the heap's end beyond 2 GB is still returned.)
    Nothing happens with another C library, or where the environment says something else: ``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_MMAP_MAX_`` or ``glibc.malloc`` in ``GLIBC_TUNABLES``.

    Returns:
        Whether it was done.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_"} & os.environ.keys()
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # other C libraries have a `mallopt` that does something else
        # A threshold for blocks of their own would not do: glibc knows none above 32 MB.
        return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
    except (OSError, AttributeError):
        return False
