"""The journal's file: its size, what it survives, and what it refuses."""

import errno
import json
import math
import os
import struct
import zlib
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from lightning_evo import EvolutionStrategy, Schedule, algorithms
from lightning_evo.algorithms import Directions, Term
from lightning_evo.generation.update import AlongDirections
from lightning_evo.journal import (
    Conditions,
    Header,
    Journal,
    JournalError,
    Record,
    check_of,
    describe_algorithm,
    describe_parameters,
    format,
    next_free,
    rebuild_algorithm,
    weights_checksum,
)
from lightning_evo.spaces.search_space import SearchSpace


def a_header(generation=0, **changes):
    torch.manual_seed(0)
    space = SearchSpace(nn.Linear(3, 2))
    header = Header(
        run=0xFEDCBA9876543210,
        generation=generation,
        algorithm=describe_algorithm(algorithms.get("openai_es")()),
        start=weights_checksum(space),
        conditions=Conditions(seed=(1 << 64) - 1, parameters=describe_parameters(space)),
    )
    return replace(header, **changes)


def a_record(generation, members=2, **changes):
    fitness = tuple(generation + member / 10 for member in range(members))
    record = Record(generation, fitness, sigma=0.1, learning_rates=(0.01,), check=generation & 0xFFFF)
    return replace(record, **changes)


def clipped(conditions, limit=1.0):
    return replace(conditions, clipping=(limit, "norm"))


def write(path, generations=3, header=None):
    """A journal of a few generations, the last of which has a change before it."""
    header = header or a_header()
    with Journal.create(path, header) as made:
        for generation in range(header.generation, header.generation + generations):
            last = generation == header.generation + generations - 1
            conditions = clipped(header.conditions) if last else header.conditions
            made.append(a_record(generation, sigma=0.1 + generation), conditions)
    return path.read_bytes()


@pytest.fixture
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# --- size ---


def size_of(**changed):
    return len(json.dumps(changed, separators=(",", ":"))) if changed else 0


@pytest.mark.parametrize("members", [2, 4, 64])
def test_a_generation_takes_20_bytes_and_8_for_each_member_and_what_changed(tmp_path, members):
    path, header = tmp_path / "run.evoj", a_header()
    first = {"sigma": 0.1, "learning_rates": [0.01], "coefficient": 1.0, "batches": 1}
    more = {"learning_rates": (0.1, 0.2, 0.3), "sigma": 0.2}
    with Journal.create(path, replace(header, algorithm={"name": "any"})) as made:
        head = path.stat().st_size
        assert head == 20 + len(json.dumps(asdict(made.header), separators=(",", ":")))
        for record, changed in (
            (a_record(0, members), first),
            (a_record(1, members), {}),
            (a_record(2, members, sigma=0.2), {"sigma": 0.2}),
            (a_record(3, members, **more), {"learning_rates": [0.1, 0.2, 0.3]}),
            (a_record(4, members, **more, coefficient=0.5, batches=4), {"coefficient": 0.5, "batches": 4}),
            (a_record(5, members + 2, **more, coefficient=0.5), {"batches": 1}),  # another number of members
        ):
            before = path.stat().st_size
            made.append(record)
            assert path.stat().st_size - before == 20 + 8 * len(record.fitness) + size_of(**changed)
            assert made.size == path.stat().st_size
            assert made.read(record.generation) == record
    with Journal.open(path) as opened:
        assert [len(record.fitness) - members for record in opened] == [0, 0, 0, 0, 0, 2]


def test_a_checksum_of_the_weights_takes_28_bytes(tmp_path):
    with Journal.create(tmp_path / "run.evoj", a_header()) as made:
        made.append(a_record(0))
        before = made.size
        made.append_weights("0123456789abcdef" * 2)
        assert made.size - before == (tmp_path / "run.evoj").stat().st_size - before == 28
        assert (made.end, len(made)) == (1, 1)


def test_20000_generations_of_two_members_are_less_than_a_megabyte(tmp_path, no_fsync):
    """With checksums of the weights. Where learning rate and clipping change in every one, it is 2.5 times as much."""
    path, header = tmp_path / "run.evoj", a_header()
    with Journal.create(path, header) as made:
        for generation in range(20_000):
            rates, coefficient = (1 / (generation % 10_000 + 1),), 1 / (generation % 10_000 + 2)
            if generation < 10_000:
                rates, coefficient = (0.1,), 0.5
            if generation and generation % 100 == 0:
                made.append_weights(f"{generation:032x}")
            made.append(a_record(generation, learning_rates=rates, coefficient=coefficient), clipped(header.conditions))
            if generation == 9_999:
                assert made.size < 500_000
        assert made.size < 500_000 + 1_250_000
    with Journal.open(path) as read:
        assert len(read) == 20_000
        assert read.read(19_999).learning_rates == (1 / 10_000,)


