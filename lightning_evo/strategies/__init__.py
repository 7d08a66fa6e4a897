"""Lightning strategies that evolve.

Lightning exists under two names whose classes don't mix, so each strategy is made once per namespace from one mixin.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from lightning_evo.strategies._compat import Namespace, parent_strategy
from lightning_evo.strategies.single_device import SingleDeviceEvoMixin

__all__ = ["strategy_class"]

_STRATEGIES: dict[str, tuple[type, str]] = {  # our name: the mixin, and the strategy of Lightning that it extends
    "EvoStrategy": (SingleDeviceEvoMixin, "SingleDeviceStrategy"),
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
    mixin, parent = _STRATEGIES[name]
    body = {"__doc__": mixin.__doc__, "__module__": _HOME[namespace]}
    return type(name, (mixin, parent_strategy(namespace, parent)), body)
