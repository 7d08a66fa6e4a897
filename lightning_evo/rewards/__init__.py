"""Language models that learn from rewards: reward functions, the workers that they run in, prompts and the module.

Workers import this package, so names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_evo.rewards.calling import Call, TrainerState
    from lightning_evo.rewards.classifier import ClassifierReward
    from lightning_evo.rewards.data import PromptDataMixin
    from lightning_evo.rewards.functions import RewardError, RewardFunctions, Scored
    from lightning_evo.rewards.module import RewardModuleMixin

    class PromptData(PromptDataMixin):
        """What ``lightning_class`` makes."""

    class RewardModule(RewardModuleMixin):
        """What ``lightning_class`` makes."""


__all__ = [
    "Call",
    "ClassifierReward",
    "PromptData",
    "RewardError",
    "RewardFunctions",
    "RewardModule",
    "Scored",
    "TrainerState",
    "lightning_class",
]

_HOME = {
    "Call": "calling",
    "ClassifierReward": "classifier",
    "RewardError": "functions",
    "RewardFunctions": "functions",
    "Scored": "functions",
    "TrainerState": "calling",
}
_OF_LIGHTNING = {  # our name: the home of the mixin, the mixin, and the class of Lightning's that it extends
    "PromptData": ("data", "PromptDataMixin", "LightningDataModule"),
    "RewardModule": ("module", "RewardModuleMixin", "LightningModule"),
}


@cache
def lightning_class(name: str, package: str) -> type[Any]:
    """The class of that name for ``lightning.pytorch`` or ``pytorch_lightning``, whose classes don't mix.

    Args:
        name: ``"PromptData"`` or ``"RewardModule"``.
        package: Of Lightning.

    Raises:
        KeyError: If there is no such class.

    Example:
        >>> import pytorch_lightning as pl
        >>> issubclass(lightning_class("PromptData", "pytorch_lightning"), pl.LightningDataModule)
        True
    """
    home, mixin_name, parent = _OF_LIGHTNING[name]
    mixin = getattr(importlib.import_module(f"{__name__}.{home}"), mixin_name)
    # Where it is found again when an object of it is unpickled.
    found_in = __name__ if package == "lightning.pytorch" else f"lightning_evo.{package}"
    body = {"__doc__": mixin.__doc__, "__module__": found_in}
    return type(name, (mixin, getattr(importlib.import_module(package), parent)), body)


def __getattr__(name: str) -> Any:
    if name in _OF_LIGHTNING:
        value = lightning_class(name, "lightning.pytorch")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