def test_every_append_is_on_the_disk_before_it_returns(tmp_path, monkeypatch):
    synced, sizes = [], []
    real = os.fsync

    def fsync(descriptor):
        synced.append(descriptor)
        sizes.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal.create(tmp_path / "run.evoj", a_header()) as made:
        assert len(synced) == 2  # the file, and its folder
        for generation in range(3):
            made.append(a_record(generation))
            assert len(synced) == 3 + generation
            assert sizes[-1] == made.size


# --- content ---


def test_what_was_written_is_read_bit_for_bit(tmp_path):
    header = a_header(generation=7)
    awkward = (math.nan, -math.inf, math.inf, 5e-324)
    tied = replace(header.conditions.parameters[0], names=("a.b", "c"), padding_row=3, group=2)
    conditions = Conditions(seed=3, parameters=(tied,), clipping=(0.5, "value"), evaluation=(("evaluation", "plain"),))
    records = [
        Record(7, awkward, 0.1, (1e-3, 2e-3), coefficient=0.25, batches=3, check=65535),
        Record(8, (-0.0, 1e308, -1e-308, 0.1), 0.1, (1e-3, 2e-3)),
        Record(9, (0.0, 0.0, 0.0, 0.0), 1e-300, (1e-4,), check=9),
    ]
    with Journal.create(tmp_path / "run.evoj", header) as made:
        made.append(records[0])
        made.append(records[1], conditions)
        made.append(records[2])
        for opened in (made, Journal.open(tmp_path / "run.evoj")):
            with opened:
                assert opened.header == header
                assert (opened.end, len(opened), opened.torn) == (10, 3, 0)
                assert 6 not in opened
                assert 10 not in opened
                assert all(read.same_as(record) for read, record in zip(opened, records, strict=True))
                assert struct.pack("<4d", *opened.read(8).fitness) == struct.pack("<4d", *records[1].fitness)
                assert opened.conditions_at(7) == header.conditions
                assert opened.conditions_at(8) == opened.conditions_at(9) == opened.conditions == conditions
                with pytest.raises(KeyError, match="holds generations 7 to 9, not 10"):
                    opened.read(10)


def test_a_generation_that_is_there_already(tmp_path):
    path, header = tmp_path / "run.evoj", a_header()
    before = write(path)
    with Journal.open(path, append=True) as opened:
        opened.append(opened.read(1), header.conditions)
        opened.append(opened.read(2), clipped(header.conditions))
        for record, conditions in (
            (replace(opened.read(1), fitness=(0.0, 0.0)), header.conditions),
            (replace(opened.read(1), sigma=0.3), header.conditions),
            (opened.read(2), header.conditions),
        ):
            with pytest.raises(ValueError, match=r"is in .* already, with another content"):
                opened.append(record, conditions)
        with pytest.raises(ValueError, match="ends with generation 2, so 3 comes next, not 4"):
            opened.append(a_record(4))
    assert path.read_bytes() == before


def test_checksums_of_weights_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "run.evoj"
    first, second, third = ("0123456789abcdef" * 2, "f" * 32, "0" * 32)
    with Journal.create(path, a_header(generation=5)) as made:
        assert made.weights == {}
        made.append(a_record(5))
        made.append_weights(first)
        size = made.size
        made.append_weights(first)  # it is there
        assert made.size == size
        made.append(a_record(6), clipped(made.conditions))
        made.append(a_record(7))
        made.append_weights(second)
        made.append_weights(third)  # the last one counts
        for opened in (made, Journal.open(path)):
            with opened:
                assert opened.weights == {6: first, 8: third}
                assert (opened.end, opened.torn, opened.size) == (8, 0, path.stat().st_size)
                assert list(opened) == [a_record(5), a_record(6), a_record(7)]
    with Journal.open(path, append=True) as opened:
        opened.append(a_record(8))
        assert opened.weights == {6: first, 8: third}
    with Journal.open(path) as opened:
        assert list(opened)[3] == a_record(8)
        with pytest.raises(TypeError):
            opened.weights[3] = first


