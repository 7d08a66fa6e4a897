"""A reward for the right number in a text, found as GSM8K's two usual parsers find it.

Cobbe et al. 2021 (arXiv:2110.14168) end each solution by ``#### 18``. *Strict* takes the number behind the last of
these marks, *flexible* the last number of the text. Two departures from how these are mostly written: numbers are
compared as numbers, so 18.00 is 18, and a hyphen between two of them, as in ``3-5``, is no sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from lightning_evo.rewards.ready.texts import column_of, texts_of
from lightning_evo.utils.options import one_of

__all__ = ["NumberMatch", "number_in"]

# Digits of ASCII only: `\d` would take those of all scripts. Commas stand between thousands, and are taken out.
_NUMBER = r"(?:(?<![0-9A-Za-z.,)])-)?(?:\$-?)?(?:[0-9][0-9,]*(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
_FLEXIBLE = re.compile(_NUMBER)
_STRICT = re.compile(rf"####[ \t]*({_NUMBER})")

Parser = Literal["strict", "flexible"]


def number_in(text: str, parser: Parser = "flexible") -> Decimal | None:
    r"""The number that a text gives as its answer, exactly; ``None`` if there is none.

    Args:
        text: Read in a time proportional to its length.
        parser: ``"strict"`` takes the number behind the last ``####``, ``"flexible"`` the last number. Dollar signs,
            commas and a full stop behind it don't count.

    Raises:
        ValueError: If there is no such parser.

    Example:
        >>> number_in("They have 12 apples and pay $1,250.50."), number_in("So it is 12.", "strict")
        (Decimal('1250.50'), None)
        >>> number_in("3 + 15 = 18\n#### 18.", "strict")
        Decimal('18')
    """
    one_of("parser", parser, ("strict", "flexible"))
    found = (_STRICT if parser == "strict" else _FLEXIBLE).findall(text)
    return Decimal(found[-1].replace("$", "").replace(",", "").replace("--", "-")) if found else None


@dataclass(frozen=True)
class NumberMatch:
    r"""1 if the number in the completion is the answer, else 0.

    Args:
        column: Column of the data with the answers: numbers, or texts, of which the number behind ``####`` counts, or
            else the last one; so GSM8K's own solutions can stay as they are. ``None`` gives no reward for that sample.
        parser: How the completion's number is found; see :func:`number_in`.

    Raises:
        ValueError: If there is no such parser; when called, if an answer holds no number.
        KeyError: When called, if the data has no such column.

    Example:
        >>> reward = NumberMatch(parser="strict")
        >>> reward(completions=["2 + 3 = 5\n#### 5", "It is 5"], answer=["She has 2 + 3 = 5.\n#### 5", 5])
        [1.0, 0.0]
    """

    column: str = "answer"
    parser: Parser = "flexible"

    __name__ = "number_match"

    def __post_init__(self) -> None:
        one_of("parser", self.parser, ("strict", "flexible"))

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        """A reward for each completion."""
        answers = column_of(columns, self.column, self.__name__)
        return [
            None if answer is None else float(number_in(text, self.parser) == self._right(answer))
            for text, answer in zip(texts_of(completions), answers, strict=True)
        ]

    def _right(self, answer: Any) -> Decimal:
        try:
            text = answer if isinstance(answer, str) else format(Decimal(str(answer)), "f")  # 1e-07 without an exponent
        except InvalidOperation:
            text = ""
        right = number_in(text, "strict" if "####" in text else "flexible")
        if right is None:
            raise ValueError(
                f"The reward {self.__name__} found no number in the answer {answer!r:.80} of the column "
                f"{self.column!r}. Give a number or a text with one; None for a sample without an answer."
            )
        return right
