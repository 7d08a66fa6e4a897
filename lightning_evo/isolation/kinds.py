"""Kinds of objects with their handlers: containers, what has attributes, callables, arrays, generators, iterators."""

from __future__ import annotations

import array
import functools
import operator
import random
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evo.isolation.contents import Contents
from lightning_evo.isolation.snapshots import Handler, Key, Part, Snapshot, handle, handle_later

__all__ = [
    "INTERNAL",
    "ITERATOR",
    "ModuleAttributes",
    "attributes_of",
    "entries_of",
    "length_of",
    "registered_in",
]

INTERNAL = frozenset(vars(nn.Module()))
"""The attributes of a module for its parameters, buffers, submodules and hooks."""

_SLOTS: weakref.WeakKeyDictionary[type, list[Any]] = weakref.WeakKeyDictionary()


# --- containers -----------------------------------------------------------------------------------------------------
# By the methods of the built-in classes: classes derived from them may refuse to be written to, as the outputs and
# configurations of transformers and diffusers do, and they are only to hold what they held.


@dataclass(slots=True)
class _List:
    """A list's or a deque's entries, or a set's in some order."""

    container: Any
    entries: list[Any]

    def changed(self) -> bool:
        now, before = self.container, self.entries
        return length_of(now) != len(before) or not all(map(operator.is_, entries_of(now), before))

    def restore(self) -> None:
        if not self.changed():
            return
        if isinstance(self.container, list):
            list.__setitem__(self.container, slice(None), self.entries)
        elif isinstance(self.container, deque):
            deque.clear(self.container)
            deque.extend(self.container, self.entries)
        else:
            set.clear(self.container)
            set.update(self.container, self.entries)


@dataclass(slots=True)
class _Dict:
    """A dictionary's entries."""

    container: dict[Any, Any]
    entries: dict[Any, Any]

    def changed(self) -> bool:
        now, before = self.container, self.entries
        if dict.__len__(now) != len(before) or not all(map(operator.is_, dict.values(now), before.values())):
            return True
        return dict.keys(now) != before.keys()

    def restore(self) -> None:
        if not self.changed():
            return
        kind: Any = OrderedDict if isinstance(self.container, OrderedDict) else dict
        kind.clear(self.container)
        for key, value in self.entries.items():
            kind.__setitem__(self.container, key, value)


def _take_dict(container: dict[Any, Any]) -> Snapshot:
    if isinstance(container, OrderedDict):  # which may have another order than the dictionary beneath it
        return _Dict(container, dict(OrderedDict.items(container)))
    return _Dict(container, dict(dict.items(container)))


def _take_list(container: Any) -> Snapshot:
    return _List(container, list(entries_of(container)))


def entries_of(container: Any) -> Iterable[Any]:
    """What a list, tuple, deque or set holds, and the values of a dictionary."""
    return dict.values(container) if isinstance(container, dict) else _built_in(container).__iter__(container)


def length_of(container: Any) -> int:
    """How many entries a container has."""
    return int(_built_in(container).__len__(container))


def _built_in(container: Any) -> Any:
    return next(kind for kind in (list, dict, tuple, set, deque) if isinstance(container, kind))


def _item(container: Any, key: Any) -> Any:
    return container[key]


def _parts_of_dict(container: dict[Any, Any]) -> Iterator[Part]:
    for key, value in dict.items(container):
        yield value, (dict.get, key), Key(key)


def _parts_of_sequence(container: Any) -> Iterator[Part]:
    for index, value in enumerate(entries_of(container)):
        yield value, (_item, index), f"[{index}]"


# --- attributes -----------------------------------------------------------------------------------------------------

_GONE = object()


@dataclass
class _Attributes:
    """Names and what they stand for, in a dictionary of Python's own, or in slots."""

    owner: Any
    names: dict[str, Any]
    slots: list[tuple[Any, Any]]

    def changed(self) -> bool:
        own = _names_of(self.owner)
        if len(own) != len(self.names) or any(own.get(name, _GONE) is not v for name, v in self.names.items()):
            return True
        return any(_slot(self.owner, slot) is not value for slot, value in self.slots)

    def restore(self) -> None:
        if not self.changed():
            return
        own = _names_of(self.owner)
        own.clear()
        own.update(self.names)
        for slot, value in self.slots:
            if value is not _GONE:
                slot.__set__(self.owner, value)
            elif _slot(self.owner, slot) is not _GONE:
                slot.__delete__(self.owner)


