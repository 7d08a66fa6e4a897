"""Searches of small vectors beside pycma, EvoTorch and SciPy: evaluations, fitness, speed and memory.

``python -m benchmarks.search [--seeds 51] [--only evaluations restarts fitness speed memory] [--quick] [--output f]``

- *evaluations*: those that ``cma_es`` and pycma need to a height of 1e-8, with the same start, sigma and population.
  The ratio is that of the medians over the seeds, with the 95 % interval of the percentile bootstrap. Seeds whose run
  ends earlier count as infinitely many.
- *restarts*: on functions of many local optima, IPOP's expected running time: the evaluations of all runs, divided by
  the number of those that reached 1e-8.
- *fitness*: the lowest height that a search has seen after the same number of evaluations, as the median over the seeds
  of its decimal logarithm; the difference to the peer's (below 0: lower than the peer's) with its interval.
- *speed*: ask and tell, without the function, in turns in one process.
- *memory*: what a generation of ``lm_ma_es`` holds at its peak, in vectors of float32.

Starts are random, by seed, but for Rosenbrock's function, which begins at 0: far from there it has a second optimum.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import _search_peers
from benchmarks._measure import Unavailable, held, interleaved, peak, reset_peak, show, write
from examples.functions.functions import FUNCTIONS
from lightning_evo import algorithms
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw

TARGET = 1e-8
PARTS = ("evaluations", "restarts", "fitness", "speed", "memory")
STARTS = {
    "sphere": (3.0, 1.0),
    "ellipsoid": (3.0, 1.0),
    "rosenbrock": (0.0, 0.5),
    "rastrigin": (5.0, 2.0),
    "ackley": (20.0, 6.0),
}
"""The largest coordinate of a start, and sigma."""

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "snes": ("SNES", {}),
    "xnes": ("XNES", {}),
    "pgpe": ("PGPE", {}),
    "cem": ("CEM", {"elites": 0.5, "noise": 0.0, "keep_best": False}),
    "differential_evolution": (
        "SciPy",
        {"mutation": "rand_1", "weight": 0.5, "crossover": 0.9, "reevaluate": 0, "bounds": (-100.0, 100.0)},
    ),
}
"""Our search, its peer, and options that give it the peer's settings."""


class Ended(Exception):
    """A run has reached the target or has spent its evaluations."""


class Counter:
    """A function that counts its evaluations, and ends a run.

    Attributes:
        evaluations: So far; in whole generations.
        lowest: The lowest height so far.
    """

    def __init__(self, function: str, target: float, limit: int) -> None:
        self.height, self.target, self.limit = FUNCTIONS[function].height, target, limit
        self.evaluations, self.lowest = 0, math.inf

    def __call__(self, points: Tensor) -> Tensor:
        """The points' heights."""
        if self.evaluations >= self.limit:
            raise Ended
        heights = self.height(points)
        within = heights[: self.limit - self.evaluations]  # a limit may fall into a generation
        self.evaluations += len(heights)
        self.lowest = min(self.lowest, float(within.min()))
        if self.lowest <= self.target:
            raise Ended
        return heights


def start_of(function: str, dimension: int, seed: int) -> tuple[Tensor, float]:
    """Where a run begins, float64 ``[d]``, and its sigma."""
    farthest, sigma = STARTS[function]
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(dimension, generator=generator, dtype=torch.float64)
    return farthest * (2 * uniform - 1), sigma


def population_for(dimension: int) -> int:
    """pycma's and ours."""
    return 4 + math.floor(3 * math.log(dimension))


def ours(name: str, counter: Counter, start: Tensor, sigma: float, population: int, seed: int, **options: Any) -> None:
    """Run one of our searches until the counter ends it, or a criterion does."""
    algorithm = algorithms.get(name)(population=population, **options)
    state = algorithm.init(start, sigma=sigma, seed=seed)
    while not getattr(state, "stopped", ""):
        asked = algorithm.ask(state)
        state = algorithm.tell(state, asked, -counter(asked.vectors()))


