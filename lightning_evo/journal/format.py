"""A journal's bytes.

* **The head**, 20 bytes: a magic number, the format's version, the length of what follows and its CRC-32; then JSON:
  the :class:`~lightning_evo.journal.Header`.
* **Frames**, each with a CRC-32, its kind and its length in 8 bytes:

  ==============  ====================================================================================================
  *generation*    its number, the number of members, a check of the update, the fitness of each member as float64, and,
                  as JSON, what changed since the generation before: of the :class:`~lightning_evo.journal.Record`
                  sigma, learning rates, batches and how much was clipped, and of the
                  :class:`~lightning_evo.journal.Conditions` anything
  *weights*       the checksum of the weights with which a generation begins, and its number: written before that
                  generation is, or at the end of a fit. If there are several, the last one counts
  ==============  ====================================================================================================

The CRC of a frame begins with that of the head, so frames of another journal are not accepted.

A crash in the middle of an append leaves a torn tail, which is found by length and CRC. Damage anywhere else is an
error, and so is a frame of a kind, or a change of something, that is not known: a reader never skips what it doesn't
understand, so a new one needs no new version of the format.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from lightning_evo.journal.records import Conditions, Header, JournalError, Record, RecordedParameter

__all__ = [
    "VERSION",
    "Contents",
    "Entry",
    "damage",
    "generation_frame",
    "head",
    "read_fitness",
    "read_header",
    "scan",
    "weights_frame",
]

VERSION = 2
MAGIC = b"\x89EVOJ\r\n\x1a"
_HEAD = struct.Struct("<8sHxxII")  # magic, version, length of the JSON, CRC-32 of everything else
_FRAME = struct.Struct("<II")  # CRC-32 of everything after it; kind in the upper 8 bits, length of the rest in 24
_LONGEST = 1 << 24
_GENERATION_HEAD = struct.Struct("<IIHxx")  # generation, members, check of the update
_WEIGHTS_PAYLOAD = struct.Struct("<I16s")  # generation, checksum

_GENERATION, _WEIGHTS = 0x01, 0x02
_CHANGING = ("sigma", "learning_rates", "coefficient", "batches")  # of a record; its frame has those that did


@dataclass(frozen=True)
class Entry:
    """Where a generation lies in the file, and what it shares with its neighbours."""

    offset: int  # of its frame
    record: Record  # without fitness
    conditions: Conditions


@dataclass
class Contents:
    """What is in a file."""

    entries: list[Entry] = field(default_factory=list)
    weights: dict[int, str] = field(default_factory=dict)  # checksums, by the generation that begins with them
    end: int = 0  # where the last good frame ends
    torn: int = 0  # bytes after it


# --- the head ---


def head(header: Header) -> bytes:
    """A journal without generations."""
    body = json.dumps(asdict(header), separators=(",", ":")).encode()
    crc = zlib.crc32(body, zlib.crc32(_HEAD.pack(MAGIC, VERSION, len(body), 0)))
    return _HEAD.pack(MAGIC, VERSION, len(body), crc) + body


def read_header(file: BinaryIO, path: Path) -> tuple[Header, int]:
    """The header, and the CRC with which those of the frames begin. Leaves the file at the first frame.

    Raises:
        JournalError: If it is not that of a journal, damaged, or of another format.
    """
    head = file.read(_HEAD.size)
    if not head:
        raise JournalError(f"{path} is empty, so it is not a journal. Delete it.")
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise JournalError(
            f"{path} is not a seed journal: a journal begins with {MAGIC!r}, this file with {head[:8]!r}. It was "
            "not changed; give it another ending than .evoj if it lies among journals."
        )
    if len(head) < _HEAD.size:
        raise JournalError(f"{path} ends within its header, after {len(head)} bytes. Restore it from a copy.")
    magic, version, length, expected = _HEAD.unpack(head)
    body = file.read(min(length, os.fstat(file.fileno()).st_size))
    crc = zlib.crc32(body, zlib.crc32(_HEAD.pack(magic, version, length, 0)))
    if len(body) != length or crc != expected or head[10:12] != b"\0\0":
        raise JournalError(
            f"The header of {path} is damaged: its checksum is {crc:08x}, and {expected:08x} was written. Restore the "
            "file from a copy; or move it away and resume from a checkpoint, with which a new journal begins."
        )
    if version != VERSION:
        needed = "a newer version" if version > VERSION else "the older version that wrote it"
        raise JournalError(
            f"{path} has format {version}; this version of lightning-evo reads format {VERSION}. It was not changed. "
            f"Read it with {needed}; or, to go on from a checkpoint, move it away."
        )
    values = json.loads(body)
    values["conditions"] = _load_conditions(values["conditions"])
    return Header(**values), crc


# --- frames ---


def generation_frame(
    record: Record, conditions: Conditions, last: Record | None, before: Conditions, crc: int
) -> bytes:
    """A generation.

    Args:
        record: What it is.
        conditions: In force from it on.
        last: The one before; ``None`` for the first.
        before: The conditions before it.
        crc: That of the head.

    Raises:
        ValueError: If it does not fit into a frame: more than about two million members.
    """
    changed = {name: getattr(record, name) for name in _CHANGING if last is None or _differs(name, record, last)}
    if conditions != before:
        old, new = asdict(before), asdict(conditions)
        changed.update({name: new[name] for name in new if new[name] != old[name]})
    fitness = [math.nan if math.isnan(value) else value for value in record.fitness]  # one NaN, of one sign
    payload = _GENERATION_HEAD.pack(record.generation, len(fitness), record.check)
    payload += struct.pack(f"<{len(fitness)}d", *fitness)
    if changed:
        payload += json.dumps(changed, separators=(",", ":")).encode()
    return _frame(_GENERATION, payload, crc)


def _differs(name: str, record: Record, last: Record) -> bool:
    return bool(getattr(record, name) != getattr(last, name))


def weights_frame(generation: int, checksum: str, crc: int) -> bytes:
    """The checksum of the weights with which a generation begins.

    Raises:
        ValueError: If it is not 32 hexadecimal digits.
    """
    try:
        digest = bytes.fromhex(checksum)
    except ValueError:
        digest = b""
    if len(digest) != 16:
        raise ValueError(f"A checksum of weights is 32 hexadecimal digits, not {checksum!r}.")
    return _frame(_WEIGHTS, _WEIGHTS_PAYLOAD.pack(generation, digest), crc)


def _frame(kind: int, payload: bytes, crc: int) -> bytes:
    if len(payload) >= _LONGEST:
        raise ValueError(
            f"A generation of a journal takes at most 16 MiB (about two million members), not {len(payload):,} bytes. "
            "Use a smaller population, or no journal (journal=False)."
        )
    rest = struct.pack("<I", kind << 24 | len(payload)) + payload
    return struct.pack("<I", zlib.crc32(rest, crc)) + rest


def read_fitness(file: BinaryIO | io.FileIO, crc: int) -> tuple[float, ...] | None:
    """The fitness in the generation's frame that begins here; ``None`` if it is damaged."""
    frame = _read_frame(file, crc)
    if frame is None:
        return None
    _, members, _ = _GENERATION_HEAD.unpack_from(frame[1])
    return struct.unpack_from(f"<{members}d", frame[1], _GENERATION_HEAD.size)


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


