"""Counting and choosing samples, whatever a batch looks like."""

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from lightning_evo.evaluation.batches import Repeat, SharedBatch, choose, count, random_samples, samples_of
from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.places import place_of

Pair = namedtuple("Pair", ["x", "y"])
ROWS = torch.tensor([0, 2, 5])


class BatchEncoding(UserDict):
    """As transformers' own: a mapping with further attributes, made from a dictionary."""

    def __init__(self, data=None, encodings="none"):
        super().__init__(data)
        self.encodings = encodings


def x():
    return torch.arange(12).view(6, 2)


def y():
    return torch.arange(6) * 10


@pytest.mark.parametrize(
    "batch",
    [
        x(),
        (x(), y()),
        [x(), y()],
        {"x": x(), "y": y()},
        OrderedDict(x=x()),
        Pair(x(), y()),
        {"deep": [({"deeper": x()}, Pair(y(), [y()]))], "name": "no tensor", "n": 3, "none": None},
        (x(), torch.tensor(0.5)),  # a scalar belongs to no sample
    ],
)
def test_count(batch):
    assert count(batch) == 6


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ("text", "no tensor with a dimension"),
        ({}, "no tensor with a dimension"),
        (torch.tensor(1.0), "no tensor with a dimension"),
        ([torch.zeros(3), torch.zeros(2, 4), torch.zeros(3)], r"sizes \[2, 3\] in dimension 0"),
    ],
)
def test_batches_that_cannot_be_counted(batch, found):
    for function in (count, lambda batch: choose(batch, ROWS)):
        with pytest.raises(ValueError, match=f"{found}.*samples_per_generation needs batches"):
            function(batch)


def test_choose_keeps_the_structure_and_its_types():
    batch = {
        "pair": Pair(x(), (y(), [y()])),
        "scalar": torch.tensor(0.5),
        "flag": True,
        "text": "six ch",  # of the batch's length, but no list
        "none": None,
    }
    chosen = choose(batch, ROWS)
    assert type(chosen) is dict
    assert list(chosen) == list(batch)
    assert type(chosen["pair"]) is Pair
    assert chosen["pair"].x.tolist() == [[0, 1], [4, 5], [10, 11]]
    inner = chosen["pair"].y
    assert type(inner) is tuple
    assert type(inner[1]) is list
    assert inner[0].tolist() == inner[1][0].tolist() == [0, 20, 50]
    assert chosen["scalar"] == 0.5
    assert (chosen["flag"], chosen["text"], chosen["none"]) == (True, "six ch", None)
    assert torch.equal(batch["pair"].x, x())  # the batch itself stays whole


def test_mappings_of_all_kinds():
    encoding = choose(BatchEncoding({"input_ids": x()}, encodings="kept"), ROWS)
    assert type(encoding) is BatchEncoding
    assert torch.equal(encoding["input_ids"], x()[ROWS])
    assert encoding.encodings == "kept"
    by_default = choose(defaultdict(list, a=x()), ROWS)
    assert type(by_default) is defaultdict
    assert by_default["missing"] == []
    assert torch.equal(by_default["a"], x()[ROWS])
    assert torch.equal(choose(MappingProxyType({"a": x()}), ROWS)["a"], x()[ROWS])


class Output(OrderedDict):
    """As the outputs of transformers: entries can be set, but not by ``update``."""

    def update(self, *args, **kwargs):
        raise TypeError("You cannot use ``update``")


class Frozen(OrderedDict):
    """Written once."""

    def __init__(self, entries):
        for key, value in entries.items():
            OrderedDict.__setitem__(self, key, value)

    def __setitem__(self, key, value):
        raise TypeError("read only")


@pytest.mark.parametrize("kind", [Output, Frozen])
def test_mappings_that_refuse_to_be_updated(kind):
    shared = SharedBatch(kind({"x": x(), "names": ["a"]}))
    for _ in range(2):
        batch = shared.for_member()
        assert type(batch) is kind
        assert torch.equal(batch["x"], x())
        assert batch["names"] == ["a"]
        batch["x"].zero_()
        batch["names"].append("b")


@dataclass
class Record:
    x: torch.Tensor
    names: list


@dataclass(frozen=True, slots=True)
class FrozenRecord:
    x: torch.Tensor
    names: list


class Graph:
    """As those of torch_geometric: what it holds lies in another object, in a dictionary."""

    def __init__(self, x, names):
        self.__dict__["store"] = SimpleNamespace(entries={"x": x, "names": names})

    def __getattr__(self, name):
        return self.store.entries[name]

    def __setattr__(self, name, value):
        self.store.entries[name] = value


