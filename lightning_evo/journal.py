"""The seed journal: a run as the fitness of its members, a few bytes for each generation.

Noise is a pure function of its address, so a generation is fully described by the fitness of its members. A journal is
a file ``*.evoj`` that is only ever appended to:

* **The head**, 20 bytes: a magic number, the format's version, the length of what follows and its CRC-32; then JSON:
  the :class:`Header`.
* **Frames**, each with a CRC-32, its kind and its length in 8 bytes. A *generation* holds its number, a check of the
  update, the fitness of each member as float64, and what changed since the generation before: sigma, learning rates,
  how much was clipped. A *change* holds, as JSON, :class:`Conditions` that are in force from then on.

The CRC of a frame begins with that of the head, so a frame of another journal is not taken for one of this.

Every append is on the disk before it returns. A crash in the middle of one leaves a torn tail; it is found by length
and CRC, and cut off with a warning when the file is next opened to append. Damage anywhere else is an error.
"""

from __future__ import annotations

import binascii
import contextlib
import ctypes
import errno
import hashlib
import io
import json
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lightning_evo.algorithms import EvolutionStrategy, Schedule
from lightning_evo.search_space import SearchSpace

fcntl: Any
try:
    import fcntl
except ModuleNotFoundError:
    fcntl = None

__all__ = [
    "Conditions",
    "Header",
    "Journal",
    "JournalError",
    "Record",
    "RecordedParameter",
    "check_of",
    "describe_algorithm",
    "describe_parameters",
    "next_free",
    "rebuild_algorithm",
    "weights_checksum",
]

SUFFIX = ".evoj"
VERSION = 1
_MAGIC = b"\x89EVOJ\r\n\x1a"
_HEAD = struct.Struct("<8sHxxII")  # magic, version, length of the JSON, CRC-32 of everything else
_FRAME = struct.Struct("<II")  # CRC-32 of everything after it; kind in the upper 8 bits, length of the rest in 24
_GENERATION_HEAD = struct.Struct("<IHH")  # generation, number of learning rates, check of the update

_CHANGE = 0x01
_GENERATION = 0x10  # together with flags that say what is there:
_BATCHES, _COEFFICIENT, _SIGMA, _RATES = 0x1, 0x2, 0x4, 0x8


class JournalError(RuntimeError):
    """A journal that can't be read, or does not belong to what is asked of it."""


@dataclass(frozen=True)
class RecordedParameter:
    """An evolving parameter, as a journal describes it.

    Attributes:
        names: All of its names; more than one for tied weights.
        index: Its number among all parameters of the module, which addresses its noise.
        shape: Its shape.
        dtype: ``"float32"``, ``"bfloat16"``, ….
        padding_row: The row of an embedding that does not learn.
        group: The number of its parameter group, over all optimizers; 0 without any.
    """

    names: tuple[str, ...]
    index: int
    shape: tuple[int, ...]
    dtype: str
    padding_row: int | None = None
    group: int = 0


@dataclass(frozen=True)
class Conditions:
    """What seldom changes, and is written only when it does.

    Attributes:
        seed: Of the noise, 0 to 2^64 - 1.
        parameters: What evolves.
        clipping: ``None``, or ``(limit, "norm")`` or ``(limit, "value")``.
        evaluation: The way members are run, as a checkpoint holds it; empty until it is chosen.
        accumulate: Training steps for each step of the optimizer; an epoch's last may take fewer.
    """

    seed: int
    parameters: tuple[RecordedParameter, ...]
    clipping: tuple[float, str] | None = None
    evaluation: tuple[tuple[str, Any], ...] = ()
    accumulate: int = 1


@dataclass(frozen=True)
class Header:
    """What a journal says of its run.

    Attributes:
        run: A random number of 64 bits that names this journal; checkpoints carry it.
        generation: The first generation.
        population: Members.
        algorithm: From :func:`describe_algorithm`.
        start: From :func:`weights_checksum`: the weights before the first generation.
        conditions: In force from the first generation on.
        summation: How processes added up the updates, where the last bits depend on that: a replay by one process
            then differs in them.
    """

    run: int
    generation: int
    population: int
    algorithm: dict[str, Any]
    start: str
    conditions: Conditions
    summation: str = ""


