"""How many members the user's code runs for at once, for code that must tell their samples apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["for_members", "members_in_batch"]

_members: ContextVar[int] = ContextVar("members", default=1)


def members_in_batch() -> int:
    """How many members the batch in hand is for: its samples are those of the first one, then of the next one, ….

    It is 1 unless ``evaluation="rows"``, where a batch of B samples arrives as K B samples for K members. A fitness
    that is not about each sample by itself, as a ranking among a member's samples, needs it.

    It is a context variable: coroutines and ``asyncio.to_thread`` have it, and threads that code starts itself do not;
    there it is 1. Ask before they start, or run what they do in a copy of the context.

    Example:
        >>> import torch
        >>> with for_members(3):
        ...     torch.arange(6).view(members_in_batch(), -1).tolist()
        [[0, 1], [2, 3], [4, 5]]
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from contextvars import copy_context
        >>> with for_members(3), ThreadPoolExecutor() as threads:
        ...     threads.submit(copy_context().run, members_in_batch).result()
        3
    """
    return _members.get()


@contextmanager
def for_members(members: int) -> Iterator[None]:
    """A context in which :func:`members_in_batch` gives that number."""
    token = _members.set(members)
    try:
        yield
    finally:
        _members.reset(token)
