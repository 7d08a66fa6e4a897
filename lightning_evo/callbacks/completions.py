"""What members wrote, while they learn: in the terminal, as a file of JSON lines, and in the logger."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_warn
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_evo.utils.options import whole

__all__ = ["Completions"]

TITLE = "completions"
_LONGEST = 500
"""Characters of a value that the terminal shows; the file has all."""

Row = dict[str, Any]


class Completions(Callback):
    """Shows what the best, the mean and the worst member wrote, every few generations.

    For any module whose ``fitness_step`` returns ``Fitness(..., details=[...])`` with a dictionary for each sample, as
    :class:`~lightning_evo.rewards.RewardModule` does: ``prompt``, ``completion``, ``rewards`` by function, ``reward``,
    ``truncated``, ``timed_out`` and ``extras``. Members are compared by the mean of their samples' ``"reward"``, as far
    as they have one; where none has, the first member is shown.

    They are shown in the terminal; in ``completions.jsonl``, a line for each sample with ``step``, ``member``, ``is``
    (``"best"``, ``"mean"`` or ``"worst"``), ``sample`` (its place in the batch) and all that the dictionary has, with
    null for numbers that are not finite; and by each logger that has ``log_table`` (as W&B's) or whose experiment has
    ``add_text`` (as TensorBoard's). With several batches for a generation it is the last one's samples. A resumed fit
    goes on with the file of its checkpoint and repeats no line; any other fit begins a file of its own:
    ``completions-v1.jsonl``, ….

    Args:
        every_n_generations: Shown are the first generation and every one whose number is a multiple of this.
        samples: How many of the batch, from its start, so that members can be compared.
        path: The file; ``None`` takes the logger's folder, or the Trainer's ``default_root_dir``.

    Raises:
        ValueError: If a number is not whole and positive; at the start of fit, if the strategy is none of ours, or the
            Trainer has another one of these callbacks.

    Example:
        >>> from lightning_evo.callbacks import Completions
        >>> shown = Completions(every_n_generations=10, samples=2)
    """

    def __init__(self, every_n_generations: int = 10, samples: int = 4, path: str | Path | None = None) -> None:
        self.every_n_generations = whole("every_n_generations", every_n_generations)
        self.samples = whole("samples", samples)
        self.path = path
        self.file: Path | None = None
        """Where the lines are; ``None`` before the first ones. On the first process only."""
        self._resumed: str | None = None
        self._known: set[tuple[int, int, int]] = set()
        self._waiting: int | None = None
        self._has_warned = False

    def wants(self, generation: int) -> bool:
        """Whether a generation is shown; they are counted from 0 here, and from 1 in what is shown.

        Example:
            >>> [generation + 1 for generation in range(12) if Completions(5).wants(generation)]
            [1, 5, 10]
        """
        return generation == 0 or (generation + 1) % self.every_n_generations == 0

    # --- Lightning's hooks ---

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if any(isinstance(callback, Completions) and callback is not self for callback in trainer.callbacks):
            raise ValueError("The Trainer has several Completions callbacks. Leave all but one out.")
        if not hasattr(trainer.strategy, "evolution"):
            raise ValueError(
                f"Completions shows what members wrote, and {type(trainer.strategy).__name__} has none. Use "
                "Trainer(strategy=EvoStrategy(...)), or leave the callback out."
            )
        self.file, self._known, self._waiting, self._has_warned = None, set(), None, False
        trainer.strategy.evolution.wants_details = self._asked

    def _asked(self, generation: int) -> bool:
        wanted = self.wants(generation)
        if wanted:
            self._waiting = generation
        return wanted

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        evolution = trainer.strategy.evolution
        if self._waiting is None or evolution.state.generation <= self._waiting:
            return  # the generation goes on with the next batch
        step, self._waiting = self._waiting + 1, None
        if not trainer.is_global_zero:
            return
        rows = chosen(evolution.details, self.samples)
        if rows:
            self._show(trainer, step, rows)
        elif not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                "Completions has nothing to show: no member gave details. Return Fitness(values, details=[...]) from "
                'fitness_step, with a dictionary for each sample, and evaluate in another way than "batched".'
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        name = self._resumed if self.file is None else self.file.name
        return {} if name is None else {"file": name}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict.get("file")

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        evolution = getattr(trainer.strategy, "evolution", None)
        if stage == "fit" and evolution is not None:
            evolution.wants_details, evolution.details = None, []
            self._resumed = None

    # --- the three places ---

    def _show(self, trainer: Any, step: int, rows: list[Row]) -> None:
        console = Console()
        with console.capture() as capture:
            console.print(as_table(f"Completions of generation {step:,}", rows))
        bar = trainer.progress_bar_callback
        write = print if bar is None or bar.is_disabled else bar.print  # which leaves the bar below it whole
        write(capture.get().rstrip("\n"))
        if trainer.fast_dev_run:
            return
        self._append(trainer, [{"step": step, **row} for row in rows])
        for logger in trainer.loggers:
            log(logger, rows, step)

    def _append(self, trainer: Any, rows: list[Row]) -> None:
        if self.file is None:
            folder = Path(trainer.log_dir or trainer.default_root_dir)
            self.file = self._opened(Path(self.path) if self.path is not None else folder / f"{TITLE}.jsonl")
        new = [row for row in rows if _key(row) not in self._known]
        self._known.update(map(_key, new))
        text = "".join(json.dumps(_plain(row), ensure_ascii=False, default=str) + "\n" for row in new)
        with self.file.open("ab") as file:  # half of a character, which UTF-8 can't have, becomes JSON's own escape
            file.write(text.encode("utf-8", "backslashreplace"))

    def _opened(self, path: Path) -> Path:
        """The file to go on with, or a new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._resumed is not None and path.with_name(self._resumed).exists():
            path = path.with_name(self._resumed)
            lines = path.read_bytes().splitlines(keepends=True)
            whole_lines = [line for line in lines if line.endswith(b"\n")]
            self._known = {_key(json.loads(line)) for line in whole_lines}
            if len(whole_lines) < len(lines):  # a kill came while the last one was written
                os.truncate(path, sum(map(len, whole_lines)))
            return path
        number, free = 0, path
        while free.exists():
            number += 1
            free = path.with_name(f"{path.stem}-v{number}{path.suffix}")
        return free


def chosen(details: Sequence[Sequence[Any]], samples: int) -> list[Row]:
    """The first samples of the best, the mean and the worst member.

    Args:
        details: ``details[member][sample]``; empty for a member that has none.
        samples: How many of each.

    Returns:
        A dictionary for each sample: ``member``, ``is``, ``sample`` and what the sample's own has. A member that is the
        best and the worst comes once.

    Example:
        >>> details = [[{"reward": 1.0}], [{"reward": 3.0}], [], [{"reward": None}], [{"reward": 1.8}]]
        >>> [(row["member"], row["is"]) for row in chosen(details, 1)]
        [(1, 'best'), (4, 'mean'), (0, 'worst')]
    """
    scores = {member: score for member, own in enumerate(details) if (score := _score(own)) is not None}
    if scores:
        mean = math.fsum(scores.values()) / len(scores)
        picked = {
            "best": max(scores, key=scores.__getitem__),
            "mean": min(scores, key=lambda member: abs(scores[member] - mean)),
            "worst": min(scores, key=scores.__getitem__),
        }
    else:
        first = [member for member, own in enumerate(details) if own][:1]
        picked = dict(zip(["first"], first, strict=False))
    names: dict[int, list[str]] = {}
    for name, member in picked.items():
        names.setdefault(member, []).append(name)
    return [
        {"member": member, "is": ", ".join(labels), "sample": number, **_as_dictionary(detail)}
        for member, labels in names.items()
        for number, detail in enumerate(details[member][:samples])
    ]


def _score(own: Sequence[Any]) -> float | None:
    """The mean reward of a member's samples; ``None`` if no sample has one, or it is not finite."""
    rewards = [detail.get("reward") for detail in own if isinstance(detail, Mapping)]
    found = [float(reward) for reward in rewards if reward is not None]
    score = math.fsum(found) / len(found) if found and all(map(math.isfinite, found)) else math.nan
    return score if math.isfinite(score) else None


def _as_dictionary(detail: Any) -> Row:
    return {str(name): value for name, value in detail.items()} if isinstance(detail, Mapping) else {"detail": detail}


def _key(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return row["step"], row["member"], row["sample"]


def as_table(title: str, rows: Sequence[Row]) -> Table:
    """A table for the terminal, with a column for each name that has a value in some row."""
    names = [name for name in _names(rows) if name != "sample" and any(_shown(row.get(name)) for row in rows)]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_lines=False)
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row, following in zip(rows, [*rows[1:], rows[0]], strict=True):
        # Text, not str: rich would read what is in brackets.
        table.add_row(
            *(Text(_shown(row.get(name))) for name in names), end_section=row["member"] != following["member"]
        )
    return table


def log(logger: Any, rows: Sequence[Row], step: int) -> None:
    """Give rows to a logger, as a table or as text, if it has a way."""
    names = _names(rows)
    if callable(getattr(logger, "log_table", None)):
        logger.log_table(key=TITLE, columns=names, data=[[_cell(row.get(n)) for n in names] for row in rows], step=step)
    elif callable(getattr(getattr(logger, "experiment", None), "add_text", None)):
        blocks = ["\n".join(f"{name}: {_shown(row.get(name), math.inf)}" for name in names) for row in rows]
        # Indented, so that Markdown leaves it alone.
        text = "\n\n---\n\n".join("\n".join(f"    {line}" for line in block.split("\n")) for block in blocks)
        logger.experiment.add_text(TITLE, text, step)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _shown(value: Any, longest: float = _LONGEST) -> str:
    """A value for people; empty for what says nothing."""
    if value is None or value is False or value in ({}, []):
        return ""
    if value is True:
        return "yes"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{name} {_shown(each, longest) or '-'}" for name, each in value.items())
    text = str(value)
    text = text if len(text) <= longest else f"{text[: int(longest)]}…"
    # What a model writes may hold what moves the terminal's cursor.
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _cell(value: Any) -> Any:
    return json.dumps(_plain(value), default=str) if isinstance(value, Mapping | list | tuple) else value


def _plain(value: Any) -> Any:
    """A value as JSON has it: a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
