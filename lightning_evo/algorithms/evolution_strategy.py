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

A published method of the family is a :class:`Recipe`: data, not a subclass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_evo._messages import did_you_mean
from lightning_evo.algorithms._base import Algorithm
from lightning_evo.algorithms.schedule import Schedule
from lightning_evo.noise import Distribution, NoiseKey
from lightning_evo.perturbations.dense import Dense
from lightning_evo.shaping import Shaping, raw, resolve, shape

__all__ = ["ESState", "EvolutionStrategy", "Population", "Recipe", "Scaling"]

Scaling = Literal["none", "sigma", "gradient"]


@dataclass(frozen=True)
class Population:
    """The members of one generation, as addresses of noise: nothing is stored for a member but two numbers.

    Attributes:
        perturbation: The generation's noise and how it is laid over a tensor.
        sigma: Distance of a member from the center, in standard deviations of the noise.
        directions: Number of noise directions. With antithetic pairs, members ``2k`` and ``2k + 1`` are center plus
            and minus direction ``k``; without, member ``k`` is center plus direction ``k``.
        antithetic: Whether members come in such pairs.
        center: ``[d]``, outside a module; inside one the weights themselves are the center.
    """

    perturbation: Dense
    sigma: float
    directions: int
    antithetic: bool
    center: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.directions * self.per_direction

    @property
    def per_direction(self) -> int:
        """Members that share one noise direction: 2 or 1."""
        return 2 if self.antithetic else 1

    @property
    def signs(self) -> Tensor:
        """The sign of each member's noise, float64 ``[members]``."""
        pair = [1.0, -1.0] if self.antithetic else [1.0]
        return torch.tensor(pair * self.directions, dtype=torch.float64)

    def vectors(self) -> Tensor:
        """The members as vectors, ``[members, d]`` in the center's dtype.

        Raises:
            ValueError: If the state was made without a center.
        """
        if self.center is None:
            raise ValueError(
                "This population has no center: it lives in a module. Give `init` a vector to get vectors."
            )
        noise = self.perturbation.noise(range(self.directions), 0, self.center)
        noise = noise.repeat_interleave(self.per_direction, dim=0) * self.signs[:, None].to(noise)
        return (self.center + self.sigma * noise).to(self.center.dtype)


