"""Text as bytes: a tokenizer without a vocabulary file, and a DataModule for any text file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["ByteTokenizer", "TextDataModule", "TokenizedLines"]

_BUNDLED_TEXT = Path(__file__).with_name("poems.txt")


class ByteTokenizer:
    """One token per byte of UTF-8, after the byte's own value; then padding and start of sample.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("é!")
    [195, 169, 33]
    >>> tokenizer.decode([ByteTokenizer.BOS, 195, 169, 33, ByteTokenizer.PAD])
    'é!'
    """

    BYTES = 256
    PAD = 256
    BOS = 257
    VOCAB = 258

    def encode(self, text: str) -> list[int]:
        """The bytes of ``text``, without any special token."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; special tokens are left out, and bytes that are no UTF-8 become U+FFFD."""
        return bytes(token for token in tokens if token < self.BYTES).decode("utf-8", errors="replace")


class TokenizedLines(Dataset[dict[str, Tensor]]):
    """Lines of text as right-padded rows of tokens.

    Each row starts with `ByteTokenizer.BOS`; a line with more bytes than fit goes on in the next row.

    Args:
        lines: the text; a line keeps its newline, which is how the model learns where lines end.
        max_length: tokens in the longest row, the start token included.
    """

    def __init__(self, lines: list[str], max_length: int) -> None:
        if max_length < 2:
            raise ValueError(f"max_length={max_length} leaves nothing to predict; it must be at least 2")
        encode = ByteTokenizer().encode
        room = max_length - 1
        pieces = [line[start : start + room] for line in map(encode, lines) for start in range(0, len(line), room)]
        width = 1 + max((len(piece) for piece in pieces), default=1)
        self.tokens = torch.full((len(pieces), width), ByteTokenizer.PAD, dtype=torch.long)
        self.tokens[:, 0] = ByteTokenizer.BOS
        for row, piece in zip(self.tokens, pieces, strict=True):
            row[1 : 1 + len(piece)] = torch.tensor(piece)
        self.mask = self.tokens != ByteTokenizer.PAD

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens[index], "mask": self.mask[index]}


class TextDataModule(pl.LightningDataModule):
    """Lines of a text file, the last of them held out.

    The split is by position, not by chance: the held-out lines are those at the end of the file, which is the same in
    every run and keeps neighbouring lines of one passage from sitting on both sides.

    Args:
        path: any UTF-8 text file; none takes the poems in this folder.
        max_length: tokens in the longest sample; longer lines go on in the next sample.
        max_lines: how many lines to train on, from the start of the file.
        validation_lines: how many lines to hold out (at most a tenth of the text).
        batch_size: samples that a dataloader yields per step.
    """

    def __init__(
        self,
        path: str | None = None,
        max_length: int = 256,
        max_lines: int = 10_000,
        validation_lines: int = 500,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        self.path = _BUNDLED_TEXT if path is None else Path(path)
        self.max_length = max_length
        self.max_lines = max_lines
        self.validation_lines = validation_lines
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        # Empty lines would be samples of one newline each: half of some books, and nothing to learn from.
        lines = [line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line.strip()]
        held_out = min(self.validation_lines, len(lines) // 10)
        if held_out == 0:
            raise ValueError(
                f"{self.path} has {len(lines)} non-empty lines; at least 10 are needed, to hold one of them out"
            )
        self.train_set = TokenizedLines(lines[: min(self.max_lines, len(lines) - held_out)], self.max_length)
        self.validation_set = TokenizedLines(lines[-held_out:], self.max_length)

    def byte_frequency_loss(self) -> float:
        """Held-out loss, in nats per byte, of knowing only how frequent each byte is in the training text.

        Below this a model has learnt something of the language.
        """
        counts = torch.ones(ByteTokenizer.BYTES).double()  # one each, so that no byte is impossible
        seen = self.train_set.tokens[self.train_set.tokens < ByteTokenizer.BYTES]
        counts += torch.bincount(seen, minlength=ByteTokenizer.BYTES)
        held_out = self.validation_set.tokens[self.validation_set.tokens < ByteTokenizer.BYTES]
        return float(-(counts / counts.sum()).log()[held_out].mean())

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            self.train_set,
            batch_size=min(self.batch_size, len(self.train_set)),
            shuffle=True,
            drop_last=True,  # generations of equal size, so that their fitness is measured equally well
        )

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.validation_set, batch_size=64)