@dataclass(frozen=True)
class Record:
    """One generation.

    Attributes:
        generation: Its number.
        fitness: Of each member, float64; NaN or infinite where it failed.
        sigma: The distance of members from the center.
        learning_rates: One for all parameters, or one for each parameter group.
        coefficient: What clipping by norm multiplied the estimate by.
        batches: Training steps that the generation took: more than one if batches accumulate or were declined.
        check: 16 bits from :func:`check_of`, by which a replay sees that it makes the same update.
    """

    generation: int
    fitness: tuple[float, ...]
    sigma: float
    learning_rates: tuple[float, ...]
    coefficient: float = 1.0
    batches: int = 1
    check: int = 0

    def same_as(self, other: Record) -> bool:
        """Whether both hold the same; NaN equals NaN."""
        return _comparable(self) == _comparable(other)


def _comparable(record: Record) -> tuple[Any, ...]:
    values = tuple(None if math.isnan(value) else value for value in record.fitness)
    return (values, *(getattr(record, f.name) for f in fields(record) if f.name != "fitness"))


@dataclass(frozen=True)
class _Entry:
    """Where a generation lies in the file, and what it shares with its neighbours."""

    offset: int  # of its frame
    record: Record  # without fitness
    conditions: Conditions


@dataclass
class _Contents:
    """What a pass over a file has found."""

    entries: list[_Entry] = field(default_factory=list)
    end: int = 0  # where the last good frame ends
    torn: int = 0  # bytes after it


