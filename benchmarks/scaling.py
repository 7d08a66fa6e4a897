"""What a second process brings: members per second of two ranks with a core each against one rank with one core.

``python -m benchmarks.scaling [--quick] [--output results.json]``

A GPT-2 of 9.1M parameters (4 layers, 384 wide, 6 heads, 4,096 tokens in the vocabulary; 36 MB in float32), randomly
initialised; a member's fitness is the mean cross-entropy of 4 sequences of 128 tokens. A generation is complete: noise,
forward passes, exchange of fitness, shaping and the update of the weights in place. The population is the same in all
rows, and the ranks divide it. Two processes, each kept on a core of its own with one thread, are connected by gloo over
the loopback interface; the row of one rank runs in the first of them while the other waits without using its core.

* ``N ranks apart`` is the machine's limit: each rank evolves its share of the population on its own, and nothing
  is sent. What is lost there is lost to shared memory, caches and cores, not to this package.
* The others differ by ``update_sync``; see docs/scaling.md.

Rows take turns, round after round; a speedup is the ratio of two medians of one run. Two ranks on two cores suffer from
every other process on the machine, so each generation is recorded with the share of the cores that others took
meanwhile; where at least three of a row were disturbed by less than 3 %, only these count (column ``of``). ``by CPU
time`` divides the processor's seconds of one rank by those of the busiest rank, all threads together: it leaves out
what a rank waits, for the others or for a core, so it shows on a busy machine, too, what the division itself costs.
``bytes sent`` is what a rank hands to the process group in a generation. ``same weights`` compares every bit with those
of one rank.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import interleaved, show, write
from benchmarks._models import Likelihood, gpt2, parameters, tokens
from lightning_evo.generation.evolution import Evolution
from lightning_evo.generation.sync import CostModel, measure, synchronized
from lightning_evo.processes.ranks import Ranks

ONE = "1 rank"
CASES: dict[str, dict[str, Any]] = {"openai_es": {}, "eggroll": {"rank": 1}}
WAYS = ("replicated", "sharded")
QUIET = 0.03  # share of the cores that others may take


class Generation:
    """A generation of one rank, as a call; it keeps seconds of its parts and the bytes that it sent."""

    def __init__(self, algorithm: str, members: int, ranks: Ranks, way: str, model: nn.Module, batch: Tensor) -> None:
        options = CASES[algorithm]
        self.evolution = Evolution(algorithm, population=members, seed=0, evaluation="in_forward", **options)
        self.evolution.ranks = ranks
        self.evolution.setup(model)
        self.model, self.fitness, self.batch, self.way = model, Likelihood(model), batch, way
        self.update_seconds = 0.0

    def __call__(self) -> None:
        """Evaluate, exchange, learn, update."""
        self.evolution.evaluate(self.fitness, self.batch)
        start = time.perf_counter()
        synchronized(self.evolution.conclude(), self.way, self.evolution.ranks).apply()  # type: ignore[arg-type]
        self.update_seconds = time.perf_counter() - start

    def costs(self) -> CostModel:
        """What ``update_sync="auto"`` would measure here."""
        self.evolution.evaluate(self.fitness, self.batch)
        return measure(self.evolution.conclude(), self.evolution.ranks)

    def weights(self) -> str:
        """A digest of all bits."""
        digest = hashlib.sha256()
        for parameter in self.model.parameters():
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class Worker:
    """One process: its rank's share of every row."""

    def __init__(self, rank: int, world: int, tiny: bool, members: int) -> None:
        self.sent = 0
        shape = (2, 32, 2, 64) if tiny else (4, 384, 6, 4096)
        torch.manual_seed(0)
        model, batch = gpt2(*shape), tokens(2 if tiny else 4, 8 if tiny else 128, shape[-1])
        together = Ranks(groups=world, rank=rank, gather_from_all=self._gather)
        self.parameters = parameters(model)
        self.calls: dict[str, Generation] = {}
        for algorithm in CASES:
            rows = {"apart": (members // world, Ranks(), "replicated")}
            rows |= {way: (members, together, way) for way in WAYS}
            if rank == 0:
                rows[ONE] = (members, Ranks(), "replicated")
            for name, (population, ranks, way) in rows.items():
                call = Generation(algorithm, population, ranks, way, copy.deepcopy(model), batch)
                self.calls[f"{algorithm}, {name}"] = call

    def _gather(self, values: Tensor) -> list[Tensor]:
        self.sent += values.numel() * values.element_size()
        everything = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(everything, values)
        return everything

    def run(self, row: str) -> dict[str, float]:
        """One generation: bytes that this rank sent, seconds from the last fitness on, and those of the processor."""
        self.sent, start = 0, time.process_time()
        self.calls[row]()
        return {"sent": self.sent, "update": self.calls[row].update_seconds, "cpu": time.process_time() - start}

    def finish(self, row: str) -> str:
        """The weights after all generations."""
        return self.calls[row].weights()

    def costs(self, row: str) -> dict[str, float]:
        """The constants of the cost model."""
        return vars(self.calls[row].costs())

    def size(self) -> int:
        """Parameters of the model."""
        return self.parameters


def _work(pipe: Any, rank: int, cores: list[int], port: int, tiny: bool, members: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(cores)
    )
    worker = Worker(rank, len(cores), tiny, members)
    while (order := pipe.recv()) is not None:
        method, arguments = order
        pipe.send(getattr(worker, method)(*arguments))
    torch.distributed.destroy_process_group()


class Pool(AbstractContextManager["Pool"]):
    """The processes."""

    def __init__(self, cores: list[int], tiny: bool, members: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(len(cores)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, rank, cores, port, tiny, members), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, ranks: int, method: str, *arguments: Any) -> list[Any]:
        """What the first ranks return."""
        for pipe in self.pipes[:ranks]:
            pipe.send((method, arguments))
        return [pipe.recv() for pipe in self.pipes[:ranks]]

    def __exit__(self, *error: object) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if error[0] is None:
                pipe.send(None)
                process.join(30)
            process.kill()


def _ticks(path: Path, fields: list[int]) -> int:
    """Clock ticks that a file of Linux's ``/proc`` counts in some fields; 0 on other systems."""
    try:
        words = path.read_text().split("\n", 1)[0].rpartition(") ")[2].split()
    except OSError:
        return 0
    return sum(int(words[field]) for field in fields)


class Disturbance:
    """How busy others keep the cores."""

    def __init__(self, processes: list[int]) -> None:
        self.own = [Path(f"/proc/{process}/stat") for process in processes]

    def counts(self) -> tuple[int, int]:
        """Ticks of all cores that others were busy, and all ticks."""
        stat = Path("/proc/stat")
        busy = _ticks(stat, [1, 2, 3, 6, 7, 8]) - sum(_ticks(path, [11, 12]) for path in self.own)
        return busy, _ticks(stat, list(range(1, 9)))

    @staticmethod
    def share(before: tuple[int, int], after: tuple[int, int]) -> float:
        """The share of the cores that others took between two counts; 0 where that is not known."""
        return max(0.0, (after[0] - before[0]) / max(1, after[1] - before[1]))


def compare(pool: Pool, algorithm: str, members: int, ranks: int, repeats: int, warmup: int) -> dict[str, Any]:
    """All rows of an algorithm, interleaved."""
    names = {ONE: 1, f"{ranks} ranks apart": ranks, **{f"{ranks} ranks, {way}": ranks for way in WAYS}}
    found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in names}
    others: dict[str, list[float]] = {name: [] for name in names}
    disturbance = Disturbance([os.getpid(), *(process.pid for process in pool.processes)])

    def row(name: str) -> Callable[[], None]:
        key = f"{algorithm}, {name.removeprefix(f'{ranks} ranks').strip(', ')}"

        def run() -> None:
            before = disturbance.counts()
            found[name].append(pool.call(names[name], "run", key))
            others[name].append(disturbance.share(before, disturbance.counts()))

        return run

    times = interleaved({name: row(name) for name in names}, repeats, warmup)
    counted = {}
    for name, values in times.items():
        quiet = [seconds for seconds, share in zip(values, others[name][warmup:], strict=True) if share < QUIET]
        counted[name] = quiet if len(quiet) >= 3 else values
    one = statistics.median(counted[ONE])
    processor = {name: [max(rank["cpu"] for rank in turn) for turn in turns[warmup:]] for name, turns in found.items()}
    weights = {way: set(pool.call(ranks, "finish", f"{algorithm}, {way}")) for way in WAYS}
    alone = pool.call(1, "finish", f"{algorithm}, {ONE}")[0]
    costs = pool.call(ranks, "costs", f"{algorithm}, replicated")[0]
    rows = []
    for name, values in times.items():
        way = name.rpartition(", ")[2]
        rows.append(
            {
                "row": name,
                "seconds": values,
                "others": [round(share, 3) for share in others[name][warmup:]],
                "counted": len(counted[name]),
                "cpu_seconds": processor[name],
                "speedup_by_cpu_time": statistics.median(processor[ONE]) / statistics.median(processor[name]),
                "update_seconds": [max(rank["update"] for rank in turn) for turn in found[name][warmup:]],
                "members_per_second": members / statistics.median(counted[name]),
                "speedup": one / statistics.median(counted[name]),
                "bytes_sent": int(max(rank["sent"] for rank in found[name][-1])),
                "same_weights": weights[way] == {alone} if way in weights else None,
            }
        )
    return {"algorithm": algorithm, "population": members, "costs": costs, "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--tiny", action="store_true", help="a miniature model, to see that everything runs")
    parser.add_argument("--repeats", type=int, help="rounds that count (default 9, quick 3)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if len(cores) < 2 and not options.tiny:
        parser.exit(1, "Two ranks need two cores, and this process has one.\n")
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    members, ranks = (4 if options.tiny else 16), 2
    repeats = options.repeats or (3 if options.quick or options.tiny else 9)
    load = os.getloadavg()[0]
    with Pool((cores * ranks)[:ranks], options.tiny, members) as pool:
        results = [compare(pool, algorithm, members, ranks, repeats, warmup=2) for algorithm in CASES]
        size = pool.call(1, "size")[0]
    for result in results:
        show(
            f"{result['algorithm']}, {members} members, {size / 1e6:.1f}M parameters",
            ("row", "members/s", "speedup", "of", "by CPU time", "update s", "bytes sent", "same weights"),
            [
                (
                    row["row"],
                    f"{row['members_per_second']:.2f}",
                    f"{row['speedup']:.2f}",
                    f"{row['counted']}",
                    f"{row['speedup_by_cpu_time']:.2f}",
                    f"{statistics.median(row['update_seconds']):.3f}",
                    f"{row['bytes_sent']:,}",
                    {True: "yes", False: "no", None: ""}[row["same_weights"]],
                )
                for row in result["rows"]
            ],
        )
    write(options.output, "scaling", parameters=size, ranks=ranks, load_before=load, results=results)


if __name__ == "__main__":
    main()
