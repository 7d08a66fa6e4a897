"""Reward functions that do what none should, for a completion "bad"; others get their length as reward.

Workers import this file, so it imports nothing large.
"""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time


def lengths(completions, **kwargs):
    return [len(text) for text in completions]


def doing(act):
    """A reward function that does something for a completion "bad"."""

    def misbehave(completions, column=None, **kwargs):
        if "bad" in completions:
            act()
        return lengths(completions)

    misbehave.__name__ = act.__name__
    return misbehave


def sleeps():
    time.sleep(1000)


def backtracks():
    """Hangs in C code that never lets go of Python's lock."""
    re.match(r"(a|a)*b", "a" * 100)


def ignores_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(1000)


def stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


def segfaults():
    ctypes.string_at(0)


def leaves():
    os._exit(3)


def kills_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def kills_its_group():
    os.killpg(0, signal.SIGKILL)


def kills_its_parent():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)


def closes_files():
    os.closerange(0, 4096)


def writes_to_all_files():
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(number, b"\xff" * 64)


def forks():
    """Both processes come back from it."""
    os.fork()


def forks_and_hangs():
    os.fork()
    time.sleep(1000)


def prints_a_megabyte():
    print("x" * (1 << 20))
    print("y" * (1 << 20), file=sys.stderr)
    os.write(1, b"z" * (1 << 20))


def reads():
    assert sys.stdin.read() == ""


def exits():
    sys.exit("enough")


def interrupts():
    raise KeyboardInterrupt


def alarms():
    """As math_verify limits its own time."""

    def stop(number, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(1000)
    except TimeoutError:
        return
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def leaves_an_alarm():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.2)


def moves():
    os.chdir("/")


def leaves_children(file):
    """A function that leaves a child in its session and one outside of it, and hangs. Their numbers go to a file."""

    def act():
        wait = [sys.executable, "-c", "import time; time.sleep(1000)"]
        children = [subprocess.Popen(wait), subprocess.Popen(wait, start_new_session=True)]
        with open(file, "a") as numbers:
            numbers.write("".join(f"{child.pid}\n" for child in children) + f"{os.getpid()}\n{os.getppid()}\n")
        time.sleep(1000)

    return doing(act)


class Unpicklable:
    def __reduce__(self):
        raise TypeError("not to be sent")

    def __repr__(self):
        return "<one that can't be sent>"


def logs_what_cannot_be_sent(completions, log_extra, **kwargs):
    log_extra("object", [Unpicklable() for _ in completions])
    return lengths(completions)


def returns_what_cannot_be_sent(completions, **kwargs):
    return [Unpicklable() for _ in completions]


def returns_too_few(completions, **kwargs):
    return [1.0]


async def sleeps_later(completions, **kwargs):
    await asyncio.sleep(1000 if "bad" in completions else 0.01)
    return lengths(completions)


async def blocks_later(completions, **kwargs):
    if "bad" in completions:
        time.sleep(1000)
    return lengths(completions)


def grows(completions, kept=[], **kwargs):  # noqa: B006
    kept.append(bytearray(os.urandom(1)) * (1 << 25))
    return lengths(completions)


def draws(completions, **kwargs):
    import random

    return [random.random() for _ in completions]


def worker(completions, **kwargs):
    """The process that it runs in."""
    return [float(os.getpid()) for _ in completions]


def imports_slowly(completions, **kwargs):
    import slow_module

    return [slow_module.VALUE for _ in completions]