@pytest.mark.parametrize("checksum", ["", "abc", "g" * 32, "0" * 30, "0" * 34])
def test_what_is_no_checksum_of_weights(tmp_path, checksum):
    with Journal.create(tmp_path / "run.evoj", a_header()) as made:
        made.append(a_record(0))
        size = made.size
        with pytest.raises(ValueError, match=f"32 hexadecimal digits, not '{checksum}'"):
            made.append_weights(checksum)
        assert made.size == size == (tmp_path / "run.evoj").stat().st_size


def test_a_checksum_of_weights_that_can_not_be_where_it_is(tmp_path):
    """Of another generation, or of another length."""
    path = tmp_path / "run.evoj"
    whole = write(path, 2)
    with Journal.open(path) as opened:
        crc = opened._crc
    for wrong in (format.weights_frame(1, "0" * 32, crc), format._frame(0x02, bytes(21), crc)):
        path.write_bytes(whole + wrong)
        with pytest.raises(JournalError, match=f"record of generation 2, at byte {len(whole)},"):
            Journal.open(path)


def test_a_reader_that_does_not_know_checksums_of_weights_refuses_them(tmp_path, monkeypatch):
    """So the version need not be counted up for a new kind: readers never skip what they do not know."""
    path = tmp_path / "run.evoj"
    with Journal.create(path, a_header()) as made:
        made.append(a_record(0))
        offset = made.size
        made.append_weights("0" * 32)
        made.append(a_record(1))
    content = path.read_bytes()
    assert content[offset + 4 : offset + 8] == struct.pack("<I", 0x02 << 24 | 20)
    assert content[offset + 8 : offset + 28] == struct.pack("<I", 1) + bytes(16)
    monkeypatch.setattr(format, "_WEIGHTS", 0xFF)  # as before there were any
    with pytest.raises(JournalError, match=f"something of kind 0x2 at byte {offset}, which this version .* not know"):
        Journal.open(path)
    assert path.read_bytes() == content


def test_nan_equals_nan(tmp_path):
    with Journal.create(tmp_path / "run.evoj", a_header()) as made:
        made.append(a_record(0, fitness=(math.nan, 1.0)))
        made.append(a_record(0, fitness=(-math.nan, 1.0)))
        assert len(made) == 1


# --- damage ---


def test_a_tail_that_is_torn_at_any_byte_is_cut_off_and_the_journal_goes_on(tmp_path):
    path = tmp_path / "run.evoj"
    whole = write(path)
    two = len(write(tmp_path / "two.evoj", 2)) - len(b',"clipping":[1.0,"norm"]')  # as it has no change
    assert 0 < two < len(whole)
    with Journal.open(path) as opened:
        last, conditions = opened.read(2), opened.conditions_at(2)
    for size in range(two + 1, len(whole)):
        path.write_bytes(whole[:size])
        with Journal.open(path) as opened:
            assert (len(opened), opened.torn, opened.size) == (2, size - two, two)
        assert path.stat().st_size == size  # nothing was changed by reading
        with pytest.warns(UserWarning, match=f"{size - two} bytes were cut off after generation 1"):
            opened = Journal.open(path, append=True)
        with opened:
            assert path.read_bytes() == whole[:two]
            opened.append(last, conditions)
        assert path.read_bytes() == whole
    path.write_bytes(whole[:two])
    with Journal.open(path, append=True) as opened:
        assert (len(opened), opened.torn) == (2, 0)


