"""Language models that learn from rewards: reward functions, the workers that they run in, prompts and the module.

Workers import this package, so names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_evo.rewards.calling import Call, TrainerState
    from lightning_evo.rewards.data import PromptData
    from lightning_evo.rewards.functions import RewardError, RewardFunctions, Scored
    from lightning_evo.rewards.models import RewardModel
    from lightning_evo.rewards.module import RewardModule

__all__ = [
    "Call",
    "PromptData",
    "RewardError",
    "RewardFunctions",
    "RewardModel",
    "RewardModule",
    "Scored",
    "TrainerState",
]

_HOME = {
    "Call": "calling",
    "PromptData": "data",
    "RewardError": "functions",
    "RewardFunctions": "functions",
    "RewardModel": "models",
    "RewardModule": "module",
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
