"""Keeps members from seeing, or leaving, traces of each other.

While members are evaluated nothing is logged, and every member starts from the same random numbers, buffers
(BatchNorm's statistics), metric states, attributes and train or eval modes. Afterwards all of them are as they were
before the first. Not covered: what a member writes into an array, an object of another class, or a tensor of more than
65,536 elements that an attribute holds (a data set, most likely). Register such tensors as buffers.
"""

from __future__ import annotations

import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Isolation", "RandomState"]

_INTERNAL = frozenset(vars(nn.Module()))  # the dictionaries of parameters, buffers, submodules and hooks
_SMALL = 1 << 16  # elements of a tensor in an attribute that is worth a copy per generation, in case it is a counter


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

    def state_dict(self) -> dict[str, Tensor]:
        """The states as tensors, for checkpoints."""
        return {name: _to_tensor(name, state) for name, state in self._states.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take over, and set, the saved state of every generator that exists here, too."""
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
        generators["numpy"] = (numpy.random.get_state, numpy.random.set_state)
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
    """Python's state is (3, 625 integers, a number or None); NumPy's ("MT19937", 624 integers, position, 0 or 1, x)."""
    if name == "python":
        return torch.tensor([*state[1], math.nan if state[2] is None else state[2]], dtype=torch.float64)
    if name == "numpy":
        return torch.tensor([*state[1].tolist(), *state[2:]], dtype=torch.float64)
    return state.cpu()  # type: ignore[no-any-return]


def _from_tensor(name: str, saved: Tensor) -> Any:
    if name == "python":
        *numbers, gauss = saved.tolist()
        return (3, tuple(map(int, numbers)), None if math.isnan(gauss) else gauss)
    if name == "numpy":
        *numbers, position, has_gauss, gauss = saved.tolist()
        return ("MT19937", list(map(int, numbers)), int(position), int(has_gauss), gauss)
    return saved.cpu()


class Isolation:
    """A context in which members leave no traces.

    Args:
        module: The user's module.
        device: Where it computes.

    Example:
        >>> module = nn.BatchNorm1d(3)
        >>> with Isolation(module, torch.device("cpu")) as isolation:
        ...     for _ in range(5):
        ...         isolation.start_member()
        ...         _ = module(torch.randn(8, 3))
        >>> module.num_batches_tracked
        tensor(0)
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module = module
        self._device = device

    def __enter__(self) -> Isolation:
        modules = list(self._module.modules())
        metric = _metric_class()
        self._silenced: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (vars(m), {name: vars(m)[name] for name in ("log", "log_dict") if name in vars(m)})
            for m in modules
            if callable(getattr(type(m), "log_dict", None))
        ]
        for dictionary, _ in self._silenced:
            dictionary["log"] = dictionary["log_dict"] = _silent
        self._random = RandomState(self._device)
        self._modes = [(module, module.training) for module in modules]
        self._buffers = _Buffers(modules)
        self._attributes = [
            _MetricState(m) if metric and isinstance(m, metric) else _Attributes(m)
            for m in modules
            if not type(m).__module__.startswith("torch.")  # torch's own modules keep their state in buffers
        ]
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._module.parameters()}
        self._tensors = _Tensors(
            tensor
            for attributes in self._attributes
            for tensor in attributes.tensors()
            if tensor.numel() <= _SMALL and tensor.untyped_storage().data_ptr() not in weights
        )
        return self

    def start_member(self) -> None:
        """Put everything back to where it was when the context was entered."""
        self._random.restore()
        self._buffers.restore()
        self._tensors.restore()
        for module, mode in self._modes:
            if module.training != mode:
                module.training = mode
        for attributes in self._attributes:
            attributes.restore()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.start_member()
        for attributes in self._attributes:
            attributes.release()
        for dictionary, own in self._silenced:
            del dictionary["log"], dictionary["log_dict"]
            dictionary.update(own)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``log`` and ``log_dict`` while members run."""


def _metric_class() -> type | None:
    torchmetrics = sys.modules.get("torchmetrics")
    return None if torchmetrics is None else torchmetrics.Metric


class _Buffers:
    """The buffers of all modules: which tensors they are, and what these hold.

    They are always copied back. A tensor's version can't tell whether it was written to: neither BatchNorm's kernels
    nor writes through ``.data`` count it up.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._registries = [(module._buffers, module._buffers.copy()) for module in modules]
        self._tensors = _Tensors(b for _, buffers in self._registries for b in buffers.values() if b is not None)

    def restore(self) -> None:
        for registry, buffers in self._registries:
            if registry or buffers:
                _refill(registry, buffers)
        self._tensors.restore()


class _Tensors:
    """What some tensors hold."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        different = {id(tensor): tensor for tensor in tensors}
        self._tensors = [tensor for tensor in different.values() if not _is_expanded(tensor)]
        self._copies = [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def restore(self) -> None:
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._copies)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether several elements share one place in memory; such tensors can't be written to."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


class _Attributes:
    """A module's plain attributes: which objects they are, and what lists, dictionaries and sets in them hold."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = {name: value for name, value in vars(module).items() if name not in _INTERNAL}
        self._contents = _containers(self._values.values())

    def tensors(self) -> list[Tensor]:
        """Plain tensors that attributes hold, in containers, too."""
        inside = (item for _, copy in self._contents for item in (copy.values() if isinstance(copy, dict) else copy))
        return [value for value in (*self._values.values(), *inside) if type(value) is Tensor and not value.is_sparse]

    def restore(self) -> None:
        current = vars(self._module)
        for name in [name for name in current if name not in _INTERNAL and name not in self._values]:
            del current[name]
        current.update(self._values)
        for container, content in self._contents:
            _refill(container, content)

    def release(self) -> None:
        """Nothing to do once members are finished."""


def _containers(values: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Every list, dictionary, set and deque among ``values`` and within each other, with a shallow copy."""
    found: dict[int, tuple[Any, Any]] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | dict | set | deque):
            if id(value) in found:
                continue
            found[id(value)] = (value, value.copy())
        elif not isinstance(value, tuple):
            continue
        waiting.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values())


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, deque):
        container.clear()
        container.extend(content)
    else:
        container.clear()
        container.update(content)


class _MetricState(_Attributes):
    """A torchmetrics metric: members work on copies of its state, the state itself is never touched."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        names: Any = module._defaults
        self._states = {name: self._values[name] for name in names}
        self._contents = [(value, copy) for value, copy in self._contents if not self._is_state(value)]

    def tensors(self) -> list[Tensor]:
        return []  # its states are replaced, not written to

    def _is_state(self, value: object) -> bool:
        return any(value is state for state in self._states.values())

    def restore(self) -> None:
        super().restore()
        vars(self._module).update(
            {name: list(s) if isinstance(s, list) else s.detach().clone() for name, s in self._states.items()}
        )

    def release(self) -> None:
        """Hand the metric its own state back."""
        vars(self._module).update(self._states)
