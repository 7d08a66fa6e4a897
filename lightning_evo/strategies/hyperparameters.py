"""The options of a run among its loggers' hyperparameters, so that runs can be told apart.

Lightning gives a module's hyperparameters to each logger once, and TensorBoard shows no more than a run's first ones.
So ours travel with the first that a logger is given, by Lightning or by the user; or alone, if there were none by the
first training step. Their names begin with ``evo/``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning_evo.algorithms import Schedule, UpdateName
from lightning_evo.generation.evolution import Evolution
from lightning_evo.journal import describe_algorithm
from lightning_evo.journal.code import name_of_code
from lightning_evo.strategies.start import in_words

__all__ = ["Hyperparameters", "hyperparameters"]


def hyperparameters(
    evolution: Evolution,
    update: UpdateName,
    optimizers: Sequence[Any] = (),
    *,
    resumed: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """All options of a run as plain values, those of its algorithm with their defaults.

    Args:
        evolution: Set up.
        update: Who moves the weights.
        optimizers: Whose learning rates count.
        resumed: Whether a checkpoint will say what the seed is, if none was given.
        **others: Further options; those that are ``None`` are left out.

    Example:
        >>> found = hyperparameters(Evolution("mezo", seed=1), "in_place")
        >>> found["evo/algorithm"], found["evo/sigma"], found["evo/learning_rate"], found["evo/seed"]
        ('mezo', 0.001, 1e-06, 1)
    """
    algorithm = evolution.algorithm
    described = describe_algorithm(algorithm)
    options = {name: getattr(algorithm, name) for name in described if name not in ("class", "name")}
    values: dict[str, Any] = {"algorithm": algorithm.name, "population": None, "sigma": evolution.sigma}
    values |= {**options, "update": update}
    if values["population"] is None and evolution.is_set_up:  # the dimension says it
        values["population"] = algorithm.current_population(evolution.state)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if groups and not algorithm.owns_center:
        rates = list(dict.fromkeys(float(group.get("initial_lr", group["lr"])) for group in groups))
        values["learning_rate"] = rates[0] if len(rates) == 1 else ", ".join(f"{rate:g}" for rate in rates)
        values["optimizer"] = type(optimizers[0]).__name__
    if evolution.start is not None:
        values |= {"anchor": evolution.start.anchor.strength, "anchor_by": evolution.start.anchor.by}
    seed = evolution.seed if evolution.seed is not None else None if resumed else evolution.state.seed
    values |= {"evaluation": evolution.evaluation.name, "seed": seed, **others}
    return {f"evo/{name}": _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return in_words(value) if isinstance(value, Schedule) else name_of_code(value)


class Hyperparameters:
    """Gives each logger of a fit some hyperparameters in addition to its first ones.

    Args:
        loggers: The Trainer's.
        values: Gives them; called when a logger is given its first ones.
    """

    def __init__(self, loggers: Iterable[Any], values: Callable[[], dict[str, Any]]) -> None:
        self._values = values
        self._waiting = [logger for logger in loggers if hasattr(logger, "__dict__")]
        for logger in self._waiting:
            self._join(logger)

    def _join(self, logger: Any) -> None:
        def log_hyperparams(params: Any = None, *args: Any, **kwargs: Any) -> Any:
            self._leave(logger)
            return logger.log_hyperparams(_joined(params, self._values()), *args, **kwargs)

        vars(logger)["log_hyperparams"] = log_hyperparams

    def _leave(self, logger: Any) -> None:
        if logger in self._waiting:
            self._waiting.remove(logger)
            vars(logger).pop("log_hyperparams", None)

    def flush(self) -> None:
        """Log them to the loggers that were given none."""
        for logger in list(self._waiting):
            self._leave(logger)
            logger.log_hyperparams(self._values())

    def forget(self) -> None:
        """Leave the loggers as they were."""
        for logger in list(self._waiting):
            self._leave(logger)


def _joined(params: Any, ours: dict[str, Any]) -> Any:
    if isinstance(params, Namespace):
        params = vars(params)
    if params is None:
        return ours
    return {**ours, **params} if isinstance(params, Mapping) else params