def pycma(counter: Counter, start: Tensor, sigma: float, population: int, seed: int, restarts: int = 0) -> None:
    """Run pycma's CMA-ES until the counter ends it, or its criteria do; with restarts as IPOP has them."""
    for run in range(restarts + 1):
        strategy = _search_peers.pycma_strategy(start, sigma, population * 2**run, 1000 * run + seed)
        while not strategy.stop():
            _search_peers.pycma_generation(strategy, counter)


def reached(run: Callable[[Counter], None], function: str, target: float, limit: int) -> Counter:
    """The counter after a run."""
    counter = Counter(function, target, limit)
    with suppress(Ended):
        run(counter)
    return counter


class Interval(NamedTuple):
    """A statistic and the middle 95 % of its bootstrap distribution."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    statistic: Callable[[Tensor, Tensor], Tensor], first: Sequence[float], second: Sequence[float], draws: int = 10_000
) -> Interval:
    """A statistic of two samples, each drawn again with replacement.

    Args:
        statistic: Of samples ``[draws, n]``, gives ``[draws]``.
        first: The one sample.
        second: The other.
        draws: How often.
    """
    generator = torch.Generator().manual_seed(0)
    samples = [torch.tensor(each, dtype=torch.float64) for each in (first, second)]
    again = [each[torch.randint(len(each), (draws, len(each)), generator=generator)] for each in samples]
    found = statistic(*again).sort().values
    value = float(statistic(samples[0][None], samples[1][None]))
    return Interval(value, float(found[int(0.025 * draws)]), float(found[int(0.975 * draws) - 1]))


def ratio_of_medians(first: Tensor, second: Tensor) -> Tensor:
    """Of samples ``[draws, n]``."""
    return first.median(1).values / second.median(1).values


def difference_of_medians(first: Tensor, second: Tensor) -> Tensor:
    """Of samples ``[draws, n]``."""
    return first.median(1).values - second.median(1).values


def ratio_of_running_times(first: Tensor, second: Tensor) -> Tensor:
    """Of evaluations ``[draws, n]``, negative for runs that did not reach the target."""

    def expected(evaluations: Tensor) -> Tensor:
        return evaluations.abs().sum(1) / (evaluations > 0).sum(1)

    return expected(first) / expected(second)


# --- what is measured -----------------------------------------------------------------------------------------------


def evaluations(seeds: int, dimensions: Sequence[int], functions: Sequence[str]) -> list[dict[str, Any]]:
    """Evaluations to the target beside pycma's."""
    results = []
    for dimension in dimensions:
        for function in functions:
            counts: dict[str, list[float]] = {"cma_es": [], "pycma": []}
            for seed in range(seeds):
                start, sigma = start_of(function, dimension, seed)
                given = (start, sigma, population_for(dimension), seed)
                for name, search in (("cma_es", _cma_es), ("pycma", pycma)):
                    counter = reached(lambda c, s=search, g=given: s(c, *g), function, TARGET, 100_000 * dimension)
                    counts[name].append(counter.evaluations if counter.lowest <= TARGET else math.inf)
            ratio = bootstrap(ratio_of_medians, counts["cma_es"], counts["pycma"])
            results.append({"function": function, "dimension": dimension, "evaluations": counts, "ratio": ratio})
    _table("Evaluations to 1e-8", results, "evaluations", statistics.median)
    return results


def _cma_es(counter: Counter, start: Tensor, sigma: float, population: int, seed: int) -> None:
    ours("cma_es", counter, start, sigma, population, seed)


def _ipop(counter: Counter, start: Tensor, sigma: float, population: int, seed: int) -> None:
    pycmas = {"tolfun": 1e-11, "tolfunhist": 1e-12}
    ours("cma_es", counter, start, sigma, population, seed, restarts="ipop", **pycmas)


def _pycma_ipop(counter: Counter, start: Tensor, sigma: float, population: int, seed: int) -> None:
    pycma(counter, start, sigma, population, seed, restarts=9)