def _load_generation(payload: bytes, last: Record | None, before: Conditions) -> tuple[Record, Conditions] | None:
    """A generation without its fitness, and the conditions from it on; ``None`` if that is impossible."""
    if len(payload) < _GENERATION_HEAD.size:
        return None
    generation, members, check = _GENERATION_HEAD.unpack_from(payload)
    start = _GENERATION_HEAD.size + 8 * members
    if len(payload) < start:
        return None
    changed = json.loads(payload[start:] or b"{}")
    if "learning_rates" in changed:
        changed["learning_rates"] = tuple(changed["learning_rates"])
    of_record = {name: changed.pop(name) for name in _CHANGING if name in changed}
    if last is None and len(of_record) < len(_CHANGING):
        return None
    record = replace(last or Record(0, (), math.nan, ()), generation=generation, check=check, **of_record)
    return record, _load_conditions(changed, before) if changed else before


def _load_conditions(values: Mapping[str, Any], before: Conditions | None = None) -> Conditions:
    values = dict(values)
    if "parameters" in values:
        values["parameters"] = tuple(
            RecordedParameter(**{**entry, "names": tuple(entry["names"]), "shape": tuple(entry["shape"])})
            for entry in values["parameters"]
        )
    if values.get("clipping") is not None:
        values["clipping"] = tuple(values["clipping"])
    if "decays" in values:
        values["decays"] = tuple(values["decays"])
    if "evaluation" in values:
        values["evaluation"] = tuple((name, value) for name, value in values["evaluation"])
    return Conditions(**values) if before is None else replace(before, **values)


