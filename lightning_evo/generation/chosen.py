"""The algorithm that a user asked for: by name and options, or as an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_evo import algorithms
from lightning_evo.algorithms import Algorithm, Recipe
from lightning_evo.utils.options import check_names

__all__ = ["chosen_algorithm"]


def chosen_algorithm(algorithm: object, options: Mapping[str, Any], others: Sequence[str]) -> Algorithm[Any]:
    """The algorithm, made if it was asked for by name.

    Args:
        algorithm: A registered name, or an :class:`~lightning_evo.algorithms.Algorithm`.
        options: Of the algorithm; ``None`` means its own default.
        others: Names of options that there are besides the algorithm's own, for messages.

    Raises:
        ValueError: If the algorithm is unknown, an option is out of range, or options are given with an object.
        TypeError: If the algorithm has no such option, or is neither a name nor an Algorithm.

    Example:
        >>> chosen_algorithm("openai_es", {"population": 16, "sigma": None}, []).population
        16
    """
    if isinstance(algorithm, str):
        recipe = algorithms.get(algorithm)
        if isinstance(recipe, Recipe):  # of another factory the options are not known
            given = [name for name, value in options.items() if value is not None]
            check_names(repr(recipe.name), given, [*recipe.options, *others])
        algorithm = recipe(**options)
    elif any(value is not None for value in options.values()):
        names = ", ".join(name for name, value in options.items() if value is not None)
        raise ValueError(f"Options go with an algorithm's name; give them to the algorithm object instead: {names}.")
    if isinstance(algorithm, Recipe):
        raise TypeError(f"algorithm is the recipe {algorithm.name!r}; call it to make an algorithm, or give its name.")
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            f"algorithm must be a name ({', '.join(algorithms.available())}) or an Algorithm, got "
            f"{type(algorithm).__name__}."
        )
    return algorithm
