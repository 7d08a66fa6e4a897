"""What a module can reach: attributes, what these hold, and what its code holds on to."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from lightning_evo.isolation.code import Names, names_in_code_of
from lightning_evo.isolation.kinds import ITERATOR, attributes_of, entries_of, length_of
from lightning_evo.isolation.rows import rows_in
from lightning_evo.isolation.snapshots import OPAQUE, Handler, Key, Part, Snapshot, Step, handler_of, take

__all__ = [
    "Found",
    "Keeper",
    "Path",
    "follow",
    "is_of_torch",
    "names_shared_by",
    "names_shared_in_vain",
    "near",
    "reach",
]

Path = tuple[str, tuple[Step, ...]]
"""The name of a root, and the steps from there."""

_MOST = 200_000  # objects that are looked at
_NEAR = 512  # those that are looked at in every generation
_FEW = 64  # entries of a container that is looked into in every generation
_OF_TORCH: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
_WITH_SIZES = (nn.ParameterList, nn.ParameterDict)  # which attributes say, too
_NONE: frozenset[str] = frozenset()
_CONTAINERS = (list, tuple, dict, set, deque)


class Found:
    """An object that can be reached.

    Attributes:
        value: The object.
        keeper: The object that it belongs to and that is left alone as a whole; ``None`` if there is none.
    """

    __slots__ = ("_place", "_walk", "keeper", "value")

    def __init__(self, value: Any, walk: _Walk, place: int) -> None:
        self.value, self._walk, self._place = value, walk, place
        self.keeper: Keeper | None = walk.keeper(place)

    def take(self) -> Snapshot:
        """A snapshot of it."""
        return self._walk.take(self._place)

    @property
    def name(self) -> str:
        """For people."""
        return self._walk.name(self._place)

    @property
    def path(self) -> Path:
        """How to get there."""
        return self._walk.path(self._place)


@dataclass(frozen=True)
class Keeper:
    """An object that is left alone.

    Attributes:
        name: For people.
        kind: Its class.
        because: What it holds that can't be put back, for people.
    """

    name: str
    kind: str
    because: str


def names_shared_by(module: nn.Module) -> frozenset[str]:
    """The names in a module's ``evolution_shared``: of what members are meant to share.

    Raises:
        TypeError: If it is not a collection of names.
    """
    names = vars(module).get("evolution_shared") or getattr(type(module), "evolution_shared", None)
    if names is None:  # as most
        return _NONE
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"evolution_shared of {type(module).__name__} must be a set of names, such as {{'pool'}}; got {names!r}."
        )
    return frozenset(names)


def names_shared_in_vain(module: nn.Module) -> list[str]:
    """Those in a module's ``evolution_shared`` that it neither holds nor names in its methods."""
    names = names_shared_by(module)
    if not names:
        return []
    known = {*vars(module), *module._parameters, *module._buffers, *module._modules, *vars(type(module))}
    return sorted(names - known - names_in_code_of(type(module)))


def near(roots: Mapping[str, Any]) -> list[Found]:
    """What lies near: data in attributes and in small containers, as far as that is cheap to look at every time."""
    own = {name: root for name, root in roots.items() if not (isinstance(root, nn.Module) and is_of_torch(root))}
    return _Walk(own, most=_NEAR, largest=_FEW, code=False).found()


def reach(roots: Mapping[str, Any], *, code: bool = True) -> list[Found]:
    """All that can be reached, nearest first; without ``code``, not what functions and classes hold on to."""
    return _Walk(roots, most=_MOST, code=code).found()


def follow(roots: Mapping[str, Any], path: Path) -> Any:
    """What lies at the end of a path now; ``None`` if nothing does."""
    root, steps = path
    value = roots.get(root)
    try:
        for step, key in steps:
            value = step(value, key)
    except Exception:  # the way is another one by now
        return None
    return value


