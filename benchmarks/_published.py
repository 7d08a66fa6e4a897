"""The training loops of two published methods, and backpropagation, as yardsticks. Written from their descriptions.

What costs time in the originals is kept as it is there: how often noise is drawn, from which generator, in which dtype,
and whether a tensor is changed in place. Their surroundings (data loading, generation, logging) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Fitness = Callable[[Any], Tensor]


class MeZO:
    """One step of MeZO (Malladi et al. 2023, arXiv:2305.17333; ``large_models/trainer.py`` of princeton-nlp/MeZO).

    The noise is drawn four times in a step, each time from the global generator set back to the step's seed: +1, -2 and
    +1 times epsilon around two forward passes, then the update. Each drawing makes a new tensor of the parameter's
    size, as in the original. The weights end where they began only up to rounding.
    """

    members = 2

    def __init__(self, model: nn.Module, fitness: Fitness, epsilon: float = 1e-3, learning_rate: float = 1e-7) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.fitness, self.epsilon, self.learning_rate = fitness, epsilon, learning_rate
        self.seed = 0

    def step(self, batch: Tensor) -> None:
        """Two evaluations and an update."""
        self.seed += 1
        self._perturb(1)
        above = self._loss(batch)
        self._perturb(-2)
        below = self._loss(batch)
        self._perturb(1)
        projected_gradient = (above - below) / (2 * self.epsilon)
        for parameter, z in self._noise():
            parameter.data = parameter.data - self.learning_rate * (projected_gradient * z)

    def _loss(self, batch: Tensor) -> float:
        with torch.inference_mode():
            return -float(self.fitness(batch))

    def _perturb(self, scale: float) -> None:
        for parameter, z in self._noise():
            parameter.data = parameter.data + scale * z * self.epsilon

    def _noise(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        torch.manual_seed(self.seed)
        for parameter in self.parameters:
            shape, device, dtype = parameter.shape, parameter.device, parameter.dtype
            yield parameter, torch.normal(mean=0.0, std=1.0, size=shape, device=device, dtype=dtype)


class ESAtScale:
    """A generation of ES at Scale (Qiu et al. 2025, arXiv:2509.24372; VsonicV/es-fine-tuning-paper).

    For each member every parameter gets a generator with the member's seed (the same for all parameters, as in the
    released code), whose noise is added in place, and subtracted again after the forward pass, so that the weights end
    where they began only up to rounding. The update draws every member's noise once more and adds it up in float32. The
    paper has 30 members; the cost of one does not depend on it.
    """

    def __init__(
        self, model: nn.Module, fitness: Fitness, members: int = 8, sigma: float = 1e-3, learning_rate: float = 5e-4
    ) -> None:
        self.parameters = list(model.parameters())
        self.fitness, self.members, self.sigma, self.learning_rate = fitness, members, sigma, learning_rate
        self.generation = 0

    @torch.inference_mode()
    def step(self, batch: Tensor) -> None:
        """Evaluate every member, then update."""
        seeds, reward = self.evaluate(batch)
        normalised = ((reward - reward.mean()) / (reward.std() + 1e-8)).tolist()
        for parameter in self.parameters:
            total = torch.zeros_like(parameter, dtype=torch.float32)
            for seed, weight in zip(seeds, normalised, strict=True):
                total.add_(self._noise(parameter, seed), alpha=weight)
            parameter.data.add_((total * (self.learning_rate / self.members)).to(parameter.dtype))

    @torch.inference_mode()
    def evaluate(self, batch: Any) -> tuple[list[int], Tensor]:
        """The next generation's members: their seeds, and the reward of each, ``[members]``."""
        seeds = [self.generation * self.members + member for member in range(self.members)]
        self.generation += 1
        rewards = []
        for seed in seeds:
            self._add_noise(seed, self.sigma)
            rewards.append(float(self.fitness(batch)))
            self._add_noise(seed, -self.sigma)
        return seeds, torch.tensor(rewards)

    def _add_noise(self, seed: int, scale: float) -> None:
        for parameter in self.parameters:
            parameter.data.add_(self._noise(parameter, seed), alpha=scale)

    @staticmethod
    def _noise(parameter: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(device=parameter.device).manual_seed(seed)
        return torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)


class Backpropagation:
    """A training step by backpropagation with AdamW, whose moments have the dtype of the weights."""

    members = 1

    def __init__(self, model: nn.Module, fitness: Fitness) -> None:
        self.optimizer, self.fitness = torch.optim.AdamW(model.parameters(), lr=1e-5), fitness

    def step(self, batch: Tensor) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        (-self.fitness(batch)).backward()
        self.optimizer.step()