def _names_of(owner: Any) -> dict[str, Any]:
    try:
        return object.__getattribute__(owner, "__dict__")  # type: ignore[no-any-return]
    except AttributeError:  # slots only
        return {}


def _slots(kind: type) -> list[Any]:
    found = _SLOTS.get(kind)
    if found is None:
        entries = (entry for base in kind.__mro__ for entry in vars(base).values())
        slots = (entry for entry in entries if isinstance(entry, types.MemberDescriptorType))
        found = _SLOTS[kind] = [slot for slot in slots if slot.__name__ != "__dict__"]  # as a SimpleNamespace's
    return found


def _slot(owner: Any, slot: Any) -> Any:
    try:
        return slot.__get__(owner)
    except AttributeError:
        return _GONE


def _take_attributes(owner: Any) -> Snapshot:
    return _Attributes(owner, dict(_names_of(owner)), [(slot, _slot(owner, slot)) for slot in _slots(type(owner))])


class ModuleAttributes:
    """Which objects a module's attributes are, but for its parameters, buffers, parts, hooks and mode.

    Args:
        module: The module.
        shared: Names that are left out.
    """

    def __init__(self, module: nn.Module, shared: frozenset[str] = frozenset()) -> None:
        self._own, self._left_out = vars(module), INTERNAL | shared
        self.values = {name: value for name, value in self._own.items() if name not in self._left_out}
        """By their names."""

    def changed(self) -> bool:
        """Whether there are others now."""
        now = {name: value for name, value in self._own.items() if name not in self._left_out}
        return len(now) != len(self.values) or any(now.get(name, _GONE) is not v for name, v in self.values.items())

    def restore(self) -> None:
        """Put them back."""
        for name in [name for name in self._own if name not in self._left_out and name not in self.values]:
            del self._own[name]
        self._own.update(self.values)


def _attribute(owner: Any, name: str) -> Any:
    return _names_of(owner).get(name)


def _parts_of_object(owner: Any) -> Iterator[Part]:
    for name, value in _names_of(owner).items():
        yield value, (_attribute, name), f".{name}"
    for slot in _slots(type(owner)):
        value = _slot(owner, slot)
        if value is not _GONE:
            yield value, (_slot, slot), f".{slot.__name__}"
    yield type(owner), (_class, None), type(owner).__qualname__


def attributes_of(module: nn.Module) -> Iterator[Part]:
    """What a module holds besides its parameters, buffers and submodules."""
    for name, value in vars(module).items():
        if name not in INTERNAL:
            yield value, (_attribute, name), f".{name}"


def registered_in(module: nn.Module) -> Iterator[Part]:
    """A module's parameters, buffers and submodules."""
    for registry in ("_parameters", "_buffers", "_modules"):
        entries = vars(module).get(registry)
        for name, value in entries.items() if isinstance(entries, dict) else ():  # TorchScript keeps them to itself
            yield value, (_registered, (registry, name)), f".{name}"


def _parts_of_module(module: nn.Module) -> Iterator[Part]:
    yield from attributes_of(module)
    yield from registered_in(module)
    yield type(module), (_class, None), type(module).__qualname__


def _registered(module: nn.Module, where: tuple[str, str]) -> Any:
    registry, name = where
    return vars(module)[registry].get(name)


def _class(owner: Any, _: object) -> type:
    return type(owner)


# --- callables ------------------------------------------------------------------------------------------------------


def _get(owner: Any, name: str) -> Any:
    return getattr(owner, name, None)


def _parts_of_method(method: types.MethodType) -> Iterator[Part]:
    yield method.__self__, (_get, "__self__"), ".__self__"


def _parts_of_partial(partial: functools.partial[Any]) -> Iterator[Part]:
    for name in ("func", "args", "keywords"):
        yield getattr(partial, name), (_get, name), f".{name}"


# --- arrays and generators ------------------------------------------------------------------------------------------


@dataclass
class _State:
    """Of an object that gives its state, and takes it."""

    get: Callable[[], Any]
    set: Callable[[Any], object]
    state: Any

    def changed(self) -> bool:
        return not _equal(self.get(), self.state)

    def restore(self) -> None:
        self.set(self.state)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(_equal(value, second[key]) for key, value in first.items())
    same = first == second
    return bool(same if isinstance(same, bool) else same.all())


