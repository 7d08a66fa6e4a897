"""A pool of workers: processes of their own in which reward functions run next to each other, and can be killed."""

from __future__ import annotations

import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_evo.rewards.calling import Answer, Problem
from lightning_evo.rewards.workers.process import Job, Process
from lightning_evo.rewards.workers.sending import code_of
from lightning_evo.utils.messages import first_line

__all__ = ["GROWTH", "START", "Budget", "Lost", "Pool", "Task", "processors"]

GROWTH = 1 << 30
"""Bytes by which a worker's memory may grow after it was ready; then another takes its place."""

START = 300.0
"""Seconds for a worker to load the functions, and to read a call: imports of large packages take their time."""

_GRACE = 1.0  # seconds in which a worker may say which of several coroutines took too long, before it is killed
_FAILED_STARTS = 3


@dataclass
class Budget:
    """Seconds of workers that several tasks may take in all.

    Attributes:
        left: Those that are left.
    """

    left: float


@dataclass(frozen=True)
class Task:
    """One function for one call.

    Attributes:
        function: Its place among the pool's.
        call: A call as bytes, by :func:`~lightning_evo.rewards.workers.sending.dumps`.
        together: Whether it may run in one worker with others of this kind: that of a coroutine function.
        budget: What it shares with others; ``None`` if its limit is all.
    """

    function: int
    call: bytes
    together: bool = False
    budget: Budget | None = None


@dataclass(frozen=True)
class Lost:
    """In place of an answer.

    Attributes:
        timed_out: Whether it took too long; else it ended the worker.
        message: What the function did, for people: ``"'judge' took longer than 2 s"``.
        killed: Whether the worker had to be killed, or was, so that others of the same job were lost, too.
    """

    timed_out: bool
    message: str
    killed: bool = True


class Pool:
    """Workers that are started as they are needed, stay, and are replaced after a kill, a crash or growth.

    Args:
        functions: Names and functions.
        most: How many workers there may be; by default as many as this process has processors.

    Attributes:
        restarts: How many workers had to be replaced.

    Raises:
        ImportError: If cloudpickle is not installed.
        ValueError: If a function can't be pickled, or the system has no process groups.

    Example:
        >>> from lightning_evo.rewards.calling import Call
        >>> from lightning_evo.rewards.workers.sending import dumps
        >>> with Pool([("double", lambda completions, **kwargs: [2 * float(text) for text in completions])]) as pool:
        ...     pool.run([Task(0, dumps(Call(["", ""], ["1", "2"], [[], []])))], limit=10)
        [Answer(rewards=[2.0, 4.0], extras={}, metrics={})]
    """

    def __init__(self, functions: Sequence[tuple[str, Callable[..., Any]]], most: int | None = None) -> None:
        if not hasattr(os, "killpg") or not hasattr(os, "fork"):
            raise ValueError("reward_timeout needs Linux or macOS: workers are killed by groups of processes.")
        self._functions = [(name, code_of(name, function)) for name, function in functions]
        self._most = most or processors()
        self._workers: list[Process] = []
        self._owner = os.getpid()
        self._failed_starts = 0
        self.restarts = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def processes(self) -> int:
        """How many workers there are now."""
        return len(self._workers)

    def run(self, tasks: Sequence[Task], limit: float) -> list[Answer | Problem | Lost]:
        """Run tasks, next to each other as far as there are processors.

        Args:
            tasks: What to run.
            limit: Seconds that each may take; those that run together have them together.

        Returns:
            What became of each.

        Raises:
            RuntimeError: If workers can't be started or can't load a function.
        """
        if self._owner != os.getpid():  # in a fork of the process that started them, whose they stay
            self._workers.clear()
            self._owner = os.getpid()
        for worker in list(self._workers):
            if worker.is_ready and worker.read()[1]:  # it ended while it had nothing to do
                self._remove(worker)
        run = _Run(tasks, limit)
        try:
            while run.waiting or any(worker.job for worker in self._workers):
                self._hand_out(run)
                self._listen(run)
                self._check_time(run)
        except BaseException:  # Ctrl-C above all: nobody waits for what the others do
            for worker in [worker for worker in self._workers if worker.job or not worker.is_ready]:
                self._remove(worker)
            raise
        return [run.outcomes[number] for number in range(len(tasks))]

    def _hand_out(self, run: _Run) -> None:
        idle = [worker for worker in self._workers if worker.is_ready and not worker.job]
        while run.waiting and idle:
            job = run.next_job()
            if job is not None:
                idle.pop(0).give(job)
        coming = sum(not worker.is_ready for worker in self._workers)
        for _ in range(min(len(run.waiting) - coming, self._most - len(self._workers))):
            self._workers.append(Process(self._functions))

    def _listen(self, run: _Run) -> None:
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.has_to_write else 0)
                selector.register(worker.work, events, worker)
                selector.register(worker.guard, selectors.EVENT_READ, worker)
            if not self._workers:
                return
            wait = min((_end_of(worker) for worker in self._workers), default=0.0) - time.monotonic()
            ready = {id(key.data): key.data for key, _ in selector.select(max(0.0, min(wait, 1.0)))}
        for worker in ready.values():
            worker.write()
            messages, is_over = worker.read()
            for kind, value in messages:
                self._take(run, worker, kind, value)
            if is_over and worker in self._workers:
                self._take_end(run, worker)

    def _take(self, run: _Run, worker: Process, kind: str, value: Any) -> None:
        if kind == "loading":
            worker.loading, worker.since = value, time.monotonic()
        elif kind == "unloadable":
            name, said, trace = value
            raise RuntimeError(
                f"A worker can't load the reward function {name!r}: {first_line(said)}. Workers import its module "
                f"anew, in a process that sees no GPU.\n{trace}"
            )
        elif kind == "ready":
            worker.is_ready, worker.memory, self._failed_starts = True, value, 0
        elif kind == "started":
            worker.has_begun, worker.since = True, time.monotonic()
        elif kind == "importing":
            now = time.monotonic()
            if not value and worker.importing_since is not None:
                worker.since += now - worker.importing_since
            worker.importing_since = now if value else None
        elif kind == "answer":
            number, found = value
            run.outcomes[number] = found or Lost(True, f"{self._name(run, number)} took too long", killed=False)
        elif kind == "done":
            run.ended(worker)
            if value - worker.memory > GROWTH:
                self._remove(worker)
                self.restarts += 1

    def _take_end(self, run: _Run, worker: Process) -> None:
        reason = worker.reason()
        self._remove(worker)
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                what = f" while it loaded {worker.loading!r}" if worker.loading else ""
                raise RuntimeError(
                    f"A worker for reward functions {reason}{what}, {_FAILED_STARTS} times in a row. Its standard "
                    "error above may say why."
                )
        elif worker.job and not worker.has_begun and run.put_back(worker):  # it ended by what was before
            return
        elif worker.job:
            self.restarts += 1
            for number in run.open_of(worker):
                run.outcomes[number] = Lost(False, f"{self._name(run, number)} {reason}")
            run.ended(worker)

    def _check_time(self, run: _Run) -> None:
        now = time.monotonic()
        for worker in [worker for worker in self._workers if _end_of(worker) <= now]:
            self._remove(worker)
            if not worker.is_ready:
                raise RuntimeError(f"A worker took longer than {START:.0f} s to load {worker.loading!r}.")
            if not worker.has_begun:
                raise RuntimeError(f"A worker took longer than {START:.0f} s to read the data of a call.")
            self.restarts += 1
            for number in run.open_of(worker):
                run.outcomes[number] = Lost(True, f"{self._name(run, number)} took too long")
            run.ended(worker)

    def _remove(self, worker: Process) -> None:
        worker.kill()
        self._workers.remove(worker)

    def _name(self, run: _Run, number: int) -> str:
        return repr(self._functions[run.tasks[number].function][0])


