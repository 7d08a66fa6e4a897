"""pycma, EvoTorch and SciPy as contestants of :mod:`benchmarks.search`. All are optional, imported when asked for."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor

from benchmarks._measure import Unavailable

Objective = Callable[[Tensor], Tensor]
"""Heights ``[n]`` of points ``[n, d]``, float64; raises what it likes when a run should end."""

INSTALL = 'pip install -c constraints.txt -e ".[benchmarks]"'


def pycma() -> Any:
    """The module ``cma``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cma
    except ImportError as error:
        raise Unavailable(f"pycma is not installed: {INSTALL}") from error
    return cma


def pycma_strategy(start: Tensor, sigma: float, population: int, seed: int) -> Any:
    """Its strategy, silent. Criteria that end a run are left at pycma's values."""
    options = {"popsize": population, "seed": seed + 1, "verbose": -9, "verb_log": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pycma().CMAEvolutionStrategy(start.numpy(), sigma, options)


def pycma_generation(strategy: Any, objective: Objective) -> None:
    """Ask, evaluate all members at once, tell."""
    members = strategy.ask()
    strategy.tell(members, objective(torch.from_numpy(numpy.stack(members))).numpy())


def evotorch(name: str, objective: Objective, start: Tensor, sigma: float, population: int, seed: int) -> None:
    """Run one of EvoTorch's searches until the objective raises."""
    try:
        from evotorch import Problem, algorithms
        from evotorch.decorators import vectorized
    except ImportError as error:
        raise Unavailable(f"EvoTorch is not installed: {INSTALL}") from error
    logging.getLogger("evotorch").setLevel(logging.ERROR)
    problem = Problem(
        "min", vectorized(objective), solution_length=len(start), initial_bounds=(-1, 1), dtype=torch.float64, seed=seed
    )
    options: dict[str, Any] = {"popsize": population, "center_init": start.clone(), "stdev_init": sigma}
    if name == "CEM":
        options |= {"parenthood_ratio": 0.5}
    if name == "PGPE":
        max_speed = sigma * math.sqrt(len(start)) / 15
        options |= {
            "center_learning_rate": 0.75 * max_speed,
            "stdev_learning_rate": 0.1,
            "optimizer": "clipup",
            "optimizer_config": {"max_speed": max_speed},
            "ranking_method": "centered",
            "symmetric": True,
        }
    searcher = getattr(algorithms, name)(problem, **options)
    while True:
        searcher.step()


def differential_evolution(objective: Objective, start: Tensor, sigma: float, population: int, seed: int) -> None:
    """SciPy's, rand/1/bin with F = 0.5 and CR = 0.9, from normal members, until the objective raises."""
    try:
        from scipy.optimize import differential_evolution as search
    except ImportError as error:
        raise Unavailable(f"SciPy is not installed: {INSTALL}") from error
    members = start.numpy() + sigma * numpy.random.default_rng(seed).standard_normal((population, len(start)))
    search(
        lambda points: objective(torch.from_numpy(numpy.ascontiguousarray(points.T))).numpy(),
        [(-100.0, 100.0)] * len(start),
        strategy="rand1bin",
        mutation=0.5,
        recombination=0.9,
        init=numpy.clip(members, -100, 100),
        updating="deferred",
        polish=False,
        vectorized=True,
        maxiter=1_000_000,
        tol=0,
        atol=0,
        seed=seed,
    )
