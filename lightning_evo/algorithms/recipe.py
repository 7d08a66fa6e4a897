"""A published method as data: the algorithm and its options that make it, and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lightning_evo.algorithms.evolution_strategy import EvolutionStrategy
from lightning_evo.utils.options import as_whole, check_names, flag

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A published method as data: the options that make it, and where it comes from.

    Calling it gives the algorithm with these options, changed as you like.

    Attributes:
        name: Name in the registry.
        summary: One line.
        paper: Authors, year and link.
        defaults: The published options.
        algorithm: The class that takes them, a dataclass.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> get("mezo")(sigma=1e-2).sigma
        0.01
    """

    name: str
    summary: str
    paper: str
    defaults: Mapping[str, Any]
    algorithm: type[Any] = EvolutionStrategy

    @property
    def options(self) -> list[str]:
        """Names of the options it takes."""
        return [field.name for field in fields(self.algorithm) if field.name != "name"]

    def __call__(self, **options: Any) -> Any:
        """The method with its published options where none is given (``None`` counts as not given).

        Raises:
            TypeError: If it has no such option; the message names the nearest.
            ValueError: If an option is out of range; the message says which of those that it names are the recipe's.
        """
        given = {name: value for name, value in options.items() if value is not None}
        check_names(repr(self.name), given, self.options)
        merged = {**self.defaults, **given}
        shaping = given.get("shaping", "top_k")
        if "top_k" not in given and not (isinstance(shaping, str) and shaping == "top_k"):
            merged.pop("top_k", None)  # the recipe's top_k belongs to the recipe's shaping
        if "top_k" in merged and "top_k" not in given:
            merged["top_k"] = self._fitting_top_k(merged)
        try:
            return self.algorithm(name=self.name, **merged)
        except ValueError as error:
            own = [name for name in merged.keys() - given.keys() if re.search(rf"\b{name}\b", str(error))]
            if not own:
                raise
            stated = ", ".join(f"{name}={merged[name]!r}" for name in sorted(own))
            raise ValueError(f"{error} ({stated}: {self.name}'s own.)") from None

    def _fitting_top_k(self, options: Mapping[str, Any]) -> Any:
        """The recipe's ``top_k``; where there are fewer directions, the recipe's share of those that there are."""
        plain = {"antithetic": True, "population": None}  # of the family
        top_k = self.defaults["top_k"]
        here, published = _directions({**plain, **options}), _directions({**plain, **self.defaults})
        if here is None or published is None or top_k <= here:
            return top_k
        return max(1 if flag("antithetic", options.get("antithetic", True)) else 2, here * top_k // published)


def _directions(options: Mapping[str, Any]) -> int | None:
    """How many there are; ``None`` if the options are wrong, which the algorithm will say."""
    population = as_whole(options["population"])
    try:
        per_direction = 2 if flag("antithetic", options["antithetic"]) else 1
    except ValueError:
        return None
    return None if population is None else population // per_direction
