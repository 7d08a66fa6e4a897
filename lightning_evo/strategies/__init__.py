"""Lightning strategies that evolve.

Lightning exists under two names whose classes don't mix, so each strategy is made once per namespace from one mixin.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from lightning_evo.strategies._compat import Namespace, parent_strategy

__all__ = ["strategy_class"]

_STRATEGIES = {  # our name: the home of the mixin, the mixin, and the strategy of Lightning that it extends
    "EvoStrategy": ("single_device", "SingleDeviceEvoMixin", "SingleDeviceStrategy"),
    "EvoDDPStrategy": ("ddp", "DDPEvoMixin", "DDPStrategy"),
    "EvoFSDPStrategy": ("fsdp", "FSDPEvoMixin", "ModelParallelStrategy"),
    "EvoDeepSpeedStrategy": ("deepspeed", "DeepSpeedEvoMixin", "DeepSpeedStrategy"),
}
_HOME = {"lightning.pytorch": "lightning_evo", "pytorch_lightning": "lightning_evo.pytorch_lightning"}


@cache
def strategy_class(name: str, namespace: Namespace) -> type[Any]:
    """The strategy of that name for ``lightning.pytorch`` or ``pytorch_lightning``; the same class every time.

    Raises:
        KeyError: If there is no such strategy or namespace.

    Example:
        >>> from lightning.pytorch.strategies import SingleDeviceStrategy
        >>> issubclass(strategy_class("EvoStrategy", "lightning.pytorch"), SingleDeviceStrategy)
        True
    """
    home, mixin_name, parent = _STRATEGIES[name]
    mixin = getattr(importlib.import_module(f"{__name__}.{home}"), mixin_name)
    body = {"__doc__": mixin.__doc__, "__module__": _HOME[namespace]}
    return type(name, (mixin, parent_strategy(namespace, parent)), body)
