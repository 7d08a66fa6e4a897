"""Which samples of a batch a generation looks at, where it wants only some."""

from __future__ import annotations

from typing import Any

from lightning_evo.algorithms import Algorithm, State
from lightning_evo.evaluation import batches
from lightning_evo.noise.philox import NoiseKey, Stream
from lightning_evo.noise.values import draw

__all__ = ["wanted_samples"]


def wanted_samples(
    batch: Any, algorithm: Algorithm[Any], state: State, seen: float, processes: int
) -> tuple[Any, float]:
    """The part of a batch that a generation still wants, and what it weighs in the mean.

    Args:
        batch: The next one.
        algorithm: Its ``samples_per_generation`` are wanted; with ``None`` all are.
        state: Before the generation.
        seen: What the batches before weigh in the mean; with the option a batch weighs as much as it has samples.
        processes: How many have batches of their own for the same members.
    """
    wanted = algorithm.samples_per_generation
    if wanted is None:
        return batch, 1.0
    total = batches.count(batch)
    chosen = min(total, -(-(wanted - int(seen)) // processes))
    if 0 < chosen < total:
        key = NoiseKey(state.seed, state.generation, Stream.SUBSET)
        uniform = draw(key, [int(seen)], 0, 0, total, distribution="uniform")[0]  # each batch's own: `seen` differs
        batch = batches.choose(batch, batches.random_samples(total, chosen, uniform))
    return batch, float(chosen)