class _Run:
    """The tasks of one :meth:`Pool.run`, and what became of them."""

    def __init__(self, tasks: Sequence[Task], limit: float) -> None:
        self.tasks, self._limit = tasks, limit
        together = [number for number, task in enumerate(tasks) if task.together]
        alone = [[number] for number, task in enumerate(tasks) if not task.together]
        self.waiting: deque[list[int]] = deque(([together] if together else []) + alone)
        self.outcomes: dict[int, Answer | Problem | Lost] = {}
        self._put_back = 0

    def next_job(self) -> Job | None:
        """The next to hand out; ``None`` if no time is left for it."""
        numbers = self.waiting.popleft()
        budgets = [budget.left for number in numbers if (budget := self.tasks[number].budget)]
        limit = min([self._limit, *budgets])
        if limit <= 0:
            for number in numbers:
                self.outcomes[number] = Lost(True, "no time was left")
            return None
        tasks = [(number, self.tasks[number].function, self.tasks[number].call) for number in numbers]
        return Job(tasks, limit, _GRACE if self.tasks[numbers[0]].together else 0.0)

    def put_back(self, worker: Process) -> bool:
        """Have another worker do a job, unless that has happened too often for the job to be blameless."""
        self._put_back += 1
        if self._put_back > _FAILED_STARTS:
            return False
        assert worker.job is not None
        self.waiting.appendleft([number for number, _, _ in worker.job.tasks])
        worker.job = None
        return True

    def open_of(self, worker: Process) -> list[int]:
        """The tasks that a worker has not answered."""
        assert worker.job is not None
        return [number for number, _, _ in worker.job.tasks if number not in self.outcomes]

    def ended(self, worker: Process) -> None:
        """A job has ended, in whatever way."""
        assert worker.job is not None
        spent = time.monotonic() - worker.since if worker.has_begun else 0.0
        for budget in {id(b): b for number, _, _ in worker.job.tasks if (b := self.tasks[number].budget)}.values():
            budget.left -= spent
        worker.job = None


def _end_of(worker: Process) -> float:
    """When a worker's time is over."""
    if worker.importing_since is not None:
        return worker.importing_since + START
    if worker.job and worker.has_begun:
        return worker.since + worker.job.limit + worker.job.grace
    return worker.since + START if worker.job or not worker.is_ready else float("inf")


def processors() -> int:
    """How many workers this process may have: its share of the processors that it may use.

    Example:
        >>> processors() >= 1
        True
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
