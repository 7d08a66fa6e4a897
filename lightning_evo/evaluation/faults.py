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

__all__ = ["Failure", "LeftOut", "Pace", "check_timeout", "guarded", "time_limit"]


@dataclass(frozen=True)
class Failure:
    """What stands in the place of a member's fitness.

    Attributes:
        error: Why there is none, with its traceback.
    """

    error: Exception


class LeftOut(Exception):
    """A member was not evaluated, as all processes together have done enough."""


class Pace:
    """Tells a slow process when the others have done enough, so that they need not wait for it.

    Processes count what they have finished at a place that all can reach, and look there before every member.

    Args:
        add: Adds to the number under a name, for all processes, and gives the new number.
        drop: The share of members, in (0, 1), that need not be waited for.

    Example:
        >>> from collections import Counter
        >>> numbers = Counter()
        >>> def add(name, amount):
        ...     numbers[name] += amount
        ...     return numbers[name]
        >>> pace = Pace(add, drop=0.25)
        >>> pace.start("generation 0", members=4)
        >>> evaluate = pace.counted(lambda: 1.0)
        >>> [evaluate(), evaluate(), evaluate()]
        [1.0, 1.0, 1.0]
        >>> evaluate()
        Traceback (most recent call last):
        ...
        lightning_evo.evaluation.faults.LeftOut: 3 of 4 members were finished by all processes.
    """

    def __init__(self, add: Callable[[str, int], int], drop: float) -> None:
        self._add, self._drop = add, drop
        self._name, self._members, self._enough = "", 0, 0

    def start(self, name: str, members: int) -> None:
        """The next evaluation of so many members, by all processes together; under a name of its own."""
        self._name, self._members, self._enough = name, members, members - int(members * self._drop)

    def counted(self, fitness: Callable[[], Any], members: int = 1) -> Callable[[], Any]:
        """A fitness that counts as so many members, and raises :class:`LeftOut` once enough are finished."""

        def run() -> Any:
            finished = self._add(self._name, 0)
            if finished >= self._enough:
                raise LeftOut(f"{finished} of {self._members} members were finished by all processes.")
            value = fitness()
            self._add(self._name, members)
            return value

        return run


def guarded(fitness: Callable[[], Any], timeout: float | None = None, pace: Pace | None = None) -> Callable[[], Any]:
    """A fitness that gives a :class:`Failure` instead of raising an exception.

    Args:
        fitness: Evaluates a member.
        timeout: Seconds after which a member has failed; see :func:`time_limit`.
        pace: Leaves members out.
    """
    if pace is not None:
        fitness = pace.counted(fitness)

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