def _load_weights(payload: bytes, generation: int) -> str | None:
    """The checksum with which this generation begins; ``None`` if it is of another one."""
    if len(payload) != _WEIGHTS_PAYLOAD.size:
        return None
    of, digest = _WEIGHTS_PAYLOAD.unpack(payload)
    return digest.hex() if of == generation else None


# --- the whole file ---


def scan(file: BinaryIO, path: Path, header: Header, crc: int) -> Contents:
    """Read all frames.

    Raises:
        JournalError: If a frame other than the last is damaged, or a frame's content is impossible.
    """
    size, contents, conditions = os.fstat(file.fileno()).st_size, Contents(end=file.tell()), header.conditions
    start = contents.end
    while start < size:
        generation = header.generation + len(contents.entries)
        frame = _read_frame(file, crc)
        if frame is None:
            file.seek(start)
            if _another_frame(file.read(), crc):  # so this one was once complete
                raise damage(path, generation, start)
            break
        kind, payload = frame
        if kind == _WEIGHTS:
            checksum = _load_weights(payload, generation)
            if checksum is None:
                raise damage(path, generation, start)
            contents.weights[generation] = checksum
        elif kind == _GENERATION:
            last = contents.entries[-1].record if contents.entries else None
            try:
                found = _load_generation(payload, last, conditions)
            except TypeError as error:  # a name that Conditions don't have
                raise JournalError(
                    f"{path} says of generation {generation}, at byte {start}, what this version of lightning-evo does "
                    f"not know ({error}). Use the version that wrote it, or a newer one."
                ) from error
            if found is None or found[0].generation != generation:
                raise damage(path, generation, start)
            record, conditions = found
            contents.entries.append(Entry(start, record, conditions))
        else:
            raise JournalError(
                f"{path} holds something of kind {kind:#x} at byte {start}, which this version of lightning-evo "
                "does not know. Use the version that wrote it, or a newer one."
            )
        start = contents.end = file.tell()
    contents.torn = size - contents.end
    return contents


def _another_frame(rest: bytes, crc: int) -> bool:
    """Whether a good frame begins somewhere after the first byte."""
    for start in range(1, len(rest) - _FRAME.size + 1):
        expected, word = _FRAME.unpack_from(rest, start)
        kind, stop = word >> 24, start + _FRAME.size + (word & 0xFFFFFF)
        if (
            kind in (_GENERATION, _WEIGHTS)
            and stop <= len(rest)
            and zlib.crc32(rest[start + 4 : stop], crc) == expected
        ):
            return True
    return False


def damage(path: Path, generation: int, offset: int) -> JournalError:
    """The error that says where a journal is damaged."""
    return JournalError(
        f"{path} is damaged: the record of generation {generation}, at byte {offset}, does not have its checksum, and "
        "good ones follow it. Nothing was changed. Restore the file from a copy; or move it away and resume from a "
        "checkpoint, which evaluates the lost generations again."
    )
