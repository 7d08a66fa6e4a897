"""Which members stay together in one forward: a product's rounding depends on which members share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_evo.algorithms import Population
from lightning_evo.processes.ranks import Ranks

__all__ = ["Groups"]


class Groups:
    """The size of the groups in which members run, the same for a whole run and for any number of processes.

    Args:
        asked: Members of a group that the user asks for; 0 if that is left to the first generation.

    Attributes:
        size: Members of a group; 0 until that is known.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> algorithm = get("openai_es")(population=12)
        >>> groups, two, population = Groups(), Ranks(groups=2), algorithm.ask(algorithm.init())
        >>> groups.keep([4, 4], two, population)
        True
        >>> groups.size, [groups.divide(two, population).share(population, group) for group in range(2)]
        (4, [range(0, 6), range(6, 12)])
    """

    def __init__(self, asked: int = 0) -> None:
        self._asked = self.size = asked

    def forget(self) -> None:
        """Another model: only what the user asks for still counts."""
        self.size = self._asked

    def load(self, size: int) -> None:
        """Take over the size of another run, unless one is asked for here; 0 if it had none."""
        self.size = self._asked or size

    def shrink(self, ranks: Ranks, population: Population) -> bool:
        """Make groups fit the largest share of a process, after a run of fewer; returns whether they changed."""
        largest = _largest_share(ranks, population)
        if self.size <= max(largest, self._asked):
            return False
        self.size = largest
        return True

    def keep(self, sizes: Sequence[int], ranks: Ranks, population: Population) -> bool:
        """Keep the same members together from now on.

        Args:
            sizes: How many members each process ran at once; 0 where that was not decided yet.
            ranks: The processes.
            population: The members.

        Returns:
            Whether all processes have to run groups of this size now.
        """
        if self.size or not all(sizes):
            return False
        self.size = min(*sizes, _largest_share(ranks, population))
        return ranks.groups > 1

    def divide(self, ranks: Ranks, population: Population) -> Ranks:
        """The processes; groups stay whole if that was asked for, or if no process gets more members by it."""
        whole = replace(ranks, chunk=max(1, self.size))
        as_even = _largest_share(whole, population) == _largest_share(ranks, population)
        return whole if self._asked or as_even else ranks


def _largest_share(ranks: Ranks, population: Population) -> int:
    """Members of the process that has most."""
    return max(len(ranks.share(population, group)) for group in range(ranks.groups))
