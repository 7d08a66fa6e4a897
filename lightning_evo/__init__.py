"""Train any LightningModule by evolution instead of backpropagation: ``Trainer(strategy="evo")``.

Importing this package registers its strategies with Lightning, and imports neither Lightning nor torch: names are
loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import lightning_evo_autoload

if TYPE_CHECKING:
    from lightning.pytorch.strategies import (
        DDPStrategy,
        DeepSpeedStrategy,
        ModelParallelStrategy,
        SingleDeviceStrategy,
    )

    from lightning_evo.algorithms import EvolutionStrategy, Schedule
    from lightning_evo.evaluation.fitness import Fitness
    from lightning_evo.evaluation.sharing import members_in_batch
    from lightning_evo.generation.anchor import Anchor
    from lightning_evo.generation.evolution import Evolution
    from lightning_evo.isolation import shared
    from lightning_evo.module import EvolutionMixin
    from lightning_evo.spaces.search_space import SearchSpace
    from lightning_evo.strategies.ddp import DDPEvoMixin
    from lightning_evo.strategies.deepspeed import DeepSpeedEvoMixin
    from lightning_evo.strategies.fsdp import FSDPEvoMixin
    from lightning_evo.strategies.single_device import SingleDeviceEvoMixin

    class EvoDDPStrategy(DDPEvoMixin, DDPStrategy):
        """What ``strategy_class`` makes."""

    class EvoDeepSpeedStrategy(DeepSpeedEvoMixin, DeepSpeedStrategy):
        """What ``strategy_class`` makes."""

    class EvoFSDPStrategy(FSDPEvoMixin, ModelParallelStrategy):
        """What ``strategy_class`` makes."""

    class EvoStrategy(SingleDeviceEvoMixin, SingleDeviceStrategy):
        """What ``strategy_class`` makes."""


__version__ = "0.1.0.dev0"

__all__ = [
    "Anchor",
    "EvoDDPStrategy",
    "EvoDeepSpeedStrategy",
    "EvoFSDPStrategy",
    "EvoStrategy",
    "Evolution",
    "EvolutionMixin",
    "EvolutionStrategy",
    "Fitness",
    "Schedule",
    "SearchSpace",
    "algorithms",
    "members_in_batch",
    "shared",
]

_STRATEGIES = ("EvoDDPStrategy", "EvoDeepSpeedStrategy", "EvoFSDPStrategy", "EvoStrategy")
_HOME = {
    "Anchor": "generation.anchor",
    "Evolution": "generation.evolution",
    "EvolutionMixin": "module",
    "EvolutionStrategy": "algorithms",
    "Fitness": "evaluation.fitness",
    "Schedule": "algorithms",
    "SearchSpace": "spaces",
    "members_in_batch": "evaluation.sharing",
    "shared": "isolation",
}


def __getattr__(name: str) -> Any:
    if name in _STRATEGIES:
        value = importlib.import_module("lightning_evo.strategies").strategy_class(name, "lightning.pytorch")
    elif name == "algorithms":
        value = importlib.import_module("lightning_evo.algorithms")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"lightning_evo.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


lightning_evo_autoload.install()
