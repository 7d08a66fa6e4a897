"""``strategy="evo"``: the whole population on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_evo.strategies._evolution import EvoStrategyMixin

__all__ = ["SingleDeviceEvoMixin"]


class SingleDeviceEvoMixin(EvoStrategyMixin):  # noqa: D101
    __doc__ = EvoStrategyMixin.__doc__

    strategy_name = "evo"
    _root_device: Any

    @property
    def parallel_devices(self) -> None:
        """Where the Trainer leaves the devices that it chose; always empty, so that every Trainer does.

        Without this property Lightning would leave a single-device strategy that it knows by name on the CPU.
        """

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device]) -> None:
        if len(devices) > 1:
            raise ValueError(
                f"strategy='evo' runs on one device, but {len(devices)} were chosen: {', '.join(map(str, devices))}. "
                "Use strategy='evo_ddp', whose processes share the population, or Trainer(devices=1)."
            )
        self._root_device = torch.device(devices[0])
