"""The entries of a large container, taken together: data sets in attributes have too many to look at each by itself."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from lightning_evo.isolation.contents import Contents
from lightning_evo.isolation.snapshots import Handler, Part, Snapshot, handle, handler_of

__all__ = ["Rows", "rows_in"]

_MANY = 64


@dataclass(frozen=True, eq=False)
class Rows:
    """The entries of a container: lists and dictionaries of what never changes, or tensors.

    Attributes:
        container: The container; two are equal if it is the same.
    """

    container: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and other.container is self.container

    def __hash__(self) -> int:
        return id(self.container)

    @property
    def are_tensors(self) -> bool:
        """Whether the entries are tensors."""
        return isinstance(next(iter(_values(self.container)), None), Tensor)

    @property
    def entries(self) -> list[Any]:
        """What the container holds."""
        return list(_values(self.container))


def rows_in(container: Any) -> Part | None:
    """The entries of a container as one part; ``None`` if they are few, or can't be taken together."""
    if len(container) <= _MANY:
        return None
    kinds = set(map(type, _values(container)))
    if kinds == {Tensor} or (kinds <= {list, dict} and _hold_constants(_values(container))):
        return Rows(container), (_rows_of, None), "[…]"
    return None


def _values(container: Any) -> Collection[Any]:
    return container.values() if isinstance(container, dict) else container


def _hold_constants(rows: Collection[Any]) -> bool:
    return all(handler_of(kind) is None for kind in set(map(type, chain.from_iterable(map(_values, rows)))))


def _rows_of(container: Any, _: object) -> Rows:
    return Rows(container)


@dataclass
class _Table:
    """Lists and dictionaries of what never changes, and copies of them."""

    rows: list[Any]
    copies: list[Any]

    def changed(self) -> bool:
        return self.rows != self.copies

    def restore(self) -> None:
        if not self.changed():
            return
        for row, copy in zip(self.rows, self.copies, strict=True):
            if row != copy:
                row.clear()
                (row.extend if isinstance(row, list) else row.update)(copy)


def _take(rows: Rows) -> Snapshot:
    if rows.are_tensors:
        return Contents(rows.entries, trust_versions=False)
    return _Table(rows.entries, list(map(operator.methodcaller("copy"), rows.entries)))


handle(Rows, Handler(_take))
