"""Which options of an evolution strategy go together, and what is said of those that don't."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from lightning_evo.algorithms.schedule import Schedule
from lightning_evo.algorithms.shaping import resolve
from lightning_evo.perturbations import SigmaScale
from lightning_evo.utils.messages import did_you_mean

if TYPE_CHECKING:
    from lightning_evo.algorithms.evolution_strategy import EvolutionStrategy

__all__ = ["Scaling", "check_number", "check_options"]

Scaling = Literal["none", "sigma", "gradient"]
"""See the head of :mod:`~lightning_evo.algorithms.evolution_strategy`."""


def check_options(strategy: EvolutionStrategy) -> None:
    """Raise a ValueError if an option, or two together, make no sense; those of the noise aside."""
    population: object = strategy.population
    if isinstance(population, bool) or not isinstance(population, int) or population < 2:
        raise ValueError(f"population must be a whole number >= 2 (one has nothing to compare), got {population!r}.")
    if strategy.antithetic and strategy.population % 2:
        raise ValueError(
            f"population={strategy.population} is odd, but antithetic members come in pairs. Use "
            f"{strategy.population + 1}, or antithetic=False."
        )
    if not isinstance(strategy.sigma, Schedule):
        check_number("sigma", strategy.sigma, "> 0", lambda value: value > 0)
    elif strategy.sigma.end == 0:
        raise ValueError("A sigma schedule must end above 0: with sigma 0 all members are equal.")
    if not isinstance(strategy.learning_rate, Schedule):
        check_number("learning_rate", strategy.learning_rate, ">= 0", lambda value: value >= 0)
    check_number("weight_decay", strategy.weight_decay, ">= 0", lambda value: value >= 0)
    for name in ("samples_per_generation", "noise_reuse", "basis_reuse"):
        count = getattr(strategy, name)
        if count is None and name == "samples_per_generation":
            continue
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {count!r}.")
    for name, choices in (("scaling", get_args(Scaling)), ("sigma_scale", get_args(SigmaScale))):
        if getattr(strategy, name) not in choices:
            given = getattr(strategy, name)
            raise ValueError(
                f"Unknown {name} {given!r}.{did_you_mean(str(given), choices)} Choose one of {', '.join(choices)}."
            )
    resolve(strategy.shaping, strategy.top_k)
    if strategy.basis_reuse > 1 and strategy.rank is None:
        raise ValueError(
            f"basis_reuse={strategy.basis_reuse} has no effect without rank: only noise of low rank has a basis. Give "
            "a rank, or use noise_reuse."
        )
    if strategy.basis_reuse > 1 and strategy.basis_reuse % strategy.noise_reuse:
        raise ValueError(
            f"basis_reuse={strategy.basis_reuse} must be a multiple of noise_reuse={strategy.noise_reuse}: the noise "
            "can't stay while its basis changes."
        )
    check_number("momentum", strategy.momentum, "in [0, 1)", lambda value: 0 <= value < 1)
    if strategy.momentum and strategy.basis_reuse == 1:
        raise ValueError(
            f"momentum={strategy.momentum} has no effect without basis_reuse > 1: it lasts as long as the basis. Give "
            "rank and basis_reuse, or use an optimizer with momentum."
        )
    directions = strategy.population // (2 if strategy.antithetic else 1)
    if strategy.top_k == 1 and not strategy.antithetic:
        raise ValueError("top_k=1 without antithetic pairs compares a member with nothing. Use top_k >= 2.")
    if strategy.top_k is not None and strategy.top_k not in range(1, directions + 1):
        raise ValueError(f"top_k must be between 1 and the number of directions ({directions}), got {strategy.top_k}.")
    if strategy.population == 2 and strategy.shaping == "z_score":
        warnings.warn(
            "With 2 members the z-score is always +1 and -1, so the size of the difference is lost. Use "
            "shaping='raw' (as MeZO does) or more members.",
            stacklevel=4,
        )


def check_number(name: str, value: object, wanted: str, accept: Callable[[float], bool]) -> None:
    """Raise a ValueError unless ``value`` is a finite number that is accepted."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not accept(value):
        raise ValueError(f"{name} must be a number {wanted}, got {value!r}.")
