"""Words for error messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from lightning_evo.utils.synonyms import meant

__all__ = ["did_you_mean", "first_line", "first_sentence", "preview", "shown"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word that ``word`` stands for in the field, or is nearly spelled like.

    It has a leading space; it is empty if there is none.

    Example:
        >>> did_you_mean("popluation", ["population", "sigma"])
        " Did you mean 'population'?"
        >>> did_you_mean("std", ["population", "sigma"])
        " Did you mean 'sigma'?"
    """
    known = list(known)
    found = [meant(word, known), *difflib.get_close_matches(word, known, n=1, cutoff=0.6)]
    return next((f" Did you mean {name!r}?" for name in found if name is not None), "")


def first_line(error: object, limit: int = 200) -> str:
    r"""The first line of what an error says, of at most ``limit`` characters; empty if it says nothing.

    Args:
        error: An exception, or a text.
        limit: Where the line is cut off.

    Example:
        >>> first_line(RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"))
        'CUDA error: out of memory'
        >>> first_line(KeyboardInterrupt())
        ''
    """
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else ""


def first_sentence(error: object, limit: int = 160) -> str:
    r"""The first sentence of what an error says, without its full stop; cut between words if it is longer.

    Args:
        error: An exception, or a text.
        limit: The most characters.

    Example:
        >>> first_sentence(ValueError("No such layer: fc.2. Known are:\nfc.0, fc.1"))
        'No such layer: fc.2'
        >>> first_sentence("a rather long story of a failure", limit=20)
        'a rather long story…'
    """
    line = first_line(error, limit=len(str(error)))
    sentence = re.split(r"(?<=[\w)\]'\"`])[.!?](?=\s|$)", line, maxsplit=1)[0].strip()
    if len(sentence) <= limit:
        return sentence
    words = sentence[: limit + 1].rpartition(" ")[0].rstrip(" ,;:")
    return f"{words or sentence[:limit]}…"


def preview(names: Collection[str], limit: int = 20) -> str:
    """The first ``limit`` names, separated by commas, and how many more there are.

    Example:
        >>> preview(["a", "b", "c"], limit=2)
        'a, b, … (1 more)'
    """
    first = ", ".join(list(names)[:limit])
    return first if len(names) <= limit else f"{first}, … ({len(names) - limit} more)"


def shown(value: object, limit: int = 80) -> str:
    """A value as a message shows it: its ``repr`` on one line, of at most ``limit`` characters.

    Example:
        >>> shown("many"), shown(10**100, limit=10)
        ("'many'", '1000000000…')
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr may raise anything: Python's own of an integer of more than 4,300 digits does
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}…"
