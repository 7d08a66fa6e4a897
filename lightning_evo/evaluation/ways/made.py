"""Tensors that are made of evolving parameters alone, such as ``1 + weight`` or ``weight.float()``.

Each member has its own. The user's code gets the center's, on which is noted what the members have
(:func:`~lightning_evo.evaluation.places.made_of`); where it meets rows it is treated as a parameter is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_evo.evaluation.functions import tensors_in, writes
from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.places import set_made
from lightning_evo.evaluation.ways.members import Members
from lightning_evo.evaluation.ways.one_by_one import Rewound, equal_values, name_of
from lightning_evo.evaluation.ways.rules import RULES
from lightning_evo.spaces.search_space import EvolvingParameter
from lightning_evo.utils.messages import preview

__all__ = ["Made", "made_for_members"]

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Made(EvolvingParameter):
    """A tensor made of evolving parameters, which goes by their names.

    Attributes:
        values: The members', ``[members, *shape]``; ``None`` if there are only factors.
        factors: Of the noise of a matrix, as products of two thin ones.
        owner: The forward's mode.
        names: Of the evolving parameters.
    """

    values: Tensor | None = None
    factors: Factors | None = None
    owner: object = None
    names: tuple[str, ...] = ()


def _methods(*names: str) -> frozenset[Any]:
    found = [getattr(owner, name, None) for owner in (torch, Tensor) for name in names]
    return frozenset(filter(None, found))


_CASTS = _methods("to", "float", "half", "bfloat16", "double", "type_as", "detach", "clone", "contiguous", "alias")
_EACH = _CASTS | _methods(
    *("exp", "neg", "abs", "sigmoid", "tanh", "sqrt", "rsqrt", "square", "reciprocal", "log", "relu", "add", "sub"),
    *("mul", "div", "pow", "rsub", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__"),
    *("__pow__", "__neg__", "clamp"),
)  # of one tensor, element by element
_SCALES = _methods("mul", "div", "__mul__", "__rmul__", "__truediv__", "multiply", "divide", "true_divide")
_TURNS: frozenset[Any] = _methods("t", "transpose", "swapaxes", "swapdims") | {
    vars(torch._C.TensorBase)[name].__get__ for name in ("T", "mT", "H", "mH")
}


def made_for_members(
    mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]
) -> Any:
    """What a function makes of evolving parameters and of tensors that are the same for all members.

    Args:
        mode: The members.
        function: The function.
        args: Its arguments. None has rows of members.
        kwargs: Those by name.
        names: Of the evolving parameters among them.

    Raises:
        Refusal: If it would have to be made of large weights, or writes, or gives each member a number.
    """
    name, tensors = name_of(function), tensors_in([*args, *kwargs.values()])
    if writes(function) or name == "__set__" or kwargs.get("out") is not None:
        found = preview(names)
        raise Refusal(f"{name} writes into {found}, or {found} into a tensor that all members share")
    call = Rewound(function, tensors, kwargs.get("generator"))
    center = call(*args, **kwargs)
    if any(center is tensor for tensor in tensors):  # as `weight.float()` does in float32
        return center
    factors = _factors(mode, function, args, kwargs, tensors, center)
    if factors is not None:
        _note(mode, center, names, None, factors)
        return center
    if function in RULES and isinstance(center, Tensor):
        found = _layer(mode, function, list(args), kwargs)
        if found is not NotImplemented:
            _note(mode, center, names, found.unflatten(0, (mode.layout.members, -1)).view(-1, *center.shape))
            return center
    stacks = {id(tensor): mode.stacked(tensor) for tensor in tensors if mode.find(tensor) is not None}
    if function in _EACH and len(tensors) == 1 and isinstance(center, Tensor) and center.shape == tensors[0].shape:
        given = tree_map(lambda each: stacks[id(each)] if isinstance(each, Tensor) else each, (args, kwargs))
        _note(mode, center, names, function(*given[0], **given[1]))
        return center
    results = []
    for member in range(mode.layout.members):

        def of(each: Any, member: int = member) -> Any:
            return stacks[id(each)][member] if isinstance(each, Tensor) and id(each) in stacks else each

        given = tree_map(of, (args, kwargs))
        results.append(call(*given[0], **given[1]))

    def noted(one: Any, *each: Any) -> Any:
        if not isinstance(one, Tensor):
            return equal_values(each, name)
        if any(one is tensor for tensor in tensors):
            return one
        _note(mode, one, names, torch.stack(each))
        return one

    return tree_map(noted, center, *results)


def _layer(mode: Members, function: Callable[..., Any], args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    """A layer whose input is the same for all members, or made of parameters: then the members' are rows."""
    position = 1 if function is torch.addmm else 0
    parameter = mode.find(args[position])
    if parameter is not None:
        values = mode.stack(parameter)
        args[position] = mode.layout.join(values[:, None] if values.dim() == 2 else values)
    return RULES[function](mode, *args, **kwargs)


def _note(
    mode: Members, center: Tensor, names: Sequence[str], values: Tensor | None, factors: Factors | None = None
) -> None:
    tensor: Any = center.detach()  # another object, so that the note makes no cycle
    set_made(center, Made(preview(names), tensor, -1, values=values, factors=factors, owner=mode, names=tuple(names)))


def _factors(
    mode: Members,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    tensors: Sequence[Tensor],
    center: Any,
) -> Factors | None:
    """Factors of a matrix that is another one cast, transposed or times a number; ``None`` for other functions."""
    parameter = mode.find(tensors[0]) if len(tensors) == 1 else None
    known = None if parameter is None else mode.factors(parameter)
    if known is None or not isinstance(center, Tensor) or center.dim() != 2:
        return None
    a, b = (factor.to(center.dtype) if center.is_floating_point() else factor for factor in known)
    if function in _CASTS and center.is_floating_point() and center.shape == tensors[0].shape:
        return a, b
    if function in _TURNS:
        return (b, a) if _is_turned(args, kwargs) else (a, b)
    number = next((each for each in args if isinstance(each, int | float)), None)
    if function in _SCALES and number is not None and len(args) == 2 and not kwargs and args[0] is tensors[0]:
        divides = "div" in name_of(function)
        return (a / number if divides else a * number), b
    return None


def _is_turned(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    dims = [each % 2 for each in (*args[1:], *kwargs.values())]
    return len(set(dims)) != 1  # ``transpose(0, 0)`` changes nothing
