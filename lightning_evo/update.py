"""What a generation has taught, and the two ways of acting on it: into ``.grad``, or into the weights themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_evo.algorithms import Population
from lightning_evo.rounding import move
from lightning_evo.search_space import EvolvingParameter, SearchSpace

__all__ = ["Clipping", "Update", "group_learning_rates"]

_PIECE = 1 << 20  # elements of a tensor that move at a time, so that they stay in the cache


@dataclass(frozen=True)
class Clipping:
    """Gradient clipping for in-place updates, which have no gradient that torch could clip.

    Attributes:
        limit: Largest norm of the whole estimate, or largest absolute value of an element.
        by: ``"norm"`` or ``"value"``.
    """

    limit: float
    by: Literal["norm", "value"] = "norm"


@dataclass(frozen=True)
class Update:
    """What a generation has taught: an estimate of the ascent direction, made tensor by tensor when it is wanted.

    Attributes:
        population: The generation's members.
        space: The evolving parameters.
        fitness: Mean fitness of each member, float64 ``[members]``; NaN or infinite where it failed.
        weights: Weight of each noise direction; all zero if there is nothing to learn.
        weight_decay: L2 coefficient.
        learning_rate: The algorithm's own learning rate in this generation.
    """

    population: Population
    space: SearchSpace
    fitness: Tensor
    weights: tuple[float, ...]
    weight_decay: float
    learning_rate: float

    def __bool__(self) -> bool:
        """Whether there is anything to learn."""
        return any(self.weights)

    def estimate(self, parameter: EvolvingParameter) -> Tensor:
        """``g = sum_d weight_d eps_d - weight_decay theta`` for one parameter, in float32 (float64 for float64)."""
        center = parameter.tensor.detach()
        return self._estimate(parameter, center, 0, center.numel()).view(center.shape)

    def _estimate(self, parameter: EvolvingParameter, center: Tensor, start: int, stop: int) -> Tensor:
        """The elements ``start <= offset < stop`` of :meth:`estimate`, as a vector."""
        total = self.population.perturbation.weighted_sum(self.weights, parameter.index, center, start, stop)
        parameter.without_padding(total, start)
        if self.weight_decay:
            total -= center.reshape(-1)[start:stop].to(total.dtype) * self.weight_decay
        return total

    @torch.no_grad()
    def add_to_gradients(self, scale: float = 1.0) -> float:
        """Add ``-scale * g`` to each ``.grad``, for an optimizer that descends; returns the norm of ``g``."""
        norms = []
        for parameter in self.space:
            estimate = self.estimate(parameter)
            norms.append(torch.linalg.vector_norm(estimate))
            gradient = (estimate * -scale).to(parameter.tensor.dtype)
            if parameter.tensor.grad is None:
                parameter.tensor.grad = gradient
            else:
                parameter.tensor.grad += gradient
        return _norm(norms)

    @torch.no_grad()
    def apply(
        self, learning_rates: Callable[[nn.Parameter], float] | None = None, clipping: Clipping | None = None
    ) -> float:
        """``theta <- theta + learning_rate * g``, piece by piece: never more than 4 MB of ``g`` exist at once.

        (Of a tensor that is not contiguous a contiguous copy is made.) bfloat16 and float16 weights are rounded
        stochastically, so that no update is lost.

        Args:
            learning_rates: The learning rate of each parameter; ``None`` takes the algorithm's own for all.
            clipping: Limits ``g``.

        Returns:
            The norm of ``g`` before clipping.
        """
        if learning_rates is None:
            learning_rates = lambda parameter: self.learning_rate  # noqa: E731
        coefficient = 1.0
        if clipping and clipping.by == "norm":
            norms = [
                torch.linalg.vector_norm(piece)
                for parameter in self.space
                for _, piece in self._pieces(parameter, parameter.tensor.detach().contiguous())
            ]
            coefficient = min(1.0, clipping.limit / (_norm(norms) + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        norms = []
        perturbation, by = self.population.perturbation, clipping and clipping.by
        key = replace(perturbation.key, generation=self.population.generation)
        for parameter in self.space:
            coefficient_here = learning_rates(parameter.tensor) * coefficient
            center = parameter.tensor.detach().contiguous()  # the tensor itself, if it is contiguous
            norm = None
            if (
                parameter.tensor.is_contiguous()
                and not self.weight_decay
                and parameter.padding_row is None
                and by != "value"
            ):
                norm = perturbation.move(self.weights, parameter.index, center, coefficient_here, key)
            if norm is not None:
                norms.append(torch.tensor(norm))
                continue
            flat = center.view(-1)
            for start, piece in self._pieces(parameter, center):
                norms.append(torch.linalg.vector_norm(piece))
                if clipping and by == "value":
                    piece = piece.clamp(-clipping.limit, clipping.limit)
                move(flat[start : start + len(piece)], piece * coefficient_here, key, parameter.index, start)
            if not parameter.tensor.is_contiguous():
                parameter.tensor.copy_(center)
        return _norm(norms)

    def _pieces(self, parameter: EvolvingParameter, center: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The estimate of one parameter, piece by piece, each with its offset."""
        for start in range(0, center.numel(), _PIECE):
            yield start, self._estimate(parameter, center, start, min(start + _PIECE, center.numel()))


def _norm(norms: list[Tensor]) -> float:
    """The norm of all tensors together, from the norm of each; the one moment an update waits for the device."""
    return float(torch.linalg.vector_norm(torch.stack(norms).cpu().double())) if norms else 0.0


def group_learning_rates(*optimizers: torch.optim.Optimizer) -> Callable[[nn.Parameter], float] | None:
    """The learning rate that each parameter has in its optimizer's group; ``None`` if there are no groups."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
    return (lambda parameter: rates[id(parameter)]) if groups else None
