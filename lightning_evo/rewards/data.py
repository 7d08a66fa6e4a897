"""Prompts as a LightningDataModule: from a list, a JSONL file or a dataset.

:func:`~lightning_evo.rewards.lightning_class` makes it for either of Lightning's packages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from typing_extensions import override

from lightning_evo.rewards.prompts import check_prompt
from lightning_evo.utils.messages import first_line, shown
from lightning_evo.utils.options import as_whole, number, whole

__all__ = ["PromptDataMixin"]

if TYPE_CHECKING:  # what the mixin is mixed into; at run time that of either of Lightning's packages
    from lightning.pytorch import LightningDataModule
else:
    LightningDataModule = object

Rows = str | os.PathLike[str] | Sequence[Any]
_SPLIT_SEED = 0


class PromptDataMixin(LightningDataModule):
    """Batches of rows, each with a ``"prompt"``, for :class:`~lightning_evo.rewards.RewardModule`.

    A batch is a list with one dictionary for each row. Training goes through the rows in a new random order in each
    epoch, drawn from torch's generator (so ``seed_everything`` fixes it). Every batch has ``batch_size`` rows, as steps
    are then of one kind: what is left over in an epoch is left out. If there are fewer rows than that, all are one
    batch. A fit that is resumed from a checkpoint in the middle of an epoch goes on with the rows that would have come.

    Args:
        rows: A list of dictionaries; a JSONL file, which has one dictionary in each line; or a ``datasets.Dataset`` (or
            anything else with rows by number). A prompt is a text or a list of messages,
            ``[{"role": "user", "content": "…"}]``; all other columns go to reward functions.
        batch_size: Rows in each step.
        validation: Held-out rows, as ``rows``; or a share of ``rows`` in (0, 1), or a number of them, which are taken
            from the training, always the same ones. ``None``: no validation.
        validation_batch_size: Rows that are written to at once in validation; by default ``batch_size``.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If rows are of a wrong type; the message names the row, or the line of the file.
        ValueError: If there are no rows, a row has no ``"prompt"``, a line is not JSON, or an option is impossible.

    Example:
        >>> from lightning_evo.rewards import PromptData
        >>> rows = [{"prompt": f"{i} + 1 =", "answer": i + 1} for i in range(10)]
        >>> data = PromptData(rows, batch_size=4, validation=0.2)
        >>> [len(batch) for batch in data.train_dataloader()], [len(batch) for batch in data.val_dataloader()]
        ([4, 4], [2])
        >>> next(iter(data.val_dataloader()))[0]
        {'prompt': '1 + 1 =', 'answer': 2}
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int = 8,
        validation: int | float | Rows | None = None,
        *,
        validation_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = whole("batch_size", batch_size)
        at_once = self.batch_size if validation_batch_size is None else validation_batch_size
        self.validation_batch_size = whole("validation_batch_size", at_once)
        self.train_rows: Dataset[dict[str, Any]] = _Rows(rows, "rows")
        """Rows to train on."""
        self.validation_rows: Dataset[dict[str, Any]] | None = None
        """Held-out rows, if there are any."""
        if isinstance(validation, float) or as_whole(validation) is not None:
            self.train_rows, self.validation_rows = _split(self.train_rows, validation)
        elif validation is not None:
            self.validation_rows = _Rows(validation, "validation")
        if self.validation_rows is None and type(self).val_dataloader is PromptDataMixin.val_dataloader:
            # So that Lightning sees that there is none, and not one without rows; a partial, as it can be pickled.
            vars(self)["val_dataloader"] = partial(super(PromptDataMixin, type(self)).val_dataloader, self)

    @override
    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled batches of equal size."""
        total = len(self.train_rows)  # type: ignore[arg-type]
        size, generator = min(self.batch_size, total), torch.Generator()
        loader = _Resumable(self.train_rows, size, shuffle=True, drop_last=True, collate_fn=list, generator=generator)
        loader.limit = self._limit
        return loader

    def _limit(self) -> float:
        """Batches of an epoch, as far as the Trainer limits them."""
        return float("inf") if self.trainer is None else self.trainer.num_training_batches

    @override
    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """All held-out rows in their order; there is none without ``validation``."""
        assert self.validation_rows is not None
        return DataLoader(self.validation_rows, self.validation_batch_size, collate_fn=list)


class _Resumable(DataLoader[dict[str, Any]]):
    """Shuffled batches that a resumed fit goes on with in the middle of an epoch: Lightning keeps the loader's state.

    Lightning may make another loader of it, with a sampler of its own, so everything is an attribute with a default.
    """

    limit: Callable[[], float] | None = None
    _seed = 0  # of the epoch's order
    _given = 0  # batches of the epoch so far
    _resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of one epoch. Nothing is drawn before the first is asked for: Lightning throws iterators away."""
        resumed, self._resumed = self._resumed or {}, None
        # Only a new epoch takes a number of torch's global generator, so that a resumed fit draws no other ones later.
        self._seed = resumed["seed"] if resumed else int(torch.empty((), dtype=torch.int64).random_())
        self._given, done = 0, resumed.get("batches", 0)
        self.generator.manual_seed(self._seed)
        for batch in super().__iter__():
            self._given += 1
            if self._given > done:
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Where in an epoch it is; empty between two."""
        batches = min(len(self), self.limit()) if self.limit else len(self)
        is_within = 0 < self._given < batches
        return {"seed": self._seed, "batches": self._given, "of": len(self)} if is_within else {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Have the next epoch be the rest of one.

        Raises:
            ValueError: If there are other batches now.
        """
        if state and state["of"] != len(self):
            raise ValueError(
                f"The checkpoint was written in the middle of an epoch of {state['of']} batches, and there are "
                f"{len(self)} now. Resume with the rows and the batch size of that run, or from a checkpoint of an "
                "epoch's end."
            )
        self._resumed = state or None


