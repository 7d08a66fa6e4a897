"""What ready-made rewards have in common: the text of a completion, and a column of the data by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["column_of", "completed_text", "texts_of"]


def completed_text(completion: Any) -> str:
    """The text of one completion.

    Args:
        completion: A text, or for a conversational prompt a list of messages, of which the last one counts.

    Raises:
        TypeError: If it is neither.

    Example:
        >>> completed_text([{"role": "assistant", "content": "Paris"}])
        'Paris'
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion and isinstance(completion[-1], Mapping):
        content = completion[-1].get("content")
        if isinstance(content, str):
            return content
    raise TypeError(
        f"A completion must be a text, or a list of messages with a text as `content`, got {completion!r:.80}."
    )


def texts_of(completions: Sequence[Any]) -> list[str]:
    """The text of each completion; see :func:`completed_text`."""
    return [completed_text(completion) for completion in completions]


def column_of(columns: Mapping[str, Sequence[Any]], name: str, reward: str) -> Sequence[Any]:
    """A column of the data, one entry per completion.

    Args:
        columns: What a reward function was given by keyword.
        name: The column.
        reward: Which reward asks, for the message.

    Raises:
        KeyError: If the data has no such column.

    Example:
        >>> column_of({"answer": ["Paris"]}, "answer", "exact_match")
        ['Paris']
    """
    if name not in columns:
        raise KeyError(
            f"The reward {reward} reads the column {name!r}, and the data has none. It has: "
            f"{', '.join(sorted(columns)) or 'no column'}. Add the column, or give {reward} the name of another one."
        )
    return columns[name]
