"""Where members' rows lie after a view or another move of a tensor's elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_evo.evaluation.places.elementwise import first
from lightning_evo.evaluation.places.place import (
    LOST,
    NAME,
    Place,
    Rule,
    combined,
    given,
    moves,
    negative,
    place_of,
)

__all__ = ["MOVES", "reshaped"]

_Arguments = Sequence[Any]
_Keywords = Mapping[str, Any]


def _numbers(args: _Arguments, kwargs: _Keywords, position: int, *names: str) -> list[int]:
    """Numbers given one by one or as one sequence."""
    value = given(args, kwargs, position, *names)
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(args[position:]) if len(args) > position else [value]


# --- shapes ---


def reshaped(place: int, old: Sequence[int], new: Sequence[int], members: int) -> Place:
    """The place after elements, in row-major order, got another shape.

    As many elements lie to the left of it as before, and members still split it evenly.
    """
    index = len(old) + place
    if old[: index + 1] == new[: index + 1]:
        return index - len(new)
    left, size, product = math.prod(old[:index]), old[index], 1
    for q, entries in enumerate(new):
        if product == left and entries % members == 0 and (entries != 1 or size == 1):
            return q - len(new)
        product *= entries
    return LOST


def _reshape(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x = args[0]
    if type(given(args, kwargs, 1, "dtype")) is torch.dtype:  # bytes of the last dimension are read differently
        return place if place != -1 or result.shape[-1] % members == 0 else LOST
    return reshaped(place, x.shape, result.shape, members)


def _reshape_as(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    place = place_of(args[0])
    return reshaped(place, args[0].shape, result.shape, members) if type(place) is int else place


def _squeeze(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    shape = args[0].shape
    dims: Any = given(args, kwargs, 1, "dim")
    dims = range(-len(shape), 0) if dims is None else (dims,) if isinstance(dims, int) else dims
    removed = [d for d in (negative(d, len(shape)) for d in dims) if shape[d] == 1]
    return LOST if place in removed else place + sum(d > place for d in removed)


def _unsqueeze(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    dim: int = negative(given(args, kwargs, 1, "dim"), result.ndim)
    return place if place > dim else place - 1


def _last_added(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return place - 1


def _last_removed(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return LOST if place == -1 else place + 1


def _at_least_3d(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return place if args[0].ndim > 2 else place - 1


# --- order of dimensions ---


def _transpose(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    ndim: int = args[0].ndim
    one: int = negative(given(args, kwargs, 1, "dim0", "axis0"), ndim)
    other: int = negative(given(args, kwargs, 2, "dim1", "axis1"), ndim)
    return other if place == one else one if place == other else place


def _last_two(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return place if place < -2 or args[0].ndim < 2 else -3 - place


def _reversed(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    ndim: int = args[0].ndim
    return -1 - place - ndim


def _permute(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    dims = _numbers(args, kwargs, 1, "dims")
    return [negative(d, len(dims)) for d in dims].index(place) - len(dims)


def _movedim(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    ndim: int = args[0].ndim
    source: Any = given(args, kwargs, 1, "source")
    target: Any = given(args, kwargs, 2, "destination")
    pairs = [(target, source)] if isinstance(source, int) else zip(target, source, strict=True)
    moved = sorted((t % ndim, s % ndim) for t, s in pairs)
    order = [d for d in range(ndim) if d not in [s for _, s in moved]]
    for t, s in moved:
        order.insert(t, s)
    return order.index(place + ndim) - ndim


# --- parts ---


def _select(default: int = 0) -> Rule:
    """One entry of a dimension, which is gone: ``select``, ``unbind``."""

    def select(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
        named: Any = given(args, kwargs, 1, "dim")
        dim = negative(default if named is None else named, args[0].ndim)
        return LOST if dim == place else place if dim < place else place + 1

    return moves(select)


def _part(position: int, default: int = 0) -> Rule:
    """Some consecutive entries of a dimension; the rows' stays whole."""

    def part(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
        x = args[0]
        dim: Any = given(args, kwargs, position, "dim")
        dim = negative(default if dim is None else dim, x.ndim)
        whole = result[0] if isinstance(result, (tuple, list)) else result
        return LOST if dim == place and whole.shape[dim] != x.shape[dim] else place

    return moves(part)


def _split_at(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return place if result[0].shape[place] == args[0].shape[place] else LOST


def _diagonal(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    dims = [given(args, kwargs, 2, "dim1"), given(args, kwargs, 3, "dim2")]
    dims = [negative(i if dim is None else dim, args[0].ndim) for i, dim in enumerate(dims)]
    return LOST if place in dims else place + sum(d > place for d in dims) - 1


def _unfold(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return LOST if negative(given(args, kwargs, 1, "dimension"), args[0].ndim) == place else place - 1


# --- the same elements in another order, or more often ---


def _repeat(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    sizes = _numbers(args, kwargs, 1, "repeats", "sizes", "dims")
    return place if -place > len(sizes) or sizes[place] == 1 else LOST


def _repeat_interleave(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, repeats, dim = args[0], given(args, kwargs, 1, "repeats"), given(args, kwargs, 2, "dim")
    several = isinstance(repeats, Tensor) and repeats.numel() > 1
    if isinstance(repeats, Tensor) and place_of(repeats) is not None:
        return LOST
    if dim is None:  # it flattens
        return LOST if several else reshaped(place, x.shape, (x.numel(),), members)
    return LOST if several and negative(dim, x.ndim) == place else place


def _turned(position: int, default: tuple[int, ...] | None = None) -> Rule:
    """Another order of the entries along some dimensions, or of all entries."""

    def turned(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
        dims = _numbers(args, kwargs, position, "dims", "dim") or default
        if dims is None:
            return LOST
        return LOST if place in [negative(d, args[0].ndim) for d in dims] else place

    return moves(turned)


def _pad(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    pad = list(given(args, kwargs, 1, "pad"))
    before = 2 * (-place - 1)
    return LOST if any(pad[before : before + 2]) else place


# --- several tensors ---


def _cat(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    tensors = args[0] if args else kwargs["tensors"]
    places = [getattr(x, NAME, None) for x in tensors]
    place: Place = places[0]
    if place is None or places.count(place) != len(places):
        place = combined(places)
    if type(place) is int and len(places) > 1:
        dim = (args[1] if len(args) > 1 else given(args, kwargs, 1, "dim", "axis")) or 0
        if place == (dim if dim < 0 else dim - result.ndim):
            return LOST
    return place


def _stack(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    dim = negative(given(args, kwargs, 1, "dim") or 0, result.ndim)
    place = combined([place_of(x) for x in given(args, kwargs, 0, "tensors")])
    return place if type(place) is not int or place > dim else place - 1


def _joined(dim: int, added: tuple[int, ...] = ()) -> Rule:
    """``hstack`` and the like: along a dimension, after one is added to the right of tensors with few."""

    def joined(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
        tensors = given(args, kwargs, 0, "tensors")
        place = combined([p - (x.ndim in added) if type(p := place_of(x)) is int else p for x in tensors])
        along = negative(min(dim, result.ndim - 1), result.ndim)
        return LOST if place == along and len(tensors) > 1 else place

    return joined


def _tensors(args: _Arguments) -> Sequence[Any]:
    """Tensors given one by one or as one sequence."""
    return args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args


def _each_its_own(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> list[Place]:
    return [place_of(x) for x in _tensors(args)]


def _meshgrid(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> list[Place]:
    tensors, places = _tensors(args), []
    for i, x in enumerate(tensors):
        place = place_of(x)
        q = 1 - i if i < 2 <= len(tensors) and kwargs.get("indexing") == "xy" else i
        places.append(q - len(tensors) if type(place) is int else place)
    return places


_ROLL, _FLIP, _NARROW = _turned(2), _turned(1), _part(1)
_VIEW, _AS = moves(_reshape), _reshape_as
_LAST_TWO, _TRANSPOSE = moves(_last_two), moves(_transpose)
_SPLIT, _SPLIT_AT = _part(2), moves(_split_at)

MOVES: dict[str, Rule] = {
    **dict.fromkeys(["view", "reshape", "flatten", "unflatten", "ravel", "_unsafe_view", "_reshape_alias"], _VIEW),
    **dict.fromkeys(["view_as", "reshape_as"], _AS),
    **dict.fromkeys(["expand", "expand_as", "broadcast_to", "atleast_1d", "atleast_2d"], first),
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], _TRANSPOSE),
    **dict.fromkeys(["mT", "mH", "H", "t", "adjoint"], _LAST_TWO),
    **dict.fromkeys(["movedim", "moveaxis"], moves(_movedim)),
    **dict.fromkeys(["select", "unbind"], _select()),
    **dict.fromkeys(["split", "chunk", "tensor_split", "split_with_sizes", "unsafe_split", "unsafe_chunk"], _SPLIT),
    **dict.fromkeys(["unsafe_split_with_sizes"], _SPLIT),
    **dict.fromkeys(["hsplit", "vsplit", "dsplit"], _SPLIT_AT),
    **dict.fromkeys(["cat", "concat", "concatenate"], _cat),
    **dict.fromkeys(["repeat", "tile"], moves(_repeat)),
    **dict.fromkeys(["diagonal"], moves(_diagonal)),
    **dict.fromkeys(["view_as_complex"], moves(_last_removed)),
    **dict.fromkeys(["view_as_real", "one_hot"], moves(_last_added)),
    **dict.fromkeys(["vstack", "row_stack"], _joined(0)),
    "hstack": _joined(1),
    "dstack": _joined(2, added=(1, 2)),
    "column_stack": _joined(1, added=(1,)),
    "stack": _stack,
    "squeeze": moves(_squeeze),
    "unsqueeze": moves(_unsqueeze),
    "atleast_3d": moves(_at_least_3d),
    "T": moves(_reversed),
    "permute": moves(_permute),
    "narrow": _NARROW,
    "unfold": moves(_unfold),
    "repeat_interleave": moves(_repeat_interleave),
    "flip": _FLIP,
    "flipud": _turned(9, (0,)),
    "__reversed__": _turned(9, (0,)),
    "fliplr": _turned(9, (1,)),
    "rot90": _turned(2, (0, 1)),
    "roll": _ROLL,
    "fft_fftshift": _turned(1),
    "fft_ifftshift": _turned(1),
    "pad": moves(_pad),
    "constant_pad_nd": moves(_pad),
    "broadcast_tensors": _each_its_own,
    "meshgrid": _meshgrid,
}
"""Rules by the function's name."""
