"""The classical test functions, and a LightningModule whose parameter is a point on one of them.

Each takes points ``[..., d]`` and gives their heights ``[...]``: 0 at the optimum, higher elsewhere.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader


def sphere(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def ellipsoid(x: Tensor) -> Tensor:
    """The longest axis is a thousand times as long as the shortest: the condition number is a million."""
    return x.square() @ torch.logspace(0, 6, x.shape[-1], dtype=x.dtype)


def rosenbrock(x: Tensor) -> Tensor:
    """A bent valley, whose floor hardly falls."""
    return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(-1)


def rastrigin(x: Tensor) -> Tensor:
    """A sphere with a grid of local optima."""
    return (x.square() - 10 * torch.cos(2 * math.pi * x) + 10).sum(-1)


def ackley(x: Tensor) -> Tensor:
    """A funnel whose walls are rough."""
    far = -20 * torch.exp(-0.2 * x.square().mean(-1).sqrt())
    return far - torch.exp(torch.cos(2 * math.pi * x).mean(-1)) + 20 + math.e


class Case(NamedTuple):
    """A function, and where a search of it begins.

    Attributes:
        height: Points ``[..., d]`` to their heights.
        start: In two dimensions.
        sigma: The first step size.
        optimum: Each of its coordinates.
    """

    height: Callable[[Tensor], Tensor]
    start: tuple[float, float]
    sigma: float
    optimum: float


FUNCTIONS = {
    "sphere": Case(sphere, (-2.0, 2.0), 0.5, 0.0),
    "ellipsoid": Case(ellipsoid, (-2.0, 2.0), 0.5, 0.0),
    "rosenbrock": Case(rosenbrock, (-1.5, 2.0), 0.3, 1.0),
    "rastrigin": Case(rastrigin, (-2.6, 2.6), 1.0, 0.0),
    "ackley": Case(ackley, (-2.6, 2.6), 1.0, 0.0),
}


class Point(LightningModule):
    """A point on a function.

    Args:
        function: A name from :data:`FUNCTIONS`.
        generations: Training steps of an epoch.
        start: Where to begin, ``d`` numbers; by default the function's start in two dimensions.
    """

    def __init__(self, function: str = "rosenbrock", generations: int = 100, start: list[float] | None = None) -> None:
        super().__init__()
        self.height, self.generations = FUNCTIONS[function].height, generations
        begin = torch.tensor(FUNCTIONS[function].start if start is None else start, dtype=torch.float64)
        self.point = nn.Parameter(begin)

    def fitness_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """What evolution maximises: minus the height. There is no data, so the batch says nothing."""
        return -self.height(self.point)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Run once per generation, for the logs."""
        height = self.height(self.point)
        self.log("height", height, prog_bar=True)
        return height

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(self.generations, 1), batch_size=1)

    def configure_optimizers(self) -> None:
        """None: searches say where the point goes."""
