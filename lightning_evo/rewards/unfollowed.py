"""A context for code that is none of the members': torch's operations are in it what they are without evolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import overrides

__all__ = ["unfollowed"]

_overrides: Any = overrides  # private names of torch's: the stack has no public way to look below its top


@contextmanager
def unfollowed() -> Iterator[None]:
    """Take away the modes by which members are evaluated, until the context ends.

    ``torch._C.DisableTorchFunction`` would take away those of others, too: transformers load models by a mode, and
    without it buffers that are not in the file would hold whatever lay in memory.

    Example:
        >>> import torch
        >>> with unfollowed():
        ...     torch.ones(2).sum()
        tensor(2.)
    """
    modes = _taken()
    _push([mode for mode in modes if not type(mode).__module__.startswith("lightning_evo.")])
    try:
        yield
    finally:
        _taken()
        _push(modes)


def _taken() -> list[Any]:
    """All modes, the outermost first, which are in force no more."""
    modes = []
    while _overrides._len_torch_function_stack():
        modes.append(_overrides._pop_mode())
    return modes[::-1]


def _push(modes: list[Any]) -> None:
    for mode in modes:
        _overrides._push_mode(mode)
