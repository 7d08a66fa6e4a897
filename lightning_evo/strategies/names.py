"""Names that users give, and what they may have meant: options of a strategy, and strategies."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from lightning_evo import algorithms
from lightning_evo.algorithms import EvolutionStrategy, Recipe
from lightning_evo.generation.evolution import Evolution
from lightning_evo.utils.messages import did_you_mean
from lightning_evo.utils.options import check_names
from lightning_evo.utils.synonyms import meant

__all__ = ["about_strategy", "check_options", "option_names"]

_SET_BY_LIGHTNING = {"accelerator", "checkpoint_io", "cluster_environment", "parallel_devices", "precision_plugin"}


def check_options(strategy: Any, algorithm: object, names: Iterable[str]) -> None:
    """Refuse an option that neither the strategy nor the algorithm has; the message lists those that there are.

    Args:
        strategy: Of ours.
        algorithm: What it was given. Of one that is not the name of a recipe the options are not known.
        names: Those that are not among the strategy's own.

    Raises:
        TypeError: If there is no such option.
    """
    recipe = algorithms.get(algorithm) if isinstance(algorithm, str) else None
    if isinstance(recipe, Recipe):
        check_names(f"{type(strategy).__name__}({recipe.name!r})", names, option_names(type(strategy), recipe.options))


def option_names(strategy: type[Any], of_algorithm: Iterable[str] | None = None) -> list[str]:
    """The options of a strategy that users give, those of its algorithm first.

    Args:
        strategy: A class of ours.
        of_algorithm: The algorithm's; ``None`` for those of the evolution-strategy family.
    """
    family = [name for name in inspect.signature(EvolutionStrategy).parameters if name != "name"]
    classes = [cls for cls in strategy.__mro__ if cls.__module__.startswith("lightning_evo.")]
    own = [name for cls in (*classes, Evolution) if "__init__" in vars(cls) for name in _parameters(cls)]
    elsewhere = {*_SET_BY_LIGHTNING, *family}
    names = [*(family if of_algorithm is None else of_algorithm), *(name for name in own if name not in elsewhere)]
    return list(dict.fromkeys(names))


def _parameters(cls: Any) -> list[str]:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]


def about_strategy(name: str, names: Iterable[str], package: str) -> str:
    """What ``Trainer(strategy=name)`` may have meant; empty if it does not look like one of ours.

    Args:
        name: What no strategy is called.
        names: What strategies are called, Lightning's own, too.
        package: ``"lightning.pytorch"`` or ``"pytorch_lightning"``.

    Example:
        >>> about_strategy("evoo", ["ddp", "evo"], "lightning.pytorch")
        "Did you mean 'evo'?"
        >>> about_strategy("dpp", ["ddp", "evo"], "lightning.pytorch")
        ''
    """
    hint = did_you_mean(name, names).strip()
    if "'evo" in hint:
        return hint
    home = "lightning_evo" if package == "lightning.pytorch" else "lightning_evo.pytorch_lightning"
    algorithm = meant(name, algorithms.available())
    if algorithm is None and not hint:
        near = did_you_mean(name, algorithms.available())
        algorithm = next((known for known in algorithms.available() if repr(known) in near), None)
    if algorithm is None:
        return ""
    return (
        f"{algorithm!r} is an algorithm of evolution. Use Trainer(strategy=EvoStrategy({algorithm!r})), with `from "
        f"{home} import EvoStrategy`. The name 'evo' alone takes the default algorithm."
    )
