"""Where members' rows lie in what layers are given: seen where rows are followed, and remembered where they aren't.

Following rows takes a call of Python for each torch function, of which a small language model makes two thousand in a
forward: a quarter of its time on a CPU. But where rows lie when they come to a layer is up to the code, and the same in
every forward. So forwards that are followed note it for every kind of call, and later ones have only those calls come
to Python that are given an evolving parameter. A call of a kind that was never seen has its forward followed again.

Two calls are of a kind if function and parameters are the same and each size stands in the same relation to the number
of rows: equal, a multiple of it, 1 or another number. So where a sequence is as long as the batch the kind is another.
Where rows lie differently in two kinds of calls of one layer, sizes that come later could be those of either: then all
forwards are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_evo.evaluation.functions import tensors_in
from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.places import place_of, set_place
from lightning_evo.evaluation.places.place import Place
from lightning_evo.spaces.search_space import EvolvingParameter

__all__ = ["Routes", "Summary", "Unfamiliar", "alike", "summary"]

_Kind: TypeAlias = "tuple[Any, ...]"
_Tensors: TypeAlias = "list[tuple[str, ...] | str]"  # a parameter's name, or how sizes stand to the number of rows
_Find: TypeAlias = "Callable[[object], EvolvingParameter | None]"

Summary: TypeAlias = "tuple[Tensor, float]"

_CLOSE = 1e-5  # of the mean magnitude: how far apart sums of the same numbers may be, if made in other memory


class Unfamiliar(Refusal):
    """A call of a kind that no followed forward has made."""


class Routes:
    """What followed forwards noted.

    Attributes:
        reason: Why every forward has to be followed; empty if that is not so.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._places: dict[_Kind, list[Place]] = {}
        self._of_layers: dict[_Kind, list[tuple[_Tensors, list[Place]]]] = {}  # the same, by all but the sizes
        self._read: set[frozenset[int]] = set()
        self._rows = 0
        self._in_front: set[tuple[int, torch.Size]] = set()  # inputs of linear layers, by shape, for a number of rows

    def note(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], find: _Find, rows: int
    ) -> None:
        """Note where rows lie in a call's arguments."""
        if rows == 1:  # of one member: such a forward is always followed, and every size is a multiple
            return
        tensors = _arguments(args, kwargs)
        kind = _kind(function, tensors, kwargs, find, rows)
        places = [place_of(tensor) for tensor in tensors]
        if kind not in self._places:
            self._places[kind] = places
            found = _tensors(tensors, find, rows)
            layer = (function, *kwargs, *(each if isinstance(each, str) else len(each) for each in found))
            others = self._of_layers.setdefault(layer, [])
            if any(_may_be_confused((found, places), other) for other in others):
                self.reason = "rows lie differently in calls of one layer, which sizes may not tell apart"
            others.append((found, places))
        elif self._places[kind] != places:
            self.reason = "rows lie differently in calls that look the same"

    def finish(self, read: Iterable[int]) -> None:
        """Note which parameters a whole forward has read, by their indices."""
        self._read.add(frozenset(read))

    def recall(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], find: _Find, rows: int
    ) -> None:
        """Give a call's arguments their places.

        Raises:
            Unfamiliar: If no call of its kind was noted.
        """
        tensors = _arguments(args, kwargs)
        places = self._places.get(_kind(function, tensors, kwargs, find, rows))
        if places is None:
            raise Unfamiliar("a layer is given what it was not given before")
        for tensor, place in zip(tensors, places, strict=True):
            if find(tensor) is None:
                set_place(tensor, place)

    def in_front(self, parameter: int, x: Tensor, rows: int) -> bool:
        """Whether a linear layer's input is known to have the rows in its first dimension, by :meth:`put_in_front`."""
        return rows == self._rows and (parameter, x.shape) in self._in_front

    def put_in_front(self, parameter: int, x: Tensor, rows: int) -> None:
        """Remember that rows are in front in inputs of this shape."""
        if rows != self._rows:
            self._rows = rows
            self._in_front.clear()
        self._in_front.add((parameter, x.shape))

    def knows(self, read: Iterable[int]) -> bool:
        """Whether a followed forward has read the same parameters."""
        return frozenset(read) in self._read


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    return tensors_in([*args, *kwargs.values()] if kwargs else args)


def _kind(
    function: Callable[..., Any], tensors: Sequence[Tensor], kwargs: Mapping[str, Any], find: _Find, rows: int
) -> _Kind:
    return (function, *kwargs, *_tensors(tensors, find, rows))


def _tensors(tensors: Sequence[Tensor], find: _Find, rows: int) -> _Tensors:
    found: _Tensors = []
    for tensor in tensors:
        parameter = find(tensor)
        found.append(tuple(_related(size, rows) for size in tensor.shape) if parameter is None else parameter.name)
    return found


def _may_be_confused(one: tuple[_Tensors, list[Place]], other: tuple[_Tensors, list[Place]]) -> bool:
    """Whether two kinds of a layer's calls, in which rows lie differently, could be of the same sizes.

    Not where one has a dimension of size 1 in which the other has rows: it is taken to be so always.
    """

    def lies_in_1(kinds: _Tensors, places: list[Place]) -> bool:
        pairs = zip(kinds, places, strict=True)
        return any(isinstance(place, int) and not isinstance(kind, str) and kind[place] == "1" for kind, place in pairs)

    return one[1] != other[1] and not lies_in_1(one[0], other[1]) and not lies_in_1(other[0], one[1])


def _related(size: int, rows: int) -> str:
    return "rows" if size == rows else "1" if size == 1 else "multiple" if size % rows == 0 else "other"


def summary(result: Any, members: int) -> Summary:
    """What a layer gave, in brief: each member's sum, float64 ``[members]``, and the mean magnitude times its size."""
    place = place_of(result) if isinstance(result, Tensor) else None
    if not isinstance(place, int):
        return torch.zeros(members, dtype=torch.float64), 0.0
    values = result.detach().movedim(place, 0).reshape(members, -1)
    return values.sum(1, dtype=torch.float64).cpu(), float(values.abs().mean(dtype=torch.float64)) * values.shape[1]


def alike(one: Sequence[Summary], other: Sequence[Summary]) -> bool:
    """Whether the layers of two forwards gave the same, but for the rounding of numbers in other memory."""
    return len(one) == len(other) and all(
        torch.allclose(sums, others, rtol=0, atol=_CLOSE * size + 1e-30, equal_nan=True)
        for (sums, size), (others, _) in zip(one, other, strict=True)
    )