def test_a_checksum_of_weights_that_is_torn_at_any_byte_is_cut_off(tmp_path):
    path = tmp_path / "run.evoj"
    before = write(path)
    with Journal.open(path, append=True) as opened:
        opened.append_weights("0123456789abcdef" * 2)
    whole = path.read_bytes()
    for size in range(len(before) + 1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.warns(UserWarning, match=f"{size - len(before)} bytes were cut off after generation 2"):
            opened = Journal.open(path, append=True)
        with opened:
            assert opened.weights == {}
            assert path.read_bytes() == before
            opened.append_weights("0123456789abcdef" * 2)
        assert path.read_bytes() == whole


def test_damage_that_only_a_checksum_of_weights_follows(tmp_path):
    """It was complete once, so it is no torn tail."""
    path = tmp_path / "run.evoj"
    size = len(write(path))
    with Journal.open(path, append=True) as opened:
        opened.append_weights("0" * 32)
    for position in (size - 1, size + 27):  # the last generation, then the checksum itself
        damaged = bytearray(path.read_bytes())
        damaged[position] ^= 1
        (tmp_path / "damaged.evoj").write_bytes(damaged)
        if position < size:
            with pytest.raises(JournalError, match="the record of generation 2, at byte"):
                Journal.open(tmp_path / "damaged.evoj")
        else:
            with Journal.open(tmp_path / "damaged.evoj") as opened:
                assert (len(opened), opened.torn, opened.weights) == (3, 28, {})


@pytest.mark.parametrize("length", [1, 7, 8, 100, 5000])
def test_a_tail_of_zeros_as_some_file_systems_leave_it(tmp_path, length):
    path = tmp_path / "run.evoj"
    whole = write(path)
    path.write_bytes(whole + bytes(length))
    with Journal.open(path) as opened:
        assert (len(opened), opened.torn) == (3, length)


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    """Damage of the last record can't be told from a torn one; all other damage is an error. Nothing is read wrong."""
    path = tmp_path / "run.evoj"
    whole = write(path)
    with Journal.open(path) as opened:
        records = list(opened)
        starts = [entry.offset for entry in opened._entries]
    found = {"error": 0, "torn": 0}
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            if position >= starts[2]:
                with Journal.open(path) as opened:
                    assert list(opened) == records[:2]
                    assert opened.torn == len(whole) - starts[2]
                found["torn"] += 1
            else:
                generation, in_header = int(position >= starts[1]), position < starts[0]
                message = None if in_header else f"the record of generation {generation}, at byte {starts[generation]},"
                with pytest.raises(JournalError, match=message):
                    Journal.open(path)
                found["error"] += 1
            assert path.read_bytes() == damaged
    assert found == {"error": 8 * starts[2], "torn": 8 * (len(whole) - starts[2])}


def test_damage_after_opening_is_found_when_a_generation_is_read(tmp_path):
    path = tmp_path / "run.evoj"
    whole = bytearray(write(path))
    with Journal.open(path) as opened:
        whole[opened._entries[1].offset + 20] ^= 1
        path.write_bytes(whole)
        assert opened.read(0).generation == 0
        with pytest.raises(JournalError, match="the record of generation 1, at byte"):
            opened.read(1)


def test_a_record_of_another_journal_is_not_taken_for_one_of_this(tmp_path):
    one = write(tmp_path / "one.evoj", 1)
    other = write(tmp_path / "other.evoj", 2, header=a_header(run=5))
    with Journal.open(tmp_path / "other.evoj") as opened:
        second = other[opened._entries[1].offset :]
    (tmp_path / "one.evoj").write_bytes(one + second)
    with Journal.open(tmp_path / "one.evoj") as opened:
        assert (len(opened), opened.torn) == (1, len(second))


class FullDisk:
    """Writes some more bytes and then none."""

    def __init__(self, monkeypatch, room, code=errno.ENOSPC, fsync=False):
        self.room, self.code = room, code
        self.real = os.write
        monkeypatch.setattr(os, "write", self.write)
        if fsync:
            self.synced = 0
            self.real_fsync = os.fsync
            monkeypatch.setattr(os, "fsync", self.fsync)

    def write(self, descriptor, data):
        if not self.room:
            raise OSError(self.code, os.strerror(self.code))
        written = self.real(descriptor, data[: self.room])
        self.room -= written
        return written

    def fsync(self, descriptor):  # as a network's file system does, which finds out late
        self.synced += 1
        if self.synced == 1:
            raise OSError(self.code, os.strerror(self.code))
        self.real_fsync(descriptor)


@pytest.mark.parametrize("room", [0, 1, 8, 31, 47])
def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch, room):
    path = tmp_path / "run.evoj"
    before = write(path)
    with Journal.open(path, append=True) as opened:
        with monkeypatch.context() as patched:
            FullDisk(patched, room)
            with pytest.raises(OSError, match="Generation 3 could not be written.*no space left.*intact") as raised:
                opened.append(a_record(3, learning_rates=(3.0, 4.0)))
        assert raised.value.errno == errno.ENOSPC
        assert path.read_bytes() == before
        assert opened.end == 3
        opened.append(a_record(3))  # room was made
    with Journal.open(path) as opened:
        assert len(opened) == 4
        assert opened.read(3) == a_record(3)


def test_a_full_disk_and_a_checksum_of_weights(tmp_path, monkeypatch):
    path = tmp_path / "run.evoj"
    before = write(path)
    with Journal.open(path, append=True) as opened:
        with monkeypatch.context() as patched:
            FullDisk(patched, 27)
            with pytest.raises(OSError, match="checksum of the weights before generation 3 could not be written"):
                opened.append_weights("0" * 32)
        assert path.read_bytes() == before
        assert opened.weights == {}
        opened.append(a_record(3))
    with Journal.open(path) as opened:
        assert len(opened) == 4


