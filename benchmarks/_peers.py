"""EvoTorch and EvoX as contestants of :mod:`benchmarks.digits`. Both are optional and imported only when asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks._measure import Unavailable


@dataclass
class Contestant:
    """A training run.

    Attributes:
        generation: Runs one generation on images and digits.
        weights: The center, as one vector in the order of the network's parameters.
        rewind: Goes back to a vector of weights, keeping what is compiled; ``None`` where nothing is lost by making a
            new contestant.
    """

    generation: Callable[[Tensor, Tensor], None]
    weights: Callable[[], Tensor]
    rewind: Callable[[Tensor], None] | None = None

    def restart(self, make: Make, start: Tensor, population: int, sigma: float, learning_rate: float) -> None:
        """Forget everything but what was compiled."""
        if self.rewind is not None:
            self.rewind(start)
        else:
            fresh = make(start, population, sigma, learning_rate)
            self.generation, self.weights = fresh.generation, fresh.weights


Make = Callable[[Tensor, int, float, float], Contestant]
"""Initial weights, population, sigma and learning rate to a contestant."""


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def evotorch(start: Tensor, population: int, sigma: float, learning_rate: float) -> Contestant:
    """PGPE on a vectorized problem."""
    try:
        from evotorch import Problem
        from evotorch.algorithms import PGPE
        from evotorch.decorators import vectorized
        from evotorch.neuroevolution.net import ModuleExpectingFlatParameters
    except ImportError as error:
        raise Unavailable(f"EvoTorch is not installed ({error})") from error
    logging.getLogger("evotorch").setLevel(logging.ERROR)
    network = ModuleExpectingFlatParameters(_network())
    batch: list[Tensor] = []

    def loss(weights: Tensor) -> Tensor:
        return cross_entropy(network(weights, batch[0]), batch[1])

    @vectorized
    def losses(members: Tensor) -> Tensor:
        return torch.func.vmap(loss)(members)

    problem = Problem("min", losses, solution_length=len(start), initial_bounds=(-1, 1))
    searcher = PGPE(
        problem,
        popsize=population,
        center_init=start.clone(),
        center_learning_rate=learning_rate,
        stdev_init=sigma,
        stdev_learning_rate=0.1,
        optimizer="adam",
        ranking_method="centered",
        symmetric=True,
    )

    @torch.no_grad()
    def generation(images: Tensor, digits: Tensor) -> None:
        batch[:] = images, digits
        searcher.step()

    return Contestant(generation, lambda: torch.as_tensor(searcher.status["center"]).clone())


def evox(start: Tensor, population: int, sigma: float, learning_rate: float) -> Contestant:
    """OpenES in the standard workflow, compiled."""
    _prepare_compiler()
    try:
        from evox.algorithms import OpenES
        from evox.core import Mutable, Problem, use_state, vmap
        from evox.utils import ParamsAndVector
        from evox.workflows import StdWorkflow
    except ImportError as error:
        raise Unavailable(f"EvoX is not installed ({error})") from error
    network = _network()

    class Classification(Problem):
        def __init__(self) -> None:
            super().__init__()
            self.forward_all = vmap(use_state(network), in_dims=(0, None))
            self.images = Mutable(torch.zeros(0, 64))
            self.digits = Mutable(torch.zeros(0, dtype=torch.int64))

        def evaluate(self, members: dict[str, Tensor]) -> Tensor:
            _, scores = self.forward_all(members, self.images)
            return torch.vmap(cross_entropy, in_dims=(0, None))(scores, self.digits)

    algorithm = OpenES(population, start.clone(), learning_rate, sigma, optimizer="adam", mirrored_sampling=True)
    problem = Classification()

    def load(images: Tensor, digits: Tensor) -> None:
        problem.images, problem.digits = images, digits

    return _evox(StdWorkflow(algorithm, problem, solution_transform=ParamsAndVector(network)), load)


def evox_low_rank(start: Tensor, population: int, sigma: float, learning_rate: float) -> Contestant:
    """VirtualLoRAES with noise of rank 1, compiled."""
    _prepare_compiler()
    try:
        from evox.algorithms.so.es_variants.virtual_lora_es import VirtualLoRAES
        from evox.problems.neuroevolution.virtual_lora_problem import VirtualLoRAProblem
        from evox.workflows import StdWorkflow
    except ImportError as error:
        raise Unavailable(f"EvoX is not installed, or has no VirtualLoRAES ({error})") from error
    network = _network()
    loader: list[tuple[Tensor, Tensor]] = [(torch.zeros(1, 64), torch.zeros(1, dtype=torch.int64))]
    problem = VirtualLoRAProblem(network, loader, nn.CrossEntropyLoss(reduction="none"), lora_rank=1)
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    algorithm = VirtualLoRAES(shapes, 1, population, start.clone(), learning_rate, sigma, optimizer="adam")

    def load(images: Tensor, digits: Tensor) -> None:
        if len(loader[0][1]) != len(digits):
            loader[0] = images.clone(), digits.clone()
        loader[0][0].copy_(images)  # in place: another tensor, or another iterator, would be compiled again
        loader[0][1].copy_(digits)

    # Without pairs of members, a raw loss is mostly its own mean.
    return _evox(StdWorkflow(algorithm, problem, fitness_transform=CenteredRanks()), load)


class CenteredRanks(nn.Module):
    """Fitness to ranks from -1/2 to 1/2."""

    def forward(self, fitness: Tensor) -> Tensor:
        return fitness.argsort().argsort().to(fitness.dtype) / (len(fitness) - 1) - 0.5


def _evox(workflow: nn.Module, load: Callable[[Tensor, Tensor], None]) -> Contestant:
    step = torch.compile(workflow.step)
    algorithm = workflow.algorithm

    @torch.no_grad()
    def generation(images: Tensor, digits: Tensor) -> None:
        load(images, digits)
        step()

    def rewind(start: Tensor) -> None:
        algorithm.center = start.clone()
        algorithm.exp_avg = torch.zeros_like(start)
        algorithm.exp_avg_sq = torch.zeros_like(start)

    return Contestant(generation, lambda: algorithm.center.detach().clone(), rewind)


def _prepare_compiler() -> None:
    # Of VirtualLoRAES's read of sigma, which splits its graph.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    # Every workflow compiles the same line of EvoX again; past the limit, 8, the later ones would silently not be.
    torch._dynamo.config.recompile_limit = 256