class Journal:
    """A journal, to be read or to be appended to. Make one by :meth:`create` or :meth:`open`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.evoj"
        >>> start = torch.nn.Linear(2, 1)
        >>> space = SearchSpace(start)
        >>> from lightning_evo.algorithms import get
        >>> algorithm = get("mezo")()
        >>> header = Header(
        ...     run=1,
        ...     generation=0,
        ...     population=2,
        ...     algorithm=describe_algorithm(algorithm),
        ...     start=weights_checksum(space),
        ...     conditions=Conditions(seed=0, parameters=describe_parameters(space)),
        ... )
        >>> with Journal.create(path, header) as journal:
        ...     journal.append(Record(0, (0.5, 0.25), sigma=1e-3, learning_rates=(1e-7,)))
        >>> with Journal.open(path) as journal:
        ...     journal.end, journal.read(0).fitness
        (1, (0.5, 0.25))
    """

    def __init__(self, path: Path, header: Header, file: io.FileIO, seed: int, contents: _Contents) -> None:
        self.path = path
        self.header = header
        self.torn = contents.torn
        """Bytes of a torn tail: not read; cut off already if the journal was opened to append."""
        self._file = file
        self._crc = seed
        self._entries = contents.entries
        self._end = contents.end
        self._conditions = contents.entries[-1].conditions if contents.entries else header.conditions

    # --- opening ---

    @classmethod
    def create(cls, path: str | Path, header: Header) -> Journal:
        """A new journal, open to append. It appears under its name complete and on the disk, or not at all.

        Raises:
            FileExistsError: If there is such a file; it is not touched.
            ValueError: If a generation would not fit into a frame: more than about two million members.
        """
        path = Path(path)
        if 8 * header.population + 64 >= 1 << 24:
            raise ValueError(f"A journal takes at most about two million members; there are {header.population:,}.")
        body = json.dumps(asdict(header), separators=(",", ":")).encode()
        head = _HEAD.pack(_MAGIC, VERSION, len(body), 0)
        crc = zlib.crc32(body, zlib.crc32(head))
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with open(new, "wb", buffering=0) as file:
                _write(file, _HEAD.pack(_MAGIC, VERSION, len(body), crc) + body)
                os.fsync(file.fileno())
            _link(new, path)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(
                    error.errno, f"No space left for a journal at {path}. Make room and run again."
                ) from error
            raise
        finally:
            new.unlink(missing_ok=True)
        _sync_folder(path.parent)
        return cls.open(path, append=True)

    @classmethod
    def open(cls, path: str | Path, *, append: bool = False) -> Journal:
        """An existing journal.

        Args:
            path: The file.
            append: Open it for :meth:`append`. A torn tail is then cut off, with a warning; nothing else is changed.

        Raises:
            FileNotFoundError: If there is no such file.
            JournalError: If it is not a journal, empty, of a newer format, damaged, or (to append) in use.
        """
        path = Path(path)
        file: io.FileIO = open(path, "r+b" if append else "rb", buffering=0)  # noqa: SIM115
        try:
            if append:
                _lock(file, path)
            reader = io.BufferedReader(file)
            header, crc = _read_header(reader, path)
            contents = _scan(reader, path, header, crc)
            reader.detach()
            if append and contents.torn:
                file.truncate(contents.end)
                os.fsync(file.fileno())
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
            JournalError: As :meth:`open`.
        """
        with open(path, "rb") as file:
            return _read_header(file, Path(path))[0]

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
        """What was in force at the end."""
        return self._conditions

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, generation: object) -> bool:
        return isinstance(generation, int) and self.header.generation <= generation < self.end

    def __iter__(self) -> Iterator[Record]:
        return (self.read(generation) for generation in range(self.header.generation, self.end))

    def conditions_at(self, generation: int) -> Conditions:
        """What was in force in a recorded generation.

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
        frame = _read_frame(self._file, self._crc)
        if frame is None:
            raise _damage(self.path, generation, entry.offset)
        fitness = struct.unpack(f"<{self.header.population}d", frame[1][-8 * self.header.population :])
        return replace(entry.record, fitness=fitness)

    def _entry(self, generation: int) -> _Entry:
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
            ValueError: If the generation is there with another content, would leave a gap, or does not have one
                fitness for each member.
            OSError: If it can't be written (the disk is full, say). The journal is as it was before.
        """
        conditions = conditions or self._conditions
        if len(record.fitness) != self.header.population:
            raise ValueError(
                f"Generation {record.generation} has {len(record.fitness)} members, the journal {self.path} is of "
                f"{self.header.population}."
            )
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
        data = b""
        if conditions != self._conditions:
            data = self._frame(_CHANGE, _dump_change(self._conditions, conditions))
        offset = self._end + len(data)
        last = self._entries[-1].record if self._entries else None
        data += self._frame(*_pack(record, last))
        self._append(data, record.generation)
        self._entries.append(_Entry(offset, replace(record, fitness=()), conditions))
        self._conditions = conditions

    def _frame(self, kind: int, payload: bytes) -> bytes:
        if len(payload) >= 1 << 24:
            raise ValueError(f"A frame of a journal holds at most 16 MiB, not {len(payload):,} bytes.")
        rest = struct.pack("<I", kind << 24 | len(payload)) + payload
        return struct.pack("<I", zlib.crc32(rest, self._crc)) + rest

    def _append(self, data: bytes, generation: int) -> None:
        try:
            self._file.seek(self._end)
            _write(self._file, data)
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # what can't be cut now is cut when the file is next opened
                self._file.truncate(self._end)
                os.fsync(self._file.fileno())
            full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
            what = "there is no space left on the disk" if full else (error.strerror or str(error))
            raise OSError(
                error.errno,
                f"Generation {generation} could not be written to the journal {self.path}: {what}. The journal is "
                f"intact and holds all generations before it. {'Make room' if full else 'Mend that'}, and resume from "
                "the last checkpoint.",
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


# --- what a header says ---


def describe_algorithm(algorithm: EvolutionStrategy) -> dict[str, Any]:
    """All options of an algorithm as plain data; a function becomes ``{"not_plain": its name}``.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> describe_algorithm(get("mezo")())["shaping"]
        'raw'
    """
    described = {f.name: _plain(getattr(algorithm, f.name)) for f in fields(algorithm)}
    if type(algorithm) is not EvolutionStrategy:
        described["class"] = {"not_plain": _qualified_name(type(algorithm))}
    return described


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Schedule):
        return {"schedule": asdict(value)}
    return {"not_plain": _qualified_name(value)}


def _qualified_name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def rebuild_algorithm(described: dict[str, Any]) -> EvolutionStrategy:
    """The algorithm that :func:`describe_algorithm` described.

    Raises:
        JournalError: If an option is not plain data, or unknown to this version.
    """
    missing = {name: value["not_plain"] for name, value in described.items() if _is(value, "not_plain")}
    if missing:
        given = ", ".join(f"{name}={value}" for name, value in missing.items())
        raise JournalError(
            f"The algorithm can't be rebuilt from the journal alone: {given} is code, not data. Pass the algorithm: "
            "lightning_evo.replay.replay(…, algorithm=EvolutionStrategy(…))."
        )
    options: dict[str, Any] = {
        name: Schedule(**value["schedule"]) if _is(value, "schedule") else value for name, value in described.items()
    }
    unknown = sorted(options.keys() - {f.name for f in fields(EvolutionStrategy)})
    if unknown:
        raise JournalError(
            f"The journal's algorithm has options that this version does not know: {', '.join(unknown)}. Use the "
            "version of lightning-evo that wrote it, or a newer one."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice that was given when the run began
        return EvolutionStrategy(**options)


def _is(value: object, tag: str) -> bool:
    return isinstance(value, dict) and tag in value


def describe_parameters(
    space: SearchSpace, group: Callable[[torch.nn.Parameter], int] = lambda parameter: 0
) -> tuple[RecordedParameter, ...]:
    """What a journal says of the evolving parameters.

    Args:
        space: The parameters.
        group: The number of each one's parameter group.
    """
    return tuple(
        RecordedParameter(
            names=space.names(parameter),
            index=parameter.index,
            shape=tuple(parameter.shape),
            dtype=str(parameter.tensor.dtype).removeprefix("torch."),
            padding_row=parameter.padding_row,
            group=group(parameter.tensor),
        )
        for parameter in space
    )


def weights_checksum(space: SearchSpace) -> str:
    """128 bits (BLAKE2b, as hexadecimal digits) of all evolving weights, with their places, shapes and dtypes.

    Empty where other processes hold parts of them.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> before = weights_checksum(SearchSpace(layer))
        >>> with torch.no_grad():
        ...     layer.bias += 1
        >>> before == weights_checksum(SearchSpace(layer))
        False
    """
    if space.is_sharded:
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for parameter in space:
        tensor = parameter.tensor.detach()
        digest.update(f"{parameter.index} {tuple(tensor.shape)} {tensor.dtype}".encode())
        tensor = tensor.cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        if size:
            digest.update((ctypes.c_char * size).from_address(tensor.data_ptr()))
    return digest.hexdigest()


def check_of(weights: Sequence[float], dtype: torch.dtype = torch.float32) -> int:
    """16 bits of an update's weights, in the precision in which they act.

    Args:
        weights: Of the noise directions.
        dtype: float64 if a parameter is, else float32.
    """
    values: Tensor = torch.tensor(weights, dtype=torch.float64).to(dtype)
    return binascii.crc_hqx(struct.pack(f"<{len(weights)}d", *values.tolist()), 0)


# --- bytes ---


def _pack(record: Record, last: Record | None) -> tuple[int, bytes]:
    """Kind and payload of a generation, of which ``last`` is the one before."""
    kind, parts = _GENERATION, []
    rates: tuple[float, ...] = ()
    if record.batches != 1:
        kind |= _BATCHES
        parts.append(struct.pack("<I", record.batches))
    if record.coefficient != 1.0:
        kind |= _COEFFICIENT
        parts.append(struct.pack("<d", record.coefficient))
    if last is None or record.sigma != last.sigma:
        kind |= _SIGMA
        parts.append(struct.pack("<d", record.sigma))
    if last is None or record.learning_rates != last.learning_rates:
        kind |= _RATES
        rates = record.learning_rates
        parts.append(struct.pack(f"<{len(rates)}d", *rates))
    fitness = [math.nan if math.isnan(value) else value for value in record.fitness]  # one NaN, of one sign
    parts.append(struct.pack(f"<{len(fitness)}d", *fitness))
    return kind, _GENERATION_HEAD.pack(record.generation, len(rates), record.check) + b"".join(parts)


def _unpack(kind: int, payload: bytes, last: Record | None, population: int) -> Record | None:
    """A generation without its fitness; ``None`` if the lengths don't fit."""
    if len(payload) < _GENERATION_HEAD.size:
        return None
    generation, count, check = _GENERATION_HEAD.unpack_from(payload)
    batches, coefficient, position = 1, 1.0, _GENERATION_HEAD.size
    layout = "<" + "".join(code for flag, code in ((_BATCHES, "I"), (_COEFFICIENT, "d"), (_SIGMA, "d")) if kind & flag)
    layout += f"{count}d"
    if len(payload) != position + struct.calcsize(layout) + 8 * population:
        return None
    values = list(struct.unpack_from(layout, payload, position))
    if kind & _BATCHES:
        batches = values.pop(0)
    if kind & _COEFFICIENT:
        coefficient = values.pop(0)
    if last is None:
        if not (kind & _SIGMA and kind & _RATES):
            return None
        last = Record(generation, (), math.nan, ())
    sigma = values.pop(0) if kind & _SIGMA else last.sigma
    rates = tuple(values) if kind & _RATES else last.learning_rates
    return Record(generation, (), sigma, rates, coefficient, batches, check)


