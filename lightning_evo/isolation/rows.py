"""The entries of a large container, taken together: data sets in attributes have too many to look at each by itself."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from lightning_evo.isolation.contents import Contents
from lightning_evo.isolation.kinds import entries_of, length_of
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
        return isinstance(next(iter(entries_of(self.container)), None), Tensor)

    @property
    def entries(self) -> list[Any]:
        """What the container holds."""
        return list(entries_of(self.container))


def rows_in(container: Any) -> Part | None:
    """The entries of a container as one part; ``None`` if they are few, or can't be taken together."""
    if length_of(container) <= _MANY:
        return None
    kinds = set(map(type, entries_of(container)))
    if kinds == {Tensor} or (kinds <= {list, dict} and _hold_constants(entries_of(container))):
        return Rows(container), (_rows_of, None), "[…]"
    return None


def _hold_constants(rows: Iterable[Any]) -> bool:
    return all(handler_of(kind) is None for kind in set(map(type, chain.from_iterable(map(entries_of, rows)))))


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
        return Contents(rows.entries, "all")
    return _Table(rows.entries, list(map(operator.methodcaller("copy"), rows.entries)))


handle(Rows, Handler(_take))