def restarts(seeds: int, dimensions: Sequence[int], limit: int) -> list[dict[str, Any]]:
    """IPOP's expected running times."""
    results = []
    for function in ("ackley", "rastrigin"):
        for dimension in dimensions:
            counts: dict[str, list[float]] = {"cma_es": [], "pycma": []}
            for seed in range(seeds):
                start, sigma = start_of(function, dimension, seed)
                given = (start, sigma, population_for(dimension), seed)
                for name, search in (("cma_es", _ipop), ("pycma", _pycma_ipop)):
                    counter = reached(lambda c, s=search, g=given: s(c, *g), function, TARGET, limit)
                    counts[name].append(counter.evaluations * (1 if counter.lowest <= TARGET else -1))
            ratio = bootstrap(ratio_of_running_times, counts["cma_es"], counts["pycma"])
            results.append({"function": function, "dimension": dimension, "evaluations": counts, "ratio": ratio})
    _table("Expected running time to 1e-8 with IPOP", results, "evaluations", _running_time)
    return results


def _running_time(counts: Sequence[float]) -> float:
    successes = sum(count > 0 for count in counts)
    return sum(map(abs, counts)) / successes if successes else math.inf


def _table(
    title: str, results: Sequence[dict[str, Any]], key: str, statistic: Callable[[Sequence[float]], float]
) -> None:
    rows = [
        (
            f"{result['function']}, {result['dimension']}",
            *(f"{statistic(values):,.0f}" for values in result[key].values()),
            str(result["ratio"]),
        )
        for result in results
    ]
    show(title, ("function, dimension", "cma_es", "pycma", "ratio [95 %]"), rows)