@pytest.mark.parametrize("kind", [Record, FrozenRecord, Graph, lambda x, names: SimpleNamespace(x=x, names=names)])
@pytest.mark.parametrize("wrap", [lambda batch: batch, lambda batch: [batch], lambda batch: {"a": (batch,)}])
def test_members_find_objects_as_they_were(kind, wrap):
    batch = kind(x(), ["a"])
    shared = SharedBatch(wrap(batch))
    for _ in range(2):
        shared.for_member()
        assert torch.equal(batch.x, x())
        assert batch.names == ["a"]
        batch.x.zero_()
        batch.names.append("b")
        if kind is not FrozenRecord:
            batch.x = y()
            batch.further = 1
    shared.take_back()
    assert batch.x.shape == x().shape  # what it holds; what that holds may be what a member returned
    shared.restore()
    assert torch.equal(batch.x, x())
    assert "further" not in vars(getattr(batch, "store", batch) if kind is not FrozenRecord else Record)


def test_members_find_arrays_as_they_were():
    shared = SharedBatch({"x": np.arange(3)})
    for _ in range(2):
        array = shared.for_member()["x"]
        assert array.tolist() == [0, 1, 2]
        array += 1


def test_entries_of_lists_with_one_per_sample():
    names = list("abcdef")
    assert choose({"x": x(), "names": names}, ROWS)["names"] == ["a", "c", "f"]
    assert choose([x(), names], ROWS)[1] == ["a", "c", "f"]
    assert choose([x(), names[:5]], ROWS)[1] == names[:5]  # not one per sample
    # Six tensors are six parts of the batch, not one entry per sample.
    parts = choose([y() for _ in range(6)], ROWS)
    assert len(parts) == 6
    assert all(part.tolist() == [0, 20, 50] for part in parts)


def test_strings_as_the_default_collate_function_leaves_them():
    batch = default_collate([(torch.tensor(i), "abcdef"[i]) for i in range(6)])
    values, names = choose(batch, ROWS)
    assert values.tolist() == [0, 2, 5]
    assert list(names) == ["a", "c", "f"]


QUESTIONS = [{"prompt": letter, "answer": number} for number, letter in enumerate("abcdef")]


@pytest.mark.parametrize(
    "batch",
    [
        QUESTIONS,
        tuple(QUESTIONS),
        [{**row, "numbers": torch.ones(2)} for row in QUESTIONS],  # two numbers of each, not two samples
        [{"prompt": [{"role": "user", "content": row["prompt"]}], "numbers": torch.ones(2)} for row in QUESTIONS],
        [{"n": number} for number in range(6)],
    ],
    ids=["list", "tuple", "with tensors", "messages", "numbers"],
)
def test_dictionaries_in_a_list_are_samples(batch):
    assert count(batch) == 6
    found = choose(batch, ROWS)
    assert type(found) is type(batch)
    assert [id(row) for row in found] == [id(batch[i]) for i in (0, 2, 5)]


def test_a_dictionary_of_lists_without_tensors():
    batch = {"prompt": list("abcdef"), "level": [[i] for i in range(6)], "name": "all"}
    assert count(batch) == 6
    assert choose(batch, ROWS) == {"prompt": ["a", "c", "f"], "level": [[0], [2], [5]], "name": "all"}


def test_dictionaries_in_a_list_may_be_batches():
    batch = [{"x": x()}, {"y": y()}]  # of two dataloaders
    assert count(batch) == 6
    assert [len(value) for part in choose(batch, ROWS) for value in part.values()] == [3, 3]


def test_random_samples_are_the_largest_in_ascending_order():
    uniform = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.7])
    assert random_samples(5, 2, uniform).tolist() == [1, 3]
    assert random_samples(5, 3, uniform).tolist() == [1, 3, 4]
    assert random_samples(5, 5, uniform).tolist() == [0, 1, 2, 3, 4]


# --- rows of members ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentences:
    tokens: torch.Tensor
    text: list
    language: str = "en"


CHAT = [[{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}], [{"role": "user", "content": "c"}]]


