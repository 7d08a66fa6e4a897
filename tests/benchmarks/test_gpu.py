"""The benchmark for GPUs runs end to end in miniature, loses nothing to a section that fails, and its limits add up."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import _roofline as roofline
from benchmarks import gpu
from benchmarks._gpu import Machine, OutOfTime, build
from benchmarks._measure import Unavailable
from lightning_evo.kernels import normal
from lightning_evo.kernels.philox import philox4x32
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.perturbations import Dense, Moving

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.fixture(autouse=True)
def _reference(monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "torch")


def run(tmp_path, *arguments):
    path = tmp_path / "gpu.json"
    status = gpu.main([*arguments, "--output", str(path)])
    return status, json.loads(path.read_text())


@pytest.mark.slow
def test_every_section_in_miniature(tmp_path):
    pytest.importorskip("transformers")
    status, record = run(tmp_path, "--tiny")
    assert (status, record["skipped"], record["failures"]) == (0, {}, {})
    assert record["about"]["kernels"] == "Backend"
    assert record["versions"]["torch"]
    assert list(record["results"]) == list(gpu.SECTIONS)
    for name, section in record["results"].items():
        for row in section["rows"]:
            assert row["value"] is not None, (name, row)
            assert row["limit"] is not None, (name, row)
            assert row["seconds"], (name, row)
        assert section["kernels"] == "Backend"
    assert [row["value"] for row in record["results"]["bits"]["rows"]] == [0, 0, 0, 0]
    ways = {row["row"].split(", ", 1)[1]: row["how"] for row in record["results"]["members 8B"]["rows"] if "how" in row}
    assert {name: how.split(",")[0].split(": ")[1] for name, how in ways.items()} == {
        "dense, a pair": "in_forward",
        "dense, 4 members": "in_forward",
        "rank 1, a pair": "batched",
        "rank 1, 4 members": "batched",
    }
    assert record["results"]["rows 0.5B"]["how"].startswith("evaluation: rows")


def test_what_there_is_no_time_for_is_skipped(tmp_path):
    status, record = run(tmp_path, "--minutes", "0", "--only", "memory 32B")
    assert (status, record["results"]) == (0, {})
    assert "0 s are left" in record["skipped"]["memory 32B"]


def test_a_section_that_breaks_does_not_cost_the_others(tmp_path, monkeypatch):
    def broken(machine):
        raise KeyError("boom")

    monkeypatch.setitem(gpu.SECTIONS, "bits", (1, broken))
    status, record = run(tmp_path, "--tiny", "--only", "bits", "noise")
    assert status == 1
    assert record["skipped"] == {"bits": "failed: KeyError: 'boom'"}
    assert "in broken" in record["failures"]["bits"]
    rows = {row["row"]: row for row in record["results"]["noise"]["rows"]}
    assert len(rows) == 7
    pair = rows["a pair"]
    assert pair["limit"] == pytest.approx(2 / roofline.GPUS[0].seconds(2 * roofline.member()))


def test_a_section_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    def endless(machine):
        while True:
            try:
                time.sleep(60)
            except Exception as error:  # as members' exceptions are caught
                raise AssertionError from error

    monkeypatch.setitem(gpu.SECTIONS, "bits", (0.1, endless))
    monkeypatch.setitem(gpu.SECTIONS, "noise", (0.1, lambda machine: {"rows": []}))
    status, record = run(tmp_path, "--only", "bits", "noise")
    assert status == 0
    assert record["skipped"]["bits"].startswith("stopped after ")
    assert "noise" in record["results"]


def test_sections_fit_into_six_minutes():
    assert sum(needed for needed, _ in gpu.SECTIONS.values()) <= 6 * 60
    machine = Machine(time.monotonic() + 5, tiny=False)
    with pytest.raises(Unavailable, match="needs about 9 s"), machine.within(9):
        pass
    assert not issubclass(OutOfTime, Exception)


def test_a_row_that_breaks_does_not_cost_the_others(capsys):
    def broken():
        raise RuntimeError("out of something")

    machine = Machine(time.monotonic() + 60, tiny=True)
    times = machine.timed({"bad": broken, "good": lambda: None})
    assert list(times) == ["good"]
    assert len(times["good"]) == 1
    assert "bad: RuntimeError: out of something" in capsys.readouterr().out


# --- limits ---


class Operations(TorchDispatchMode):
    """Counts operations by their names."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_philox_is_counted_as_it_is_written():
    zero = torch.zeros(1, dtype=torch.int64)
    with Operations() as operations:
        philox4x32([zero] * 4, (zero, zero))
    # Low and high words of a product count apart, xors of three words once.
    count = operations.count
    assert roofline.BLOCK == 2 * count["mul"] + count["bitwise_xor"] / 2 + count["add"] == 80


