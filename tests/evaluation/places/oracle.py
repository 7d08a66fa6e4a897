"""An oracle for the places of rows that knows no rule: which entries of a result change with a member's rows."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_evo.evaluation.places import follow, place_of, set_place

MEMBERS = 3
ROWS = 6  # two of each member


class Followed(TorchFunctionMode):
    """Follows the rows of members through all calls."""

    def __init__(self, members):
        super().__init__()
        self.members = members

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        follow(function, args, kwargs or {}, result, self.members)
        return result


def rows(shape, place, dtype=torch.float64):
    x = torch.randn(shape, dtype=dtype)
    set_place(x, place)
    return x


def others(x, member, members):
    """A copy of ``x`` in which the rows of one member have other values."""
    y, place = x.clone(), place_of(x)
    size = x.shape[place] // members
    part = y.narrow(place, member * size, size)
    part.copy_(torch.randn(part.shape) + 5 if y.is_floating_point() else (part + 1) % 3)
    return y


def flat(result):
    if isinstance(result, Tensor):
        return [result]
    return [value for part in result for value in flat(part)] if isinstance(result, (tuple, list)) else []


def fits(place, changed, members):
    """Whether all entries that change with a member's rows are that member's, for each member."""
    ndim = changed[0].ndim
    if not -ndim <= place < 0 or changed[0].shape[place] % members:
        return False
    size = changed[0].shape[place] // members
    for member, entries in enumerate(changed):
        rest = entries.clone()
        rest.narrow(place, member * size, size).fill_(False)
        if rest.any():
            return False
    return True


def check(function, inputs, members, claims=True):
    """Compares the places of a function's results with the entries that change with each member's rows.

    Args:
        function: It gives the same for the same tensors.
        inputs: The tensors; some have a place.
        members: How many there are.
        claims: Whether a result must have a place if one fits it.

    Returns:
        The places of the results.
    """
    with torch.no_grad(), Followed(members):
        results = flat(function(*[clone(x) for x in inputs]))
    twins = []
    for member in range(members):
        twin = [others(x, member, members) if place_of(x) is not None else x.clone() for x in inputs]
        twins.append(flat(function(*twin)))
    for number, result in enumerate(results):
        changed = [(twin[number] != result) & ~(twin[number].isnan() & result.isnan()) for twin in twins]
        place = place_of(result)
        if type(place) is int:
            assert fits(place, changed, members), (place, result.shape)
        elif place is None:
            assert not any(entries.any() for entries in changed)
        elif claims and all(entries.any() for entries in changed):
            assert not any(fits(q, changed, members) for q in range(-result.ndim, 0)), (place, result.shape)
    return [place_of(result) for result in results]


def clone(x):
    y = x.clone()
    set_place(y, place_of(x))
    return y