def fitness(seeds: int, dimension: int, limit: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Lowest heights after the same evaluations, and the reasons for pairs that cannot run here."""
    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for name, (peer, options) in PEERS.items():
        population = 40 if peer in ("SciPy", "PGPE", "CEM") else population_for(dimension)
        for function in ("sphere", "ellipsoid", "rosenbrock"):
            try:
                heights: dict[str, list[float]] = {name: [], peer: []}
                for seed in range(seeds):
                    start, sigma = start_of(function, dimension, seed)
                    given = (start, sigma, population, seed)
                    pair = ((name, _ours(name, given, options)), (peer, _peer(peer, given)))
                    for who, run in pair:
                        lowest = reached(run, function, 0.0, limit).lowest
                        heights[who].append(math.log10(max(lowest, 1e-30)))
            except Unavailable as reason:
                skipped[name] = str(reason)
                break
            difference = bootstrap(difference_of_medians, heights[name], heights[peer])
            results.append(
                {"search": name, "peer": peer, "function": function, "dimension": dimension, "population": population,
                 "evaluations": limit, "log10_heights": heights, "difference": difference}
            )  # fmt: skip
    show(
        f"Median log10 of the lowest height after {limit:,} evaluations, dimension {dimension}",
        ("search, function", "ours", "peer", "difference [95 %]"),
        [
            (
                f"{result['search']} and {result['peer']}, {result['function']}",
                *(f"{statistics.median(values):.2f}" for values in result["log10_heights"].values()),
                str(result["difference"]),
            )
            for result in results
        ]
        + [(f"{name}: {reason}", "", "", "") for name, reason in skipped.items()],
    )
    return results, skipped


def _ours(name: str, given: tuple[Tensor, float, int, int], options: dict[str, Any]) -> Callable[[Counter], None]:
    if name not in algorithms.available():
        raise Unavailable("not in this version")
    return lambda counter: ours(name, counter, *given, **options)


def _peer(name: str, given: tuple[Tensor, float, int, int]) -> Callable[[Counter], None]:
    if name == "SciPy":
        return lambda counter: _search_peers.differential_evolution(counter, *given)
    return lambda counter: _search_peers.evotorch(name, counter, *given)


def _turns(name: str, dimension: int, population: int, dtype: torch.dtype) -> Callable[[], object]:
    """Ask, make the members and tell them, on and on; fitness is random, as no function is to be measured."""
    algorithm = algorithms.get(name)(population=population)
    state = [algorithm.init(torch.zeros(dimension, dtype=dtype), sigma=1.0)]
    values = torch.randn(population, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def generation() -> None:
        asked = algorithm.ask(state[0])
        asked.vectors()
        state[0] = algorithm.tell(state[0], asked, values[torch.randperm(population)])

    return generation


def speed(repeats: int, small: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Seconds of ask and tell."""
    results, skipped = [], {}
    dimension, population, generations = (50, 8, 5) if small else (1000, 64, 20)
    try:
        strategy = _search_peers.pycma_strategy(torch.zeros(dimension, dtype=torch.float64), 1.0, population, 0)
        rows = {
            "cma_es": _turns("cma_es", dimension, population, torch.float64),
            "pycma": lambda: _search_peers.pycma_generation(strategy, lambda x: torch.rand(len(x))),
        }
        times = interleaved(rows, repeats, warmup=1, calls=generations)
        results.append({"row": f"cma_es and pycma, dimension {dimension:,}, population {population}", "seconds": times})
    except Unavailable as reason:
        skipped["cma_es and pycma"] = str(reason)
    dimension, population = (1000, 8) if small else (1_000_000, 16)
    searches = [name for name in ("sep_cma_es", "snes", "lm_ma_es") if name in algorithms.available()]
    drawing = lambda: draw(NoiseKey(0, 0), range(population), 0, 0, dimension, dtype=torch.float32)  # noqa: E731
    rows = {name: _turns(name, dimension, population, torch.float32) for name in searches} | {"draw the noise": drawing}
    times = interleaved(rows, repeats, warmup=1)
    results.append(
        {"row": f"searches and their noise, dimension {dimension:,}, population {population}", "seconds": times}
    )
    for result in results:
        (*_, (last, limit)) = medians = [(name, statistics.median(each)) for name, each in result["seconds"].items()]
        result["ratio"] = {name: value / limit for name, value in medians}
        show(
            f"Ask and tell: {result['row']}",
            ("row", "seconds", f"over {last}"),
            [(name, f"{value:.4f}", f"{value / limit:.2f}") for name, value in medians],
        )
    return results, skipped


def memory(small: bool) -> list[dict[str, Any]]:
    """Peak memory of a generation of ``lm_ma_es`` in float32 vectors of its dimension."""
    dimension, population = (10_000, 8) if small else (1_000_000, 16)
    if "lm_ma_es" not in algorithms.available():
        return []
    before = held()
    generation = _turns("lm_ma_es", dimension, population, torch.float32)
    for _ in range(2 if small else 30):
        generation()
    can = reset_peak()
    generation()
    vectors = (peak() - before) / (4 * dimension)
    show(
        f"Memory of lm_ma_es, dimension {dimension:,}, population {population}",
        ("", "vectors of float32"),
        [("peak of a generation" if can else "peak since the start", f"{vectors:.1f}")],
    )
    return [{"dimension": dimension, "population": population, "vectors": vectors}]


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three seeds, small dimensions")
    parser.add_argument("--seeds", type=int, help="runs of each search (default 51; quick 3)")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="parts to measure")
    parser.add_argument("--repeats", type=int, help="rounds of the speeds (default 7; quick 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    quick, parts = options.quick, options.only or PARTS
    seeds = options.seeds or (3 if quick else 51)
    content: dict[str, Any] = {}
    skipped: dict[str, str] = {}

    def keep(part: str, measured: Any, missing: Mapping[str, str] | None = None) -> None:
        """Write what there is after each part, so that a benchmark that is killed leaves what it has measured."""
        content[part] = measured
        skipped.update(missing or {})
        write(options.output, "search", seeds=seeds, target=TARGET, skipped=skipped, **content)

    try:
        _search_peers.pycma()
    except Unavailable as reason:
        skipped["pycma"] = str(reason)
        show("Beside pycma", ("",), [(str(reason),)])
    beside_pycma = not skipped
    if "evaluations" in parts and beside_pycma:
        dimensions, functions = (4,) if quick else (10, 40), ("sphere", "ellipsoid", "rosenbrock")
        keep("evaluations", evaluations(seeds, dimensions, functions))
    if "restarts" in parts and beside_pycma:
        keep("restarts", restarts(seeds, (3,) if quick else (10,), 30_000 if quick else 1_000_000))
    if "fitness" in parts:
        keep("fitness", *fitness(seeds, 4 if quick else 10, 1_000 if quick else 10_000))
    if "speed" in parts:
        keep("speed", *speed(options.repeats or (2 if quick else 7), quick))
    if "memory" in parts:
        keep("memory", memory(quick))
    if not content:
        write(options.output, "search", seeds=seeds, target=TARGET, skipped=skipped)


if __name__ == "__main__":
    main()
