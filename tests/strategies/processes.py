"""Processes that talk to each other over the loopback interface, for tests of strategies that need several."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_STARTING = 120.0  # seconds that importing everything may take on a busy machine


class Failed(Exception):
    """A process raised an exception, died or took too long; its traceback is the message."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """Some processes that Lightning takes for those of torchrun. They stay, as starting them takes seconds."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._workers: list[tuple[Any, Any]] = []

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
        """What ``function(*args)`` returns in each process. If one fails all are ended, and started anew next time."""
        if not self._workers:
            self._start()
            self._call(_nothing, (), _STARTING)
        return self._call(function, args, timeout)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> list[Any]:
        results: dict[int, Any] = {}
        end = time.monotonic() + timeout
        try:
            for _, pipe in self._workers:
                pipe.send((function, args))
            while len(results) < self.count:
                waiting = [pipe for rank, (_, pipe) in enumerate(self._workers) if rank not in results]
                for pipe in multiprocessing.connection.wait(waiting, max(0.0, end - time.monotonic())):
                    rank = next(rank for rank, (_, own) in enumerate(self._workers) if own is pipe)
                    try:
                        error, results[rank] = pipe.recv()
                    except EOFError:
                        raise Failed(f"Process {rank} died.") from None
                    if error:
                        raise Failed(f"Process {rank}: {error}")
                if time.monotonic() > end:
                    raise Failed(f"{function} took longer than {timeout} seconds.")
        except BaseException:
            self.close()
            raise
        return [results[rank] for rank in range(self.count)]

    def _start(self) -> None:
        context, port = _context(), free_port()
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, self.count, port, dict(os.environ))
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def close(self) -> None:
        for process, _ in self._workers:
            process.kill()
        for process, pipe in self._workers:
            process.join(10)
            pipe.close()
        self._workers = []


@contextmanager
def processes(count: int) -> Iterator[Processes]:
    pool = Processes(count)
    try:
        yield pool
    finally:
        pool.close()


def run_script(code: str, folder: Path, timeout: float = 200.0, launcher: tuple[str, ...] = ()) -> str:
    """What a script prints that starts processes by itself, as Lightning does; all of them are ended."""
    (folder / "train.py").write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_PORT": str(free_port())}
    with subprocess.Popen(
        [sys.executable, *launcher, "train.py"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise Failed(output)
    return output


def _context() -> Any:
    """Forks processes from one that has imported everything, where that is safe: it takes most of the time."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "lightning_evo.strategies", __name__])
    return context


def _nothing() -> None:
    import lightning.pytorch  # noqa: F401

    import lightning_evo  # noqa: F401


def _work(pipe: Any, rank: int, count: int, port: int, environment: dict[str, str]) -> None:
    os.environ.clear()  # of the time when the process was started that this one was forked from
    os.environ.update(environment)
    os.environ.update(
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "TORCHELASTIC_RUN_ID": "tests",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
    )
    os.chdir(tempfile.gettempdir())
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, args = pipe.recv()
            pipe.send((None, function(*args)))
        except EOFError:
            return
        except BaseException:
            pipe.send((traceback.format_exc(), None))
