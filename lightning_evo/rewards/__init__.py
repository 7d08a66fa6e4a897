"""Language models that learn from rewards: reward functions, the workers that they run in, prompts and the module.

Workers import this package, so names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_evo.rewards.calling import Call, TrainerState
    from lightning_evo.rewards.functions import RewardError, RewardFunctions, Scored

__all__ = ["Call", "RewardError", "RewardFunctions", "Scored", "TrainerState"]

_HOME = {
    "Call": "calling",
    "RewardError": "functions",
    "RewardFunctions": "functions",
    "Scored": "functions",
    "TrainerState": "calling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
