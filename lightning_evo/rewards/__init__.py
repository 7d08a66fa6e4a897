"""Language models that learn from rewards: reward functions, prompts, and the module that generates.

Names are loaded when they are first used, so that processes that only judge don't load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_evo.rewards.data import PromptData
    from lightning_evo.rewards.functions import Call, RewardFunctions, Scored, TrainerState
    from lightning_evo.rewards.module import RewardModule

__all__ = ["Call", "PromptData", "RewardFunctions", "RewardModule", "Scored", "TrainerState"]

_HOME = {
    "Call": "functions",
    "PromptData": "data",
    "RewardFunctions": "functions",
    "RewardModule": "module",
    "Scored": "functions",
    "TrainerState": "functions",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
