"""What code holds on to besides its arguments: globals that it names, closures, and the data of classes.

``history.append(loss)`` in ``training_step``, with a list of the file's, is state that no attribute shows.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning_evo.isolation.snapshots import Handler, Part, handle

__all__ = ["Names", "names_in_code_of"]

_FOUNDATIONS = set(sys.stdlib_module_names) - {"__main__"} | {
    "torch", "torchvision", "torchaudio", "torchmetrics", "lightning", "pytorch_lightning", "lightning_fabric",
    "lightning_utilities", "lightning_evo", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "PIL", "transformers",
    "tokenizers", "datasets", "accelerate", "peft", "safetensors", "huggingface_hub", "einops", "gymnasium", "gym",
    "jsonargparse", "pytest", "_pytest", "rich", "tqdm", "wandb", "tensorboard", "mlflow",
}  # fmt: skip
"""Packages whose code is taken to keep nothing of a member in globals."""


_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


_EMPTY = object()


def _is_of_the_user(thing: Any) -> bool:
    return not _is_foundation((getattr(thing, "__module__", None) or "builtins").partition(".")[0])


@functools.lru_cache(1024)
def _is_foundation(package: str) -> bool:
    """Whether a package is one of those above, and not a folder of the user's of the same name."""
    if package == __name__.partition(".")[0]:  # this one, also where it is developed
        return True
    if package not in _FOUNDATIONS:
        return False
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is None or file.startswith(_INSTALLED) or "site-packages" in file


@dataclass(frozen=True)
class Names:
    """Some names of a file's globals or of a class.

    Attributes:
        owner: The class, or the file's module.
        names: The names.
        place: For people.
    """

    owner: Any
    names: tuple[str, ...]
    place: str


@dataclass
class _Meanings:
    """What some names stood for."""

    names: Names
    values: dict[str, Any]

    def changed(self) -> bool:
        now = vars(self.names.owner)
        return any(now.get(name, _EMPTY) is not value for name, value in self.values.items())

    def restore(self) -> None:
        now = vars(self.names.owner)
        for name, value in self.values.items():
            if now.get(name, _EMPTY) is value:
                continue
            if value is _EMPTY:
                delattr(self.names.owner, name)
            else:
                setattr(self.names.owner, name, value)


def _take(names: Names) -> _Meanings:
    return _Meanings(names, {name: vars(names.owner).get(name, _EMPTY) for name in names.names})


def _meaning(names: Names, name: str) -> Any:
    return vars(names.owner).get(name)


def _parts_of_names(names: Names) -> Iterator[Part]:
    for name in names.names:
        yield _meaning(names, name), (_meaning, name), f"{names.place}{name}"


@functools.lru_cache(1024)
def _named_by(code: types.CodeType) -> frozenset[str]:
    """The names of globals, attributes and imports in a function's code, and in what it defines."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(code.co_names).union(code.co_freevars, *map(_named_by, inner))


def _globals_of(function: types.FunctionType) -> tuple[Names, ...]:
    """The globals that a function's code names: those of its file, and of modules of the user's that it names."""
    file = sys.modules.get(function.__module__)
    if file is None or vars(file) is not function.__globals__:  # made by `exec`
        return ()
    named = _named_by(function.__code__)
    found = [Names(file, tuple(sorted(named)), "the global ")]  # also those that are not there yet
    for name in sorted(named):
        module = function.__globals__.get(name)
        if isinstance(module, types.ModuleType) and not _is_foundation(module.__name__.partition(".")[0]):
            names = tuple(sorted(name for name in named if name in vars(module)))
            found.append(Names(module, names, f"{module.__name__}."))
    return tuple(found)


def _nth(parts: Any, index: int) -> Any:
    return parts[index] if index < len(parts) else None


def _names_at(function: types.FunctionType, index: int) -> Any:
    return _nth(_globals_of(function), index)


def _cell_at(function: types.FunctionType, index: int) -> Any:
    return _nth(function.__closure__ or (), index)


def _parts_of_function(function: types.FunctionType) -> Iterator[Part]:
    if not _is_of_the_user(function):
        return
    for index, names in enumerate(_globals_of(function)):
        yield names, (_names_at, index), f"globals of {names.owner.__name__}"
    for index, (name, cell) in enumerate(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)):
        yield cell, (_cell_at, index), f"the variable {name}"


@dataclass
class _Variable:
    """What a variable of an enclosing function held."""

    cell: types.CellType
    value: Any

    def changed(self) -> bool:
        return _content(self.cell) is not self.value

    def restore(self) -> None:
        if self.changed():
            self.cell.cell_contents = self.value


def _content(cell: types.CellType, _: object = None) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return _EMPTY


def _parts_of_cell(cell: types.CellType) -> Iterator[Part]:
    yield _content(cell), (_content, None), ""


def _data_of(kind: type) -> Names:
    code = (types.FunctionType, staticmethod, classmethod, property, types.MemberDescriptorType)
    there = vars(kind)
    names = {name for name, value in there.items() if not name.startswith("__") and not isinstance(value, code)}
    names |= {name for name in names_in_code_of(kind) if not name.startswith("__") and name not in there}  # not yet
    return Names(kind, tuple(sorted(names)), f"{kind.__qualname__}.")


def _data(kind: type, _: object) -> Names:
    return _data_of(kind)


def _function(kind: type, name: str) -> Any:
    """What a method, static method or property of a class runs, without decorators that say what they wrap."""
    function = vars(kind).get(name)
    if isinstance(function, property):
        function = function.fget
    elif isinstance(function, staticmethod | classmethod):
        function = function.__func__
    while isinstance(function, types.FunctionType) and "__wrapped__" in vars(function):
        function = vars(function)["__wrapped__"]
    return function


def _base(kind: type, index: int) -> Any:
    return kind.__bases__[index]


def names_in_code_of(kind: type) -> frozenset[str]:
    """The names of attributes and globals in the methods of a class and of those of the user's that it derives from."""
    own = ((base, name) for base in kind.__mro__ if _is_of_the_user(base) for name in vars(base))
    functions = (_function(base, name) for base, name in own if name != "__init__")  # which only makes them
    return frozenset().union(*(_named_by(f.__code__) for f in functions if isinstance(f, types.FunctionType)))


def _parts_of_class(kind: type) -> Iterator[Part]:
    if not _is_of_the_user(kind):
        return
    yield _data_of(kind), (_data, None), f"attributes of {kind.__qualname__}"
    for name in vars(kind):
        function = _function(kind, name)
        if isinstance(function, types.FunctionType):
            yield function, (_function, name), f"{kind.__qualname__}.{name}"
    for index, base in enumerate(kind.__bases__):
        yield base, (_base, index), base.__qualname__


def _take_variable(cell: types.CellType) -> _Variable:
    return _Variable(cell, _content(cell))


handle(type, Handler(parts=_parts_of_class, is_code=True))
handle(types.FunctionType, Handler(parts=_parts_of_function, is_code=True))
handle(types.CellType, Handler(_take_variable, _parts_of_cell, is_code=True))
handle(Names, Handler(_take, _parts_of_names, is_code=True))