def _dump_change(before: Conditions, after: Conditions) -> bytes:
    old, new = asdict(before), asdict(after)
    return json.dumps({name: new[name] for name in new if new[name] != old[name]}, separators=(",", ":")).encode()


def _load_conditions(values: dict[str, Any], before: Conditions | None = None) -> Conditions:
    values = dict(values)
    if "parameters" in values:
        values["parameters"] = tuple(
            RecordedParameter(**{**entry, "names": tuple(entry["names"]), "shape": tuple(entry["shape"])})
            for entry in values["parameters"]
        )
    if values.get("clipping") is not None:
        values["clipping"] = tuple(values["clipping"])
    if "evaluation" in values:
        values["evaluation"] = tuple((name, value) for name, value in values["evaluation"])
    return Conditions(**values) if before is None else replace(before, **values)


def _read_header(file: BinaryIO, path: Path) -> tuple[Header, int]:
    """The header, and the CRC with which those of the frames begin. Leaves the file at the first frame."""
    head = file.read(_HEAD.size)
    if not head:
        raise JournalError(f"{path} is empty, so it is not a journal. Delete it, or give the journal another name.")
    if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
        raise JournalError(
            f"{path} is not a seed journal: a journal begins with {_MAGIC!r}, this file with {head[:8]!r}. It is not "
            "touched; give the journal another name."
        )
    if len(head) < _HEAD.size:
        raise JournalError(f"{path} ends within its header, after {len(head)} bytes. Restore it from a copy.")
    magic, version, length, expected = _HEAD.unpack(head)
    body = file.read(min(length, os.fstat(file.fileno()).st_size))
    crc = zlib.crc32(body, zlib.crc32(_HEAD.pack(magic, version, length, 0)))
    if len(body) != length or crc != expected or head[10:12] != b"\0\0":
        raise JournalError(
            f"The header of {path} is damaged: its checksum is {crc:08x}, and {expected:08x} was written. Restore the "
            "file from a copy, or resume in another folder."
        )
    if version > VERSION:
        raise JournalError(
            f"{path} has format {version}; this version of lightning-evo reads formats up to {VERSION}. Use a newer "
            "version."
        )
    values = json.loads(body)
    values["conditions"] = _load_conditions(values["conditions"])
    return Header(**values), crc


