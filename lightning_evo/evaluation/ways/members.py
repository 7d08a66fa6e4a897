"""What the rules in :mod:`.rules` and :mod:`.low_rank` know of the members that run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from lightning_evo.evaluation.ways.layouts import Layout
from lightning_evo.spaces.search_space import EvolvingParameter

__all__ = ["Members"]


class Members(Protocol):
    """The members of one forward; :class:`~lightning_evo.evaluation.ways.perturbed.Perturbed` makes their weights.

    Attributes:
        members: Their numbers.
        layout: How they lie in the tensors that the user's code sees.
        products: Linear layers' weights as they are multiplied, by the parameter's index and whether it is transposed.
        looked_up: Elements of noise that were made for lookups, by the parameter's index.
    """

    members: Sequence[int]
    layout: Layout
    products: dict[tuple[int, bool], Any]
    looked_up: dict[int, int]

    def find(self, argument: object) -> EvolvingParameter | None:
        """The evolving parameter that an argument is."""

    def factors(self, parameter: EvolvingParameter) -> tuple[Tensor, Tensor] | None:
        """Noise times step as a product ``A B^T``: ``[members, rows, rank]`` and ``[members, columns, rank]``."""

    def tensor(self, parameter: EvolvingParameter) -> Tensor:
        """The members' values of a parameter, as the user's code gets them."""

    def stack(self, parameter: EvolvingParameter) -> Tensor:
        """The members' values of a parameter, ``[members, *shape]``."""

    def rows(self, parameter: EvolvingParameter, first: int, last: int) -> Tensor:
        """Some rows of the members' values, ``[members, last - first, ...]``."""

    def chosen_rows(self, parameter: EvolvingParameter, chosen: Tensor) -> Tensor:
        """Some rows in any order, ``[members, *chosen.shape, *row]``."""

    def keeps(self, parameter: EvolvingParameter) -> bool:
        """Whether the members' values are kept, once they are made, so that making them in parts is no gain."""

    def stacked(self, argument: Tensor) -> Tensor:
        """An argument for all members, ``[members, *shape]``, whatever it is."""

    def replace(self, argument: Tensor | None) -> Tensor | None:
        """The members' values, if the argument is an evolving parameter; else the argument."""

    def replace_all(self, argument: Any) -> Any:
        """An argument of any kind, with the members' values in place of evolving parameters."""