class _Rows(Dataset[dict[str, Any]]):
    """Rows by number, each of which has been checked, or is when it is asked for."""

    def __init__(self, rows: Any, option: str) -> None:
        self._name = option
        if isinstance(rows, str | os.PathLike):
            self._name = str(rows)
            rows = _read(Path(rows))
        columns = getattr(rows, "column_names", None)
        known = isinstance(rows, Sequence) or (hasattr(rows, "__len__") and hasattr(rows, "__getitem__"))
        if not known or isinstance(rows, Mapping | bytes) or isinstance(columns, Mapping):
            advice = " Choose one of its splits." if isinstance(columns, Mapping) else ""
            raise TypeError(
                f"{option} must be a list of dictionaries, a JSONL file or a dataset with rows by number; got "
                f"{shown(rows)}.{advice}"
            )
        if not len(rows):
            raise ValueError(f"{self._name} has no rows; give at least one prompt.")
        self._rows = rows
        if isinstance(columns, list):
            if "prompt" not in columns:
                raise ValueError(_no_prompt(f"{option}, a dataset,", columns))
        elif isinstance(rows, list | tuple):
            for row in range(len(rows)):
                self[row]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, place = self._rows[index], f"row {index} of {self._name}"
        if isinstance(row, _Line):
            place, row = f"line {row.number} of {self._name}", row.content
        if not isinstance(row, Mapping):
            raise TypeError(f'{_upper(place)} must be a dictionary such as {{"prompt": "…"}}, got {shown(row)}.')
        if "prompt" not in row:
            raise ValueError(_no_prompt(_upper(place), row))
        check_prompt(row["prompt"], place)
        return dict(row)


class _Line:
    """A row with the number of its line."""

    def __init__(self, number: int, content: Any) -> None:
        self.number, self.content = number, content


def _read(path: Path) -> list[_Line]:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Give a JSONL file: in each line one dictionary with a prompt."
        )
    lines = []
    with path.open(encoding="utf-8-sig") as file:  # with or without a byte-order mark
        for i, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                lines.append(_Line(i, json.loads(text)))
            except ValueError as error:
                raise ValueError(
                    f"Line {i} of {path} is not JSON ({first_line(error)}). A JSONL file has one dictionary in each "
                    f"line; this one is {shown(text.strip())}."
                ) from None
    return lines


def _split(rows: Any, validation: Any) -> tuple[Any, Any]:
    """Rows to train on, and held-out ones, chosen at random but always the same; both in their order."""
    total = len(rows)
    if isinstance(validation, float):
        held_out = max(1, round(total * number("validation", validation, above=0, below=1)))
    else:
        held_out = whole("validation", validation)
    if held_out >= total:
        raise ValueError(
            f"validation={validation} holds out {held_out} of {total} rows, so none is left to train on. Give more "
            "rows, or a smaller share."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(_SPLIT_SEED)).tolist()
    return Subset(rows, sorted(order[held_out:])), Subset(rows, sorted(order[:held_out]))


def _no_prompt(where: str, columns: Any) -> str:
    found = ", ".join(map(str, columns)) or "nothing"
    return f'{where} has no "prompt", only {found}. Name the column with the prompts "prompt".'


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