def _read_frame(file: BinaryIO | io.FileIO, seed: int) -> tuple[int, bytes] | None:
    """Kind and payload of the frame that begins here; ``None`` if it is torn or damaged."""
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    crc, word = _FRAME.unpack(head)
    length = word & 0xFFFFFF
    payload = file.read(length)
    if len(payload) < length or zlib.crc32(payload, zlib.crc32(head[4:], seed)) != crc:
        return None
    return word >> 24, payload


def _scan(file: BinaryIO, path: Path, header: Header, seed: int) -> _Contents:
    """Read all frames.

    Raises:
        JournalError: If a frame is damaged that is not the last one, or says what can't be.
    """
    size, contents, conditions = os.fstat(file.fileno()).st_size, _Contents(end=file.tell()), header.conditions
    start = contents.end
    while start < size:
        generation = header.generation + len(contents.entries)
        frame = _read_frame(file, seed)
        if frame is None:
            file.seek(start)
            if _another_frame(file.read(), seed):  # so this one was once complete
                raise _damage(path, generation, start)
            break
        kind, payload = frame
        if kind == _CHANGE:
            conditions = _load_conditions(json.loads(payload), conditions)
        elif kind & 0xF0 == _GENERATION:
            last = contents.entries[-1].record if contents.entries else None
            record = _unpack(kind, payload, last, header.population)
            if record is None or record.generation != generation:
                raise _damage(path, generation, start)
            contents.entries.append(_Entry(start, record, conditions))
            contents.end = file.tell()  # not after a change, which belongs to the generation that follows it
        else:
            raise JournalError(
                f"{path} holds something of kind {kind:#x} at byte {start}, which this version of lightning-evo "
                "does not know. Use the version that wrote it, or a newer one."
            )
        start = file.tell()
    contents.torn = size - contents.end
    return contents


