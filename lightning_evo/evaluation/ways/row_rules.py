"""What torch functions give where members are rows of one batch and an evolving parameter is no matrix of a layer.

:mod:`.rules` has the layers: linear, embedding, convolutions. Here are norms and elementwise functions, for all members
at once, and functions that draw random numbers. What is in none of these tables is called once for each member
(:mod:`.one_by_one`).

``x`` has rows in dimension p (negative): ``[..., members * rows, ...]``; with a dimension of members it is
``[..., members, rows, ...]``, so that each member's values, aligned from the right as in broadcasting, meet its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evo.evaluation.functions import tensors_in, writes
from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.places import place_of, set_place
from lightning_evo.evaluation.places.place import given
from lightning_evo.evaluation.ways.members import Members
from lightning_evo.evaluation.ways.one_by_one import name_of, one_by_one
from lightning_evo.spaces.search_space import EvolvingParameter

__all__ = ["EXPANDING", "RANDOM", "ROW_RULES", "bound", "expanded", "with_equal_numbers"]

RowRule = Callable[[Members, Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]


# --- elementwise functions ------------------------------------------------------------------------------------------


def elementwise(mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A function that works element by element, with broadcasting, of rows and evolving parameters."""
    x = _rows_among(mode, function, [*args, *kwargs.values()])
    place, in_place = place_of(x), writes(function)
    assert isinstance(place, int)
    if in_place and (args[0].dim() < -place or args[0].shape[place] != x.shape[place]):
        raise Refusal(f"{name_of(function)} writes members' values into a tensor without rows of members")

    def laid(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        parameter = mode.find(argument)
        if parameter is not None:
            return _beside_rows(mode.stack(parameter), place, x.shape[place], parameter, function)
        return _apart(argument, place, mode.layout.members)

    result = function(*map(laid, args), **{name: laid(value) for name, value in kwargs.items()})
    if not in_place:
        return _together(result, place)
    set_place(args[0], place)
    return args[0]


def _rows_among(mode: Members, function: Callable[..., Any], arguments: Sequence[Any]) -> Tensor:
    """The argument that has rows."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    rows = [tensor for tensor in tensors if mode.find(tensor) is None and isinstance(place_of(tensor), int)]
    if len({place_of(tensor) for tensor in rows}) != 1:
        names = " and ".join(p.name for tensor in tensors if (p := mode.find(tensor)) is not None)
        where = "rows in different dimensions" if rows else "no tensor that has rows of members"
        raise Refusal(f"{name_of(function)} is given {names} and {where}")
    return max(rows, key=Tensor.dim)


def _apart(tensor: Tensor, place: int, members: int) -> Tensor:
    """A tensor beside rows, with a dimension of members before dimension ``place``."""
    if tensor.dim() < -place:
        return tensor
    size = tensor.shape[place]
    parts = (members, size // members) if size > 1 else (1, size)
    split = tensor.dim() + place
    return tensor.view(*tensor.shape[:split], *parts, *tensor.shape[split + 1 :])


def _together(values: Tensor, place: int) -> Tensor:
    """Members' rows, which lie in two dimensions, in one."""
    rows = values.flatten(place - 1, place)
    set_place(rows, place)
    return rows


def _beside_rows(
    values: Tensor, place: int, rows: int, parameter: EvolvingParameter, function: Callable[..., Any]
) -> Tensor:
    """Members' values ``[members, *shape]``, aligned with rows: ``[..., members, 1, ...]``."""
    members, behind, shape = len(values), -place - 1, values.shape[1:]  # `behind`: dimensions to the right of the rows
    if len(shape) <= behind:
        return values.view(members, 1, *[1] * (behind - len(shape)), *shape)
    left = len(shape) - behind - 1
    if shape[left] == 1:
        return values.movedim(0, left)
    blocks = None
    if shape[left] == rows:
        sizes = (*values.shape[: left + 1], members, rows // members, *values.shape[left + 2 :])
        blocks = values.reshape(sizes).movedim(left + 1, 1)
    if blocks is None or not torch.equal(blocks, blocks[:, :1].expand_as(blocks)):
        raise Refusal(f"{name_of(function)} is given {parameter.name} with a dimension where rows are")
    return blocks[:, 0].movedim(0, left)  # made for all rows, as by positions that are repeated for them


def expanded(
    mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], rows: int
) -> Any:
    """A parameter such as a class token ``[1, 1, width]``, once for every one of ``rows``.

    ``NotImplemented`` where rows have no place in the result.
    """
    parameter = mode.find(args[0])
    if parameter is None:
        return NotImplemented
    center, members = parameter.tensor.detach(), mode.layout.members
    target = function(center, *args[1:], **kwargs).shape
    extra = len(target) - center.dim()
    broadcast = all(old in (1, new) for old, new in zip(center.shape, target[extra:], strict=True))
    if not target or not broadcast or target[0] % rows or (not extra and center.shape[0] != 1):
        return NotImplemented
    values = mode.stack(parameter).view(members, *[1] * extra, *center.shape)
    return mode.layout.join(values.expand(members, target[0] // members, *target[1:]))


EXPANDING: frozenset[Callable[..., Any]] = frozenset({Tensor.expand, Tensor.expand_as, Tensor.repeat})
"""Functions that :func:`expanded` knows."""


# --- norms ----------------------------------------------------------------------------------------------------------


def _layer_norm(mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    x, shape, weight, bias, eps = bound(("x", "shape", "weight", "bias", "eps"), args, kwargs)
    return _norm(mode, x, shape, weight, bias, eps, "layer_norm")


def _rms_norm(mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    x, shape, weight, eps = bound(("x", "shape", "weight", "eps"), args, kwargs)
    return _norm(mode, x, shape, weight, None, eps, "rms_norm")


def bound(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Arguments by position, ``None`` for what is not given."""
    aliases = {"x": "input", "shape": "normalized_shape"}
    return [
        args[i] if i < len(args) else kwargs.get(aliases.get(name, name), kwargs.get(name))
        for i, name in enumerate(names)
    ]


def _norm(
    mode: Members, x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float | None, name: str
) -> Tensor:
    """Normalise, then scale and shift with members' values; in float32, and rounded once."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if name == "layer_norm":
        result = functional.layer_norm(wide, shape, eps=1e-5 if eps is None else eps)
    else:
        result = functional.rms_norm(wide, shape, eps=torch.finfo(x.dtype).eps if eps is None else eps)
    set_place(result, place_of(x))
    function = getattr(functional, name)
    for operation, parameter in ((torch.mul, weight), (torch.add, bias)):
        if parameter is None:
            continue
        if mode.find(parameter) is not None:
            result = elementwise(mode, _Named(operation, function), (result, parameter), {})
        else:
            result = operation(result, parameter)
            set_place(result, place_of(x))
    if wide is x or torch.is_autocast_enabled(x.device.type):
        return result
    rounded = result.to(x.dtype)
    set_place(rounded, place_of(x))
    return rounded


class _Named:
    """A function that is part of another, by whose name it goes."""

    def __init__(self, function: Callable[..., Any], whole: Callable[..., Any]) -> None:
        self._function, self.__name__ = function, name_of(whole)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


# --- random numbers -------------------------------------------------------------------------------------------------


def with_equal_numbers(
    mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """A call for each member, whose random numbers are the same for all: those of a member alone."""
    places = [place_of(tensor) for tensor in tensors_in([*args, *kwargs.values()])]
    return NotImplemented if all(place is None for place in places) else one_by_one(mode, function, args, kwargs)


def _dropout(mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One mask for all members."""
    x, p, training, inplace = bound(("x", "p", "training", "inplace"), args, kwargs)
    if kwargs.get("train", training) is False or p == 0:  # then torch draws nothing
        return NotImplemented
    if place_of(x) != -x.dim():
        return with_equal_numbers(mode, function, args, kwargs)
    rows = mode.layout.split(x)
    mask = functional.dropout(torch.ones_like(rows[0]), 0.5 if p is None else p, True)
    if inplace or function is torch.dropout_:
        rows.mul_(mask)
        return x
    return mode.layout.join(rows * mask)


def _attention_of_heads(
    mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    dropout, training = given(args, kwargs, 10, "dropout_p"), given(args, kwargs, 13, "training")
    return with_equal_numbers(mode, function, args, kwargs) if dropout and training is not False else NotImplemented


def _attention(mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    dropout = given(args, kwargs, 4, "dropout_p")
    return with_equal_numbers(mode, function, args, kwargs) if dropout else NotImplemented


def _recurrent(mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """With dropout between layers, ``(input, states, weights, biases, layers, dropout, train, ...)``."""
    padded = args[3] is True or args[3] is False  # and not a packed sequence, which has its sizes in front
    dropout, train = args[5:7] if padded else args[6:8]
    return with_equal_numbers(mode, function, args, kwargs) if dropout and train else NotImplemented


# --- which function has which rule ----------------------------------------------------------------------------------

_ELEMENTWISE = (
    *("add", "sub", "mul", "div", "true_divide", "subtract", "multiply", "divide", "pow", "maximum", "minimum"),
    *("where", "addcmul", "addcdiv", "lerp", "logaddexp", "atan2", "fmod", "remainder", "gt", "lt", "ge", "le"),
    *("eq", "ne"),
)
_OPERATORS = ("add", "sub", "mul", "truediv", "pow")


def _forms(name: str) -> Iterator[Callable[..., Any]]:
    """The forms in which torch has a function."""
    for owner, form in ((torch, name), (Tensor, name), (Tensor, f"{name}_")):
        if hasattr(owner, form):
            yield getattr(owner, form)


def _operators(name: str) -> Iterator[Callable[..., Any]]:
    for form in (f"__{name}__", f"__r{name}__", f"__i{name}__"):
        if hasattr(Tensor, form):
            yield getattr(Tensor, form)


ROW_RULES: dict[Callable[..., Any], RowRule] = {
    **{form: elementwise for name in _ELEMENTWISE for form in _forms(name)},
    **{form: elementwise for name in _OPERATORS for form in _operators(name)},
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    torch.layer_norm: _layer_norm,
    torch.rms_norm: _rms_norm,
}
"""Functions of rows and evolving parameters, for all members at once."""

_DRAWING = ("bernoulli", "multinomial", "normal", "poisson", "binomial", "rand_like", "randn_like", "randint_like")
_DRAWING_METHODS = ("bernoulli", "multinomial", "uniform", "normal", "exponential", "cauchy", "geometric", "log_normal")
_DRAWING_FUNCTIONS = ("gumbel_softmax", "rrelu", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d")
_DRAWING_KERNELS = ("alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout", "rrelu")

RANDOM: dict[Callable[..., Any], RowRule] = {
    **{getattr(torch, name): with_equal_numbers for name in _DRAWING},
    **{getattr(Tensor, name): with_equal_numbers for name in ("bernoulli", "multinomial")},
    **{getattr(Tensor, f"{name}_"): with_equal_numbers for name in _DRAWING_METHODS if hasattr(Tensor, f"{name}_")},
    **{getattr(functional, name): with_equal_numbers for name in (*_DRAWING_FUNCTIONS, "dropout3d")},
    Tensor.random_: with_equal_numbers,
    **{getattr(torch, name): with_equal_numbers for name in _DRAWING_KERNELS},
    functional.dropout: _dropout,
    torch.dropout: _dropout,
    torch.dropout_: _dropout,
    functional.scaled_dot_product_attention: _attention,
    functional.multi_head_attention_forward: _attention_of_heads,
    **{getattr(torch, name): _recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}
"""Functions that draw random numbers: all members have the same."""
