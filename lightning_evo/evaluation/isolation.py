"""Keeps members from affecting each other and the run.

While members are evaluated nothing is logged, and every member starts from the same random numbers, buffers
(BatchNorm's statistics), metric states, attributes and train or eval modes. Afterwards all of them are as they were
before the first. Not covered: what a member writes into an array, an object of another class, a parameter that does
not evolve, or a tensor of more than 65,536 elements that an attribute holds (a data set, most likely). Register such
tensors as buffers. (What it writes into an evolving parameter: see :mod:`~lightning_evo.evaluation.center`.)
"""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evo.spaces.memory import extent
from lightning_evo.spaces.shards import is_sharded
from lightning_evo.utils.random_state import RandomState

__all__ = ["Contents", "Isolation", "version_of"]

_INTERNAL = frozenset(vars(nn.Module()))  # the dictionaries of parameters, buffers, submodules and hooks
_SMALL = 1 << 16  # elements of a tensor in an attribute that is worth a copy per generation, in case it is a counter


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
        self._silenced: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (vars(m), {name: vars(m)[name] for name in ("log", "log_dict") if name in vars(m)})
            for m in modules
            if callable(getattr(type(m), "log_dict", None))
        ]
        for dictionary, _ in self._silenced:
            dictionary["log"] = dictionary["log_dict"] = _silent
        try:
            self._take_snapshot(modules)
        except BaseException:
            self._unsilence()
            raise
        return self

    def _take_snapshot(self, modules: list[nn.Module]) -> None:
        metric = _metric_class()
        self._random = RandomState(self._device)
        self._modes = [(module, module.training) for module in modules]
        # A buffer that shares a weight's memory is part of the member, not of what it may leave behind.
        weights = _Memory(self._module.parameters())
        self._registries = _Registries(modules, weights)
        self._attributes = [
            _MetricState(m) if metric and isinstance(m, metric) else _Attributes(m)
            for m in modules
            if not _is_of_torch(m)  # torch's own modules keep their state in buffers
        ]
        self._tensors = Contents(
            tensor
            for attributes in self._attributes
            for tensor in attributes.tensors()
            if tensor.numel() <= _SMALL and tensor not in weights
        )

    def start_member(self) -> None:
        """Put everything back to where it was when the context was entered."""
        self._random.restore()
        self._registries.restore()
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
        self._unsilence()

    def _unsilence(self) -> None:
        for dictionary, own in self._silenced:
            del dictionary["log"], dictionary["log_dict"]
            dictionary.update(own)


def _is_of_torch(module: nn.Module) -> bool:
    # All of its classes: `fully_shard` gives a module a class of torch's, derived from the module's own.
    return all(cls.__module__.startswith("torch.") for cls in type(module).__mro__[:-1])


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``log`` and ``log_dict`` while members run."""


def _metric_class() -> type | None:
    torchmetrics = sys.modules.get("torchmetrics")
    return None if torchmetrics is None else torchmetrics.Metric


class _Registries:
    """The parameters, buffers and parts of all modules: which they are, and what buffers hold in memory of their own.

    What parameters hold is handled elsewhere, but a forward may put another one in a parameter's place, or add a part.
    """

    def __init__(self, modules: list[nn.Module], weights: _Memory) -> None:
        # TorchScript modules keep theirs to themselves.
        registries: list[Any] = [
            own for module in modules for own in (module._parameters, module._buffers, module._modules)
        ]
        self._registries = [(own, dict(own)) for own in registries if isinstance(own, dict)]
        buffers = (buffer for module in modules for _, buffer in module.named_buffers(recurse=False))
        # Always copied back. A tensor's version can't tell whether it was written to: neither BatchNorm's kernels nor
        # writes through `.data` count it up.
        own_memory = (buffer for buffer in buffers if _is_plain(buffer) and buffer not in weights)
        self._contents = Contents(own_memory, trust_versions=False)

    def restore(self) -> None:
        for registry, entries in self._registries:
            if not registry and not entries:  # as most are
                continue
            same = len(registry) == len(entries) and all(map(operator.is_, registry.values(), entries.values()))
            if not same:
                registry.clear()
                registry.update(entries)
        self._contents.restore()


class _Memory:
    """Where some tensors lie."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._by_storage: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            self._by_storage.setdefault(_storage(tensor), []).append(tensor)

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a tensor lies among the bytes of one of them."""
        storage = _storage(tensor)
        neighbours = self._by_storage.get(storage) if storage else None  # 0: it holds nothing
        if not neighbours:
            return False
        first, last = extent(tensor)
        return any(first < stop and start < last for start, stop in map(extent, neighbours))


class Contents:
    """What some tensors hold.

    Args:
        tensors: The tensors; sparse, uninitialised and expanded ones are left out.
        trust_versions: Copy back only those that were written to, as far as tensors count their writes.
    """

    def __init__(self, tensors: Iterable[Tensor], *, trust_versions: bool = True) -> None:
        different = {id(tensor): tensor for tensor in tensors if _is_plain(tensor)}
        self._tensors = list(different.values())
        self._copies = [tensor.detach().clone() for tensor in self._tensors]
        self._shapes = [tensor.shape for tensor in self._tensors]
        self._places = [_place(tensor) for tensor in self._tensors]
        self._versions = [version_of(tensor) for tensor in self._tensors] if trust_versions else None

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what they held, in the sizes that they had."""
        if [tensor.shape for tensor in self._tensors] != self._shapes:  # by `resize_`
            for tensor, shape, place in zip(self._tensors, self._shapes, self._places, strict=True):
                if tensor.shape != shape and place is not None:
                    memory, offset, stride = place
                    tensor.set_(memory, offset, shape, stride)
        if self._versions is None:
            if self._tensors:
                torch._foreach_copy_(self._tensors, self._copies)
            return
        for i, (tensor, version) in enumerate(zip(self._tensors, self._versions, strict=True)):
            if version is None or version_of(tensor) != version:
                tensor.copy_(self._copies[i])
                self._versions[i] = version_of(tensor)


