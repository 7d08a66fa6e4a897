"""The methods of a module that training by evolution runs: ``fitness_step``, ``training_step`` or both.

With a ``fitness_step`` alone the center's run of it is the step's output; what it logs there is heard. With both,
members run ``fitness_step`` and the center ``training_step``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_evo.algorithms import Algorithm, UpdateName
from lightning_evo.evaluation.fitness import as_record
from lightning_evo.strategies import _compat

__all__ = ["check_methods", "has_fitness_step", "has_training_step", "nearly_fitness_steps", "output_of"]

_FITNESS = ("fitness", "reward", "objective", "score")
_COMPANIONS = {  # words that make of "fitness" the name of a method that says how good a member is
    "", "batch", "calc", "calculate", "compute", "eval", "evaluate", "evaluation", "evo", "fn", "func", "function",
    "get", "member", "method", "of", "on", "step", "train", "training",
}  # fmt: skip


def has_fitness_step(module: Any) -> bool:
    """Whether a module says by ``fitness_step`` how good it is."""
    return getattr(module, "fitness_step", None) is not None


def has_training_step(module: Any) -> bool:
    """Whether a module has a ``training_step``, which is then the one that the center runs."""
    return _compat.is_overridden("training_step", module)


def check_methods(module: Any, algorithm: Algorithm[Any], update: UpdateName) -> None:
    """Refuse a module that can't be run, ask about names that are nearly right, and stand in for what is not needed.

    Args:
        module: A LightningModule, optimized automatically, before Lightning's own checks.
        algorithm: What evolves it.
        update: Who moves the weights.

    Raises:
        TypeError: If ``fitness_step`` can't be called with a batch.
        ValueError: If a method is missing; the message says which.
    """
    name = type(module).__name__
    if has_fitness_step(module):
        _check_fitness_step(module)
    else:
        nearly = list(nearly_fitness_steps(module))
        rename = (
            "If it says how good a member is (higher is better), rename it to `fitness_step(self, batch, batch_idx)`."
        )
        if nearly and has_training_step(module):
            rank_zero_warn(
                f"{name} has a method `{nearly[0]}`, which is not used: fitness is minus the loss of training_step. "
                f"{rename}"
            )
        elif not has_training_step(module):
            hint = f" It has a method `{nearly[0]}`. {rename}" if nearly else ""
            raise ValueError(
                f"{name} has neither `fitness_step(self, batch, batch_idx)`, which returns how good a member is, nor "
                f"`training_step(self, batch, batch_idx)`, which returns a loss. Write one of them.{hint}"
            )
    if not has_training_step(module):
        _compat.substitute_training_step(module)
    if not _compat.is_overridden("configure_optimizers", module):
        if update == "optimizer":
            raise ValueError(
                f"{name} has no `configure_optimizers`, and update='optimizer' needs an optimizer that moves the "
                "weights. Write it: `return torch.optim.Adam(self.parameters(), lr=1e-3)`; or let the update move them "
                f"itself: EvoStrategy({algorithm.name!r}, update='in_place', learning_rate=…)."
            )
        _compat.substitute_optimizer(module)


def _check_fitness_step(module: Any) -> None:
    fitness_step = module.fitness_step
    if not callable(fitness_step):
        raise TypeError(
            f"{type(module).__name__}.fitness_step is of type {type(fitness_step).__name__}. Make it a method: "
            "`def fitness_step(self, batch, batch_idx)`, which returns how good a member is."
        )
    signature = inspect.signature(fitness_step)
    if "dataloader_iter" in signature.parameters:
        raise ValueError(
            "fitness_step(dataloader_iter) can't evolve: every member would take another batch. Take `batch` instead."
        )
    for arguments in (("batch", "batch_idx"), ("batch",)):
        try:
            signature.bind(*arguments)
        except TypeError as error:
            problem = error
        else:
            return
    raise TypeError(
        f"{type(module).__name__}.fitness_step{signature} can't be called with a batch: {problem}. Write "
        "`def fitness_step(self, batch, batch_idx)`, or without `batch_idx`."
    )


def nearly_fitness_steps(module: Any) -> Iterator[str]:
    """Names of methods that are nearly ``fitness_step`` and that no other method of the module uses.

    Example:
        >>> class Model:
        ...     def fitnes_step(self, batch): ...
        ...     def score(self): ...
        ...     def report(self):
        ...         return self.score()
        >>> list(nearly_fitness_steps(Model()))
        ['fitnes_step']
    """
    own = [cls for cls in type(module).__mro__ if not cls.__module__.startswith(_LIBRARIES)]
    found = {name: value for cls in reversed(own) for name, value in vars(cls).items()}
    methods = {name: value for name, value in found.items() if inspect.isfunction(value) and name != "fitness_step"}
    used = {word for method in methods.values() for word in _names_in(method.__code__)}
    return (name for name in methods if name not in used and _is_nearly_fitness_step(name))


_LIBRARIES = (
    "builtins",
    "torch.",
    "lightning.",
    "pytorch_lightning.",
    "lightning_evo.module",
    "lightning_fabric.",
    "abc",
)


def _names_in(code: Any) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names_in(constant)


def _is_nearly_fitness_step(name: str) -> bool:
    if name.startswith("__"):
        return False
    words = name.strip("_").lower().split("_")
    if "".join(words) in ("fitnessstep", "stepfitness") or SequenceMatcher(None, name, "fitness_step").ratio() > 0.85:
        return True
    subjects = [word for word in words if SequenceMatcher(None, word, "fitness").ratio() > 0.9]
    if subjects:
        return all(word in _COMPANIONS for word in words if word not in subjects)
    return len(words) == 2 and words[0] in _FITNESS and words[1] == "step"


def output_of(value: Any, device: torch.device) -> dict[str, Tensor]:
    """A step's output from what the center's ``fitness_step`` gave: minus the fitness as loss, and the fitness.

    Args:
        value: A number, one value per sample, or a :class:`~lightning_evo.Fitness`.
        device: Where the output lies: that of the module.

    Returns:
        ``{"loss": …, "fitness": …}``, 0-dimensional, float32.

    Example:
        >>> output_of([0.0, 1.0], torch.device("cpu"))
        {'loss': tensor(-0.5000), 'fitness': tensor(0.5000)}
    """
    record = as_record(value)
    fitness = (record[0] if record.dim() else record).to(device, torch.float32)
    return {"loss": -fitness, "fitness": fitness}