def test_the_polynomial_is_counted_as_it_is_written():
    coefficients = torch.zeros(4, 32)
    with Operations() as operations:
        normal._magnitudes(coefficients)
    assert roofline.MAP["gaussian"][1] == operations.count["mul"] + operations.count["add"] == 6


def test_a_block_makes_as_many_values():
    assert roofline.VALUES["gaussian"] == 4 * 2
    assert roofline.VALUES["rademacher"] == 4 * 32


@pytest.mark.parametrize(("size", "billions"), [("0.5B", 0.53), ("1.7B", 1.72), ("8B", 8.19), ("32B", 32.76)])
def test_shapes_have_the_size_that_they_are_named_after(size, billions):
    pytest.importorskip("transformers")
    shape = roofline.SHAPES[size]
    model = build(shape, "meta")
    assert shape.weights == sum(parameter.numel() for parameter in model.parameters())
    assert shape.weights / 1e9 == pytest.approx(billions, abs=0.01)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert sorted(shape.matrices) == sorted((each.in_features, each.out_features) for each in linear.values())


def test_limits_follow_from_the_data_sheet():
    h100, h200 = roofline.GPUS
    shape = roofline.SHAPES["8B"]
    assert 4096 * h100.multiprocessors * h100.clock == pytest.approx(h100.products, rel=1e-3)
    assert h100.seconds(roofline.forward(shape, 2048)) == pytest.approx(2 * 7.568e9 * 2048 / 989e12, rel=1e-3)
    assert h100.seconds(roofline.forward(shape, 1)) == pytest.approx(2 * 7.568e9 / 3.35e12, rel=1e-3)  # reads weights
    assert h100.seconds(roofline.Work(integer=64, floating=64)) == pytest.approx(1 / (132 * 1.83e9))
    assert h100.seconds(roofline.Work(integer=32, floating=96)) == pytest.approx(1 / (132 * 1.83e9))
    assert h200.seconds(roofline.Work(moved=4.8e12)) == 1
    # The formulas of docs/benchmarks.md.
    for tokens in (512, 2048):
        share = roofline.share_of_forward(h100, shape, tokens, roofline.dense(shape))
        assert share == pytest.approx(tokens / (tokens + 511), abs=2e-3)
    width = 4096
    square = roofline.Work(products=2 * width**2), roofline.Work(moved=4 * width)
    plain, extra = map(h100.seconds, square)
    assert plain / (plain + extra) == pytest.approx(width / (width + 2 * 989 / 3.35), abs=1e-3)


def test_gpus_are_known_by_name():
    assert roofline.gpu_named("NVIDIA H100 80GB HBM3") is roofline.GPUS[0]
    assert roofline.gpu_named("NVIDIA H200") is roofline.GPUS[1]
    assert roofline.gpu_named("NVIDIA GeForce RTX 4090") is None


def test_the_table_in_the_docs_is_that_of_the_formulas():
    lines = DOCS.read_text().splitlines()
    for row in roofline.table()[1:]:
        assert "| " + " | ".join(row) + " |" in lines, row
    assert "| | H100 | H200 |" in lines


def test_the_moves_that_are_timed_move():
    """The update that the noise section times: a known length, of 8 directions of weight 1."""
    center = torch.zeros(1, 1 << 14)
    norm = Dense(NoiseKey(0, 0)).move([1.0] * 8, [Moving(0, center, 0.5)], NoiseKey(0, 0))
    assert float(norm) == pytest.approx((8 * center.numel()) ** 0.5, rel=0.05)
    assert float(center.norm()) == pytest.approx(0.5 * float(norm), rel=1e-5)
