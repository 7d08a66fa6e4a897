"""Members that can't be evaluated, because they fail or take too long: the generation goes on with the others."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from lightning_evo.utils.options import number

__all__ = ["Failure", "guarded", "limited", "timeout_of_members"]

_LONGEST = 1e9  # seconds that any system's interval timer takes: 30 years


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
        timeout: Seconds after which a member has failed; ``None`` for no limit.
    """
    fitness = limited(fitness, timeout)

    def run() -> Any:
        try:
            return fitness()
        except Exception as error:
            return Failure(error)

    return run


def timeout_of_members(given: object) -> float:
    """The seconds that ``member_timeout`` gives.

    Raises:
        ValueError: If it is not a positive number, or no timeout can be kept on this system.
    """
    seconds = number("member_timeout", given, above=0, wanted="a positive number of seconds")
    if not hasattr(signal, "setitimer"):
        raise ValueError("member_timeout needs a system with interval timers (Linux, macOS). Leave it out here.")
    return seconds


def limited(fitness: Callable[[], Any], seconds: float | None) -> Callable[[], Any]:
    """A fitness that raises a TimeoutError after ``seconds``; ``None`` means never.

    It is an alarm signal, which acts between two instructions of Python: a long call into C, for example a GPU's kernel
    or a lock, is waited for. A running alarm of the user's is paused meanwhile, and then continues.

    Returns:
        What raises a RuntimeError outside the main thread, where Python takes no signals.

    Example:
        >>> import time
        >>> limited(lambda: time.sleep(10), 0.1)()
        Traceback (most recent call last):
        ...
        TimeoutError: The member's evaluation took longer than member_timeout=0.1 seconds.
    """
    if seconds is None:
        return fitness

    def run() -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("member_timeout works in the main thread only: Python takes signals nowhere else.")
        # Not a context manager: an alarm between its block and its end would leave its end out. Here all that follows
        # `running = False` may be interrupted by a late alarm, which does nothing.
        running = True

        def stop(number: int, frame: FrameType | None) -> None:
            if running:
                raise TimeoutError(f"The member's evaluation took longer than member_timeout={seconds} seconds.")

        left, interval = signal.setitimer(signal.ITIMER_REAL, 0)  # before `stop` is there: a user's alarm is no timeout
        start, handler = time.monotonic(), signal.signal(signal.SIGALRM, stop)
        try:
            signal.setitimer(signal.ITIMER_REAL, min(seconds, _LONGEST))
            return fitness()
        finally:
            running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)  # None: not set by Python
            if left:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, left - (time.monotonic() - start)), interval)

    return run
