"""What is known of a tensor where members are rows of one batch: the dimension in which their rows lie."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

__all__ = [
    "LOST",
    "NAME",
    "Lost",
    "Move",
    "Place",
    "Rule",
    "combined",
    "forget_written",
    "given",
    "made_of",
    "moves",
    "negative",
    "note_written",
    "place_of",
    "set_made",
    "set_place",
    "words",
]

NAME = "_place_of_rows"
"""A tensor's attribute that holds its place; a tensor that never saw rows has none."""

_MADE = "_made_of_weights"


class Lost(str):
    """A place that is not known any more: the name of the torch function after which it isn't."""

    __slots__ = ()


Place: TypeAlias = int | Lost | None

Rule: TypeAlias = Callable[[Sequence[Any], Mapping[str, Any], Any, int], "Place | list[Place]"]
"""The place of what a torch function gave, or one for each tensor, by ``args, kwargs, result, members``."""

Move: TypeAlias = Callable[[int, Sequence[Any], Mapping[str, Any], Any, int], "Place | list[Place]"]
"""As a :data:`Rule`, with the known place of ``args[0]`` in front."""

LOST = Lost("?")
"""What a rule returns if its function loses the place; its name is filled in later."""


def place_of(tensor: Tensor) -> Place:
    """Where the members' rows lie in a tensor.

    Returns:
        A negative dimension, counted from the right. Its size is divisible by the number of members ``K``, and index
        ``i`` belongs to member ``i // (size // K)``. ``None`` if the tensor never saw rows: it is the same for all
        members. :class:`Lost` if it holds rows and nobody knows where.
    """
    place: Place = getattr(tensor, NAME, None)
    return place


def set_place(tensor: Tensor, place: Place) -> None:
    """Notes where the members' rows lie in a tensor, on the tensor itself; ``None`` removes the note.

    Raises:
        ValueError: If ``place`` is a number but no dimension counted from the right.
    """
    if type(place) is int and not -tensor.ndim <= place < 0:
        raise ValueError(f"The place of rows is a dimension in [{-tensor.ndim}, -1], not {place}.")
    if place is None:
        tensor.__dict__.pop(NAME, None)
    else:
        setattr(tensor, NAME, place)


_written: list[weakref.ref[Tensor]] = []


def note_written(tensor: Tensor) -> None:
    """Note that a tensor that had no place gets one because rows are written into it, such as a module's buffer."""
    _written.append(weakref.ref(tensor))


def forget_written() -> None:
    """Take the places of tensors that were written to off again, as they hold no rows after the forward."""
    for reference in _written:
        if (tensor := reference()) is not None:
            set_place(tensor, None)
    _written.clear()


_any_made = False  # most models make none, and all arguments of all calls are asked


def made_of(tensor: object) -> Any:
    """What is known of a tensor that was made of evolving parameters alone, for each member; ``None`` for others."""
    return getattr(tensor, _MADE, None) if _any_made else None


def set_made(tensor: Tensor, made: object) -> None:
    """Notes on a tensor, which holds the center's values, what it is for each member."""
    global _any_made
    _any_made = True
    setattr(tensor, _MADE, made)


def combined(places: Iterable[Place]) -> Place:
    """The place that all known ones agree on, :data:`LOST` if they don't; without any, what is lost already.

    A :data:`LOST` among them comes from the call itself, and wins.
    """
    found: Place = None
    for place in places:
        if place is LOST:
            return LOST
        if place is None or place == found:
            continue
        if type(place) is int:
            if type(found) is int:
                return LOST
            found = place
        elif found is None:
            found = place
    return found


def given(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, *names: str) -> Any:
    """An argument by its position or one of its names; ``None`` if it is not given."""
    if len(args) > position:
        return args[position]
    for name in names:
        if name in kwargs:
            return kwargs[name]
    return None


def negative(dim: int, ndim: int) -> int:
    """A dimension, counted from the right."""
    return dim if dim < 0 else dim - ndim


def words(text: str) -> list[str]:
    """The names in a text."""
    return text.split()


def moves(move: Move) -> Rule:
    """A rule for a function whose first argument alone may hold rows; rows in another one lose the place."""

    def rule(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place | list[Place]:
        if not args:
            args = (kwargs.get("input", kwargs.get("self")),)
        place: Place = getattr(args[0], NAME, None)
        if type(place) is int:
            return move(place, args, kwargs, result, members)
        return LOST if place is None else place

    return rule
