"""The process in which reward functions run: ``python -m lightning_evo.rewards.workers.worker``.

It imports nothing large, so that it starts in a tenth of a second. The training talks to it through a socket of its
own: standard input is empty, and what functions print goes to the guard (:mod:`~lightning_evo.rewards.workers.guard`).
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import pickle
import random
import signal
import socket
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from lightning_evo.rewards.calling import Answer, Call, Problem, answer, answer_later, is_coroutine, problem_of
from lightning_evo.rewards.workers.guard import die_with_parent, watch
from lightning_evo.rewards.workers.messages import receive, send
from lightning_evo.utils.messages import shown

__all__ = ["main"]


def main() -> None:
    """Start the worker as a child of this process, which becomes its guard."""
    work, guard, parent = (int(text) for text in sys.argv[1:4])
    output, writes = os.pipe()
    worker = os.fork()
    if worker:
        os.close(work)
        os.close(writes)
        watch(worker, socket.socket(fileno=guard), output, parent)
    die_with_parent()
    os.close(guard)
    os.close(output)
    for standard in (1, 2):
        os.dup2(writes, standard)
    os.close(writes)
    os.set_inheritable(work, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what the training blocks or ignores, functions may need
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Anew, as what they wrote to may have been a file; and line by line, so that what a function says before it crashes
    # is shown.
    sys.stdout, sys.stderr = _lines(1), _lines(2)
    with contextlib.suppress(EOFError):
        _Worker(socket.socket(fileno=work)).serve()
    os._exit(0)


def _lines(file: int) -> TextIO:
    return open(file, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


class _Worker:
    """What runs calls.

    Args:
        training: The other end is the training's.
    """

    def __init__(self, training: socket.socket) -> None:
        self._training = training
        self._process = os.getpid()
        self._socket = os.fstat(training.fileno())
        self._functions: list[tuple[str, Callable[..., Any]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._folder = ""

    def serve(self) -> None:
        """Load the functions, then answer until the training closes its end.

        Raises:
            EOFError: When it has.
        """
        settings = pickle.loads(receive(self._training))
        sys.path[:], sys.argv[:] = settings["path"], settings["arguments"]
        for name, value in settings["environment"].items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._folder = os.getcwd()
        for name, code in settings["functions"]:
            self._send("loading", name)
            try:
                self._functions.append((name, pickle.loads(code)))
            except BaseException as error:
                trace = "".join(traceback.format_exception(error))
                self._send("unloadable", (name, f"{type(error).__name__}: {error}", trace))
        self._send("ready", memory_in_use())
        while True:
            tasks, limit = pickle.loads(receive(self._training))
            self._run(tasks, limit)

    def _run(self, tasks: list[tuple[int, int, bytes]], limit: float) -> None:
        calls: list[tuple[int, str, Callable[..., Any], Call]] = []
        for task, place, code in tasks:
            name, function = self._functions[place]
            try:
                calls.append((task, name, function, pickle.loads(code)))
            except BaseException as error:
                problem = problem_of(name, error)
                self._answer(task, Problem(f"The data can't be sent to workers: {error}", trace=problem.trace))
        if calls:
            _start_random_numbers(calls[0][1], calls[0][3])
            self._send("started", None)  # from now on time counts
            with self._telling_of_imports():
                if all(is_coroutine(function) for _, _, function, _ in calls):
                    self._until(self._gather(calls, limit))
                else:
                    for task, name, function, call in calls:
                        self._answer(task, self._guarded(name, function, call))
        self._tidy()
        self._send("done", memory_in_use())

    def _guarded(self, name: str, function: Callable[..., Any], call: Call) -> Answer | Problem:
        try:
            return answer(name, function, call, self._until)
        except BaseException as error:  # whatever a function raises, KeyboardInterrupt and its own, too
            return problem_of(name, error)
        finally:
            if os.getpid() != self._process:  # a child that the function has forked, and that came back from it
                os._exit(0)

    async def _gather(self, calls: list[tuple[int, str, Callable[..., Any], Call]], limit: float) -> None:
        async def each(task: int, name: str, function: Callable[..., Any], call: Call) -> None:
            found: Answer | Problem | None
            try:
                found = await asyncio.wait_for(answer_later(name, function, call), limit)
            except asyncio.TimeoutError:  # noqa: UP041 - another class in Python 3.10
                found = None
            except BaseException as error:
                found = problem_of(name, error)
            if os.getpid() != self._process:
                os._exit(0)
            self._answer(task, found)

        await asyncio.gather(*(each(*call) for call in calls))

    @contextlib.contextmanager
    def _telling_of_imports(self) -> Iterator[None]:
        """Tell the training while a function imports a module for the first time, so that this time doesn't count.

        Without that a new worker, which has yet to import what the one before it had, would be killed, too.
        """
        original = builtins.__import__
        runs = False

        def tell(name: str, *arguments: Any, **options: Any) -> Any:
            nonlocal runs
            if runs or name in sys.modules or not name or os.getpid() != self._process:
                return original(name, *arguments, **options)
            runs = True
            self._send("importing", True)
            try:
                return original(name, *arguments, **options)
            finally:
                runs = False
                self._send("importing", False)

        builtins.__import__ = tell
        try:
            yield
        finally:
            builtins.__import__ = original

    def _until(self, awaitable: Any) -> Any:
        """Wait in a loop that stays, as clients keep connections that belong to theirs."""

        async def wait() -> Any:
            return await awaitable

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(wait())

    def _answer(self, task: int, found: Answer | Problem | None) -> None:
        """Send an answer; ``None`` says that the time was over."""
        if isinstance(found, Answer):  # what it logged may be anything
            found.extras = {column: list(map(_sendable, values)) for column, values in found.extras.items()}
        self._send("answer", (task, found))

    def _send(self, kind: str, value: Any) -> None:
        self._write(pickle.dumps((kind, value)))

    def _write(self, body: bytes) -> None:
        """Send a message.

        If a function has closed the socket, its number may be that of another file by now, and the worker ends.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._training.fileno()), self._socket):
                send(self._training, body)
                return
        os._exit(CLOSED_FILES)

    def _tidy(self) -> None:
        """Take back what a function may have left behind that would hit the next one."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(OSError):
            os.chdir(self._folder)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()


CLOSED_FILES = 70
"""Exit status of a worker whose socket a function has closed."""


def _sendable(value: Any) -> Any:
    """A value, or how it shows itself if it can't be pickled."""
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        pickle.dumps(value)
    except Exception:
        return shown(value, limit=1000)
    return value


def memory_in_use() -> int:
    """Bytes of memory that this process has now on Linux, its most so far on other systems."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _start_random_numbers(name: str, call: Call) -> None:
    """The same random numbers for every member, in whichever worker it is scored."""
    step = getattr(call.trainer_state, "global_step", 0)
    seed = zlib.crc32(f"{name} {step}".encode())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


if __name__ == "__main__":
    main()
