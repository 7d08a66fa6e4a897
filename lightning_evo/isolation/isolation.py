"""Keeps members from affecting each other and the run.

While members are evaluated nothing is logged, and every member starts from the same random numbers, buffers
(BatchNorm's statistics), metric states, attributes and train or eval modes. Afterwards what the module can reach is as
it was before the first, or a warning names what is not.

* What lies near is put back after every member: attributes of modules, and small objects, containers and tensors that
  they hold.
* All that can be reached (:mod:`~lightning_evo.isolation.reach`) is compared in generations 0, 1, 2, 4, 8, …; what was
  ever seen changed is put back after every member from then on. So a vocabulary in an attribute costs nothing.
* An object that holds what can't be put back (a lock, a file, a simulator) is left alone as a whole, and named if it
  changes. ``evolution_shared = {"pool"}`` in a module says that members are meant to share an attribute.

What a member writes into an evolving parameter is the affair of :mod:`~lightning_evo.evaluation.center`.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evo.isolation.code import Names
from lightning_evo.isolation.contents import Contents, Memory, parts_of
from lightning_evo.isolation.glance import size_of
from lightning_evo.isolation.kinds import ModuleAttributes
from lightning_evo.isolation.reach import is_of_torch, names_shared_by, names_shared_in_vain, near, reach
from lightning_evo.isolation.rows import Rows
from lightning_evo.isolation.snapshots import Snapshot, take
from lightning_evo.isolation.traces import Others, Traces
from lightning_evo.spaces.shards import is_sharded
from lightning_evo.utils.random_state import RandomState

__all__ = ["Isolation"]

_SMALL = 1 << 16  # elements of a tensor or an array
_SILENCED = ("log", "log_dict", "print")  # of LightningModules
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_TINY = 1 << 12  # those that are put back whether they count their writes or not


class Isolation:
    """A context in which members leave no traces.

    Args:
        module: The user's module.
        device: Where it computes.
        evolving: Its evolving parameters, which are not put back here; all parameters by default.
        traces: What members were seen to change in earlier generations.

    Raises:
        TypeError: If the module's ``evolution_shared`` is not a collection of names.

    Example:
        >>> module = nn.BatchNorm1d(3)
        >>> with Isolation(module, torch.device("cpu")) as isolation:
        ...     for _ in range(5):
        ...         isolation.start_member()
        ...         _ = module(torch.randn(8, 3))
        >>> module.num_batches_tracked
        tensor(0)
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        evolving: Iterable[Tensor] | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._module = module
        self._device = device
        self._evolving = module.parameters() if evolving is None else evolving
        self._traces = Traces() if traces is None else traces

    def __enter__(self) -> Isolation:
        modules = dict(self._module.named_modules())
        self._silenced: list[tuple[Any, dict[str, Any]]] = [
            (vars(m), {name: vars(m)[name] for name in _SILENCED if name in vars(m)})
            for m in modules.values()
            if callable(getattr(type(m), "log_dict", None))
        ]
        for dictionary, _ in self._silenced:
            dictionary.update(dict.fromkeys(_SILENCED, _silent))
        try:
            self._take_snapshot(modules)
        except BaseException:
            self._unsilence()
            raise
        return self

    def _take_snapshot(self, modules: dict[str, nn.Module]) -> None:
        self._started = 0
        self._random = RandomState(self._device)
        modules = _without_shared(modules)
        roots = {**modules, **self._traces.also()}
        known = {id(value): value for value in self._traces.known(roots)}
        lying = {id(found.value): found.value for found in near(modules) if found.keeper is None} | known
        registered = {id(module) for module in modules.values()}
        hidden = [v for key, v in lying.items() if isinstance(v, nn.Module) and key not in registered]
        # A buffer that shares a weight's memory is part of the member, not of what it may leave behind.
        weights = Memory(self._evolving)
        self._take_modules([*modules.values(), *hidden], known, weights)
        done = self._registries.ids.union(*(each.ids for each in self._attributes))
        self._take_near({k: v for k, v in lying.items() if k not in done and v not in weights}, known)
        self._others: Others | None = None
        if self._traces.compares():
            made = {value for value in known.values() if isinstance(value, Names | Rows)}  # anew each time
            done |= {key for key, value in lying.items() if key in known or _is_small(value)}
            found = [f for f in reach(roots) if id(f.value) not in done and not _is_spread(f.value)]
            found = [f for f in found if not (isinstance(f.value, Names | Rows) and f.value in made)]
            self._others = Others(f for f in found if f.value not in weights)
        if self._traces.generation == 0:
            for module in modules.values():
                self._traces.shared_in_vain(type(module).__name__, names_shared_in_vain(module))

    def _take_modules(self, modules: list[nn.Module], known: dict[int, Any], weights: Memory) -> None:
        metric = _metric_class()
        self._modes = [(module, module.training) for module in modules]
        self._registries = _Registries(modules, weights)
        self._attributes = [
            _MetricState(m) if metric and isinstance(m, metric) else _Attributes(m)
            for m in modules
            if not is_of_torch(m) or id(m) in known  # torch's own modules keep their state in buffers, most often
        ]

    def _take_near(self, values: dict[int, Any], known: dict[int, Any]) -> None:
        values = {
            key: v for key, v in values.items() if key in known or (_is_small(v) and not isinstance(v, nn.Module))
        }
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        self._snapshots: list[Snapshot] = [
            Contents((tensor for key, tensor in tensors.items() if key in known), "all"),
            Contents((t for key, t in tensors.items() if key not in known and t.numel() <= _TINY), "bits"),
            Contents(t for key, t in tensors.items() if key not in known and t.numel() > _TINY),
            *(take(value) for value in values.values() if not isinstance(value, Tensor | nn.Module)),
        ]

    def start_member(self) -> None:
        """Put everything back to where it was when the context was entered."""
        often = self._traces.generation == 0 and self._started & (self._started - 1) == 0  # as the check tries ways
        if self._started == 1 or (self._started and often):  # what some have changed, others will, too
            self._compare()
        self._started += 1
        self._random.restore()
        self._registries.restore()
        for module, mode in self._modes:
            if module.training != mode:
                module.training = mode
        for attributes in self._attributes:
            attributes.restore()
        for snapshot in self._snapshots:
            snapshot.restore()

    def _compare(self) -> None:
        """Put back what was changed of all that is only compared, and see to it from now on."""
        if self._others is None:
            return
        for found, copied in self._others.put_back():
            if found.keeper is not None:
                self._traces.leaves_alone(found)
                continue
            self._traces.note(found, copied=copied)
            if not isinstance(found.value, Tensor) or parts_of(found.value):
                self._snapshots.append(take(found.value))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.start_member()
            self._compare()
            self._registries.put_flags_back()
        finally:
            for attributes in self._attributes:
                attributes.release()
            self._unsilence()
        self._traces.end()

    def _unsilence(self) -> None:
        for dictionary, own in self._silenced:
            for name in _SILENCED:
                del dictionary[name]
            dictionary.update(own)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stands in for what a module says by itself, while members run."""


def _metric_class() -> type | None:
    torchmetrics = sys.modules.get("torchmetrics")
    return None if torchmetrics is None else torchmetrics.Metric


def _is_spread(value: Any) -> bool:
    """Whether other processes hold parts of it: comparing it would take all of them."""
    return isinstance(value, Tensor) and is_sharded(value)


def _is_small(value: Any) -> bool:
    """Whether it is worth a copy per generation, in case it is a counter."""
    return size_of(value) <= _SMALL and not (isinstance(value, Tensor) and not parts_of(value))


def _without_shared(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules that members are not meant to share."""
    shared = [f"{name}.{each}".lstrip(".") for name, module in modules.items() for each in names_shared_by(module)]
    if not shared:
        return modules
    return {n: m for n, m in modules.items() if not any(f"{n}.".startswith(f"{each}.") for each in shared)}


