"""The evolution-strategy family: a population of Gaussian steps around a center, and one gradient estimate.

With members theta_j = theta + sigma s_j eps_d(j), where s_j is +1 or -1 and the two members of an antithetic pair
share a direction d, and with weights w = shaping(fitness), the estimate of the ascent direction is::

    g = scale sum_j w_j s_j eps_d(j)  -  weight_decay theta

(Salimans et al., arXiv:1703.03864, Algorithm 1; Nesterov and Spokoiny, 2017, for raw fitness), where ``scaling`` says
what ``scale`` is:

``"none"``
    1 / N, sigma being folded into the learning rate (EA4LLM, ES at Scale, ARS).
``"sigma"``
    1 / (N sigma). With raw fitness g is an unbiased estimate of the gradient of the smoothed fitness, whose length
    grows like sqrt(d / directions): with few directions it is nearly all noise.
``"gradient"``
    The same direction with the length of the gradient. Each raw difference quotient ``r_d`` is a sample of the
    gradient's component along eps_d, so their mean square is the gradient's squared length; g gets that length, times
    the correlation of the shaped weights with the raw ones. Learning rates, clipping thresholds and weight decay that
    were chosen for backpropagation keep their meaning, and the step shrinks as the optimum comes near.

The noise eps may be dense, of low rank, sparse or in units of each tensor's own scale, and be used for several
generations: see :mod:`lightning_evo.perturbations`. With ``momentum`` beta the sum over eps is replaced by
``m_t = beta m_(t-1) + (1 - beta) scale sum_j w_j s_j eps_d(j)``. That needs no memory: m is a sum over past noise,
which can be drawn again, so only its weights are kept.

A published method of the family is a :class:`~lightning_evo.algorithms.recipe.Recipe`: data, not a subclass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import ClassVar

from torch import Tensor

from lightning_evo.algorithms._base import Algorithm, State, UpdateName, check_fitness
from lightning_evo.algorithms._options import Scaling, checked
from lightning_evo.algorithms.lesson import Directions, Term
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.schedule import Schedule
from lightning_evo.algorithms.shaping import Shaping, evaluated, raw, resolve, shape
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import Distribution
from lightning_evo.perturbations import Perturbation, SigmaScale, compose

__all__ = ["ESState", "EvolutionStrategy"]


@dataclass(frozen=True)
class ESState(State):
    """All that an evolution strategy remembers from one generation to the next.

    Attributes:
        momentum: The momentum, as the weights that past directions have in it: for some generations of noise their
            number and one weight for each direction. Numbers only, so a checkpoint can hold it as it is.
    """

    momentum: tuple[tuple[int, tuple[float, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvolutionStrategy(Algorithm[ESState]):
    """Any member of the family, by its options.

    Args:
        population: Number of members N; even with ``antithetic``.
        sigma: Standard deviation of the perturbations, > 0, or a :class:`Schedule`.
        learning_rate: Step along the estimate, >= 0, or a :class:`Schedule`. Inside Lightning it is used only when the
            module has no optimizer; if it has one, the optimizer's learning rate counts.
        antithetic: Evaluate each direction with both signs.
        shaping: ``"centered_ranks"``, ``"linear_ranks"``, ``"z_score"``, ``"raw"``, ``"top_k"`` or a function.
        top_k: With ``shaping="top_k"``, the number of directions that count.
        scaling: ``"none"``, ``"sigma"`` or ``"gradient"``, see the head of this file.
        weight_decay: L2 coefficient: ``weight_decay * theta`` is taken off the estimate, >= 0.
        noise: ``"gaussian"``, ``"rademacher"`` (+-1) or ``"uniform"``; all with variance 1.
        samples_per_generation: If given, a generation sees at most this many samples of its batches, drawn at random
            without replacement and the same for all members.
        rank: If given, a matrix's noise is a product of two random factors with ``rank`` columns:
            :class:`~lightning_evo.perturbations.LowRank`.
        noise_reuse: How many consecutive generations use the same noise.
        basis_reuse: With ``rank``: how many consecutive generations share one of the two factors. A multiple of
            ``noise_reuse``.
        sparsity: If given, this share of each tensor's weights, the largest, is neither perturbed nor learns:
            :class:`~lightning_evo.perturbations.Sparse`.
        sigma_scale: ``"none"``, or ``"rms"``: sigma is in units of each tensor's root mean square, see
            :class:`~lightning_evo.perturbations.Scaled`.
        momentum: With ``basis_reuse``: beta in [0, 1) of ``m_t = beta m_(t-1) + (1 - beta) g_t``, the direction of
            the step. It starts from zero whenever a new shared factor is drawn. (LOZO projects it onto the new one,
            but two random factors are nearly orthogonal, so hardly anything would be left of it.)
        name: Name for checkpoints.

    Raises:
        ValueError: If an option is out of range; the message says what is wrong and what to do.
    """

    population: int
    sigma: float | Schedule
    learning_rate: float | Schedule
    antithetic: bool = True
    shaping: str | Shaping = "centered_ranks"
    top_k: int | None = None
    scaling: Scaling = "gradient"
    weight_decay: float = 0.0
    noise: Distribution = "gaussian"
    samples_per_generation: int | None = None
    rank: int | None = None
    noise_reuse: int = 1
    basis_reuse: int = 1
    sparsity: float | None = None
    sigma_scale: SigmaScale = "none"
    momentum: float = 0.0
    name: str = "evolution_strategy"

    def __post_init__(self) -> None:
        for name, value in checked(vars(self)).items():
            object.__setattr__(self, name, value)  # the dataclass is frozen
        self._perturbation(ESState())  # which checks those of the noise together

    State: ClassVar[type[State]] = ESState
    updates: ClassVar[tuple[UpdateName, ...]] = ("optimizer", "in_place")
    owns_center: ClassVar[bool] = False

    @property
    def needs_whole_tensors(self) -> str:
        """``"sparsity"`` or ``"sigma_scale='rms'"``, which take a statistic of each tensor; empty without them."""
        return "sparsity" if self.sparsity is not None else "sigma_scale='rms'" if self.sigma_scale != "none" else ""

    # --- ask and learn ---

    def current_sigma(self, state: ESState) -> float:
        """Sigma of the coming generation."""
        if state.sigma is not None:
            return state.sigma
        return self.sigma(state.generation) if isinstance(self.sigma, Schedule) else self.sigma

    def current_learning_rate(self, state: ESState) -> float:
        """Learning rate of the coming update."""
        rate = self.learning_rate
        return rate(state.generation) if isinstance(rate, Schedule) else rate

    def ask(self, state: ESState) -> Population:
        """The next population."""
        return Population(
            perturbation=self._perturbation(state),
            sigma=self.current_sigma(state),
            directions=self.population // (2 if self.antithetic else 1),
            antithetic=self.antithetic,
            center=state.center,
            seed=state.seed,
            generation=state.generation,
        )

    def _perturbation(self, state: ESState, noise: int | None = None) -> Perturbation:
        """The coming generation's noise, or that of number ``noise`` over the same basis."""
        return compose(
            NoiseKey(state.seed, state.generation // self.noise_reuse if noise is None else noise),
            self.noise,
            rank=self.rank,
            basis_key=NoiseKey(state.seed, self._window(state)) if self.basis_reuse > 1 else None,
            sparsity=self.sparsity,
            sigma_scale=self.sigma_scale,
        )

    def _window(self, state: ESState) -> int:
        """Number of the basis."""
        return state.generation // self.basis_reuse

    def _momentum(self, state: ESState) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """``beta m``, as far as it belongs to the coming generation's basis."""
        noises_per_basis = self.basis_reuse // self.noise_reuse
        return tuple(
            (noise, tuple(self.momentum * weight for weight in weights))
            for noise, weights in state.momentum
            if self.momentum and noise // noises_per_basis == self._window(state)
        )

    def direction_weights(self, population: Population, fitness: Tensor, numel: int) -> Tensor:
        """The estimate as weights of the noise directions: ``g = sum_d weight_d eps_d`` (without weight decay).

        With momentum it is the estimate's part in the step, ``(1 - beta) g``.

        Args:
            population: From :meth:`ask`.
            fitness: ``[members]``, higher is better; NaN is a failure and left out.
            numel: Number of evolving elements.

        Returns:
            float64 ``[directions]`` on the CPU; all zero if there is nothing to learn.

        Raises:
            ValueError: If ``fitness`` has another shape.
        """
        fitness = check_fitness(population, fitness)
        members = max(1, int(evaluated(fitness, population.per_direction).sum()))

        def weights(shaping: Shaping) -> Tensor:
            member = shape(fitness, shaping, population.per_direction) * population.signs
            return member.view(population.directions, -1).sum(1) / members * (1 - self.momentum)

        shaped = weights(resolve(self.shaping, self.top_k))
        if self.scaling == "none" or not shaped.any():
            return shaped
        if self.scaling == "sigma":
            return shaped / population.sigma
        shaped = shaped / shaped.abs().max()  # the squares of very small weights would be zero
        quotients = weights(raw) / population.sigma
        length = (shaped @ quotients).abs() / (shaped @ shaped)  # makes `shaped` the best fit to `quotients`
        dimension = round(numel * (1 - (self.sparsity or 0)))
        directions = members // population.per_direction
        return shaped * length * math.sqrt(directions / (directions + dimension + 1))

    def advance(self, state: ESState, weights: Sequence[float]) -> ESState:
        """The state after a generation whose estimate had these weights; its center is not moved.

        A generation with nothing to learn leaves the momentum as it is.

        Args:
            state: The generation's state.
            weights: From :meth:`direction_weights`.
        """
        momentum = state.momentum
        if self.momentum and any(weights):
            noise = state.generation // self.noise_reuse
            past = dict(self._momentum(state))
            before = past.get(noise, ())  # of a generation with the same noise
            past[noise] = tuple(old + float(new) for old, new in zip_longest(before, weights, fillvalue=0.0))
            momentum = tuple(past.items())
        return replace(state, generation=state.generation + 1, momentum=momentum)

    def learn(self, state: ESState, population: Population, fitness: Tensor, numel: int) -> tuple[ESState, Directions]:
        """The next generation's state, and ``g`` as weights of noise; with momentum ``m``.

        A vector has no factors, so its noise is dense and none of it outlasts the generation; its momentum lasts for
        ``basis_reuse`` generations all the same.

        Raises:
            ValueError: If there is not one fitness for each member.
        """
        weights = tuple(self.direction_weights(population, fitness, numel).tolist())
        terms = [Term(population.perturbation, weights)]
        if any(weights):
            terms += [Term(self._perturbation(state, noise), past) for noise, past in self._momentum(state)]
        lesson = Directions(tuple(terms), self.weight_decay, self.current_learning_rate(state))
        return self.advance(state, weights), lesson
