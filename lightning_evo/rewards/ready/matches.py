"""Rewards for a text that equals the answer, or that a regular expression finds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lightning_evo.rewards.ready.texts import column_of, texts_of

__all__ = ["ExactMatch", "PatternMatch"]


@dataclass(frozen=True)
class ExactMatch:
    """1 if the completion is the answer, else 0.

    Args:
        column: Column of the data with the answers: texts, or other values, whose ``str`` counts. ``None`` in it gives
            no reward for that sample.
        strip: Whether white space around either does not count.
        casefold: Whether capitals do not count.

    Raises:
        KeyError: When called, if the data has no such column.

    Example:
        >>> reward = ExactMatch(casefold=True)
        >>> reward(completions=["paris ", "Lyon"], answer=["Paris", "Paris"])
        [1.0, 0.0]
    """

    column: str = "answer"
    strip: bool = True
    casefold: bool = False

    __name__ = "exact_match"

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        """A reward for each completion."""
        answers = column_of(columns, self.column, self.__name__)
        return [
            None if answer is None else float(self._plain(text) == self._plain(str(answer)))
            for text, answer in zip(texts_of(completions), answers, strict=True)
        ]

    def _plain(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.casefold else text


@dataclass(frozen=True)
class PatternMatch:
    r"""1 if a regular expression matches the completion, else 0.

    How long a search takes is up to the expression: nested repetitions such as ``(a+)+b`` take for ever on some texts.
    ``RewardModule(reward_timeout=...)`` ends them.

    Args:
        pattern: As ``re`` has it.
        whole: Whether it must match the whole text; by default a part is enough.
        flags: As ``re`` has them, such as ``re.IGNORECASE | re.DOTALL``.

    Raises:
        ValueError: If it is not a regular expression.

    Example:
        >>> think = PatternMatch(r"<think>.*</think>\s*<answer>.*</answer>\s*", whole=True, flags=re.DOTALL)
        >>> think(completions=["<think>2 + 2</think><answer>4</answer>", "4"])
        [1.0, 0.0]
    """

    pattern: str
    whole: bool = False
    flags: int = 0

    __name__ = "pattern_match"

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern, self.flags)
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is not a regular expression: {error}.") from error

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        """A reward for each completion."""
        pattern = re.compile(self.pattern, self.flags)  # kept by `re`; a copy of this object in a worker is small
        match = pattern.fullmatch if self.whole else pattern.search
        return [float(match(text) is not None) for text in texts_of(completions)]