class _Registries:
    """The parameters, buffers, parts and hooks of all modules, and what buffers hold in memory of their own.

    What parameters hold is handled elsewhere, but a forward may put another one in a parameter's place, or add a part.
    """

    def __init__(self, modules: list[nn.Module], weights: Memory) -> None:
        # TorchScript modules keep theirs to themselves.
        registries: list[Any] = [
            getattr(module, name) for module in modules for name in _REGISTRIES if hasattr(module, name)
        ]
        self._registries = [(own, dict(own)) for own in registries if isinstance(own, dict)]
        self._flags = [(p, p.requires_grad) for module in modules for p in module.parameters(recurse=False)]
        buffers = [
            buffer
            for module in modules
            for name, buffer in module.named_buffers(recurse=False)
            if name not in names_shared_by(module)
        ]
        self.ids = {id(buffer) for buffer in buffers}
        # Always copied back. A tensor's version can't tell whether it was written to: neither BatchNorm's kernels nor
        # writes through `.data` count it up.
        self._contents = Contents((buffer for buffer in buffers if buffer not in weights), "all")

    def put_flags_back(self) -> None:
        """Have parameters require gradients if they did."""
        for parameter, flag in self._flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad = flag

    def restore(self) -> None:
        for registry, entries in self._registries:
            if not registry and not entries:  # as most are
                continue
            same = len(registry) == len(entries) and all(map(operator.is_, registry.values(), entries.values()))
            if not same:
                registry.clear()
                registry.update(entries)
        self._contents.restore()


class _Attributes(ModuleAttributes):
    """A module's plain attributes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, names_shared_by(module))
        self.ids = {id(module)}
        """Of objects that are seen to here."""

    def release(self) -> None:
        """Nothing to do once members are finished."""


class _MetricState(_Attributes):
    """A torchmetrics metric: members work on copies of its state, the state itself is never touched."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        names: Any = module._defaults
        # A wrapper may show the states of another metric, which is a module of its own, as if they were its own.
        self._states = {name: self.values[name] for name in names if name in self.values}
        states = self._states.values()
        self.ids |= {
            id(entry) for state in states for entry in ([state, *state] if isinstance(state, list) else [state])
        }

    def restore(self) -> None:
        super().restore()
        self._own.update(
            {name: list(s) if isinstance(s, list) else s.detach().clone() for name, s in self._states.items()}
        )

    def release(self) -> None:
        """Hand the metric its own state back."""
        self._own.update(self._states)
