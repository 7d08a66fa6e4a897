"""Where members' rows lie after a read or a write of chosen entries: ``x[...]``, ``gather``, ``index_copy_``.

Where an index chooses among the rows, the rows of the result are the index's: entry ``i`` is what row ``i`` asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_evo.evaluation.places.place import (
    LOST,
    NAME,
    Place,
    Rule,
    combined,
    given,
    negative,
    place_of,
)

__all__ = ["INDEXING"]

_Arguments = Sequence[Any]
_Keywords = Mapping[str, Any]

_MASKS = (torch.bool, torch.uint8)
_NEW = -1  # a dimension of size 1 that the index adds


# --- x[...] ---


def _parts(index: Any) -> list[Any] | None:
    """The parts of an index, with lists and arrays as tensors; ``None`` if rows may hide in a list."""
    parts = list(index) if isinstance(index, tuple) else [index]
    for i, part in enumerate(parts):
        if part is None or part is Ellipsis or isinstance(part, (Tensor, slice, int)):
            continue
        if isinstance(part, (list, tuple)) and not all(isinstance(entry, int) for entry in part):
            return None
        parts[i] = torch.as_tensor(part)
    return parts


def _rank(index: Any) -> int | None:
    """Dimensions that one part of an index uses up; ``None`` for an ellipsis."""
    if index is Ellipsis:
        return None
    if index is None or isinstance(index, bool):
        return 0
    return index.ndim if isinstance(index, Tensor) and index.dtype in _MASKS else 1


def _of_part(place: Place, shape: Sequence[int], index: Any, chosen_rows: bool = True) -> Place:
    """The place in ``x[index]`` of rows that lie at ``place`` in ``x``, or that the index holds.

    Args:
        place: In ``x``.
        shape: Of ``x``.
        index: Any index that PyTorch takes.
        chosen_rows: Whether an index may choose among the rows.
    """
    parts = _parts(index)
    if parts is None:
        return LOST
    kept: list[int] = []  # the dimension of x that each dimension of the part is
    tensors: list[tuple[int, Tensor]] = []  # the dimension of x at which each index tensor begins, and the tensor
    front = None  # where the dimensions of the index tensors go
    dim, ndim = 0, len(shape)
    used = [_rank(part) for part in parts]
    for part, rank in zip(parts, used, strict=True):
        if rank is None:
            rest = ndim - sum(r for r in used if r is not None)
            kept.extend(range(dim, dim + rest))
            dim += rest
        elif part is None:
            kept.append(_NEW)
        elif isinstance(part, slice):
            whole = part == slice(None) or range(*part.indices(shape[dim])) == range(shape[dim])
            if not whole and type(place) is int and place == dim - ndim:
                return LOST
            kept.append(dim)
            dim += 1
        elif isinstance(part, bool):
            return LOST
        elif isinstance(part, int):
            if type(place) is int and place == dim - ndim:
                return LOST
            dim += 1
        elif part.ndim == 0:
            if part.dtype in _MASKS or place_of(part) is not None or (type(place) is int and place == dim - ndim):
                return LOST
            dim += 1
        else:
            if front is None:
                front = len(kept)
            elif front != len(kept):
                front = 0  # they do not stand next to each other
            if not chosen_rows and type(place) is int and dim <= place + ndim < dim + rank:
                return LOST
            tensors.append((dim, part))
            dim += rank
    kept.extend(range(dim, ndim))
    if not tensors:
        return kept.index(place + ndim) - len(kept) if type(place) is int else place
    return _of_chosen(place, ndim, kept, front or 0, tensors, shape)


def _of_chosen(
    place: Place, ndim: int, kept: list[int], front: int, tensors: list[tuple[int, Tensor]], shape: Sequence[int]
) -> Place:
    """The place in a part that index tensors choose, whose dimensions go to ``front`` among those that are ``kept``."""
    dims = max(1 if t.dtype in _MASKS else t.ndim for _, t in tensors)
    after = len(kept) - front  # dimensions to the right of the index tensors'
    masks = [t for _, t in tensors if t.dtype in _MASKS]
    chosen = combined([place_of(t) for _, t in tensors])
    if any(place_of(mask) is not None for mask in masks):
        return LOST
    if type(place) is not int:
        return combined([place, chosen - after if type(chosen) is int else chosen])
    if place + ndim in kept:
        if chosen is not None:
            return LOST
        q = kept.index(place + ndim)
        return q - len(kept) - (dims if q < front else 0)
    if type(chosen) is int:
        return chosen - after
    for begin, index in tensors:
        if begin == place + ndim and index.dtype not in _MASKS and chosen is None:
            along = [q for q in range(-index.ndim, 0) if index.shape[q] != 1]  # it may be [rows, 1, 1]
            return along[0] - after if len(along) == 1 and index.numel() == shape[place] else LOST
    return LOST


def _get(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, index = args
    place: Place = getattr(x, NAME, None)
    if type(place) is int:
        found = _of_slices(place, x, index if type(index) is tuple else (index,))
        if found is not None:
            return found
    return _of_part(place, x.shape, index)


def _of_slices(place: int, x: Tensor, parts: tuple[Any, ...]) -> Place:
    """As :func:`_of_part`, for indexes of slices and numbers alone, which are most; ``None`` for others."""
    ndim = x.ndim
    rows, dim, removed = place + ndim, 0, 0  # the latter to the right of the rows
    for i, part in enumerate(parts):
        kind = type(part)
        if kind is slice:
            if dim == rows and (part.start or part.stop is not None or part.step is not None):
                size = x.shape[dim]
                if range(*part.indices(size)) != range(size):
                    return LOST
            dim += 1
        elif kind is int:
            if dim == rows:
                return LOST
            removed += dim > rows
            dim += 1
        elif part is None:
            removed -= dim > rows
        elif part is Ellipsis:
            dim = ndim - sum(later is not None for later in parts[i + 1 :])
        else:
            return None
    return place + removed


def _at(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return _of_part(place_of(args[0]), args[0].shape, tuple(args[1]))


def _of_target(x: Tensor, index: Any, value: Any, members: int) -> Place:
    """The place in ``x`` after ``x[index] = value``."""
    before = place_of(x)
    source = place_of(value) if isinstance(value, Tensor) else None
    if type(before) is int:
        if type(source) is not int:
            return before
        part = _of_part(before, x.shape, index)
        return before if type(part) is not int or part == source else LOST
    if before is not None:
        return before
    chosen = _of_part(None, x.shape, index)
    if type(source) is not int or chosen is not None:
        return _of_mask(x, index) if source is None else LOST
    for q in range(-x.ndim, 0):
        if x.shape[q] == value.shape[source] and _of_part(q, x.shape, index, chosen_rows=False) == source:
            return q if x.shape[q] % members == 0 else LOST
    return LOST


def _of_mask(x: Tensor, index: Any) -> Place:
    """The place in ``x``, which had none, after a write where a mask that holds rows says so."""
    place = place_of(index) if isinstance(index, Tensor) and index.dtype in _MASKS else LOST
    return place + index.ndim - x.ndim if type(place) is int else LOST


def _set(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return _of_target(args[0], args[1], args[2], members)


def _put_at(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return _of_target(args[0], tuple(given(args, kwargs, 1, "indices")), given(args, kwargs, 2, "values"), members)


# --- along one dimension ---


def _index_select(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, index = args[0], given(args, kwargs, 2, "index")
    place, chosen, dim = place_of(x), place_of(index), negative(given(args, kwargs, 1, "dim"), x.ndim)
    if type(chosen) is int:
        chosen = dim
    if place == dim:
        return dim if type(chosen) is int or (chosen is None and len(index) == x.shape[dim]) else LOST
    return combined([place, chosen])


def _gather(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, index = args[0], given(args, kwargs, 2, "index")
    place, chosen, dim = place_of(x), place_of(index), negative(given(args, kwargs, 1, "dim"), x.ndim)
    if type(place) is int:
        if place == dim:
            return dim if chosen == dim else LOST
        if index.shape[place] != x.shape[place]:
            return LOST
    return combined([place, chosen])


def _take_along(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, index, dim = args[0], given(args, kwargs, 1, "indices"), given(args, kwargs, 2, "dim")
    place, chosen = place_of(x), place_of(index)
    if dim is None:
        return chosen if place is None and index.ndim == 1 else LOST
    if place == negative(dim, x.ndim):
        return place if chosen == place else LOST
    return combined([place, chosen])


def _take(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return place_of(given(args, kwargs, 1, "index")) if place_of(args[0]) is None else LOST


def _scatter(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, dim, index = args[0], given(args, kwargs, 1, "dim"), given(args, kwargs, 2, "index")
    source = given(args, kwargs, 3, "src", "value")
    before = place_of(x)
    place = combined([place_of(index), place_of(source) if isinstance(source, Tensor) else None])
    if before is not None:
        return before if type(before) is not int or type(place) is not int or place == before else LOST
    if type(place) is int and (place == negative(dim, x.ndim) or index.shape[place] != x.shape[place]):
        return LOST
    return place


def _index_write(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, dim = args[0], given(args, kwargs, 1, "dim")
    source = given(args, kwargs, 3, "source", "value")
    before = place_of(x)
    place = place_of(source) if isinstance(source, Tensor) else None
    if before is not None:
        return before if type(before) is not int or type(place) is not int or place == before else LOST
    if type(place) is int and place != negative(dim, x.ndim) and place_of(given(args, kwargs, 2, "index")) is None:
        return place
    return LOST


def _slice_write(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, place = args[0], place_of(given(args, kwargs, 1, "src"))
    before = place_of(x)
    if type(before) is int:
        return before if type(place) is not int or place == before else LOST
    if before is None and type(place) is int:
        return place if place != negative(given(args, kwargs, 2, "dim") or 0, x.ndim) else LOST
    return LOST


def _masked_scatter(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    place = combined([place_of(args[0]), place_of(given(args, kwargs, 1, "mask"))])
    return LOST if place is None else place


INDEXING: dict[str, Rule] = {
    "__getitem__": _get,
    "__setitem__": _set,
    "index": _at,
    "index_put": _put_at,
    "index_select": _index_select,
    "gather": _gather,
    "take_along_dim": _take_along,
    "take": _take,
    "masked_scatter": _masked_scatter,
    "slice_scatter": _slice_write,
    **dict.fromkeys(["scatter", "scatter_add", "scatter_reduce"], _scatter),
    **dict.fromkeys(["index_copy", "index_add", "index_reduce", "index_fill"], _index_write),
}
"""Rules by the function's name."""
