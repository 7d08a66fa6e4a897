"""The file of a journal: created, opened, read and appended to."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from lightning_evo.journal import disk
from lightning_evo.journal.format import (
    Contents,
    Entry,
    damage,
    generation_frame,
    head,
    read_fitness,
    read_header,
    scan,
    weights_frame,
)
from lightning_evo.journal.records import Conditions, Header, Record

__all__ = ["SUFFIX", "Journal", "next_free"]

SUFFIX = ".evoj"


class Journal:
    """A journal, to be read or to be appended to. Make one by :meth:`create` or :meth:`open`.

    Example:
        >>> import tempfile, torch
        >>> from lightning_evo.algorithms import get
        >>> from lightning_evo.journal import describe_algorithm, describe_parameters, weights_checksum
        >>> from lightning_evo.spaces.search_space import SearchSpace
        >>> path = Path(tempfile.mkdtemp()) / "run.evoj"
        >>> space = SearchSpace(torch.nn.Linear(2, 1))
        >>> header = Header(
        ...     run=1,
        ...     generation=0,
        ...     algorithm=describe_algorithm(get("mezo")()),
        ...     start=weights_checksum(space),
        ...     conditions=Conditions(seed=0, parameters=describe_parameters(space)),
        ... )
        >>> with Journal.create(path, header) as journal:
        ...     journal.append(Record(0, (0.5, 0.25), sigma=1e-3, learning_rates=(1e-7,)))
        >>> with Journal.open(path) as journal:
        ...     journal.end, journal.read(0).fitness
        (1, (0.5, 0.25))
    """

    def __init__(self, path: Path, header: Header, file: io.FileIO, crc: int, contents: Contents) -> None:
        self.path = path
        self.header = header
        self.torn = contents.torn
        """Bytes of a torn tail: not read; cut off already if the journal was opened to append."""
        self._file = file
        self._crc = crc
        self._entries = contents.entries
        self._weights = contents.weights
        self._end = contents.end
        self._conditions = contents.entries[-1].conditions if contents.entries else header.conditions

    # --- opening ---

    @classmethod
    def create(cls, path: str | Path, header: Header) -> Journal:
        """A new journal, open to append. It appears under its name complete and on the disk, or not at all.

        Raises:
            FileExistsError: If there is such a file; it is not touched.
            OSError: If it can't be written.
        """
        path = Path(path)
        content = head(header)
        try:
            disk.create(path, content)
        except OSError as error:
            if disk.is_full(error):
                raise OSError(
                    error.errno, f"No space is left for a journal at {path}. Free some space and run again."
                ) from error
            raise
        return cls.open(path, append=True)

    @classmethod
    def open(cls, path: str | Path, *, append: bool = False) -> Journal:
        """An existing journal.

        Args:
            path: The file.
            append: Open it for :meth:`append`. A torn tail is then cut off, with a warning; nothing else is changed.

        Raises:
            FileNotFoundError: If there is no such file.
            JournalError: If it is not a journal, empty, of another format, damaged, or (to append) in use.
        """
        path = Path(path)
        file: io.FileIO = open(path, "r+b" if append else "rb", buffering=0)  # noqa: SIM115
        try:
            if append:
                disk.lock(file, path)
            reader = io.BufferedReader(file)
            header, crc = read_header(reader, path)
            contents = scan(reader, path, header, crc)
            reader.detach()
            if append and contents.torn:
                disk.cut(file, contents.end)
                warnings.warn(
                    f"{path} ended in the middle of a record, as a crash leaves it: {contents.torn} bytes were cut off "
                    f"after generation {_last(contents)}.",
                    stacklevel=2,
                )
            return cls(path, header, file, crc, contents)
        except BaseException:
            file.close()
            raise

    @staticmethod
    def peek(path: str | Path) -> Header:
        """The header alone.

        Raises:
            FileNotFoundError: If there is no such file.
            JournalError: If it is not a journal, empty, of another format, or its header is damaged.
        """
        with open(path, "rb") as file:
            return read_header(file, Path(path))[0]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- reading ---

    @property
    def end(self) -> int:
        """The generation after the last recorded one: what will be appended next."""
        return self.header.generation + len(self._entries)

    @property
    def size(self) -> int:
        """Bytes, without a torn tail."""
        return self._end

    @property
    def conditions(self) -> Conditions:
        """The conditions of the last generation."""
        return self._conditions

    @property
    def weights(self) -> Mapping[int, str]:
        """Recorded checksums of the weights, by the generation that began with them; the last may be yet to come.

        Each is of the parameters that evolved in the generation before. The one of the start is in the header.
        """
        return MappingProxyType(self._weights)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, generation: object) -> bool:
        return isinstance(generation, int) and self.header.generation <= generation < self.end

    def __iter__(self) -> Iterator[Record]:
        return (self.read(generation) for generation in range(self.header.generation, self.end))

    def conditions_at(self, generation: int) -> Conditions:
        """The conditions of a recorded generation.

        Raises:
            KeyError: If it is not recorded.
        """
        return self._entry(generation).conditions

    def read(self, generation: int) -> Record:
        """A recorded generation.

        Raises:
            KeyError: If it is not recorded.
            JournalError: If the file was damaged since it was opened.
        """
        entry = self._entry(generation)
        self._file.seek(entry.offset)
        fitness = read_fitness(self._file, self._crc)
        if fitness is None:
            raise damage(self.path, generation, entry.offset)
        return replace(entry.record, fitness=fitness)

    def _entry(self, generation: int) -> Entry:
        if generation not in self:
            raise KeyError(
                f"{self.path} holds generations {self.header.generation} to {self.end - 1}, not {generation}."
            )
        return self._entries[generation - self.header.generation]

    # --- appending ---

    def append(self, record: Record, conditions: Conditions | None = None) -> None:
        """Write one more generation; it is on the disk when this returns.

        A generation that is there already, with the same content, is left as it is.

        Args:
            record: The generation.
            conditions: In force from it on; ``None`` for those of the generation before.

        Raises:
            ValueError: If the generation is there with another content, would leave a gap, or has more than about two
                million members.
            OSError: If it can't be written, for example because the disk is full. The journal is as it was before.
        """
        conditions = conditions or self._conditions
        if record.generation in self:
            same = self.read(record.generation).same_as(record)
            if same and self.conditions_at(record.generation) == conditions:
                return
            raise ValueError(
                f"Generation {record.generation} is in {self.path} already, with another content. A journal is never "
                "overwritten: give this run another file."
            )
        if record.generation != self.end:
            raise ValueError(
                f"{self.path} ends with generation {self.end - 1}, so {self.end} comes next, not {record.generation}. "
                "A journal has no gaps: begin a new file."
            )
        offset, last = self._end, self._entries[-1].record if self._entries else None
        data = generation_frame(record, conditions, last, self._conditions, self._crc)
        self._append(data, f"Generation {record.generation}")
        self._entries.append(Entry(offset, replace(record, fitness=()), conditions))
        self._conditions = conditions

    def append_weights(self, checksum: str) -> None:
        """Write the checksum of the weights before the coming generation; it is on the disk when this returns.

        The same checksum is not written twice; another one takes the place of one that is there.

        Args:
            checksum: From :func:`~lightning_evo.journal.weights_checksum`, of the parameters that evolved in the last
                generation.

        Raises:
            ValueError: If it is not 32 hexadecimal digits.
            OSError: If it can't be written. The journal is as it was before.
        """
        if self._weights.get(self.end) != checksum:
            data = weights_frame(self.end, checksum, self._crc)
            self._append(data, f"The checksum of the weights before generation {self.end}")
            self._weights[self.end] = checksum

    def _append(self, data: bytes, what: str) -> None:
        try:
            disk.append(self._file, self._end, data)
        except OSError as error:
            full = disk.is_full(error)
            why = "there is no space left on the disk" if full else (error.strerror or str(error))
            raise OSError(
                error.errno,
                f"{what} could not be written to the journal {self.path}: {why}. The journal is intact and holds all "
                f"generations before it. {'Free some space' if full else 'Fix the cause'}, and resume from the last "
                "checkpoint.",
            ) from error
        self._end += len(data)


def next_free(folder: str | Path, name: str = "evolution") -> Path:
    """The first of ``name.evoj``, ``name-v1.evoj``, ``name-v2.evoj``, … that does not exist.

    Example:
        >>> next_free("/nowhere").name
        'evolution.evoj'
    """
    path, version = Path(folder) / f"{name}{SUFFIX}", 0
    while path.exists():
        version += 1
        path = path.with_name(f"{name}-v{version}{SUFFIX}")
    return path


def _last(contents: Contents) -> str:
    return str(contents.entries[-1].record.generation) if contents.entries else "none (no record was complete)"
