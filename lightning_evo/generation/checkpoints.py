"""What a checkpoint says of the algorithm's state, taken over by another run; and what stops it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_evo.algorithms import Algorithm, State

__all__ = ["CHECKPOINT_KEY", "resumed_state"]

CHECKPOINT_KEY = "lightning_evo"
"""Where a checkpoint keeps :meth:`Evolution.state_dict <lightning_evo.Evolution.state_dict>`."""

_LOAD_WEIGHTS = (
    "load only the weights (for example `MyModule.load_from_checkpoint(path)`) to start a new run from them."
)


def resumed_state(algorithm: Algorithm[Any], saved: Mapping[str, Any], seed: int | None) -> State:
    """The state that a run goes on with.

    Args:
        algorithm: This run's.
        saved: From :meth:`Evolution.state_dict <lightning_evo.Evolution.state_dict>`.
        seed: Of the noise, if one was given to this run; with another one than the checkpoint's it warns.

    Raises:
        ValueError: If another algorithm or version wrote it.
    """
    if saved["algorithm"] != algorithm.name:
        raise ValueError(
            f"This checkpoint was written by the algorithm {saved['algorithm']!r}, but this run uses "
            f"{algorithm.name!r}. Use the same algorithm to resume, or {_LOAD_WEIGHTS}"
        )
    if "state" not in saved:
        raise ValueError(
            "This checkpoint was written by an older version of lightning-evo, which this one can't continue. "
            f"{_LOAD_WEIGHTS[0].upper()}{_LOAD_WEIGHTS[1:]}"
        )
    state: State = algorithm.State.from_state_dict(saved["state"])
    if seed is not None and seed & (1 << 64) - 1 != state.seed:
        warnings.warn(
            f"Resuming with seed={seed}; the checkpoint's run used {state.seed}. The noise will be different from an "
            "uninterrupted run's.",
            stacklevel=3,
        )
        state = replace(state, seed=seed & (1 << 64) - 1)
    return state
