"""The state of all global random number generators, to restore, save and send."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["RandomState"]


class RandomState:
    """The state of every global random number generator: torch (CPU and one accelerator), NumPy and Python.

    Args:
        device: Its generator is included, if it is an accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self._generators = _generators(device)
        self._states = {name: get() for name, (get, _) in self._generators.items()}

    def restore(self) -> None:
        """Set all generators back to this state."""
        for name, (_, set_state) in self._generators.items():
            set_state(self._states[name])

    def branch(self) -> None:
        """Draw from now on other numbers than those that this state goes on with, and others at each call."""
        seed = int(torch.randint(1 << 32, ()))
        self._states["torch"] = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        if self._has_mersenne_twister:  # NumPy can seed no other global generator
            sys.modules["numpy"].random.seed(seed)
        for name in self._generators.keys() & {"cuda", "xpu", "mps"}:
            getattr(torch, name).manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        """The states as tensors, for checkpoints; without NumPy's if it was given another kind of generator."""
        states = {name: state for name, state in self._states.items() if name != "numpy" or self._has_mersenne_twister}
        return {name: _to_tensor(name, state) for name, state in states.items()}

    @property
    def _has_mersenne_twister(self) -> bool:
        return bool(self._states.get("numpy", {}).get("bit_generator") == "MT19937")

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Set every generator that exists here, too, to its saved state."""
        for name in self._generators.keys() & saved.keys():
            self._states[name] = _from_tensor(name, saved[name])
        self.restore()


def _generators(device: torch.device) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    generators: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        "torch": (torch.get_rng_state, torch.set_rng_state),
        "python": (random.getstate, random.setstate),
    }
    numpy = sys.modules.get("numpy")
    if numpy:
        generators["numpy"] = (partial(numpy.random.get_state, legacy=False), numpy.random.set_state)
    if device.type in ("cuda", "xpu"):
        accelerator = getattr(torch, device.type)
        generators[device.type] = (
            partial(accelerator.get_rng_state, device),
            lambda state: accelerator.set_rng_state(state, device),
        )
    elif device.type == "mps":
        generators["mps"] = (torch.mps.get_rng_state, torch.mps.set_rng_state)
    return generators


def _to_tensor(name: str, state: Any) -> Tensor:
    """Python's state is (3, 625 integers, a number or None); NumPy's is a dictionary of dictionaries."""
    if name == "python":
        return torch.tensor([*state[1], math.nan if state[2] is None else state[2]], dtype=torch.float64)
    if name == "numpy":
        own = state["state"]
        numbers = [*own["key"].tolist(), own["pos"], state["has_gauss"], state["gauss"]]
        return torch.tensor(numbers, dtype=torch.float64)
    return state.cpu()  # type: ignore[no-any-return]


def _from_tensor(name: str, saved: Tensor) -> Any:
    if name == "python":
        *numbers, gauss = saved.tolist()
        return (3, tuple(map(int, numbers)), None if math.isnan(gauss) else gauss)
    if name == "numpy":
        *numbers, position, has_gauss, gauss = saved.tolist()
        state = {"key": list(map(int, numbers)), "pos": int(position)}
        return {"bit_generator": "MT19937", "state": state, "has_gauss": int(has_gauss), "gauss": gauss}
    return saved.cpu()
