"""One line at the start of a fit: what is optimised, what evolves, how, and who moves the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_evo.algorithms import Schedule, UpdateName
from lightning_evo.generation.evolution import Evolution
from lightning_evo.generation.step import maximizes
from lightning_evo.processes.ranks import Ranks
from lightning_evo.utils.messages import preview

__all__ = ["announce", "in_words", "start_line"]


def announce(*args: Any, **kwargs: Any) -> None:
    """Show :func:`start_line` on process 0; takes its arguments."""
    rank_zero_info(start_line(*args, **kwargs))


def start_line(
    module: Any, evolution: Evolution, optimizers: Sequence[Any], update: UpdateName, *, by_loss: bool = False
) -> str:
    """What a run optimises and how, in one line.

    Args:
        module: The user's.
        evolution: Set up.
        optimizers: Those that step, or whose learning rates count.
        update: Who moves the weights.
        by_loss: Whether fitness is what ``training_step`` returns.
    """
    algorithm, space = evolution.algorithm, evolution.space
    goal = "what fitness_step returns, maximised"
    if by_loss:
        goal = "what training_step returns, maximised" if maximizes(optimizers) else "minus the loss of training_step"
    by_hand = evolution.state.sigma is not None
    sigma = evolution.sigma if by_hand else getattr(algorithm, "sigma", evolution.sigma)
    parts = [
        f"evolution of {type(module).__name__}: fitness is {goal}",
        f"{_counted(space.numel, 'element')} in {_counted(len(space), 'tensor')}",
        f"{algorithm.name}, population {algorithm.current_population(evolution.state):,}, sigma {in_words(sigma)}",
        _who_moves(evolution, optimizers, update),
        *([] if evolution.start is None else [f"anchored to the starting weights, strength {evolution.start.anchor}"]),
        *_division(evolution.ranks),
    ]
    if evolution.state.generation:
        parts.append(f"goes on at generation {evolution.state.generation:,}")
    return "; ".join(parts)


def _who_moves(evolution: Evolution, optimizers: Sequence[Any], update: UpdateName) -> str:
    algorithm = evolution.algorithm
    if algorithm.owns_center:
        return f"{algorithm.name} moves the weights itself, without a learning rate"
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if not groups:
        rate = in_words(getattr(algorithm, "learning_rate", "of the algorithm"))
        own = "" if evolution.learning_rate_was_given else f" ({algorithm.name}'s own)"
        return f"the update moves the weights in place, learning rate {rate}{own}"
    rates = list(dict.fromkeys("None" if group["lr"] is None else in_words(float(group["lr"])) for group in groups))
    rate = f"learning rate{'s' if len(rates) > 1 else ''} {preview(rates, 4)}"
    scheduled = ", scheduled" if any("initial_lr" in group for group in groups) else ""
    name = type(optimizers[0]).__name__
    if update == "in_place":
        return f"the update moves the weights in place, {rate} of {name}{scheduled}"
    return f"{name} moves the weights, {rate}{scheduled}"


def _division(ranks: Ranks) -> list[str]:
    if ranks.world_size == 1:
        return []
    if ranks.data == 1:
        return [f"{ranks.groups} processes divide the members"]
    if ranks.groups == 1:
        return [f"{ranks.data} processes divide the data"]
    return [f"{ranks.world_size} processes in {ranks.groups} groups, which divide the members, each group the data"]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def in_words(value: Any) -> str:
    """A number or a schedule as a line shows it.

    Example:
        >>> in_words(Schedule("cosine", start=0.05, end=0.005, generations=1000)), in_words(1e-3)
        ('0.05 to 0.005 (cosine, 1,000 generations)', '0.001')
    """
    if isinstance(value, Schedule):
        return f"{value.start:g} to {value.end:g} ({value.kind}, {value.generations:,} generations)"
    return f"{value:g}" if isinstance(value, float) else str(value)
