"""What an object holds, to be compared and put back: the contract of handlers, and which one an object has.

A handler says what its objects hold, and takes a snapshot of one. Only what an object holds directly belongs to its
snapshot; what that holds in turn has its own. :func:`register` adds a handler.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

from lightning_evo.utils.messages import shown

__all__ = [
    "OPAQUE",
    "Handler",
    "Key",
    "Part",
    "Snapshot",
    "Step",
    "handle",
    "handle_later",
    "handler_of",
    "register",
    "shared",
    "take",
]

T = TypeVar("T")

_FOREIGN = {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_evo", "logging"}
"""Packages whose objects are none of the user's state: the Trainer above all, from which everything can be reached."""

_STATELESS = {
    "numpy", "torch", "builtins", "re", "datetime", "decimal", "fractions", "uuid", "zoneinfo", "typing", "types",
    "operator", "functools", "tokenizers", "_abc", "weakref",
}  # fmt: skip
"""Packages whose compiled types hold nothing that a program changes, but for those with a handler and iterators."""


class Snapshot(Protocol):
    """What an object held."""

    def changed(self) -> bool:
        """Whether it holds something else now."""

    def restore(self) -> None:
        """Have it hold what it held."""


Step = tuple[Callable[[Any, Any], Any], Any]
"""From an object to one that it holds: a function, and what it takes besides the object."""


@dataclass(frozen=True)
class Key:
    """How people write the step to what a dictionary holds: made when it is asked for."""

    key: Any

    def __str__(self) -> str:
        return f"[{shown(self.key)}]"


Part = tuple[Any, Step, str | Key]
"""What an object holds, the step that leads to it, and how people write that step."""


@dataclass(frozen=True)
class Handler:
    """How objects of one kind are looked into.

    Attributes:
        take: Takes a snapshot of one; ``None`` if they can't be changed.
        parts: Gives what one holds.
        owns: Whether what an object holds is its own affair, so that all of it is put back or nothing.
        is_code: Whether they are code, and what code holds on to.
    """

    take: Callable[[Any], Snapshot] | None = None
    parts: Callable[[Any], Iterable[Part]] = lambda value: ()
    owns: bool = False
    is_code: bool = False


OPAQUE = Handler()
"""Of objects that change in ways that can't be seen: locks, files, threads, iterators, simulators in C."""


_HANDLERS: dict[type, Handler | None] = {}  # None: it never changes; that of `object` is for any class in Python
_LATER: list[Callable[[type], Handler | None]] = []
_FOUND: weakref.WeakKeyDictionary[type, Handler | None] = weakref.WeakKeyDictionary()


def register(kind: type, take: Callable[[Any], Snapshot]) -> None:
    """Isolate objects of a class, and of those derived from it, in a way of their own.

    Args:
        kind: The class.
        take: Takes a snapshot of one of its objects. What the object holds is the snapshot's affair, too.

    Example:
        >>> class Simulator:
        ...     state = 0  # as if it lay in a library
        >>> class State:
        ...     def __init__(self, simulator):
        ...         self.simulator, self.state = simulator, simulator.state
        ...
        ...     def changed(self):
        ...         return self.simulator.state != self.state
        ...
        ...     def restore(self):
        ...         self.simulator.state = self.state
        >>> register(Simulator, State)
    """
    handle(kind, Handler(take))


def shared(kind: type[T]) -> type[T]:
    """A class decorator: members are meant to share objects of this class, which are left as members leave them.

    Example:
        >>> @shared
        ... class Pool:
        ...     requests = 0
    """
    handle(kind, None)
    return kind


def handle(kind: type, handler: Handler | None) -> None:
    """Have a handler for objects of a class, and of those derived from it; ``None`` if nothing is to be seen to."""
    _HANDLERS[kind] = handler
    _FOUND.clear()


def handle_later(find: Callable[[type], Handler | None]) -> None:
    """Have handlers for classes of a package that may not be imported yet."""
    _LATER.append(find)


def take(value: Any, handler: Handler | None = None) -> Snapshot:
    """A snapshot of an object of which there can be one, by the handler of its kind unless another is given."""
    handler = handler_of(type(value)) if handler is None else handler
    assert handler is not None
    assert handler.take is not None
    try:
        return handler.take(value)
    except Exception:  # an object may be of any kind
        return _Unknown()


class _Unknown:
    """Stands for what an object held that can't be looked into."""

    def changed(self) -> bool:
        return False

    def restore(self) -> None:
        """Nothing is known."""


def handler_of(kind: type) -> Handler | None:
    """The handler for objects of a type; ``None`` if they never change, as numbers and strings."""
    try:
        return _FOUND[kind]
    except KeyError:
        found = _FOUND[kind] = _find(kind)
        return found
    except TypeError:  # a metaclass without a hash
        return _find(kind)


def _find(kind: type) -> Handler | None:
    for base in kind.__mro__[:-1]:  # all but `object`
        if base in _HANDLERS:
            return _HANDLERS[base]
    if issubclass(kind, Enum | BaseException | types.ModuleType):
        return None
    for later in _LATER:
        handler = later(kind)
        if handler is not None:
            return handler
    if hasattr(kind, "__next__"):  # files, too
        return OPAQUE
    package = kind.__module__.partition(".")[0]
    if package in _FOREIGN or kind.__module__.startswith("torch.distributed."):
        return None
    if _is_written_in_python(kind):
        return _HANDLERS[object]
    return None if package in _STATELESS else OPAQUE


def _is_written_in_python(kind: type) -> bool:
    """Whether all that an object holds is in its attributes: no class that it derives from is compiled."""
    for base in kind.__mro__:
        new = base.__new__
        builds_itself = isinstance(new, types.BuiltinFunctionType) and new.__self__ is base
        has_attributes = "__slots__" in vars(base) or any("__dict__" in vars(each) for each in base.__mro__)
        if builds_itself or not has_attributes:
            return base is object
    return False
