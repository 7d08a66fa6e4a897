"""Checks of options. Each says which option is wrong, what it was and what was expected, and gives the checked value.

A wrong value is a ValueError whatever its type: the text ``"8"`` is as wrong for a number of members as -8 is. (An
unknown *name* is a TypeError, as it is for Python's own functions; so is a ``seed``, ``evolve`` or ``algorithm`` of a
wrong type.)

NumPy's and torch's scalars are taken for the numbers that they hold, and come back as Python's own. Python's ``True``
and ``False`` are not numbers here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Literal, TypeVar

from lightning_evo.utils.messages import did_you_mean, shown

__all__ = ["as_whole", "check_callable", "check_names", "flag", "number", "one_of", "whole", "whole_or_auto"]

_LARGEST = (2 - 2.0**-23) * 2.0**127  # of float32, in which weights move

Word = TypeVar("Word", bound=str)


def whole(
    name: str,
    value: object,
    minimum: int = 1,
    maximum: int = (1 << 63) - 1,
    *,
    why: str = "",
    wanted: str = "a whole number",
) -> int:
    """A whole number in a range.

    Args:
        name: The option, for the message.
        value: What was given for it.
        minimum: The least that is allowed.
        maximum: The most.
        why: The reason of ``minimum``, for the message.
        wanted: What is expected, in the message's words.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> import torch
        >>> whole("rank", torch.tensor(4))
        4
        >>> whole("rank", 0)
        Traceback (most recent call last):
        ...
        ValueError: rank must be a whole number >= 1, got 0.
    """
    found = as_whole(value)
    if found is None or found < minimum:
        raise ValueError(f"{name} must be {wanted} >= {minimum}{why and f' ({why})'}, got {shown(value)}.")
    if found > maximum:
        raise ValueError(f"{name} must be {wanted} <= {maximum}, got {shown(value)}.")
    return found


def whole_or_auto(name: str, value: object) -> int | Literal["auto"]:
    """``"auto"``, or a whole number >= 1.

    Args:
        name: The option, for the message.
        value: What was given for it.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> whole_or_auto("shards", "auto")
        'auto'
        >>> whole_or_auto("shards", "all")
        Traceback (most recent call last):
        ...
        ValueError: shards must be 'auto' or a whole number >= 1, got 'all'.
    """
    if isinstance(value, str) and value == "auto":
        return "auto"
    return whole(name, value, wanted="'auto' or a whole number")


def number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    wanted: str | None = None,
) -> float:
    """A finite number in a range, which float32 can hold.

    Args:
        name: The option, for the message.
        value: What was given for it.
        minimum: The least that is allowed.
        above: What it must exceed.
        maximum: The most that is allowed.
        below: What it must not reach.
        wanted: What is expected, in the message's words; ``None`` for the range in numbers.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> number("sigma", 0.1, above=0)
        0.1
        >>> number("momentum", 1.0, minimum=0, below=1)
        Traceback (most recent call last):
        ...
        ValueError: momentum must be a number in [0, 1), got 1.0.
    """
    found, wanted = _as_number(value), wanted or f"a number {_interval(minimum, above, maximum, below)}".strip()
    in_range = (
        found is not None
        and (minimum is None or found >= minimum)
        and (above is None or found > above)
        and (maximum is None or found <= maximum)
        and (below is None or found < below)
    )
    if found is None or not in_range:
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}.")
    if abs(found) > _LARGEST:
        raise ValueError(f"{name} must be {wanted} that float32 can hold (at most {_LARGEST:.2g}), got {shown(value)}.")
    return found if abs(found) <= 1 << 53 else float(found)  # torch takes no larger int for a number


def _interval(minimum: float | None, above: float | None, maximum: float | None, below: float | None) -> str:
    lower, upper = minimum if above is None else above, maximum if below is None else below
    if lower is None:
        return "" if upper is None else f"{'<=' if below is None else '<'} {upper}"
    if upper is None:
        return f"{'>=' if above is None else '>'} {lower}"
    return f"in {'[' if above is None else '('}{lower}, {upper}{']' if below is None else ')'}"


def one_of(name: str, value: object, choices: Iterable[Word]) -> Word:
    """One of several words.

    Args:
        name: The option, for the message.
        value: What was given for it.
        choices: The words.

    Raises:
        ValueError: If it is something else; the message gives the nearest.

    Example:
        >>> one_of("update", "in_place", ["optimizer", "in_place"])
        'in_place'
        >>> one_of("update", "inplace", ["optimizer", "in_place"])
        Traceback (most recent call last):
        ...
        ValueError: Unknown update 'inplace'. Did you mean 'in_place'? Choose one of optimizer, in_place.
    """
    choices = list(choices)
    hint = ""
    if isinstance(value, str):
        for word in choices:
            if value == word:
                return word
        hint = did_you_mean(value[:100], choices)
    raise ValueError(f"Unknown {name} {shown(value)}.{hint} Choose one of {', '.join(choices)}.")


def flag(name: str, value: object) -> bool:
    """True or False.

    Args:
        name: The option, for the message.
        value: What was given for it.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> flag("antithetic", "no")
        Traceback (most recent call last):
        ...
        ValueError: antithetic must be True or False, got 'no'.
    """
    found = _plain(value)
    if not isinstance(found, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}.")
    return found


def check_callable(name: str, value: object, *arguments: str) -> None:
    """Raise a ValueError unless a value is a function (no class) of these arguments, if its signature is known.

    Args:
        name: The option, for the message.
        value: What was given for it.
        *arguments: What it will be called with, by position.

    Example:
        >>> check_callable("shaping", len, "fitness", "per_direction")
        Traceback (most recent call last):
        ...
        ValueError: shaping must be a function of (fitness, per_direction), got <built-in function len>: too many ...
    """
    wanted = f"{name} must be a function of ({', '.join(arguments)}), got {shown(value)}"
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{wanted}.")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # many built-in functions have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{wanted}: {error}.") from None


def check_names(owner: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError unless all names are those of options.

    Args:
        owner: Whose options they are, for the message.
        names: What was given.
        known: What there is.

    Example:
        >>> check_names("'mezo'", ["lr"], ["sigma", "learning_rate"])
        Traceback (most recent call last):
        ...
        TypeError: 'mezo' has no option 'lr'. Did you mean 'learning_rate'? Its options: sigma, learning_rate.
    """
    known = list(dict.fromkeys(known))
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            options = f"Its options: {', '.join(known)}" if known else "It has none"
            raise TypeError(f"{owner} has no option {name!r}.{hint} {options}.")


def as_whole(value: object) -> int | None:
    """A value as a whole number; ``None`` if it is not one.

    Example:
        >>> import numpy
        >>> as_whole(numpy.int64(8)), as_whole(8.0), as_whole("8"), as_whole(True)
        (8, None, None, None)
    """
    found = _plain(value)
    return None if isinstance(found, bool) or not isinstance(found, Integral) else int(found)


def _as_number(value: object) -> float | None:
    """A value as a number; ``None`` if it is not one, or not finite."""
    found = _plain(value)
    if isinstance(found, bool) or not isinstance(found, Real):
        return None
    if isinstance(found, Integral):
        return int(found)  # which may be larger than any float
    try:
        found = float(found)
    except OverflowError:  # a very large fraction, for example
        return None
    return found if math.isfinite(found) else None


def _plain(value: object) -> object:
    """NumPy's and torch's scalars as Python's own; anything else as it is."""
    item = getattr(value, "item", None)
    if getattr(value, "ndim", None) != 0 or not callable(item):
        return value
    try:
        plain: object = item()
    except RuntimeError:  # a tensor on the meta device has no value
        return value
    return plain