class _Walk:
    """Breadth first, from the roots."""

    def __init__(self, roots: Mapping[str, Any], *, most: int, largest: int | None = None, code: bool = True) -> None:
        self._most, self._largest, self._code = most, largest, code
        self._values: list[Any] = []
        self._handlers: list[Handler] = []
        self._origins: list[tuple[int, Step | None, str | Key]] = []  # parent, step, text
        self._because: dict[int, str] = {}  # what objects that are left alone hold
        self._seen: set[int] = set()
        modules = [root for root in roots.values() if isinstance(root, nn.Module)]
        self._shared = {id(module): names for module in modules if (names := names_shared_by(module))}
        self._shared_names = frozenset().union(*self._shared.values())
        for name, root in roots.items():
            self._add(root, -1, None, name)
        position = 0
        while position < len(self._values) and len(self._values) < most + len(roots):
            self._expand(position)
            position += 1

    def found(self) -> list[Found]:
        """All that can be put back or compared."""
        return [
            Found(value, self, i)
            for i, (value, handler) in enumerate(zip(self._values, self._handlers, strict=True))
            if handler.take is not None
        ]

    def take(self, position: int) -> Snapshot:
        """A snapshot of an object."""
        return take(self._values[position], self._handlers[position])

    def _add(self, value: Any, parent: int, step: Step | None, text: str | Key) -> None:
        handler = handler_of(type(value))
        if handler is None or id(value) in self._seen:
            return
        if handler is OPAQUE:
            owner = self._owner(parent)
            if owner is not None:
                self._because.setdefault(owner, f"{self.name(parent)}{text}, a {_class_name(type(value))}")
            if owner is not None or not (self._code and self._takes_from(value, parent, text)):
                return
            handler = ITERATOR
        if handler.is_code and not self._code:
            return
        if self._largest is not None and isinstance(value, _CONTAINERS) and length_of(value) > self._largest:
            return
        if isinstance(value, Names) and self._shared_names:
            value = replace(value, names=tuple(name for name in value.names if name not in self._shared_names))
        self._seen.add(id(value))
        self._values.append(value)
        self._handlers.append(handler)
        self._origins.append((parent, step, text))

    def _expand(self, position: int) -> None:
        try:
            self._look_into(position)
        except Exception:  # an object may be of any kind: what can't be looked into is left alone
            return

    def _look_into(self, position: int) -> None:
        value, handler = self._values[position], self._handlers[position]
        if isinstance(value, _CONTAINERS):
            if self._is_leaf(value):
                return
            rows = rows_in(value)
            if rows is not None:
                part, step, text = rows
                self._add(part, position, step, text)
                return
        shared = self._shared.get(id(value), _NONE)
        for part, step, text in self._parts(position):
            if not (self._shared_names and self._is_shared(text, shared, handler)):
                self._add(part, position, step, text)

    def _is_shared(self, text: str | Key, shared: frozenset[str], handler: Handler) -> bool:
        if isinstance(text, Key):
            return False
        return text[1:] in shared or (handler.is_code and text.rpartition(" ")[2] in self._shared_names)

    def _parts(self, position: int) -> Iterable[Part]:
        value, handler = self._values[position], self._handlers[position]
        if not isinstance(value, nn.Module):
            return handler.parts(value)
        if self._code or self._origins[position][0] >= 0:
            return handler.parts(value)
        return attributes_of(value)  # what is registered in the module itself is seen to

    def _is_leaf(self, container: Any) -> bool:
        """Whether a container holds nothing that can be changed."""
        kinds = set(map(type, entries_of(container)))
        if kinds == {tuple}:
            kinds = set(map(type, chain.from_iterable(entries_of(container))))
        return all(handler_of(kind) is None for kind in kinds)

    def _takes_from(self, value: Any, parent: int, text: str | Key) -> bool:
        """Whether a module's code names an iterator that the module holds, and so may take from it."""
        holder = self._values[parent] if parent >= 0 else None
        if isinstance(text, Key) or not (isinstance(holder, nn.Module) and hasattr(type(value), "__next__")):
            return False
        return not isinstance(value, io.IOBase) and text[1:] in names_in_code_of(type(holder))

    def _owner(self, position: int) -> int | None:
        """The object that something belongs to, which lies in it, or in containers in it."""
        while position >= 0:
            handler = self._handlers[position]
            if handler.owns:
                return position
            if isinstance(self._values[position], nn.Module) or handler.is_code:
                return None
            position = self._origins[position][0]
        return None

    def _ancestors(self, position: int) -> Iterator[int]:
        while position >= 0:
            yield position
            position = self._origins[position][0]

    def keeper(self, position: int) -> Keeper | None:
        """The object that another belongs to, if that is left alone."""
        if self._handlers[position] is ITERATOR:
            kind = _class_name(type(self._values[position]))
            return Keeper(self.name(position), kind, "a place in something that can't be gone through again")
        if not self._because:
            return None
        for ancestor in self._ancestors(position):
            if ancestor in self._because:
                kind = _class_name(type(self._values[ancestor]))
                return Keeper(self.name(ancestor), kind, self._because[ancestor])
        return None

    def name(self, position: int) -> str:
        """For people."""
        texts: list[str] = []
        for ancestor in self._ancestors(position):
            text = str(self._origins[ancestor][2])
            texts.append(text)
            if text and text[0] not in ".[":
                break
        return "".join(reversed(texts)).lstrip(".")

    def path(self, position: int) -> Path:
        """How to get to an object."""
        *steps, root = self._ancestors(position)
        return str(self._origins[root][2]), tuple(self._origins[step][1] for step in reversed(steps))  # type: ignore[misc]


def is_of_torch(module: nn.Module) -> bool:
    """Whether a module is torch's own, whose state is in buffers."""
    kind = type(module)
    found = _OF_TORCH.get(kind)
    if found is None:
        # All of its classes: `fully_shard` gives a module a class of torch's, derived from the module's own.
        found = all(cls.__module__.startswith("torch.") for cls in kind.__mro__[:-1])
        found = _OF_TORCH[kind] = found and not issubclass(kind, _WITH_SIZES)
    return found


def _class_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