@pytest.mark.parametrize(
    ("batch", "samples", "repeated"),
    [
        ({"text": ["a", "b", "c"]}, 3, {"text": ["a", "b", "c"] * 2}),
        ({"text": ("a", "b"), "n": [1, 2], "name": "no"}, 2, {"text": ("a", "b") * 2, "n": [1, 2] * 2, "name": "no"}),
        ([("a", "b", "c"), ("x", "y", "z")], 3, [("a", "b", "c") * 2, ("x", "y", "z") * 2]),
        ([("a", "b"), ("x", "y")], 2, [("a", "b") * 2, ("x", "y") * 2]),
        ([{"text": "a"}, {"text": "b"}], 2, [{"text": "a"}, {"text": "b"}] * 2),
        ({"messages": CHAT}, 2, {"messages": CHAT * 2}),
        ({"tokens": [[1, 2, 3], [4, 5, 6]]}, 2, {"tokens": [[1, 2, 3], [4, 5, 6]] * 2}),
        ([["a", "b"], ["c"], ["d", "e"]], 3, [["a", "b"], ["c"], ["d", "e"]] * 2),
        (Pair(["a", "b"], 3), 2, Pair(["a", "b"] * 2, 3)),
        ("text", 0, "text"),
        (None, 0, None),
        ([], 0, []),
    ],
    ids=str,
)
def test_batches_without_tensors_as_rows(batch, samples, repeated):
    assert samples_of(batch) == samples
    assert Repeat()(batch, 2) == repeated


def test_tensors_as_rows():
    tokens, labels, weights, causal = torch.ones(3, 5), torch.arange(3), torch.rand(7), torch.ones(5, 5)
    for batch in (
        {"causal": causal, "tokens": tokens, "labels": labels, "weights": weights, "n": torch.tensor(3.0)},
        [causal, tokens, labels, weights, torch.tensor(3.0)],
    ):
        assert samples_of(batch) == 3
        rows = Repeat()(batch, 4)
        found = list(rows.values()) if isinstance(rows, dict) else rows
        own = list(batch.values()) if isinstance(batch, dict) else batch
        assert [part is given for part, given in zip(found, own, strict=True)] == [True, False, False, True, True]
        assert found[2].tolist() == [0, 1, 2] * 4
        assert [place_of(part) for part in found] == [None, -2, -1, None, None]


@pytest.mark.parametrize("also", [{}, {"y": torch.arange(3)}])
def test_tensors_of_different_lengths_are_samples(also):
    tokens = [torch.arange(5), torch.arange(3), torch.arange(2)]
    batch = {"tokens": tokens, **also}
    assert samples_of(batch) == 3
    assert [len(each) for each in Repeat()(batch, 2)["tokens"]] == [5, 3, 2] * 2


def test_arrays_and_objects_as_rows():
    rows = Repeat()({"x": np.arange(3), "table": np.ones((4, 4)), "text": list("abc")}, 2)
    assert rows["x"].tolist() == [0, 1, 2] * 2
    assert rows["table"].shape == (4, 4)
    batch = Sentences(torch.arange(2), ["a", "b"])
    rows = Repeat()(batch, 2)
    assert (samples_of(batch), type(rows), rows.text, rows.language) == (2, Sentences, ["a", "b"] * 2, "en")
    assert (rows.tokens.tolist(), batch.tokens.tolist()) == ([0, 1] * 2, [0, 1])
    encoding = Repeat()(BatchEncoding({"tokens": torch.ones(2, 4)}, encodings="kept"), 2)
    assert (encoding["tokens"].shape, encoding.encodings) == ((4, 4), "kept")


def test_each_row_has_dictionaries_of_its_own():
    shared = SharedBatch([{"text": "a"}, {"text": "b"}])
    rows = Repeat()(shared.for_member(), 2)
    assert [row.pop("text") for row in rows] == ["a", "b"] * 2
    assert Repeat()(shared.for_member(), 2) == [{"text": "a"}, {"text": "b"}] * 2


def test_what_is_repeated_is_seen_in_the_first_batch():
    """Class weights, or names, may be as long as the last batch."""
    repeat = Repeat()
    first, last = ({"x": torch.ones(n, 2), "weights": torch.ones(4), "names": ["a"] * 4} for n in (6, 4))
    assert [len(each) for each in repeat(first, 3).values()] == [18, 4, 4]
    assert repeat.samples(last) == 4
    assert [len(each) for each in repeat(last, 3).values()] == [12, 4, 4]
    both = {"x": torch.ones(3), "y": torch.ones(3), "z": torch.ones(5)}
    repeat = Repeat()
    repeat(both, 2)
    with pytest.raises(Refusal, match="differ in length now"):
        repeat({**both, "y": torch.ones(2)}, 2)
