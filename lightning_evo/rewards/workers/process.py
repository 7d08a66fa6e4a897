"""One worker as the training sees it: a process that is started, given jobs, and killed."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_evo.rewards.workers.guard import kill
from lightning_evo.rewards.workers.messages import Inbox, framed
from lightning_evo.rewards.workers.worker import CLOSED_FILES

__all__ = ["Job", "Process"]

_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
_UNLESS_SET = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # workers run next to each other, and give the same


@dataclass
class Job:
    """What a worker is given at once.

    Attributes:
        tasks: Its number, the function's, and the call as bytes; several only of coroutine functions.
        limit: Seconds that it may take.
        grace: Seconds more after which the worker is killed if it has not seen to the limit itself.
    """

    tasks: list[tuple[int, int, bytes]]
    limit: float
    grace: float = 0.0


@dataclass
class Process:
    """A worker.

    Args:
        functions: Names, and functions as bytes.

    Attributes:
        is_ready: Whether it has loaded the functions.
        job: What it does now.
        since: When that began: when the worker was started, was given a job, or has read it.
        importing_since: When a function began to import a module, which takes no time from it; ``None`` if none does.
        has_begun: Whether the worker has read its job, so that time counts.
        loading: The function that it loads, or loaded last.
        memory: Bytes of memory that it had when it was ready.
    """

    functions: Sequence[tuple[str, bytes]]
    is_ready: bool = False
    job: Job | None = None
    since: float = 0.0
    has_begun: bool = False
    importing_since: float | None = None
    loading: str = ""
    memory: int = 0
    _inbox: Inbox = field(default_factory=Inbox)
    _outbox: bytearray = field(default_factory=bytearray)
    _status: str = ""

    def __post_init__(self) -> None:
        self.work, works = _socketpair()
        self.guard, guards = _socketpair()
        self._kill = weakref.finalize(self, _end, self.work, self.guard, None, os.getpid())
        with works, guards:
            environment, changed = _environment()
            arguments = [str(works.fileno()), str(guards.fileno()), str(os.getpid())]
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "lightning_evo.rewards.workers.worker", *arguments],
                pass_fds=(works.fileno(), guards.fileno()),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=_standard_error(),
                env=environment,
            )
        self._kill.detach()
        self._kill = weakref.finalize(self, _end, self.work, self.guard, self._popen, os.getpid())
        self.work.setblocking(False)
        self.guard.setblocking(False)
        self.since = time.monotonic()
        settings = {"path": list(sys.path), "arguments": list(sys.argv), "environment": changed}
        self._outbox += framed(pickle.dumps({**settings, "functions": list(self.functions)}))

    @property
    def ended(self) -> bool:
        """Whether it was killed, or has said that it ended."""
        return not self._kill.alive

    @property
    def has_to_write(self) -> bool:
        """Whether part of a message still has to be sent."""
        return bool(self._outbox)

    def give(self, job: Job) -> None:
        """Give it a job."""
        self.job, self.since, self.has_begun, self.importing_since = job, time.monotonic(), False, None
        self._outbox += framed(pickle.dumps((job.tasks, job.limit)))
        self.write()

    def write(self) -> None:
        """Send what can be sent without waiting."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionError):
            while self._outbox:
                del self._outbox[: self.work.send(self._outbox[: 1 << 16])]

    def read(self) -> tuple[list[Any], bool]:
        """The messages that have arrived, and whether the worker has ended."""
        parts, over = [], self._hear()  # the guard first: what the worker sent before it ended has arrived then
        with contextlib.suppress(BlockingIOError):
            while True:
                part = _received(self.work, 1 << 18)
                if not part:
                    over = True
                    break
                parts.append(part)
        try:
            return [pickle.loads(body) for part in parts for body in self._inbox.add(part)], over
        except Exception:  # a function has written to the socket: what is to come can't be understood
            return [], True

    def reason(self) -> str:
        """Why it has ended, for people."""
        if not self._status:
            self.guard.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                self._hear()
        if not self._status:
            return "ended its process"
        status = int(self._status)
        if status == CLOSED_FILES:
            return "closed files that were not its own"
        if status >= 0:
            return f"ended its process with exit status {status}"
        with contextlib.suppress(ValueError):
            return f"ended its process by {signal.Signals(-status).name}"
        return f"ended its process by signal {-status}"

    def _hear(self) -> bool:
        """Listen to the guard, which says something once: with what status the worker has ended."""
        with contextlib.suppress(BlockingIOError):
            self._status += _received(self.guard, 64).decode()
            return True
        return False

    def kill(self) -> None:
        """End it with all that it has started."""
        self._kill()


def _socketpair() -> tuple[socket.socket, socket.socket]:
    """Two sockets with numbers above those of standard files, which new ones would get where a process closed these."""
    one, other = (_above_standard(end) for end in socket.socketpair())
    return one, other


def _above_standard(end: socket.socket) -> socket.socket:
    if end.fileno() > 2:
        return end
    import fcntl  # which only systems with such numbers have

    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def _received(source: socket.socket, most: int) -> bytes:
    """What has arrived; nothing if the other end is closed."""
    try:
        return source.recv(most)
    except ConnectionError:
        return b""


def _end(work: socket.socket, guard: socket.socket, popen: subprocess.Popen[bytes] | None, owner: int) -> None:
    """Close the sockets and kill the processes; a fork of the training only closes its copies."""
    if popen is not None and os.getpid() == owner:
        kill(popen.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(timeout=10)
    elif popen is not None:
        popen.returncode = 0  # it is the child of another process, so there is nothing to wait for
    work.close()
    guard.close()


def _environment() -> tuple[dict[str, str], dict[str, str | None]]:
    """That of a worker, and what it changes back once it has started, as functions may start programs of their own."""
    only_to_start = {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in map(str, sys.path)),
        "PYTHONSAFEPATH": "1",  # what lies in the folder must not hide Python's own modules
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED") or "0",
    }
    before = {name: os.environ.get(name) for name in only_to_start}
    return {**_UNLESS_SET, **os.environ, **_NO_GPU, **only_to_start}, before


def _standard_error() -> int:
    """Where a worker's output goes until the guard takes it: never to the standard output of the training."""
    try:
        os.fstat(2)
    except OSError:  # it is closed
        return subprocess.DEVNULL
    return 2
