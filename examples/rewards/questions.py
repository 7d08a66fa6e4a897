"""Questions with one right word: those to learn from and those held out have no answer in common.

A model that has learnt answers by heart gains nothing on the held-out ones: none of their answers occurs in training,
neither as an answer nor as a word of a question.
"""

import random
import re
from pathlib import Path
from typing import Any

__all__ = ["COST", "brief", "found", "held_out", "questions", "right", "surplus", "training"]

FILE = Path(__file__).with_name("questions.txt")
TRAINING = 150
COST = 0.02
"""What a surplus character takes off a right answer's brevity."""

Row = dict[str, Any]
"""``prompt`` and ``answers``, the words that are right; the first one is the one to learn."""


def questions() -> list[Row]:
    """All of them, in the file's order, with ``group``, the form of the question."""
    rows: list[Row] = []
    form = ""
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if "?" in line and not line.startswith("#"):
            form = line.strip()
        elif line.strip() and not line.startswith("#"):
            what, _, answers = line.partition(": ")
            rows.append({"prompt": form.format(what), "answers": answers.strip().split("|"), "group": form})
    return rows


def training(seed: int = 0) -> list[Row]:
    """Those to learn from, in random order."""
    return _split(seed)[0]


def held_out(seed: int = 0) -> list[Row]:
    """Those whose answers occur nowhere in training, in random order."""
    return _split(seed)[1]


def _split(seed: int) -> tuple[list[Row], list[Row]]:
    rows = questions()
    random.Random(seed).shuffle(rows)
    learnt, rest = rows[:TRAINING], rows[TRAINING:]
    seen = " ".join(f"{row['prompt']} {' '.join(row['answers'])}" for row in learnt)
    return learnt, [row for row in rest if not any(found(answer, seen) for answer in row["answers"])]


def found(word: str, text: str) -> bool:
    """Whether a word stands in a text, in capitals or not, and not as a part of another word.

    >>> found("cat", "The Cat sat."), found("cat", "cattle")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


# --- the reward: two functions as TRL calls them, by keywords, with lists ---


def right(completions: list[Any], answers: list[list[str]], **_: Any) -> list[float]:
    """1 for a text with the right word, 0 for any other."""
    return [
        float(any(found(word, text) for word in words))
        for text, words in zip(map(_text, completions), answers, strict=True)
    ]


def brief(completions: list[Any], answers: list[list[str]], **_: Any) -> list[float]:
    """1 for the right word alone, 0.02 less for each character beyond it, 0 for a text without it.

    So silence is worth nothing: were a wrong text's characters to cost something, a model would learn to be silent.
    """
    texts = list(map(_text, completions))
    return [
        one * max(0.0, 1 - COST * surplus(text, words))
        for one, text, words in zip(right(texts, answers), texts, answers, strict=True)
    ]


def surplus(text: str, answers: list[str]) -> int:
    """The number of characters that a text has beyond those of the right word.

    >>> surplus("It is Paris.", ["Paris"]), surplus("", ["Paris"])
    (7, 0)
    """
    return max(0, len(text) - max(map(len, answers)))


def _text(completion: Any) -> str:
    """Of a chat, which gives a list of messages, what was said last."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
