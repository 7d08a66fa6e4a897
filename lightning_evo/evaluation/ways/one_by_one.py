"""A torch function called once for each member, with the weights and the rows of that member.

It is right for every function whose result's rows can be found, but it makes small weights for each member, and calls
as often as there are members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_evo.evaluation.functions import tensors_in, writes
from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.places import Lost, follow, place_of, set_place
from lightning_evo.evaluation.ways.members import Members
from lightning_evo.isolation.contents import version_of

__all__ = ["Rewound", "equal_values", "is_repeated", "name_of", "one_by_one"]

_PLAIN = (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device)


def name_of(function: Callable[..., Any]) -> str:
    """A torch function's name, for people."""
    name = getattr(function, "__name__", "?")
    owner = getattr(function, "__self__", None)
    return f"Tensor.{getattr(owner, '__name__', '?')}" if name == "__get__" else name


class Rewound:
    """A function that draws the same random numbers in every call, those of the first one.

    Args:
        function: The function.
        tensors: Some of its arguments, whose device's generator it draws from.
        generator: The one that it draws from if it is given one.
    """

    def __init__(
        self, function: Callable[..., Any], tensors: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> None:
        self._function, self._generators = function, list(_generators(tensors, generator))
        self._states = [each.get_state() for each in self._generators]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)
        return self._function(*args, **kwargs)


def _generators(tensors: Sequence[Tensor], given: torch.Generator | None) -> Iterator[torch.Generator]:
    if given is not None:
        yield given
        return
    yield torch.default_generator
    if tensors[0].device.type == "cuda":
        yield torch.cuda.default_generators[tensors[0].device.index]


def one_by_one(mode: Members, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A call for each member, with its weights and its rows, and with the same random numbers.

    Args:
        mode: The members.
        function: The function.
        args: Its arguments.
        kwargs: Those by name.

    Raises:
        Refusal: If a weight is too large to be made for each member, or nobody knows where rows lie.
    """
    members, name = mode.layout.members, name_of(function)
    tensors, in_place = tensors_in([*args, *kwargs.values()]), writes(function)
    if in_place and (not isinstance(args[0], Tensor) or not isinstance(place_of(args[0]), int)):
        raise Refusal(f"{name} writes members' values into a tensor without rows of members")
    rows = {tensor.shape[place] for tensor in tensors if isinstance(place := place_of(tensor), int)}
    parts = {id(tensor): _parts(mode, tensor, rows, name) for tensor in tensors}
    versions = {key: version_of(values[0]) for key, values in parts.items()}
    call = Rewound(function, tensors, kwargs.get("generator"))
    results, places = [], []
    for member in range(members):

        def of(each: Any, member: int = member) -> Any:
            return parts[id(each)][member] if isinstance(each, Tensor) else each

        given = tree_map(of, (args, kwargs))
        result = call(*given[0], **given[1])
        if member == 0:
            follow(function, given[0], given[1], result, 1)
            places = [place_of(each) if isinstance(each, Tensor) else None for each in tree_leaves(result)]
        results.append(result)
    for tensor in tensors:
        written = version_of(parts[id(tensor)][0]) != versions[id(tensor)]
        if written and not (in_place and tensor is args[0]):
            raise Refusal(f"{name} writes into its arguments")
    if in_place:
        return args[0]
    waiting = iter(places)
    return tree_map(lambda *each: _joined(each, next(waiting), name), *results)


def _parts(mode: Members, tensor: Tensor, rows: set[int], name: str) -> Sequence[Tensor]:
    """What each member has of a tensor."""
    place, members = place_of(tensor), mode.layout.members
    if mode.find(tensor) is not None:
        return mode.stacked(tensor).unbind()
    if place is None:
        made_for_rows = tensor.dim() > 1 and len(tensor) in rows and not isinstance(tensor, nn.Parameter)
        return [tensor.chunk(members)[0] if made_for_rows and is_repeated(tensor, members) else tensor] * members
    if isinstance(place, Lost):
        raise Refusal(f"{name} is given a tensor in which {place} has mixed or moved the members' rows")
    parts = tensor.chunk(members, place)
    for part in parts:
        set_place(part, place)
    return parts


def is_repeated(tensor: Tensor, members: int) -> bool:
    """Whether each member has the same rows, as in ``torch.zeros`` for a batch."""
    blocks = tensor.reshape(members, -1)
    return bool((blocks == blocks[:1]).all())


def _joined(parts: Sequence[Any], place: object, name: str) -> Any:
    if not isinstance(parts[0], Tensor):
        return equal_values(parts, name)
    if not isinstance(place, int):
        raise Refusal(f"{name} gives a tensor in which members' rows can't be told apart")
    rows = torch.cat(list(parts), place)
    set_place(rows, place)
    return rows


def equal_values(values: Sequence[Any], name: str) -> Any:
    """The value that all members have."""
    if not all(isinstance(value, _PLAIN) and value == values[0] for value in values):
        raise Refusal(f"{name} gives each member a value of its own, which is no tensor")
    return values[0]