def _place(tensor: Tensor) -> tuple[torch.UntypedStorage, Any, tuple[int, ...]] | None:
    """A tensor's memory, and its offset and strides there; ``None`` if it is spread over processes."""
    return None if is_sharded(tensor) else (tensor.untyped_storage(), tensor.storage_offset(), tensor.stride())


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written to; ``None`` for tensors that don't count it."""
    return None if tensor.is_inference() else tensor._version


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own for every element, so that it can be copied and written to."""
    if tensor.layout != torch.strided or nn.parameter.is_lazy(tensor):
        return False
    if tensor.is_inference() and not torch.is_inference_mode_enabled():  # it can't be written to
        return False
    return not any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _storage(tensor: Tensor) -> int:
    if nn.parameter.is_lazy(tensor):
        return 0
    if is_sharded(tensor):  # nothing can be a view of a whole that is nowhere
        return id(tensor)
    return tensor.untyped_storage().data_ptr()


class _Attributes:
    """A module's plain attributes: which objects they are, and what lists, dictionaries and sets in them hold."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = {name: value for name, value in vars(module).items() if name not in _INTERNAL}
        self._contents, self._leaves = _containers(self._values.values())

    def tensors(self) -> list[Tensor]:
        """Tensors that attributes hold, in containers, too."""
        return [leaf for leaf in self._leaves if _is_plain(leaf)]

    def restore(self) -> None:
        current = vars(self._module)
        for name in [name for name in current if name not in _INTERNAL and name not in self._values]:
            del current[name]
        current.update(self._values)
        for container, content in self._contents:
            _refill(container, content)

    def release(self) -> None:
        """Nothing to do once members are finished."""


def _containers(values: Iterable[Any]) -> tuple[list[tuple[Any, Any]], list[Tensor]]:
    """Every list, dictionary, set and deque in ``values``, at any depth, with a shallow copy; and every tensor."""
    found: dict[int, tuple[Any, Any]] = {}
    tensors = []
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | dict | set | deque):
            if id(value) in found:
                continue
            found[id(value)] = (value, _entries(value))
        elif type(value) is Tensor:
            tensors.append(value)
            continue
        elif not isinstance(value, tuple):
            continue
        waiting.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values()), tensors


# By the methods of the built-in classes: classes derived from them may refuse to be written to, as the outputs and
# configurations of transformers and diffusers do, and they are only to hold what they held.


def _entries(container: Any) -> Any:
    """What a list, dictionary, set or deque holds."""
    if isinstance(container, OrderedDict):
        return list(OrderedDict.items(container))
    if isinstance(container, dict):
        return dict.copy(container)
    return list(container)


def _refill(container: Any, entries: Any) -> None:
    """Have it hold what :func:`_entries` gave."""
    if isinstance(container, list):
        list.__setitem__(container, slice(None), entries)
    elif isinstance(container, deque):
        deque.clear(container)
        deque.extend(container, entries)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, entries)
    elif isinstance(container, OrderedDict):
        OrderedDict.clear(container)
        for key, value in entries:
            OrderedDict.__setitem__(container, key, value)
    else:
        dict.clear(container)
        dict.update(container, entries)


class _MetricState(_Attributes):
    """A torchmetrics metric: members work on copies of its state, the state itself is never touched."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        names: Any = module._defaults
        # A wrapper may show the states of another metric, which is a module of its own, as if they were its own.
        self._states = {name: self._values[name] for name in names if name in self._values}
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
