"""Which options of an evolution strategy go together, and the errors for those that don't."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

from lightning_evo.algorithms.schedule import Schedule
from lightning_evo.algorithms.shaping import Shaping, resolve
from lightning_evo.noise.values import Distribution
from lightning_evo.perturbations import SigmaScale
from lightning_evo.utils.options import check_callable, flag, number, one_of, whole

__all__ = ["Scaling", "checked"]

Scaling = Literal["none", "sigma", "gradient"]
"""The factor of the estimate; its formulas are in :mod:`~lightning_evo.algorithms.evolution_strategy`."""

_MOST_MEMBERS = 1 << 32  # the noise numbers them by 32 bits


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """An evolution strategy's options, numbers as Python's own.

    (:func:`lightning_evo.perturbations.compose` checks whether the options of the noise go together.)

    Args:
        options: All of them, by name.

    Raises:
        ValueError: If one of them, or two together, make no sense.
    """
    given = dict(options)
    given["antithetic"] = flag("antithetic", given["antithetic"])
    given["population"] = _population(given["population"], given["antithetic"])
    if not isinstance(given["sigma"], Schedule):
        given["sigma"] = number("sigma", given["sigma"], above=0)
    elif given["sigma"].end == 0:
        raise ValueError("A sigma schedule must end above 0: with sigma 0 all members are equal.")
    if not isinstance(given["learning_rate"], Schedule):
        given["learning_rate"] = number("learning_rate", given["learning_rate"], minimum=0)
    given["weight_decay"] = number("weight_decay", given["weight_decay"], minimum=0)
    for name in ("noise_reuse", "basis_reuse"):
        given[name] = whole(name, given[name])
    for name in ("samples_per_generation", "rank", "top_k"):
        given[name] = None if given[name] is None else whole(name, given[name])
    if given["sparsity"] is not None:
        given["sparsity"] = number("sparsity", given["sparsity"], above=0, below=1)
    given["momentum"] = number("momentum", given["momentum"], minimum=0, below=1)
    given["noise"] = one_of("noise", given["noise"], get_args(Distribution))
    given["scaling"] = one_of("scaling", given["scaling"], get_args(Scaling))
    given["sigma_scale"] = one_of("sigma_scale", given["sigma_scale"], get_args(SigmaScale))
    _check_shaping(given["shaping"], given["top_k"], given["population"], given["antithetic"])
    _check_reuse(given["rank"], given["noise_reuse"], given["basis_reuse"], given["momentum"])
    return given


def _population(given: object, antithetic: bool) -> int:
    population = whole("population", given, minimum=2, maximum=_MOST_MEMBERS, why="one has nothing to compare")
    if antithetic and population % 2:
        raise ValueError(
            f"population={population} is odd, but antithetic members come in pairs. Use {population + 1}, or "
            "antithetic=False."
        )
    return population


def _check_shaping(shaping: str | Shaping, top_k: int | None, population: int, antithetic: bool) -> None:
    if callable(shaping):
        check_callable("shaping", shaping, "fitness", "per_direction")
    resolve(shaping, top_k)
    directions = population // (2 if antithetic else 1)
    if top_k == 1 and not antithetic:
        raise ValueError("top_k=1 without antithetic pairs compares a member with nothing. Use top_k >= 2.")
    if top_k is not None and top_k > directions:
        raise ValueError(
            f"top_k must be between 1 and the number of directions ({directions}, with population={population}), got "
            f"{top_k}."
        )
    if population == 2 and shaping == "z_score":
        warnings.warn(
            "With 2 members the z-score is always +1 and -1, so the size of the difference is lost. Use "
            "shaping='raw' (as MeZO does) or more members.",
            stacklevel=5,
        )


def _check_reuse(rank: int | None, noise_reuse: int, basis_reuse: int, momentum: float) -> None:
    if basis_reuse > 1 and rank is None:
        raise ValueError(
            f"basis_reuse={basis_reuse} has no effect without rank: only noise of low rank has a basis. Give a rank, "
            "or use noise_reuse."
        )
    if basis_reuse > 1 and basis_reuse % noise_reuse:
        raise ValueError(
            f"basis_reuse={basis_reuse} must be a multiple of noise_reuse={noise_reuse}: the noise can't stay while "
            "its basis changes."
        )
    if momentum and basis_reuse == 1:
        raise ValueError(
            f"momentum={momentum} has no effect without basis_reuse > 1: it lasts as long as the basis. Give rank and "
            "basis_reuse, or use an optimizer with momentum."
        )
