"""``strategy="evo"``: the whole population on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_evo.strategies._evolution import EvolutionStrategyMixin

__all__ = ["SingleDeviceEvolutionMixin"]


class SingleDeviceEvolutionMixin(EvolutionStrategyMixin):  # noqa: D101
    __doc__ = EvolutionStrategyMixin.__doc__

    strategy_name = "evo"
    _parallel_devices: Sequence[torch.device] | None = None
    _root_device: Any

    @property
    def parallel_devices(self) -> Sequence[torch.device] | None:
        """The device that the Trainer chose, as a list of one.

        Without this property Lightning would leave a single-device strategy that it knows by name on the CPU.
        """
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device]) -> None:
        if len(devices) > 1:
            raise ValueError(
                f"strategy='evo' runs on one device, but {len(devices)} were chosen: {', '.join(map(str, devices))}. "
                "Use Trainer(devices=1, strategy='evo')."
            )
        self._parallel_devices = devices
        self._root_device = torch.device(devices[0])
