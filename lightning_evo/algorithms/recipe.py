"""A published method as data: the algorithm and its options that make it, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lightning_evo.algorithms.evolution_strategy import EvolutionStrategy
from lightning_evo.utils.options import check_names

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
            ValueError: If an option is out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        check_names(repr(self.name), given, self.options)
        merged = {**self.defaults, **given}
        shaping = given.get("shaping", "top_k")
        if "top_k" not in given and not (isinstance(shaping, str) and shaping == "top_k"):
            merged.pop("top_k", None)  # the recipe's top_k belongs to the recipe's shaping
        return self.algorithm(name=self.name, **merged)
