"""The update from one generation: along directions of noise, or to a new center."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_evo.algorithms import Algorithm, Directions, Lesson, NewCenter, Population, State, Term
from lightning_evo.generation.anchor import StartingWeights
from lightning_evo.generation.laying import noise_over
from lightning_evo.generation.norms import Norms
from lightning_evo.generation.step import Clipping, Step
from lightning_evo.kernels import Pull
from lightning_evo.kernels.values import noise_dtype
from lightning_evo.noise.philox import NoiseKey, Stream
from lightning_evo.noise.rounding import move
from lightning_evo.perturbations import Moving
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace

__all__ = ["WITHOUT_ANCHOR", "AlongDirections", "ToCenter", "Update", "learn_from"]

WITHOUT_ANCHOR = (
    "anchor is a pull in the update itself, and an optimizer that is given gradients would move the weights without "
    "it. Use update='in_place', or leave anchor out."
)
"""What to say of an anchor where an optimizer moves the weights."""

_PIECE = 1 << 20  # elements of a tensor that move at a time, so that they stay in the cache


@dataclass(frozen=True)
class Update(ABC):
    """What a generation has taught, and the weights that it moves. It is false if there is nothing to learn.

    Attributes:
        population: The generation's members.
        space: The evolving parameters.
        fitness: What members were compared by, float64 ``[members]``; NaN or infinite where one failed.
        lesson: What the algorithm makes of it.
    """

    population: Population
    space: SearchSpace
    fitness: Tensor
    lesson: Lesson

    def __bool__(self) -> bool:
        return bool(self.lesson)

    @property
    @abstractmethod
    def numbers(self) -> Tensor:
        """What follows from the fitness, float64 ``[numbers]``: another fitness gives others."""

    @abstractmethod
    def step(self, optimizers: Iterable[torch.optim.Optimizer] = (), clipping: Clipping | None = None) -> Step:
        """How it moves the weights. Where processes hold shards, all of them must call it.

        Args:
            optimizers: Their learning rates, weight decay and maximize count; the algorithm's own rate without them.
            clipping: Limits the estimate; it gets the coefficient that it multiplies by.
        """

    @abstractmethod
    def apply(self, step: Step | None = None) -> Tensor:
        """Move the weights.

        Args:
            step: From :meth:`step`; ``None`` for the algorithm's own learning rate without clipping.

        Returns:
            The norm of the estimate before clipping, or the length of the way to the center: float64 ``[]``, on the
            weights' device. Only whoever reads it waits for the move.
        """


def learn_from(
    algorithm: Algorithm[Any],
    state: State,
    population: Population,
    space: SearchSpace,
    fitness: Tensor,
    anchor: StartingWeights | None = None,
) -> tuple[State, Update]:
    """The state after a generation in a module, and the update that carries its lesson out.

    Args:
        algorithm: Learns.
        state: Before the generation.
        population: Asked from it, and laid over ``space``.
        space: The evolving parameters.
        fitness: Of the members.
        anchor: What the update draws the weights back to, if anything; it holds those of ``space``.
    """
    # Members have the sigma that they were asked for with, whatever was set or recorded since.
    following, lesson = algorithm.learn(replace(state, sigma=population.sigma), population, fitness, space.numel)
    if following.sigma == population.sigma:  # nothing was learnt about it
        following = replace(following, sigma=state.sigma)
    if isinstance(lesson, NewCenter):
        if lesson:
            following = replace(following, center=lesson.center)
        return following, ToCenter(population, space, fitness, lesson)
    terms = tuple(
        term
        if term.perturbation is population.perturbation
        else Term(noise_over(term.perturbation, space), term.weights)
        for term in lesson.terms
    )
    return following, AlongDirections(population, space, fitness, replace(lesson, terms=terms), anchor)


@dataclass(frozen=True)
class AlongDirections(Update):
    """``theta <- theta + learning_rate g`` with ``g = sum_t sum_d w_td eps_td - weight_decay theta``.

    An estimate g of the ascent direction, made tensor by tensor when it is needed.

    With an anchor (:mod:`lightning_evo.generation.anchor`), ``theta <- theta_0 + shrink(theta - theta_0 + learning_rate
    g)``.
    """

    lesson: Directions
    anchor: StartingWeights | None = None

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each of this generation's directions."""
        return self.lesson.weights

    @property
    def numbers(self) -> Tensor:
        """The weights in the precision in which they are used, float64 ``[directions]``."""
        double = any(parameter.tensor.dtype == torch.float64 for parameter in self.space)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return weights if double else weights.float().double()

    def estimate(self, parameter: EvolvingParameter) -> Tensor:
        """``g`` for one parameter, in float32 (float64 for float64).

        Of a sharded one it is the part that this process holds, flat.
        """
        center = parameter.local
        return self._estimate(parameter, center, 0, center.numel()).view(center.shape)

    def _estimate(self, parameter: EvolvingParameter, center: Tensor, start: int, stop: int) -> Tensor:
        """The elements ``start <= offset < stop`` of :meth:`estimate`, as a vector; of a shard, counted within it."""
        shard = parameter.shard
        whole, offset = (center, 0) if shard is None else (shard.whole, shard.start)
        sums = [
            perturbation.weighted_sum(weights, parameter.index, whole, offset + start, offset + stop)
            for perturbation, weights in self.lesson.terms
        ]
        total = sums[0]
        for past in sums[1:]:
            total += past
        if self.lesson.weight_decay:
            total -= center.reshape(-1)[start:stop].to(total.dtype) * self.lesson.weight_decay
        return total

    @torch.no_grad()
    def add_to_gradients(self, scale: float = 1.0) -> Tensor:
        """Add ``-scale * g`` to each ``.grad``, for an optimizer that descends; gives the norm of g, float64 ``[]``.

        Raises:
            ValueError: If there is an anchor, which an optimizer would know nothing of.
        """
        if self.anchor is not None:
            raise ValueError(WITHOUT_ANCHOR)
        norms = Norms(self.space)
        for parameter in self.space:
            estimate = self.estimate(parameter)
            norms.add(parameter, torch.linalg.vector_norm(estimate))
            gradient = parameter.as_gradient((estimate * -scale).to(parameter.tensor.dtype))
            if parameter.tensor.grad is None:
                parameter.tensor.grad = gradient
            else:
                parameter.tensor.grad += gradient
        return norms.total()

    def step(  # noqa: D102
        self, optimizers: Iterable[torch.optim.Optimizer] = (), clipping: Clipping | None = None
    ) -> Step:
        if clipping is not None and clipping.by == "norm" and self:
            clipping = replace(clipping, coefficient=self._clip_coefficient(clipping))
        step = Step.of(optimizers, self.space, self.lesson.learning_rate, clipping)
        if self.anchor is not None:
            self.anchor.check(step, self.space)
        return step

    @torch.no_grad()
    def apply(self, step: Step | None = None) -> Tensor:
        """``theta <- theta + learning_rate * g``, piece by piece: never more than 4 MB of ``g`` exist at once.

        (Of a tensor that is not contiguous a contiguous copy is made.) bfloat16 and float16 weights are rounded
        stochastically, so that no update is lost. The step's weight decay is taken off theta as it was before. An
        anchor comes last: it draws back what the estimate, clipped, and the decay have made, in the same rounding.

        Args:
            step: Learning rates, decay and clipping, from :meth:`step`; ``None`` for the algorithm's own learning rate.

        Returns:
            The norm of ``g`` before clipping, float64 ``[]``, on the weights' device.
        """
        step = self.step() if step is None else step
        by = step.clipping and step.clipping.by
        coefficient = self._clip_coefficient(step.clipping) if step.clipping and by == "norm" else 1.0
        norms = Norms(self.space)
        key = NoiseKey(self.population.seed, self.population.generation)
        pulls = {} if self.anchor is None else _pulls(self.anchor, step, self.space)
        # Without an anchor decay comes last.
        left = {p.index: 1 - (0 if p.index in pulls else step.decay(p)) for p in self.space}
        rates = {p.index: _rate(step.rate(p), coefficient, left[p.index], p.tensor.device) for p in self.space}
        moved = {} if by == "value" else self._move_in_one_pass(rates, pulls, key)
        distances = Norms(self.space)
        for parameter in self.space:
            rate, pull = rates[parameter.index], pulls.get(parameter.index)
            if parameter.index in moved:
                norms.add(parameter, moved[parameter.index])
                if pull is not None:
                    distances.add(parameter, pull.distance)
                continue
            center = parameter.local.contiguous()  # the tensor itself, if it is contiguous
            offset, flat = 0 if parameter.shard is None else parameter.shard.start, center.view(-1)
            for start, piece in self._pieces(parameter, center):
                norms.add(parameter, torch.linalg.vector_norm(piece))
                if step.clipping and by == "value":
                    piece = piece.clamp(-step.clipping.limit, step.clipping.limit)
                part, stop = None if pull is None else pull.part(start, start + len(piece)), start + len(piece)
                way = move(flat[start:stop], piece.mul_(rate), key, parameter.index, offset + start, pull=part)
                if way is not None:
                    distances.add(parameter, way)
            if not parameter.local.is_contiguous():
                parameter.tensor.copy_(center)
        self._decay(step, key, pulls)
        if self.anchor is not None:
            for parameter in self.space:
                if parameter.index not in pulls:
                    distances.add(parameter, self.anchor.distance(parameter))
            self.anchor.came(self.space, distances)
        return norms.total()

    def _decay(self, step: Step, key: NoiseKey, pulls: Mapping[int, Pull]) -> None:
        """``theta <- (1 - decay) theta``, at last: noise may depend on the weights. Not where a pull took it off.

        What precedes it was divided by ``1 - decay``, so that both together are ``theta - decay theta + rate g``.
        """
        for parameter in self.space:
            decay = step.decay(parameter)
            if not decay or parameter.index in pulls:
                continue
            center = parameter.local.contiguous()
            offset, flat = 0 if parameter.shard is None else parameter.shard.start, center.view(-1)
            for start in range(0, flat.numel(), _PIECE):
                piece = flat[start : start + _PIECE]
                away = piece.to(noise_dtype(piece)) * -decay
                move(piece, away, key, parameter.index, offset + start, stream=Stream.DECAY)
            if not parameter.local.is_contiguous():
                parameter.tensor.copy_(center)

    def _move_in_one_pass(
        self, rates: Mapping[int, float | Tensor], pulls: Mapping[int, Pull], key: NoiseKey
    ) -> dict[int, Tensor]:
        """Move the tensors that one generation's noise alone moves, those held whole; gives their norms."""
        (perturbation, weights), *past = self.lesson.terms
        if past or self.lesson.weight_decay:
            return {}
        plain = [p for p in self.space if p.shard is None and p.tensor.is_contiguous()]
        tensors = [Moving(p.index, p.tensor.detach(), rates[p.index], pulls.get(p.index)) for p in plain]
        norms = perturbation.move(weights, tensors, key)
        return {parameter.index: norm for parameter, norm in zip(plain, norms, strict=True)}

    @torch.no_grad()
    def _clip_coefficient(self, clipping: Clipping) -> float | Tensor:
        """What clipping by norm multiplies ``g`` by: less than 1 if it finds it too long.

        A number on a CPU. On another device it stays there, float64 ``[]``, so that nobody waits for it.
        """
        if clipping.coefficient is not None:
            return clipping.coefficient
        norms = Norms(self.space)
        for parameter in self.space:
            for _, piece in self._pieces(parameter, parameter.local.contiguous()):
                norms.add(parameter, torch.linalg.vector_norm(piece))
        norm = norms.total()
        ratio = torch.full_like(norm, clipping.limit) / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        coefficient = torch.where(ratio < 1, ratio, 1.0)
        return float(coefficient) if coefficient.is_cpu else coefficient

    def _pieces(self, parameter: EvolvingParameter, center: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The estimate of one parameter, piece by piece, each with its offset."""
        for start in range(0, center.numel(), _PIECE):
            yield start, self._estimate(parameter, center, start, min(start + _PIECE, center.numel()))


def _rate(rate: float, coefficient: float | Tensor, left: float, device: torch.device) -> float | Tensor:
    """``rate * coefficient / left`` with the bits that Python's numbers have, where the coefficient is."""
    if not isinstance(coefficient, Tensor):
        return rate * coefficient / left
    scaled = coefficient.to(device) * rate
    return scaled if left == 1 else scaled / torch.full_like(scaled, left)  # by a number, a GPU divides differently


def _pulls(anchor: StartingWeights, step: Step, space: SearchSpace) -> dict[int, Pull]:
    """What draws parameters back, by their indices: all that have a learning rate."""
    found = {p.index: anchor.pull(p, step.rate(p), step.decay(p)) for p in space}
    return {index: pull for index, pull in found.items() if pull is not None}


@dataclass(frozen=True)
class ToCenter(Update):
    """``theta <- m``: each weight is the nearest value to the center's that its dtype has.

    The algorithm keeps the center in float64; the weights are its rounding.
    """

    lesson: NewCenter

    @property
    def numbers(self) -> Tensor:
        """The center, float64 ``[d]``; empty if there is nothing to learn."""
        center = self.lesson.center
        return torch.zeros(0, dtype=torch.float64) if center is None else center.detach().double().cpu()

    def step(self, optimizers: Iterable[torch.optim.Optimizer] = (), clipping: Clipping | None = None) -> Step:
        """A step without learning rates and clipping: the center is where it is."""
        return Step(())

    @torch.no_grad()
    def apply(self, step: Step | None = None) -> Tensor:
        """``theta <- m``; returns the length of the way, float64 ``[]``. A step has nothing to say here."""
        center = self.lesson.center
        norms = Norms(self.space)
        for parameter in self.space if center is not None else ():
            assert center is not None
            before = parameter.local.clone()
            after = self.space.part_of(center, parameter).to(before.device, before.dtype, non_blocking=before.is_cuda)
            parameter.local.copy_(parameter.keep_padding(after, before))
            norms.add(parameter, torch.linalg.vector_norm(parameter.local - before, dtype=torch.float64))
        return norms.total()
