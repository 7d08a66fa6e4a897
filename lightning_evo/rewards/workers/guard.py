"""The guard of a worker: the process that starts it, and that ends with all of its children when the training ends.

A worker can't see to this itself. What hangs in C code (a regular expression that backtracks) holds Python's lock, so
no thread of the worker's would run; and the signal that Linux sends to children of a process that dies reaches neither
grandchildren nor other systems. The guard runs nothing of the user's.

It leads a session of its own, so that Ctrl-C in the terminal reaches the training only, and one signal reaches the
worker with what it has started. On Linux it adopts orphans, so that children that left the session are found, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import time

__all__ = ["SHOWN", "die_with_parent", "kill", "watch"]

SHOWN = 1 << 16
"""Bytes of a worker's output that are shown, on the standard error of the training; the rest is dropped."""

_LOOK = 1.0  # seconds after which the guard looks whether the training is still its parent
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl
_ROUNDS = 20  # of killing children, which may start others meanwhile


def watch(worker: int, training: socket.socket, output: int, parent: int) -> None:
    """Guard a worker until the training closes its end of the socket, or ends. Does not return.

    Args:
        worker: The process to guard, a child of this one.
        training: Gets the worker's exit status as text, once it has ended.
        output: What the worker writes is read from here.
        parent: The training's process.
    """
    _adopt_orphans()
    woken, wakes = socket.socketpair()
    woken.setblocking(False)
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    selector = selectors.DefaultSelector()
    for each in (training, woken, output):
        selector.register(each, selectors.EVENT_READ)
    shown, is_over = 0, _reap(worker, training)
    while True:
        ready = {key.fileobj for key, _ in selector.select(_LOOK)}
        if output in ready:
            said = os.read(output, 1 << 16)
            if said:
                shown = _show(said, shown)
            else:
                selector.unregister(output)
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                while woken.recv(4096):
                    pass
            is_over = _reap(worker, training, is_over)
        if training in ready or os.getppid() != parent:
            kill(os.getpid())
            os._exit(1)


def kill(guard: int) -> None:
    """Kill a guard, its worker, and what that has started, whether it is in the guard's session or, on Linux, not."""
    for _ in range(_ROUNDS):
        below = _descendants(guard)
        for process in below:
            _signal(process)
        if not below:
            break
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(guard, signal.SIGKILL)


def die_with_parent() -> None:
    """Have Linux kill this process when its parent ends: the worker, if something killed its guard."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)


def _adopt_orphans() -> None:
    _prctl(_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _reap(worker: int, training: socket.socket, is_over: bool = False) -> bool:
    """Take note of children that have ended; tell the training if the worker is among them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                break
            if process == worker:
                is_over = True
                with contextlib.suppress(OSError):
                    training.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    return is_over


def _show(said: bytes, shown: int) -> int:
    """Show what a worker says, up to a bound, as long as somebody reads it; gives how much was shown."""
    room = SHOWN - shown
    if room <= 0:
        return shown
    said = said[:room]
    if len(said) == room:
        said += b"\n(lightning_evo: reward functions said more, which is not shown.)\n"
    with contextlib.suppress(OSError):
        for start in range(0, len(said), 512):  # a pipe that is ready takes 512 bytes on any system
            with selectors.PollSelector() as selector:
                selector.register(2, selectors.EVENT_WRITE)
                if not selector.select(0.1):
                    break
            os.write(2, said[start : start + 512])
    return min(SHOWN, shown + len(said))


def _descendants(process: int) -> list[int]:
    """The children of a process, and theirs; none where the system has no ``/proc``."""
    children: dict[int, list[int]] = {}
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for number in numbers:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{number}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state != b"Z":  # which has ended, and only waits to be counted
                children.setdefault(int(parent), []).append(number)
    found, rest = [], [process]
    while rest:
        below = children.get(rest.pop(), [])
        found += below
        rest += below
    return found


def _signal(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGKILL)