@dataclass(frozen=True)
class ESState:
    """All that an evolution strategy remembers from one generation to the next.

    Attributes:
        seed: The run's seed.
        generation: Generations finished.
        sigma: Set by hand (by a callback, say), it overrides the algorithm's sigma from then on.
        center: ``[d]``, outside a module.
    """

    seed: int = 0
    generation: int = 0
    sigma: float | None = None
    center: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class EvolutionStrategy(Algorithm[ESState]):
    """Any member of the family, by its options.

    Args:
        population: Number of members N; even with ``antithetic``.
        sigma: Standard deviation of the perturbations, > 0, or a :class:`Schedule`.
        learning_rate: Step along the estimate, >= 0, or a :class:`Schedule`. Inside Lightning it is used only when the
            module has no optimizer; otherwise the optimizer's own learning rate counts.
        antithetic: Evaluate each direction with both signs.
        shaping: ``"centered_ranks"``, ``"linear_ranks"``, ``"z_score"``, ``"raw"``, ``"top_k"`` or a function.
        top_k: With ``shaping="top_k"``, the number of directions that count.
        scaling: ``"none"``, ``"sigma"`` or ``"gradient"``, see the head of this file.
        weight_decay: L2 coefficient: ``weight_decay * theta`` is taken off the estimate, >= 0.
        noise: ``"gaussian"``, ``"rademacher"`` (+-1) or ``"uniform"``; all with variance 1.
        samples_per_generation: If given, a generation sees at most this many samples of its batches, drawn at random
            without replacement and the same for all members.
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
    name: str = "evolution_strategy"

    def __post_init__(self) -> None:
        population: object = self.population
        if isinstance(population, bool) or not isinstance(population, int) or population < 2:
            raise ValueError(
                f"population must be a whole number >= 2 (one has nothing to compare), got {population!r}."
            )
        if self.antithetic and self.population % 2:
            raise ValueError(
                f"population={self.population} is odd, but antithetic members come in pairs. Use "
                f"{self.population + 1}, or antithetic=False."
            )
        if not isinstance(self.sigma, Schedule):
            _check_number("sigma", self.sigma, "> 0", lambda value: value > 0)
        elif self.sigma.end == 0:
            raise ValueError("A sigma schedule must end above 0: with sigma 0 all members are equal.")
        if not isinstance(self.learning_rate, Schedule):
            _check_number("learning_rate", self.learning_rate, ">= 0", lambda value: value >= 0)
        _check_number("weight_decay", self.weight_decay, ">= 0", lambda value: value >= 0)
        samples: object = self.samples_per_generation
        if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
            raise ValueError(f"samples_per_generation must be a whole number >= 1, got {samples!r}.")
        if self.scaling not in get_args(Scaling):
            raise ValueError(
                f"Unknown scaling {self.scaling!r}.{did_you_mean(str(self.scaling), get_args(Scaling))} "
                f"Choose one of {', '.join(get_args(Scaling))}."
            )
        resolve(self.shaping, self.top_k)
        Dense(NoiseKey(0, 0), self.noise)
        directions = self.population // (2 if self.antithetic else 1)
        if self.top_k is not None and self.top_k not in range(1, directions + 1):
            raise ValueError(f"top_k must be between 1 and the number of directions ({directions}), got {self.top_k}.")
        if self.population == 2 and self.shaping == "z_score":
            warnings.warn(
                "With 2 members the z-score is always +1 and -1, so the size of the difference is lost. Use "
                "shaping='raw' (as MeZO does) or more members.",
                stacklevel=3,
            )

    # --- ask and tell ---

    def init(self, center: Tensor | None = None, *, sigma: float | None = None, seed: int = 0) -> ESState:
        """The state before the first generation.

        Args:
            center: Where to start, floating ``[d]``; ``None`` inside a module.
            sigma: Overrides the option for this run.
            seed: Seed of the noise.

        Raises:
            ValueError: If ``center`` is not a floating vector or ``sigma`` is not positive.
        """
        if center is not None and (center.dim() != 1 or not center.is_floating_point()):
            raise ValueError(f"center must be a floating vector [d], got {center.dtype} {list(center.shape)}.")
        if sigma is not None:
            _check_number("sigma", sigma, "> 0", lambda value: value > 0)
        return ESState(seed=seed, sigma=sigma, center=None if center is None else center.detach().clone())

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
            perturbation=Dense(NoiseKey(state.seed, state.generation), self.noise),
            sigma=self.current_sigma(state),
            directions=self.population // (2 if self.antithetic else 1),
            antithetic=self.antithetic,
            center=state.center,
        )

    def direction_weights(self, population: Population, fitness: Tensor, dimension: int) -> Tensor:
        """The estimate as weights of the noise directions: ``g = sum_d weight_d eps_d`` (without weight decay).

        Args:
            population: From :meth:`ask`.
            fitness: ``[members]``, higher is better; NaN and infinities are failures.
            dimension: Number of evolving elements.

        Returns:
            float64 ``[directions]`` on the CPU; all zero if there is nothing to learn.

        Raises:
            ValueError: If ``fitness`` has another shape.
        """
        if fitness.shape != (len(population),):
            raise ValueError(f"fitness must hold one value per member, [{len(population)}]; got {list(fitness.shape)}.")

        def weights(shaping: Shaping) -> Tensor:
            member = shape(fitness.detach().cpu(), shaping, population.per_direction) * population.signs
            return member.view(population.directions, -1).sum(1) / len(population)

        shaped = weights(resolve(self.shaping, self.top_k))
        if self.scaling == "none" or not shaped.any():
            return shaped
        if self.scaling == "sigma":
            return shaped / population.sigma
        shaped = shaped / shaped.abs().max()  # the squares of very small weights would be zero
        quotients = weights(raw) / population.sigma
        length = (shaped @ quotients).abs() / (shaped @ shaped)  # makes `shaped` the best fit to `quotients`
        return shaped * length * math.sqrt(population.directions / (population.directions + dimension + 1))

    def tell(self, state: ESState, population: Population, fitness: Tensor) -> ESState:
        """``theta <- theta + learning_rate (g - weight_decay theta)``, and one generation more.

        A generation with nothing to learn leaves the center as it is.

        Raises:
            ValueError: If the state was made without a center, or ``fitness`` has the wrong shape.
        """
        center = state.center
        if center is None:
            raise ValueError("`tell` moves a center, and this state has none. Give `init` a vector.")
        weights = self.direction_weights(population, fitness, center.numel())
        if weights.any():
            gradient = population.perturbation.weighted_sum(weights.tolist(), 0, center) - self.weight_decay * center
            center = (center + self.current_learning_rate(state) * gradient).to(center.dtype)
        return replace(state, center=center, generation=state.generation + 1)


@dataclass(frozen=True)
class Recipe:
    """A published method as data: the options that make it, and where it comes from.

    Calling it gives an :class:`EvolutionStrategy` with these options, changed as you like.

    Attributes:
        name: Name in the registry.
        summary: One line.
        paper: Authors, year and link.
        defaults: The published options.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> get("mezo")(sigma=1e-2).sigma
        0.01
    """

    name: str
    summary: str
    paper: str
    defaults: Mapping[str, Any]

    @property
    def options(self) -> list[str]:
        """Names of the options it takes."""
        return [field.name for field in fields(EvolutionStrategy) if field.name != "name"]

    def __call__(self, **options: Any) -> EvolutionStrategy:
        """The method with its published options where none is given (``None`` counts as not given).

        Raises:
            TypeError: If it has no such option; the message names the nearest.
            ValueError: If an option is out of range.
        """
        for name in options:
            if name not in self.options:
                raise TypeError(
                    f"{self.name!r} has no option {name!r}.{did_you_mean(name, self.options)} "
                    f"Its options: {', '.join(self.options)}."
                )
        given = {name: value for name, value in options.items() if value is not None}
        merged = {**self.defaults, **given}
        if "shaping" in given and given["shaping"] != "top_k" and "top_k" not in given:
            merged.pop("top_k", None)  # the recipe's top_k belongs to the recipe's shaping
        return EvolutionStrategy(name=self.name, **merged)


def _check_number(name: str, value: object, wanted: str, accept: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not accept(value):
        raise ValueError(f"{name} must be a number {wanted}, got {value!r}.")
