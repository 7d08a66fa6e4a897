"""Strategies and rewards for code that imports ``pytorch_lightning`` instead of ``lightning.pytorch``.

Example:
    >>> import pytorch_lightning as pl
    >>> from lightning_evo.pytorch_lightning import EvoStrategy
    >>> trainer = pl.Trainer(strategy=EvoStrategy("mezo"), logger=False, enable_checkpointing=False)
"""

from lightning_evo.rewards import lightning_class
from lightning_evo.strategies import strategy_class

__all__ = ["EvoDDPStrategy", "EvoDeepSpeedStrategy", "EvoFSDPStrategy", "EvoStrategy", "PromptData", "RewardModule"]

EvoDDPStrategy = strategy_class("EvoDDPStrategy", "pytorch_lightning")
EvoDeepSpeedStrategy = strategy_class("EvoDeepSpeedStrategy", "pytorch_lightning")
EvoFSDPStrategy = strategy_class("EvoFSDPStrategy", "pytorch_lightning")
EvoStrategy = strategy_class("EvoStrategy", "pytorch_lightning")

PromptData = lightning_class("PromptData", "pytorch_lightning")
RewardModule = lightning_class("RewardModule", "pytorch_lightning")