def test_a_disk_that_says_late_that_it_is_full(tmp_path, monkeypatch):
    path = tmp_path / "run.evoj"
    before = write(path)
    with Journal.open(path, append=True) as opened:
        FullDisk(monkeypatch, 1000, errno.EIO, fsync=True)
        with pytest.raises(OSError, match="could not be written") as raised:
            opened.append(a_record(3))
    assert raised.value.errno == errno.EIO
    assert path.read_bytes() == before


def test_a_full_disk_leaves_no_beginning_of_a_journal(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 30)
    with pytest.raises(OSError, match="No space is left for a journal"):
        Journal.create(tmp_path / "run.evoj", a_header())
    assert list(tmp_path.iterdir()) == []


# --- refusals ---


def test_create_never_overwrites(tmp_path):
    path = tmp_path / "run.evoj"
    before = write(path)
    with pytest.raises(FileExistsError, match="not overwritten"):
        Journal.create(path, a_header(run=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert next_free(tmp_path, "run") == tmp_path / "run-v1.evoj"
    (tmp_path / "run-v1.evoj").touch()
    assert next_free(tmp_path, "run") == tmp_path / "run-v2.evoj"


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def link(source, destination):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    write(tmp_path / "run.evoj")
    with pytest.raises(FileExistsError):
        Journal.create(tmp_path / "run.evoj", a_header(run=1))
    with Journal.open(tmp_path / "run.evoj") as opened:
        assert len(opened) == 3


def a_head(version, body=b"{}"):
    head = struct.pack("<8sHxxII", format.MAGIC, version, len(body), 0)
    return head[:16] + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, so it is not a journal"),
        (b"PK\x03\x04 and so on", r"is not a seed journal: .* this file with b'PK"),
        (b"\x89PNG\r\n\x1a\n", "is not a seed journal"),
        (format.MAGIC, "ends within its header, after 8 bytes"),
        (a_head(1), "has format 1; this version of lightning-evo reads format 2. .* Read it with the older version"),
        (a_head(3), "has format 3; this version of lightning-evo reads format 2. .* Read it with a newer version"),
        (a_head(2)[:-1], "header of .* is damaged"),
        (a_head(3)[:-1], "header of .* is damaged"),
    ],
)
@pytest.mark.parametrize("append", [False, True])
def test_files_that_are_no_journal(tmp_path, content, message, append):
    path = tmp_path / "run.evoj"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=message):
        Journal.open(path, append=append)
    with pytest.raises(JournalError, match=message):
        Journal.peek(path)
    assert path.read_bytes() == content


def test_a_record_of_a_kind_that_is_not_known(tmp_path):
    path = tmp_path / "run.evoj"
    whole = write(path)
    with Journal.open(path, append=True) as opened:
        frame = format._frame(0x42, b"new", opened._crc)
    path.write_bytes(whole + frame)
    with pytest.raises(JournalError, match=f"something of kind 0x42 at byte {len(whole)}"):
        Journal.open(path)


