"""Functions and objects as text that tells them apart, for options that are code."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator
from typing import Any

__all__ = ["name_of_code"]

_DEPTH = 4  # functions that hold on to functions may do so in a circle


def name_of_code(value: Any, depth: int = _DEPTH) -> str:
    """Where a function, class or object comes from; what its name does not tell is told by a digest.

    A function of a module has its name there, whatever it does. Of a lambda and of a function that is made by another
    one the bytecode counts, with the plain values that it holds on to; of ``functools.partial`` its arguments, and of
    an object its plain attributes. (Another version of Python may give another digest.)

    Args:
        value: For example a ``shaping``.
        depth: How far to follow functions that others hold on to.

    Example:
        >>> name_of_code(len), name_of_code(dict)
        ('builtins.len', 'builtins.dict')
        >>> name_of_code(lambda fitness: fitness + 1) == name_of_code(lambda fitness: fitness - 1)
        False
    """
    if depth == 0:
        return "…"
    if isinstance(value, functools.partial):
        given = [_text(each, depth) for each in value.args]
        given += [f"{name}={_text(each, depth)}" for name, each in sorted(value.keywords.items())]
        return f"functools.partial({', '.join([name_of_code(value.func, depth - 1), *given])})"
    if inspect.ismethod(value):
        return f"{name_of_code(value.__self__, depth - 1)}.{value.__func__.__name__}"
    if inspect.isfunction(value) and "<" in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}{_digest(_parts(value, depth))}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    attributes = {name: each for name, each in getattr(value, "__dict__", {}).items() if _is_plain(each)}
    return _class_of(value) + (_digest(f"{name}={attributes[name]!r}" for name in sorted(attributes)))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _text(value: Any, depth: int) -> str:
    if _is_plain(value):
        return repr(value)
    if isinstance(value, list | tuple | frozenset):
        each = [_text(each, depth) for each in value]
        return f"{type(value).__name__}({', '.join(sorted(each) if isinstance(value, frozenset) else each)})"
    is_code = isinstance(value, functools.partial) or inspect.isroutine(value) or inspect.isclass(value)
    return name_of_code(value, depth - 1) if is_code else _class_of(value)


def _parts(function: Any, depth: int) -> Iterator[str]:
    yield from _parts_of_code(function.__code__, depth)
    yield _text(function.__defaults__, depth)
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        yield _text(content, depth)


def _parts_of_code(code: Any, depth: int) -> Iterator[str]:
    yield code.co_code.hex()
    yield from code.co_names
    for constant in code.co_consts:
        yield from _parts_of_code(constant, depth) if inspect.iscode(constant) else (_text(constant, depth),)


def _digest(parts: Iterator[str]) -> str:
    content = "\0".join(parts)
    return f"#{hashlib.blake2b(content.encode(), digest_size=4).hexdigest()}" if content else ""
