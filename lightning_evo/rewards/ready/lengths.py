"""A reward for texts of a wanted length.

Without ``shorter_is_fine`` it is the conciseness reward of ES at Scale (arXiv:2509.24372), minus the difference of two
lengths; there the text includes the prompt, here it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightning_evo.rewards.ready.texts import column_of, texts_of
from lightning_evo.utils.options import number, one_of

__all__ = ["LengthPenalty"]

Unit = Literal["characters", "words", "tokens"]
_UNITS = ("characters", "words", "tokens")


@dataclass(frozen=True)
class LengthPenalty:
    """Minus ``scale`` for each character, word or token that a completion is too long, or too short.

    Args:
        target: How long is right: a number, or a column of the data with numbers, or with texts as long as is right.
            ``None`` in it gives no reward for that sample.
        unit: ``"characters"``, ``"words"`` (what white space separates), or ``"tokens"``, which are counted in
            completions only, so ``target`` can't be a text.
        scale: The reward lost by one of them.
        shorter_is_fine: Whether a completion may be shorter at no loss.

    Raises:
        ValueError: If the unit is unknown, or a number is negative or not finite; when called, if the target is a text
            and the unit is tokens.
        KeyError: When called, if the data has no such column.

    Example:
        >>> brief = LengthPenalty("answer", scale=0.5, shorter_is_fine=True)
        >>> brief(completions=["Paris", "It is Paris"], answer=["Paris", "Paris"])
        [0.0, -3.0]
        >>> LengthPenalty(2, unit="words")(completions=["one two three", "one"])
        [-1.0, -1.0]
    """

    target: int | str
    unit: Unit = "characters"
    scale: float = 1.0
    shorter_is_fine: bool = False

    __name__ = "length_penalty"

    def __post_init__(self) -> None:
        one_of("unit", self.unit, _UNITS)
        number("scale", self.scale, minimum=0)
        if not isinstance(self.target, str):
            number("target", self.target, minimum=0, wanted="a number, or the name of a column")

    def __call__(
        self, completions: list[Any], completion_ids: list[list[int]] | None = None, **columns: Any
    ) -> list[float | None]:
        """A reward for each completion."""
        if self.unit == "tokens":
            if completion_ids is None:
                raise ValueError(f"The reward {self.__name__} counts tokens, and was given no `completion_ids`.")
            lengths = [len(tokens) for tokens in completion_ids]
        else:
            lengths = [self._length(text) for text in texts_of(completions)]
        targets: list[Any] = [self.target] * len(lengths)
        if isinstance(self.target, str):
            targets = list(column_of(columns, self.target, self.__name__))
        return [
            None if target is None else self._reward(length, target)
            for length, target in zip(lengths, targets, strict=True)
        ]

    def _reward(self, length: int, target: Any) -> float:
        surplus = length - (self._length(target) if isinstance(target, str) else float(target))
        return -self.scale * (max(0.0, surplus) if self.shorter_is_fine else abs(surplus)) + 0.0  # 0.0, not -0.0

    def _length(self, text: str) -> int:
        if self.unit == "tokens":
            raise ValueError(
                f"The reward {self.__name__} counts tokens, and the column {self.target!r} has texts, whose tokens are "
                "not known. Give a column with numbers, or count characters or words."
            )
        return len(text) if self.unit == "characters" else len(text.split())
