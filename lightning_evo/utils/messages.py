"""Words for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

__all__ = ["did_you_mean", "preview"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to ``word``, with a leading space, or an empty string.

    Example:
        >>> did_you_mean("popluation", ["population", "sigma"])
        " Did you mean 'population'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def preview(names: Collection[str], limit: int = 20) -> str:
    """The first ``limit`` names, separated by commas, and how many more there are.

    Example:
        >>> preview(["a", "b", "c"], limit=2)
        'a, b, … (1 more)'
    """
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown}, … ({len(names) - limit} more)"