def test_a_change_of_something_that_is_not_known(tmp_path):
    path = tmp_path / "run.evoj"
    whole = write(path)
    with Journal.open(path) as opened:
        payload = format._GENERATION_HEAD.pack(3, 1, 0) + struct.pack("<d", 0.5) + b'{"island":4}'
        frame = format._frame(0x01, payload, opened._crc)
    path.write_bytes(whole + frame)
    with pytest.raises(JournalError, match=f"of generation 3, at byte {len(whole)}, what this version .* 'island'"):
        Journal.open(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal.open(tmp_path / "run.evoj")


def test_more_members_than_fit(tmp_path):
    with Journal.create(tmp_path / "run.evoj", a_header()) as made:
        with pytest.raises(ValueError, match="at most 16 MiB .about two million members."):
            made.append(a_record(0, fitness=(0.5,) * (1 << 21)))
        assert (len(made), made.size) == (0, (tmp_path / "run.evoj").stat().st_size)


@pytest.mark.skipif(os.name == "nt", reason="needs file locks of POSIX")
def test_another_process_can_read_but_not_append(tmp_path):
    path = tmp_path / "run.evoj"
    write(path)

    def in_child(append):
        child = os.fork()
        if child == 0:
            try:
                with Journal.open(path, append=append) as opened:
                    os._exit(len(opened))
            except JournalError as error:
                os._exit(77 if "Another process is appending" in str(error) else 78)
            finally:
                os._exit(79)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with Journal.open(path, append=True):
        assert in_child(append=False) == 3
        assert in_child(append=True) == 77
    assert in_child(append=True) == 3


# --- what a header says ---


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", algorithms.available())
def test_every_algorithm_is_rebuilt(name):
    factory = algorithms.get(name)
    sigma = 0.3 if factory.algorithm.owns_center else Schedule("cosine", 0.1, 0.01, 7)
    algorithm = factory(sigma=sigma)
    described = json.loads(json.dumps(describe_algorithm(algorithm)))
    assert rebuild_algorithm(described) == algorithm


def test_an_algorithm_that_is_not_plain_data():
    def mine(fitness, per_direction):
        return fitness

    class Own(EvolutionStrategy):
        pass

    described = describe_algorithm(algorithms.get("openai_es")(shaping=mine))
    assert described["shaping"]["not_plain"].startswith(f"{__name__}.{mine.__qualname__}#")
    with pytest.raises(JournalError, match=r"can't be rebuilt .* shaping=.*mine is code, not data. Pass the algorithm"):
        rebuild_algorithm(described)
    with pytest.raises(JournalError, match="class=.*Own is code"):
        rebuild_algorithm(describe_algorithm(Own(population=2, sigma=1.0, learning_rate=1.0)))
    known = describe_algorithm(algorithms.get("openai_es")())
    with pytest.raises(JournalError, match="does not know: warp"):
        rebuild_algorithm({**known, "warp": 9})


class Foreign(algorithms.Algorithm):
    """No dataclass."""

    name = "foreign"

    def current_sigma(self, state):
        raise NotImplementedError

    ask = learn = current_sigma


def test_an_algorithm_without_options_is_described_by_its_name():
    described = describe_algorithm(Foreign())
    assert described == {"class": {"not_plain": f"{__name__}.Foreign"}, "name": "foreign"}
    with pytest.raises(JournalError, match="class=.*Foreign is code, not data. Pass the algorithm"):
        rebuild_algorithm(described)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3, padding_idx=1)
        self.first, self.second = nn.Linear(3, 5), nn.Linear(3, 5, dtype=torch.bfloat16)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.first.weight


def test_parameters_are_described_with_all_of_their_names():
    module = Tied()
    module.first.bias.requires_grad_(False)
    described = describe_parameters(SearchSpace(module), {4: 1})
    assert [(p.names, p.index, p.shape, p.dtype, p.padding_row, p.group) for p in described] == [
        (("embedding.weight",), 0, (5, 3), "float32", 1, 0),
        (("first.weight", "head.weight"), 1, (5, 3), "float32", None, 0),
        (("second.weight",), 3, (5, 3), "bfloat16", None, 0),
        (("second.bias",), 4, (5,), "bfloat16", None, 1),
    ]


def test_the_checksum_is_of_every_bit_that_evolves():
    torch.manual_seed(0)
    module = Tied()
    before = weights_checksum(SearchSpace(module))
    assert before == weights_checksum(SearchSpace(module))
    assert len(before) == 32
    for parameter in module.parameters():
        with torch.no_grad():
            bits = parameter.view(torch.int32 if parameter.dtype == torch.float32 else torch.int16)
            bits[-1] ^= 1
            assert weights_checksum(SearchSpace(module)) != before
            bits[-1] ^= 1
    assert weights_checksum(SearchSpace(module)) == before
    module.head.weight = nn.Parameter(module.head.weight.detach().t().contiguous().t())  # other strides, same values
    module.first.weight = module.head.weight
    assert weights_checksum(SearchSpace(module)) == before


def check(*weights, dtype=torch.float32):
    space = SearchSpace(nn.Linear(1, 1, dtype=dtype))
    algorithm = algorithms.get("openai_es")(population=2 * len(weights))
    population = algorithm.ask(algorithm.init())
    lesson = Directions((Term(population.perturbation, weights),))
    return check_of(AlongDirections(population, space, torch.zeros(len(population)), lesson))


def test_the_check_of_an_update():
    assert check(0.1, -0.2, 0.0) == check(*(float(torch.tensor(w)) for w in (0.1, -0.2, 0.0)))  # as float32 acts
    assert check(0.1, -0.2, 0.0, dtype=torch.float64) != check(0.1, -0.2, 0.0)
    assert check(0.1, -0.2, 0.0) != check(0.1, -0.2, 1e-30)
    assert 0 <= check(1e300) < 1 << 16
