"""Rows of members, followed through the torch functions that a forward calls.

Where members are rows of one batch, a layer with evolving weights must know which rows of its input are whose. Sizes
don't tell: a sequence may be as long as the batch. So each tensor carries its place, as an attribute, and
:func:`follow` gives the result of every call one by those of the arguments. A place says which rows lie where, not
whether the code mixes rows.

Writes are followed into the tensor that is written, and into the one it is a view of. They are not followed into other
views of the same memory that were taken before (``detach`` and ``.data`` make such), nor, in inference mode, into the
viewed tensor. What leaves PyTorch's Python functions (``tolist``, ``numpy``, TorchScript, compiled code, ``vmap``)
comes back without a place, as if it were the same for all members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_evo.evaluation.functions import writes
from lightning_evo.evaluation.places.elementwise import ELEMENTWISE, elementwise, same_for_all, unknown
from lightning_evo.evaluation.places.indexing import INDEXING
from lightning_evo.evaluation.places.layers import LAYERS, layer
from lightning_evo.evaluation.places.moves import MOVES
from lightning_evo.evaluation.places.place import LOST, NAME, Lost, Place, Rule, note_written, place_of, set_place
from lightning_evo.evaluation.places.reductions import REDUCTIONS

__all__ = ["Lost", "follow", "place_of", "set_place"]


def follow(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int
) -> None:
    """Gives the tensors in a call's result their places; call it after the torch function.

    Args:
        function: As a ``TorchFunctionMode`` sees it.
        args: Its arguments; tensors in lists count.
        kwargs: Its arguments by name.
        result: What it gave: a tensor, tensors in lists or tuples, or anything else, which is left alone.
        members: How many members' rows a tensor holds.

    Example:
        >>> import torch
        >>> x = torch.zeros(6, 4, 8)  # [rows, length, d], two members with three rows each
        >>> set_place(x, -3)
        >>> y = x.transpose(0, 1)
        >>> follow(torch.Tensor.transpose, (x, 0, 1), {}, y, members=2)
        >>> place_of(y)
        -2
        >>> z = y.sum(1)
        >>> follow(torch.Tensor.sum, (y, 1), {}, z, members=2)
        >>> place_of(z)
        'sum'
    """
    for argument in args:
        if getattr(argument, NAME, None) is not None:
            break
        if type(argument) in _SEQUENCES and _hold_rows(argument):
            break
    else:
        if not kwargs or not _hold_rows(kwargs.values()):
            return
    rule, name = _KNOWN.get(function) or _rule_of(function)
    if kwargs and "out" in kwargs:
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        if not _hold_rows(args) and not _hold_rows(kwargs.values()):
            rule = same_for_all
    if not args and "input" in kwargs:
        args = (kwargs["input"],)
    try:
        place = rule(args, kwargs, result, members)
    except _UNREADABLE:
        place = LOST
    if isinstance(result, Tensor):
        if type(place) is int:
            setattr(result, NAME, place)
        elif not isinstance(place, list):
            _give(result, place, name)
    elif isinstance(result, _CONTAINERS) and type(result) is not torch.Size:
        places = place if isinstance(place, list) else [place] * len(result)
        for value, each in zip(result, places, strict=True):
            _give(value, each, name)


_UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # arguments that a rule doesn't know
_CONTAINERS = (tuple, list)
_SEQUENCES = frozenset(_CONTAINERS)


def _hold_rows(arguments: Iterable[Any]) -> bool:
    for argument in arguments:
        if getattr(argument, NAME, None) is not None:
            return True
        if type(argument) in _SEQUENCES and _hold_rows(argument):
            return True
    return False


def _give(value: Any, place: Place, name: str) -> None:
    if isinstance(value, Tensor):
        set_place(value, Lost(name) if place is LOST else place)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _give(part, place, name)


# --- the rule of a function ---


def _data_set(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place:
    if place_of(args[0]) is None:
        note_written(args[0])
    set_place(args[0], place_of(args[1]))
    return None


def _iterated(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place:
    tensors = list(copy.copy(result))  # the same objects that the user's loop will get
    place = MOVES["unbind"](args, kwargs, tensors, members)
    for tensor in tensors:
        _give(tensor, place, "__iter__") if not isinstance(place, list) else None
    return None


def _its_own(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place:
    return place_of(result)  # a tensor that was there before


_RULES: dict[str, Rule] = {**ELEMENTWISE, **MOVES, **INDEXING, **REDUCTIONS, **LAYERS}
_RULES["__iter__"] = _iterated
_RULES["_base"] = _its_own
_RULES["data.__set__"] = _data_set
_KNOWN: dict[Any, tuple[Rule, str]] = {}  # by the function itself, filled as functions are met


def _name_of(function: Callable[..., Any]) -> str:
    name: str = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):
        attribute: str = getattr(getattr(function, "__self__", None), "__name__", "?")
        return attribute if name == "__get__" else f"{attribute}.{name}"
    if getattr(function, "__module__", None) == "torch.nn.functional" and f"F.{name}" in _RULES:
        return f"F.{name}"
    return name


def _is_torchs(function: Callable[..., Any]) -> bool:
    """Whether a function is one of PyTorch's own, so that its name says what it does."""
    if type(function).__name__ == "OpOverloadPacket":
        return str(function).startswith("aten.")
    module = getattr(function, "__module__", None)
    return module is None or module == "torch" or module.startswith(("torch.", "builtins"))


def _rule_of(function: Callable[..., Any]) -> tuple[Rule, str]:
    known = getattr(function, "overloadpacket", function)  # `torch.ops.aten.add.Tensor` is an `add`
    name, rule = _name_of(known), None
    if _is_torchs(known):
        rule = _rule_by(name) or (_rule_by(name[:-1]) if name.endswith("_") else None)
    rule = rule or unknown
    _KNOWN[function] = _writing(rule, name) if writes(known) else rule, name.removeprefix("F.")
    return _KNOWN[function]


def _rule_by(name: str) -> Rule | None:
    rule = _RULES.get(name) or _RULES.get(name.removesuffix("_copy")) or layer(name)
    return elementwise if rule is None and name.startswith("special_") else rule


def _writing(rule: Rule, name: str) -> Rule:
    """A rule for a function that writes its first argument: what that is a view of holds rows from then on."""

    def in_place(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place | list[Place]:
        target = args[0] if args else None
        before = getattr(target, NAME, None)
        try:
            place = rule(args, kwargs, result, members)
        except _UNREADABLE:
            place = LOST
        if isinstance(place, list) or not isinstance(target, Tensor):
            _give(target, LOST, name)  # lists of tensors, as optimizers write them
            return place
        if result is not target:
            _give(target, place, name)
        if before is None and place is not None:
            note_written(target)
        if before is None and place is not None and target._base is not None and place_of(target._base) is None:
            note_written(target._base)
            _give(target._base, _in_base(target, target._base, place), name)
        return place

    return in_place


def _in_base(view: Tensor, base: Tensor, place: Place) -> Place:
    """Where the rows of a view lie in the tensor that it is a view of: in the dimension of the same steps and size."""
    if type(place) is not int:
        return place
    for q in range(-base.ndim, 0):
        if base.shape[q] == view.shape[place] and base.stride(q) == view.stride(place):
            return q
    return LOST