def _take_torch_generator(generator: torch.Generator) -> Snapshot:
    return _State(generator.get_state, generator.set_state, generator.get_state())


def _take_python_generator(generator: random.Random) -> Snapshot:
    return _State(generator.getstate, generator.setstate, generator.getstate())


def _take_numpy_generator(generator: Any) -> Snapshot:
    if isinstance(generator, sys.modules["numpy"].random.RandomState):  # it may keep half a pair of normal numbers
        get = functools.partial(generator.get_state, legacy=False)
        return _State(get, generator.set_state, get())
    bits = getattr(generator, "bit_generator", generator)
    return _State(lambda: bits.state, lambda state: setattr(bits, "state", state), bits.state)


@dataclass
class _Bytes:
    """Of a bytearray or an array.array."""

    memory: Any
    copy: Any

    def changed(self) -> bool:
        return bool(self.memory != self.copy)

    def restore(self) -> None:
        if self.changed():
            self.memory[:] = self.copy


def _take_bytes(memory: Any) -> Snapshot:
    return _Bytes(memory, memory[:])


@dataclass
class _Array:
    array: Any
    copy: Any

    def changed(self) -> bool:
        return bool(self.array.shape != self.copy.shape or self.array.tobytes() != self.copy.tobytes())

    def restore(self) -> None:
        if not self.changed():  # it may be read-only
            return
        if self.array.shape != self.copy.shape:
            self.array.resize(self.copy.shape, refcheck=False)
        self.array[...] = self.copy


def _take_array(array: Any) -> Snapshot:
    return _Array(array, array.copy())


def _of_numpy(kind: type) -> Handler | None:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if issubclass(kind, numpy.ndarray):
        return Handler(_take_array)
    generators = (numpy.random.Generator, numpy.random.BitGenerator, numpy.random.RandomState)
    return Handler(_take_numpy_generator) if issubclass(kind, generators) else None


# --- iterators ------------------------------------------------------------------------------------------------------


@dataclass
class _Iterator:
    """How far an iterator has gone, as far as that can be seen."""

    iterator: Any
    place: Any

    def changed(self) -> bool:
        return self.place is None or _place_of(self.iterator) != self.place

    def restore(self) -> None:
        """It can't be put back."""


def _place_of(iterator: Any) -> Any:
    """What tells whether something was taken from it; ``None`` if nothing does."""
    if isinstance(iterator, types.GeneratorType):
        frame = iterator.gi_frame
        return "ended" if frame is None else (frame.f_lasti, {name: id(v) for name, v in frame.f_locals.items()})
    return operator.length_hint(iterator, -1) if hasattr(iterator, "__length_hint__") else None


ITERATOR = Handler(lambda iterator: _Iterator(iterator, _place_of(iterator)))
"""Of iterators that a module holds and takes from."""


# --- which is which -------------------------------------------------------------------------------------------------

_LIST = Handler(_take_list, _parts_of_sequence)
_OBJECT = Handler(_take_attributes, _parts_of_object, owns=True)

_KINDS: dict[type, Handler | None] = {
    list: _LIST,
    deque: _LIST,
    set: Handler(_take_list),
    dict: Handler(_take_dict, _parts_of_dict),
    types.SimpleNamespace: _OBJECT,
    types.MappingProxyType: Handler(parts=lambda proxy: ()),
    tuple: Handler(parts=_parts_of_sequence),
    Tensor: Handler(lambda tensor: Contents([tensor], "all")),
    torch.Generator: Handler(_take_torch_generator),
    bytearray: Handler(_take_bytes),
    array.array: Handler(_take_bytes),
    random.Random: Handler(_take_python_generator),
    random.SystemRandom: None,
    nn.Module: Handler(ModuleAttributes, _parts_of_module),
    types.MethodType: Handler(parts=_parts_of_method),
    functools.partial: Handler(parts=_parts_of_partial),
}
for _kind, _handler in _KINDS.items():
    handle(_kind, _handler)
for _kind in (int, float, complex, bool, str, bytes, type(None), range, slice, torch.dtype):
    handle(_kind, None)
handle(object, _OBJECT)
handle_later(_of_numpy)
