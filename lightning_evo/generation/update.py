"""The update from one generation, and two ways of applying it: to ``.grad``, or to the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_evo.algorithms import Population
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.rounding import move
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.spaces.shards import global_sum

__all__ = ["Clipping", "Update", "group_learning_rates"]

_PIECE = 1 << 20  # elements of a tensor that move at a time, so that they stay in the cache


@dataclass(frozen=True)
class Clipping:
    """Gradient clipping for in-place updates, which have no gradient that torch could clip.

    Attributes:
        limit: Largest norm of the whole estimate, or largest absolute value of an element.
        by: ``"norm"`` or ``"value"``.
        coefficient: What clipping by norm multiplies the estimate by, if that is known; else it is measured.
    """

    limit: float
    by: Literal["norm", "value"] = "norm"
    coefficient: float | None = None


@dataclass(frozen=True)
class Update:
    """The update from one generation: an estimate of the ascent direction, made tensor by tensor when it is needed.

    Attributes:
        population: The generation's members.
        space: The evolving parameters.
        fitness: What members were compared by, float64 ``[members]``; NaN or infinite where one failed.
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
        """``g = sum_d weight_d eps_d - weight_decay theta`` for one parameter, in float32 (float64 for float64).

        Of a sharded one it is the part that this process holds, flat.
        """
        center = parameter.local
        return self._estimate(parameter, center, 0, center.numel()).view(center.shape)

    def _estimate(self, parameter: EvolvingParameter, center: Tensor, start: int, stop: int) -> Tensor:
        """The elements ``start <= offset < stop`` of :meth:`estimate`, as a vector; of a shard, counted within it."""
        shard = parameter.shard
        whole, offset = (center, 0) if shard is None else (shard.whole, shard.start)
        total = self.population.perturbation.weighted_sum(
            self.weights, parameter.index, whole, offset + start, offset + stop
        )
        parameter.without_padding(total, offset + start)
        if self.weight_decay:
            total -= center.reshape(-1)[start:stop].to(total.dtype) * self.weight_decay
        return total

    @torch.no_grad()
    def add_to_gradients(self, scale: float = 1.0) -> float:
        """Add ``-scale * g`` to each ``.grad``, for an optimizer that descends; returns the norm of ``g``."""
        norms = _Norms(self.space)
        for parameter in self.space:
            estimate = self.estimate(parameter)
            norms.add(parameter, torch.linalg.vector_norm(estimate))
            gradient = parameter.as_gradient((estimate * -scale).to(parameter.tensor.dtype))
            if parameter.tensor.grad is None:
                parameter.tensor.grad = gradient
            else:
                parameter.tensor.grad += gradient
        return norms.total()

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
        coefficient = self.clip_coefficient(clipping)
        norms = _Norms(self.space)
        by = clipping and clipping.by
        key = replace(self.population.perturbation.key, generation=self.population.generation)
        rates = {parameter.index: learning_rates(parameter.tensor) * coefficient for parameter in self.space}
        moved = {} if by == "value" else self._move_in_one_pass(rates, key)
        for parameter in self.space:
            if parameter.index in moved:
                norms.add(parameter, moved[parameter.index])
                continue
            rate = rates[parameter.index]
            center = parameter.local.contiguous()  # the tensor itself, if it is contiguous
            offset, flat = 0 if parameter.shard is None else parameter.shard.start, center.view(-1)
            for start, piece in self._pieces(parameter, center):
                norms.add(parameter, torch.linalg.vector_norm(piece))
                if clipping and by == "value":
                    piece = piece.clamp(-clipping.limit, clipping.limit)
                move(flat[start : start + len(piece)], piece.mul_(rate), key, parameter.index, offset + start)
            if not parameter.local.is_contiguous():
                parameter.tensor.copy_(center)
        return norms.total()

    def _move_in_one_pass(self, rates: dict[int, float], key: NoiseKey) -> dict[int, float]:
        """Move the tensors that only noise moves and that have such a pass; gives their norms."""
        if self.weight_decay:
            return {}
        plain = [p for p in self.space if p.shard is None and p.padding_row is None and p.tensor.is_contiguous()]
        indices, centers = [parameter.index for parameter in plain], [parameter.tensor.detach() for parameter in plain]
        norms = self.population.perturbation.move(self.weights, indices, centers, [rates[i] for i in indices], key)
        return {index: norm for index, norm in zip(indices, norms, strict=True) if norm is not None}

    @torch.no_grad()
    def clip_coefficient(self, clipping: Clipping | None) -> float:
        """What clipping multiplies ``g`` by: less than 1 if clipping by norm finds it too long.

        Where processes hold shards, all of them must call it.
        """
        if clipping is None or clipping.by != "norm":
            return 1.0
        if clipping.coefficient is not None:
            return clipping.coefficient
        norms = _Norms(self.space)
        for parameter in self.space:
            for _, piece in self._pieces(parameter, parameter.local.contiguous()):
                norms.add(parameter, torch.linalg.vector_norm(piece))
        return min(1.0, clipping.limit / (norms.total() + 1e-6))  # as torch.nn.utils.clip_grad_norm_

    def _pieces(self, parameter: EvolvingParameter, center: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The estimate of one parameter, piece by piece, each with its offset."""
        for start in range(0, center.numel(), _PIECE):
            yield start, self._estimate(parameter, center, start, min(start + _PIECE, center.numel()))


class _Norms:
    """The norm of all tensors together, from the norm of each piece."""

    def __init__(self, space: SearchSpace) -> None:
        self._norms: list[Tensor] = []
        self._squares = 0.0
        # All groups from the start: each of a group's processes must join in its sum, also one that holds no elements.
        self._shards: dict[Any, tuple[list[Tensor], torch.device]] = {
            parameter.shard.group: ([], parameter.tensor.device) for parameter in space if parameter.shard is not None
        }

    def add(self, parameter: EvolvingParameter, norm: Tensor | float) -> None:
        if not isinstance(norm, Tensor):
            self._squares += norm * norm
        elif parameter.shard is None:
            self._norms.append(norm)
        else:
            self._shards[parameter.shard.group][0].append(norm)

    def total(self) -> float:
        """The norm. Only here an update waits for the device, and for the processes that hold other shards."""
        squares = _squares(self._norms) + self._squares
        for group, (norms, device) in self._shards.items():
            squares += global_sum(_squares(norms).to(device), group).cpu()
        return math.sqrt(float(squares))


def _squares(norms: list[Tensor]) -> Tensor:
    return torch.stack(norms).cpu().double().square().sum() if norms else torch.zeros((), dtype=torch.float64)


def group_learning_rates(*optimizers: torch.optim.Optimizer) -> Callable[[nn.Parameter], float] | None:
    """The learning rate that each parameter has in its optimizer's group; ``None`` if there are no groups."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
    return (lambda parameter: rates[id(parameter)]) if groups else None