def _another_frame(rest: bytes, seed: int) -> bool:
    """Whether a good frame begins somewhere after the first byte."""
    for start in range(1, len(rest) - _FRAME.size + 1):
        crc, word = _FRAME.unpack_from(rest, start)
        kind, stop = word >> 24, start + _FRAME.size + (word & 0xFFFFFF)
        possible = (kind == _CHANGE or kind & 0xF0 == _GENERATION) and stop <= len(rest)
        if possible and zlib.crc32(rest[start + 4 : stop], seed) == crc:
            return True
    return False


def _damage(path: Path, generation: int, offset: int) -> JournalError:
    return JournalError(
        f"{path} is damaged: the record of generation {generation}, at byte {offset}, does not have its checksum, and "
        "good ones follow it. Nothing was changed. Restore the file from a copy; or move it away and resume from a "
        "checkpoint, which evaluates the lost generations again."
    )


def _last(contents: _Contents) -> str:
    return str(contents.entries[-1].record.generation) if contents.entries else "none (no record was complete)"


# --- the file system ---


def _write(file: io.FileIO, data: bytes) -> None:
    while data:
        data = data[os.write(file.fileno(), data) :]


def _link(new: Path, path: Path) -> None:
    """Give a file its name, unless there is one of that name."""
    try:
        os.link(new, path)
    except FileExistsError:
        message = "This file exists and is not overwritten; choose another name"
        raise FileExistsError(errno.EEXIST, message, str(path)) from None
    except OSError as error:  # a file system without links
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        with open(path, "xb"):  # fails if it exists
            pass
        os.replace(new, path)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(file: io.FileIO, path: Path) -> None:
    """Keep other processes from appending, where the file system can. Forked data-loading workers don't inherit it."""
    if fcntl is None:  # Windows
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise JournalError(
                f"Another process is appending to {path}. Wait until it has ended, or give this run another folder."
            ) from error
