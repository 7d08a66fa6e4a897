"""Countdown: reach a number by the four operations, with each of the given numbers exactly once.

The rule is TinyZero's (github.com/Jiayi-Pan/TinyZero): 1 for a right equation in ``<answer>…</answer>``, 0.1 for any
other answer, 0 without one. Two departures, each closing a loophole: an equation is computed exactly, not by ``eval``
in floating point, and has no operations but + - * /. There ``2**3`` and ``7//2`` count, and ``1.5`` for 1 and 5.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lightning_evo.rewards.ready.texts import column_of, texts_of
from lightning_evo.utils.options import number

__all__ = ["Countdown", "value_of"]

_CHARACTERS = re.compile(r"[0-9+\-*/()\s]*")
_LONGEST = 1000
"""Characters of an equation; a longer one is wrong. It bounds the time and the depth of parentheses."""
_CLOSE = Fraction(1, 100_000)

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value_of(equation: str) -> Fraction | None:
    """The value of an equation of whole numbers, + - * / and parentheses, exactly.

    Args:
        equation: Never run as Python. An equals sign and what follows it are an error.

    Returns:
        ``None`` if it is anything else, has more than 1,000 characters, or divides by zero.

    Example:
        >>> value_of("(6 - 2) / 3"), value_of("2 ** 9"), value_of("1 / 0")
        (Fraction(4, 3), None, None)
    """
    if len(equation) > _LONGEST or not _CHARACTERS.fullmatch(equation):
        return None
    try:  # in one line, as white space at the start and line ends mean something in Python
        return _value(ast.parse(" ".join(equation.split()), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):  # MemoryError: nested too deeply
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError


@dataclass(frozen=True)
class Countdown:
    """1 for an equation that reaches the target, a little for any answer, 0 without one.

    The completion's last ``<answer>…</answer>`` counts. Right is an equation that has each of the given numbers exactly
    once, and no other, and whose value is less than 1e-5 away from the target.

    Args:
        numbers: Column of the data with each sample's list of whole numbers.
        target: Column with the number to reach.
        format_reward: For an answer that is not right.

    Raises:
        ValueError: If ``format_reward`` is not a finite number.
        KeyError: When called, if the data has no such columns.

    Example:
        >>> reward = Countdown()
        >>> texts = ["<answer>(6 - 2) * 5</answer>", "<answer>4 * 5</answer>", "20"]
        >>> reward(completions=texts, nums=[[2, 5, 6]] * 3, target=[20] * 3)
        [1.0, 0.1, 0.0]
    """

    numbers: str = "nums"
    target: str = "target"
    format_reward: float = 0.1

    __name__ = "countdown"

    def __post_init__(self) -> None:
        number("format_reward", self.format_reward)

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        """A reward for each completion."""
        numbers = column_of(columns, self.numbers, self.__name__)
        targets = column_of(columns, self.target, self.__name__)
        return [self._reward(*sample) for sample in zip(texts_of(completions), numbers, targets, strict=True)]

    def _reward(self, text: str, numbers: Sequence[int], target: float) -> float:
        equation = _last_answer(text)
        if equation is None:
            return 0.0
        value = value_of(equation)
        if value is None:
            return self.format_reward
        used = [int(digits) for digits in re.findall("[0-9]+", equation)]
        right = sorted(used) == sorted(map(int, numbers)) and abs(value - Fraction(target)) < _CLOSE
        return 1.0 if right else self.format_reward


def _last_answer(text: str) -> str | None:
    """What stands in the last ``<answer>…</answer>``; a search from the end, so that no text takes long."""
    end = text.rfind("</answer>")
    if end < 0:
        return None
    start = text.rfind("<answer>", 0, end)
    return None if start < 0 else text[start + len("<answer>") : end].strip()
