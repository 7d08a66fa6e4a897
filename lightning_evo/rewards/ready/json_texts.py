"""A reward for text that is JSON (RFC 8259)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_evo.rewards.ready.texts import texts_of

__all__ = ["ValidJSON"]


@dataclass(frozen=True)
class ValidJSON:
    """1 if the completion is JSON, else 0.

    NaN and Infinity, which Python's own reader takes, are no JSON. A text that nests deeper than Python can read it
    gives 0.

    Args:
        keys: Names that the outermost object must have; with any, a list or a number gives 0.
        fenced: Whether the JSON is what stands in the completion's first block fenced by three backticks; by default
            it is the whole completion.

    Raises:
        TypeError: If ``keys`` is one text instead of several.

    Example:
        >>> reward = ValidJSON(keys=["city"])
        >>> reward(completions=['{"city": "Paris"}', '{"town": "Paris"}', "Paris"])
        [1.0, 0.0, 0.0]
    """

    keys: Sequence[str] = ()
    fenced: bool = False

    __name__ = "valid_json"

    def __post_init__(self) -> None:
        if isinstance(self.keys, str):
            raise TypeError(f"keys must be several names, such as [{self.keys!r}], got the text {self.keys!r}.")
        object.__setattr__(self, "keys", tuple(self.keys))

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        """A reward for each completion."""
        return [float(self._valid(text)) for text in texts_of(completions)]

    def _valid(self, text: str) -> bool:
        if self.fenced:
            block = _first_block(text)
            if block is None:
                return False
            text = block
        try:
            # Values don't matter, and numbers of many digits take Python long, or are refused.
            value = json.loads(text, parse_int=len, parse_float=len, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        return not self.keys or (isinstance(value, dict) and all(key in value for key in self.keys))


def _first_block(text: str) -> str | None:
    """What stands between the first line of three backticks, maybe with ``json`` behind them, and the next one."""
    lines = text.split("\n")
    opening = next((i for i, line in enumerate(lines) if line.rstrip().lower() in ("```", "```json")), len(lines))
    closing = next((i for i in range(opening + 1, len(lines)) if lines[i].rstrip() == "```"), None)
    return None if closing is None else "\n".join(lines[opening + 1 : closing])


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
