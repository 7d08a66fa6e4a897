"""Problems of Countdown that have a solution: some numbers, and a target that can be reached with each of them once."""

from __future__ import annotations

import random
from typing import Any

from lightning_evo.rewards import PromptData

__all__ = ["CountdownData", "problems", "question"]

QUESTION = (
    "Find an equation that uses each of the numbers {numbers} exactly once and equals {target}. You may use + - * / "
    "and parentheses. First think about it in <think> </think>, then give the equation alone in <answer> </answer>, "
    "for example <answer>(1 + 2) / 3</answer>."
)


def problems(
    count: int, *, numbers: int, largest: int, operations: str = "+-*/", seed: int = 0
) -> list[dict[str, Any]]:
    """Different problems, each with ``nums`` and ``target``.

    Args:
        count: How many.
        numbers: How many numbers each has.
        largest: Of the numbers; the target is at most ten times as large.
        operations: With which the target can be reached.
        seed: Of the numbers.

    Raises:
        ValueError: If there are not so many different ones.
    """
    rng, found = random.Random(seed), {}
    for _ in range(1000 * count):
        if len(found) == count:
            break
        given = [rng.randint(1, largest) for _ in range(numbers)]
        target = _reached(given, operations, rng)
        if target is not None and 0 < target <= 10 * largest:
            found.setdefault((*sorted(given), target), {"nums": given, "target": target})
    if len(found) < count:
        raise ValueError(
            f"There are fewer than {count} problems with {numbers} numbers up to {largest}; ask for fewer."
        )
    return list(found.values())


def _reached(numbers: list[int], operations: str, rng: random.Random) -> int | None:
    """What numbers come to that are combined at random; ``None`` if a division leaves a remainder."""
    values = list(numbers)
    while len(values) > 1:
        rng.shuffle(values)
        one, other = values.pop(), values.pop()
        operation = rng.choice(operations)
        if operation == "/" and (not other or one % other):
            return None
        values.append({"+": one + other, "-": one - other, "*": one * other, "/": one // (other or 1)}[operation])
    return values[0]


def question(problem: dict[str, Any], chat: bool) -> Any:
    """A problem as a chat, or for models that know nothing else in short: ``3 7 = 21 ?``."""
    numbers = " ".join(map(str, problem["nums"]))
    if not chat:
        return f"{numbers} = {problem['target']} ?"
    return [{"role": "user", "content": QUESTION.format(numbers=numbers, target=problem["target"])}]


class CountdownData(PromptData):
    """Problems to learn from, and others that are held out.

    Args:
        batch_size: Problems of a generation.
        train: How many there are to learn from.
        held_out: How many others.
        numbers: How many numbers each has.
        largest: Of the numbers.
        operations: With which the target can be reached.
        chat: Whether the prompt is a chat.
        seed: Of the problems.
    """

    def __init__(
        self,
        batch_size: int = 16,
        train: int = 2000,
        held_out: int = 128,
        numbers: int = 3,
        largest: int = 99,
        operations: str = "+-*/",
        chat: bool = True,
        seed: int = 0,
    ) -> None:
        found = problems(train + held_out, numbers=numbers, largest=largest, operations=operations, seed=seed)
        rows = [{"prompt": question(problem, chat), **problem} for problem in found]
        super().__init__(rows[:train], batch_size, rows[train:], validation_batch_size=max(batch_size, 32))
