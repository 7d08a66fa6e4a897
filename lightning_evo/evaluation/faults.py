"""Members that can't be evaluated: they fail, or take too long, and the others carry the generation."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["Failure", "check_timeout", "guarded", "time_limit"]


@dataclass(frozen=True)
class Failure:
    """What stands in the place of a member's fitness.

    Attributes:
        error: Why there is none, with its traceback.
    """

    error: Exception


def guarded(fitness: Callable[[], Any], timeout: float | None = None) -> Callable[[], Any]:
    """A fitness that gives a :class:`Failure` instead of raising an exception.

    Args:
        fitness: Evaluates a member.
        timeout: Seconds after which a member has failed; see :func:`time_limit`.
    """

    def run() -> Any:
        try:
            with time_limit(timeout):
                return fitness()
        except Exception as error:
            return Failure(error)

    return run


def check_timeout(timeout: float | None) -> None:
    """Raise a ValueError unless ``member_timeout`` is ``None`` or a positive number of seconds that can be kept."""
    if timeout is None:
        return
    given: object = timeout
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < float("inf"):
        raise ValueError(f"member_timeout must be a positive number of seconds, got {timeout!r}.")
    if not hasattr(signal, "setitimer"):
        raise ValueError("member_timeout needs a system with interval timers (Linux, macOS). Leave it out here.")


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise a TimeoutError in this context after so many seconds; ``None`` means never.

    By an alarm signal, so between two instructions of Python: one long call into C, a GPU's kernel or a lock, say, is
    waited for. An alarm of the user's own that is running starts again afterwards with what was left of it.

    Raises:
        RuntimeError: Outside the main thread, where Python takes no signals.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("member_timeout works in the main thread only: Python takes signals nowhere else.")

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"The member's evaluation took longer than member_timeout={seconds} seconds.")

    handler = signal.signal(signal.SIGALRM, stop)
    start, (left, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        left = max(1e-6, left - (time.monotonic() - start)) if left else 0.0
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)
