"""The instruments: what they say about known times, memory and rates."""

import json
import sys
import time

import pytest
import torch

from benchmarks import _measure


def test_rows_take_turns_and_warm_up_does_not_count():
    calls = []
    times = _measure.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_time_is_per_call(monkeypatch):
    monkeypatch.setattr(_measure, "seconds", lambda function: 2.0 * len(function()))
    assert _measure.interleaved({"row": lambda: None}, repeats=1, warmup=0, calls=3) == {"row": [2.0]}


def test_seconds_are_those_of_the_call(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert _measure.seconds(lambda: now.append(now.pop() + 2.0)) == 2.0


def test_rates_use_the_median():
    assert _measure.rates({"row": [1.0, 2.0, 100.0]}, {"row": 8}) == {"row": 4.0}


@pytest.mark.skipif(_measure._status("VmHWM") is None, reason="needs Linux's /proc")
def test_peak_sees_memory_that_was_freed_again_and_can_be_reset(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    size = 200 * 2**20
    if not _measure.reset_peak():
        pytest.skip("this system does not let the peak be reset")
    before = _measure.resident()
    torch.ones(size // 4)
    # The system may take some memory meanwhile, or give some to the process.
    assert _measure.peak() - before == pytest.approx(size, rel=0.4)
    assert _measure.reset_peak()
    assert _measure.peak() - before < size / 4


def test_default_dtype_is_given_back():
    with _measure.default_dtype(torch.bfloat16):
        assert torch.zeros(1).dtype == torch.bfloat16
    assert torch.zeros(1).dtype == torch.float32


def test_environment_names_the_versions():
    record = _measure.environment()
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["cores"] >= record["machine"]["threads"] >= 1
    assert record["machine"]["processor"]


def test_written_results_are_complete_json(tmp_path):
    path = tmp_path / "folder" / "results.json"
    _measure.write(path, "name", rows=[1, 2])
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["rows"]) == ("name", [1, 2])
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    _measure.write(None, "name", rows=[])  # no path, nothing to write


def test_a_table_without_rich(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    _measure.show("Title", ("row", "value"), [("a", "1")])
    assert capsys.readouterr().out == "Title\nrow | value\na | 1\n"
