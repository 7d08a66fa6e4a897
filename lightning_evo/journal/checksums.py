"""When a journal's checksums of the weights are written and compared."""

from __future__ import annotations

import time
from collections.abc import Callable

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_evo.journal import Journal, describe_parameters, weights_checksum
from lightning_evo.journal.records import same_parameters
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["WeightsCheck"]

_EVERY = 100
"""Generations between two checksums: the fewest, for small models."""

_SHARE = 0.01
"""The largest share of the time that they may take: large models get fewer."""


class WeightsCheck:
    """Compares a run's weights with its journal's checksums, or writes them there for a later replay or resume.

    Args:
        journal: The run's journal, open to append; ``None`` on a process that only holds a part of the weights.
        differ: Called with the number of a generation that began with different weights when it was recorded.
        agree: Sends the decision of the process with the journal to all that hold parts of the weights.
    """

    def __init__(
        self, journal: Journal | None, differ: Callable[[int], None], agree: Callable[[bool], bool] = lambda own: own
    ) -> None:
        self._journal, self._differ, self._agree = journal, differ, agree
        # The generation where a resumed run continues gets a checksum: what is repeated ends there.
        self._next = 0 if journal is None else journal.end if len(journal) else journal.end + _EVERY
        self._not_before = 0.0  # by the clock

    def before(self, generation: int, space: SearchSpace) -> None:
        """Compare the weights that a generation is about to move with the journal's, or write their checksum there.

        At this point all hooks since the last move have run, so what they do to weights is seen.

        Args:
            generation: Its number.
            space: The parameters that evolved in the generation before.

        Raises:
            OSError: If it can't be written.
        """
        if not self._agree(self._is_due(generation, space)):
            return
        start = time.monotonic()
        checksum, journal = weights_checksum(space), self._journal
        if journal is None:
            return
        self._compare(journal, generation, checksum)
        if generation == journal.end:
            journal.append_weights(checksum)
            now = time.monotonic()
            self._next, self._not_before = generation + _EVERY, now + (now - start) / _SHARE

    def _is_due(self, generation: int, space: SearchSpace) -> bool:
        journal = self._journal
        if journal is None or generation == journal.header.generation:  # whose weights are in the header
            return False
        due = generation == journal.end and generation >= self._next and time.monotonic() >= self._not_before
        if generation not in journal.weights and not due:
            return False
        # If not, the run was resumed where other parameters begin to evolve.
        return same_parameters(describe_parameters(space), journal.conditions_at(generation - 1).parameters)

    def at_the_end(self, generation: int, space: SearchSpace) -> None:
        """Compare the weights that a fit has come to, or write their checksum.

        Args:
            generation: The one that would come next.
            space: The parameters that evolved in the last one.
        """
        journal = self._journal
        if not self._agree(journal is not None and generation == journal.end):  # not all that is recorded was repeated
            return
        checksum = weights_checksum(space)
        if journal is None:
            return
        if generation in journal.weights:  # nothing was added to what an earlier fit had recorded
            self._compare(journal, generation, checksum)
            return
        try:
            journal.append_weights(checksum)
        except OSError as error:  # all generations are in the file
            rank_zero_warn(f"The journal ends without a checksum of the weights: {error}")

    def _compare(self, journal: Journal, generation: int, checksum: str) -> None:
        if journal.weights.get(generation, checksum) != checksum:
            self._differ(generation)
