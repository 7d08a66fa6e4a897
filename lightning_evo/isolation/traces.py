"""What members were seen to change, found by comparing all that can be reached in generations 0, 1, 2, 4, 8, and so on.

What was ever seen changed is put back after every member from then on; the rest costs nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

from torch import Tensor

from lightning_evo.isolation.contents import LARGEST_COPY, Contents, parts_of
from lightning_evo.isolation.glance import Glance, size_of
from lightning_evo.isolation.reach import Found, Path, follow
from lightning_evo.isolation.rows import Rows
from lightning_evo.isolation.snapshots import Snapshot, handler_of
from lightning_evo.utils.messages import preview

__all__ = ["Others", "Traces"]

_CONSEQUENCE = (
    "each sees what others left in it, and so does the run. Keep it out of the fitness, or name it in the module's "
    "`evolution_shared` if members are meant to share it"
)


class Traces:
    """What members of a module were seen to change, over generations.

    Args:
        also: Gives what members can reach besides the module, by names for people: optimizers and schedulers.
    """

    def __init__(self, also: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.also = also
        self.forget()

    def forget(self) -> None:
        """Begin again: the module is another one."""
        self.paths: dict[Path, str] = {}
        """Where what was changed lies, and its names."""
        self._named: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """A new run of the same module begins, with other callbacks perhaps: compare all again."""
        self.generation = 0
        """How many were begun and ended."""
        self._warnings: dict[str, list[str]] = {}

    def compares(self) -> bool:
        """Whether all is compared in this generation."""
        return self.generation & (self.generation - 1) == 0

    def known(self, roots: Mapping[str, Any]) -> list[Any]:
        """What was seen changed before, as it is now."""
        values = [follow(roots, path) for path in self.paths]
        return [value for value in values if (handler := handler_of(type(value))) and handler.take]

    def note(self, found: Found, *, copied: bool) -> None:
        """Something was changed; ``copied`` says whether it could be put back."""
        if isinstance(found.value, Tensor) and not parts_of(found.value):
            layout = "nested" if found.value.is_nested else str(found.value.layout).removeprefix("torch.")
            self._warn(f"{found.name} (a {layout} tensor)", f"changed by members and not put back: {_CONSEQUENCE}")
            return
        if found.path in self.paths:
            return
        self.paths[found.path] = found.name
        if not copied:
            self._warn(
                found.name,
                "written to by a member and, for want of a copy of so much, not put back this once; from now on it is",
            )
        elif self.generation > 2:
            self._warn(
                found.name,
                f"first seen to change in generation {self.generation}, and put back from now on; what earlier ones "
                f"after generation {self.generation // 2} left in it is still there",
            )

    def leaves_alone(self, found: Found) -> None:
        """Something was changed that is not put back."""
        keeper = found.keeper
        assert keeper is not None
        self._warn(
            f"{keeper.name} ({keeper.kind})",
            f"changed by members and not put back, for there is {keeper.because}: {_CONSEQUENCE}",
        )

    def shared_in_vain(self, module: str, names: list[str]) -> None:
        """A module says that members share what is not there."""
        for name in names:
            self._warn(f"evolution_shared of {module}: {name!r}", "neither held by the module nor named in its methods")

    def _warn(self, name: str, what: str) -> None:
        if name not in self._named:
            self._named.add(name)
            self._warnings.setdefault(what, []).append(name)

    def end(self) -> None:
        """The generation is over; say once what is not as it was before."""
        self.generation += 1
        if self._warnings:
            lines = [
                f"{preview(names, 5)} {'is' if len(names) == 1 else 'are'} {what}."
                for what, names in self._warnings.items()
            ]
            self._warnings = {}
            warnings.warn(" ".join(lines), stacklevel=2)


def _measured(found: Found) -> tuple[Found, int, list[Tensor] | None]:
    """Elements of a tensor or an array, and the tensors of which a tensor consists."""
    if not isinstance(found.value, Tensor):
        return found, size_of(found.value), None
    parts = parts_of(found.value)
    return found, sum(part.numel() for part in parts), parts


class Others:
    """What is only compared.

    Args:
        found: The objects. Tensors and arrays are copied, the smallest first, as far as there may be memory for it.
    """

    def __init__(self, found: Iterable[Found]) -> None:
        self._looks: list[tuple[Found, Snapshot | Glance]] = []
        self._by_part: dict[int, Found] = {}
        tensors: list[Tensor] = []
        left = LARGEST_COPY
        for each, size, parts in sorted(map(_measured, found), key=itemgetter(1)):
            left -= size
            many = isinstance(each.value, Rows) and each.value.are_tensors
            if left < 0 or parts == [] or many:
                self._looks.append((each, Glance(each.value)))
            elif parts is None or each.keeper is not None:
                self._looks.append((each, each.take()))
            else:
                tensors += parts
                self._by_part.update((id(part), each) for part in parts)
        self._contents = Contents(tensors, "bits")

    def put_back(self) -> list[tuple[Found, bool]]:
        """What has changed, and whether it was put back. Large objects are not, and those that are left alone."""
        changed, same = [], []
        for found, look in self._looks:
            if not look.changed():
                same.append((found, look))
                continue
            copied = not isinstance(look, Glance) and found.keeper is None
            if copied:
                look.restore()  # type: ignore[union-attr]
            changed.append((found, copied))
        self._looks = same
        written = {id(each): each for each in (self._by_part[id(tensor)] for tensor in self._contents.written())}
        if written:
            self._contents.restore()
        return changed + [(each, True) for each in written.values()]
