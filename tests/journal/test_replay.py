"""Weights from a checkpoint and a journal are those that the run had, bit for bit."""

import math
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import nn

from lightning_evo import Evolution, algorithms
from lightning_evo.cli.main import main
from lightning_evo.generation.step import Clipping
from lightning_evo.journal import (
    Conditions,
    Header,
    Journal,
    JournalError,
    Record,
    check_of,
    describe_algorithm,
    describe_parameters,
    weights_checksum,
)
from lightning_evo.journal.replay import replay
from lightning_evo.utils.files import written_file
from lightning_evo.utils.random_state import RandomState


class Network(nn.Module):
    """A padding row, tied weights, a frozen one, a buffer, two dtypes and memory that is not contiguous."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 6, padding_idx=2)
        self.first, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.head.weight = self.first.weight
        self.short = nn.Linear(20, 30, dtype=torch.bfloat16)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.across = nn.Parameter(torch.randn(7, 33).t())
        self.register_buffer("count", torch.arange(3))

    def fitness(self, target):
        return -sum((p.double() - target.mean()).square().sum() for p in self.parameters() if p.requires_grad)


def train(
    path,
    generations,
    algorithm,
    clipping=None,
    rates=(0.05, 0.02),
    seed=3,
    keep=(),
    network=Network,
    checksums=(),
    meddle=lambda generation, module: None,
):
    """A run outside Lightning that writes its journal; gives checkpoints of its start, ``keep`` and its end.

    ``meddle`` may move weights before a generation begins, as callbacks do.
    """
    torch.manual_seed(seed)
    module = network()
    evolution = Evolution(algorithm, seed=seed, evaluation="plain")
    evolution.setup(module)

    def groups_of(space):
        return {p.index: int(p.tensor.dtype == torch.bfloat16 and p.tensor.dim() == 2) for p in space}

    parameters = describe_parameters(evolution.space, groups_of(evolution.space))
    conditions = Conditions(seed, parameters, clipping and (clipping.limit, clipping.by))
    header = Header(
        run=9,
        generation=0,
        algorithm=describe_algorithm(algorithm),
        start=weights_checksum(evolution.space),
        conditions=conditions,
    )
    snapshots = {}
    with Journal.create(path, header) as journal:
        for generation in range(generations + 1):
            with torch.no_grad():
                meddle(generation, module)
            if generation in checksums:
                journal.append_weights(weights_checksum(evolution.space))
            if generation in (0, *keep, generations):
                snapshots[generation] = {
                    "state_dict": {name: value.detach().clone() for name, value in module.state_dict().items()},
                    "lightning_evo": evolution.state_dict(RandomState(torch.device("cpu"))) | {"journal": {"run": 9}},
                    "global_step": generation,
                    "loops": {},
                    "optimizer_states": [],
                }
            if generation == generations:
                break
            evolution.sigma = 0.05 / (1 + generation % 3)
            evolution.evaluate(module.fitness, torch.full((8, 1), 0.3))
            update = evolution.conclude()
            step = update.step(clipping=clipping)
            if step.rates:  # not for an update to a center
                step = replace(step, rates=tuple(r / (1 + generation) for r in rates), groups=groups_of(update.space))
            record = Record(
                generation,
                tuple(update.fitness.tolist()),
                update.population.sigma,
                step.rates,
                1.0 if clipping is None else step.clipping.coefficient or 1.0,
                check=check_of(update),
            )
            journal.append(record)
            update.apply(step)
    return snapshots


def options(name):
    given = {
        "lozo": {"population": 4, "momentum": 0.9, "basis_reuse": 4, "rank": 2},
        "ars": {"population": 8, "top_k": 2},
        "ea4llm": {"population": 4, "samples_per_generation": 5},
        "eggroll": {"population": 4},
        "es_at_scale": {"population": 4},
    }
    return given.get(name, {} if name in ("mezo", "fzoo", "sparse_mezo") else {"population": 6})


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.filterwarnings("ignore:With 2 members the z-score")
@pytest.mark.parametrize("name", algorithms.available())
def test_every_algorithm(tmp_path, name):
    algorithm = algorithms.get(name)(**options(name))
    snapshots = train(tmp_path / "run.evoj", 9, algorithm, keep=(5, 6), checksums=(3, 6, 9))
    for first, last in ((0, 9), (0, 5), (5, 6), (6, 9), (9, 9)):
        replayed = replay(snapshots[first], tmp_path / "run.evoj", to=last)
        assert_same(replayed["state_dict"], snapshots[last if last in snapshots else 9]["state_dict"])
        assert replayed["lightning_evo"]["state"]["generation"] == replayed["global_step"] == last
        compared = [generation for generation in (3, 6, 9) if first <= generation <= last]
        assert replayed["lightning_evo"]["compared"] == max(compared)
        assert not {"loops", "optimizer_states"} & replayed.keys()
    moved = {n for n, value in snapshots[0]["state_dict"].items() if not torch.equal(value, replayed["state_dict"][n])}
    assert moved == {"embedding.weight", "first.weight", "head.weight", "short.weight", "short.bias", "across"}


@pytest.mark.parametrize("restarts", ["ipop", "bipop"])
def test_a_population_that_changes(tmp_path, restarts):
    """A journal holds the fitness of as many members as there were."""
    algorithm = algorithms.get("cma_es")(population=4, restarts=restarts, maxiter=2)
    snapshots = train(tmp_path / "run.evoj", 9, algorithm, keep=(3,))
    with Journal.open(tmp_path / "run.evoj") as journal:
        members = [len(journal.read(generation).fitness) for generation in range(9)]
        assert members[:4] == [4, 4, 8, 8]
        if restarts == "ipop":
            assert members[4:] == [16, 16, 32, 32, 64]
        for first in (0, 3):
            assert_same(replay(snapshots[first], journal)["state_dict"], snapshots[9]["state_dict"])


@pytest.mark.parametrize("clipping", [Clipping(0.1), Clipping(1e9), Clipping(0.001, "value")], ids=str)
def test_clipping(tmp_path, clipping):
    algorithm = algorithms.get("openai_es")(population=4, weight_decay=0.1)
    snapshots = train(tmp_path / "run.evoj", 4, algorithm, clipping)
    with Journal.open(tmp_path / "run.evoj") as journal:
        assert (journal.read(3).coefficient < 1) == (clipping.limit == 0.1)
        assert_same(replay(snapshots[0], journal)["state_dict"], snapshots[4]["state_dict"])


def test_a_replay_goes_on_from_a_replay_and_from_files(tmp_path):
    algorithm = algorithms.get("lozo")(**options("lozo"))
    snapshots = train(tmp_path / "run.evoj", 7, algorithm)
    seen = []
    torch.save(snapshots[0], tmp_path / "base.ckpt")
    middle = replay(
        tmp_path / "base.ckpt", tmp_path / "run.evoj", to=5, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 5) for done in range(1, 6)]
    torch.save(middle, tmp_path / "middle.ckpt")
    assert_same(replay(tmp_path / "middle.ckpt", tmp_path / "run.evoj")["state_dict"], snapshots[7]["state_dict"])


def test_bare_weights_of_the_start_are_known_by_their_checksum(tmp_path):
    algorithm = algorithms.get("openai_es")(population=4)
    snapshots = train(tmp_path / "run.evoj", 3, algorithm)
    replayed = replay(snapshots[0]["state_dict"], tmp_path / "run.evoj")
    assert_same(replayed["state_dict"], snapshots[3]["state_dict"])
    assert replayed.keys() == {"state_dict", "lightning_evo"}
    assert replayed["state_dict"]["head.weight"].data_ptr() == replayed["state_dict"]["first.weight"].data_ptr()
    assert_same(snapshots[0]["state_dict"], train(tmp_path / "again.evoj", 0, algorithm)[0]["state_dict"])  # untouched


def clamped_at_4(generation, module):
    if generation == 4:
        module.across.clamp_(-0.5, 0.5)


def test_weights_that_more_than_evolution_has_moved(tmp_path, recwarn):
    path, algorithm = tmp_path / "run.evoj", algorithms.get("openai_es")(population=4)
    snapshots = train(path, 9, algorithm, keep=(3, 5), checksums=(2, 3, 7, 8), meddle=clamped_at_4)
    with Journal.open(path) as journal:
        recorded = journal.weights[7]
    for first, since in ((0, 3), (3, 3)):
        with pytest.raises(JournalError, match=f"Between generations {since} and 7 of .* departed") as error:
            replay(snapshots[first], path)
        assert f"generation 7 began with weights of the checksum {recorded}, and the replay has" in str(error.value)
        assert f"replay no further than {since}" in str(error.value)
        assert_same(replay(snapshots[first], path, to=3)["state_dict"], snapshots[3]["state_dict"])
    later = replay(snapshots[5], path)  # from a checkpoint after it
    assert_same(later["state_dict"], snapshots[9]["state_dict"])
    assert later["lightning_evo"]["compared"] == 8
    assert replay(snapshots[0], path, to=6)["lightning_evo"]["compared"] == 3  # wrong, and not said to be right
    assert not recwarn.list
    with pytest.warns(UserWarning, match="Between generations 3 and 7 .* The replay goes on without that") as said:
        other = replay(snapshots[0], path, exact=False)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert (other["lightning_evo"]["state"]["generation"], other["lightning_evo"]["compared"]) == (9, 3)
    assert not torch.equal(other["state_dict"]["across"], snapshots[9]["state_dict"]["across"])


def test_a_checkpoint_that_is_not_what_its_generation_began_with(tmp_path):
    path, algorithm = tmp_path / "run.evoj", algorithms.get("openai_es")(population=4)
    snapshots = train(path, 5, algorithm, keep=(4,), checksums=(4,), meddle=clamped_at_4)
    assert_same(replay(snapshots[4], path)["state_dict"], snapshots[5]["state_dict"])
    snapshots[4]["state_dict"]["across"] *= 0.5
    with pytest.raises(JournalError, match="Before generation 4 of .* departed"):
        replay(snapshots[4], path, to=4)


def test_a_journal_without_checksums_of_weights_is_replayed_as_ever(tmp_path):
    algorithm = algorithms.get("openai_es")(population=4)
    snapshots = train(tmp_path / "run.evoj", 4, algorithm, keep=(2,))
    for first, compared in ((0, None), (2, None)):
        replayed = replay(snapshots[first], tmp_path / "run.evoj")
        assert_same(replayed["state_dict"], snapshots[4]["state_dict"])
        assert replayed["lightning_evo"]["compared"] is compared
    assert replay(snapshots[0]["state_dict"], tmp_path / "run.evoj")["lightning_evo"]["compared"] == 0  # the header's


@pytest.mark.parametrize(
    ("first", "to", "says"),
    [
        (0, 3, "after 3 generations. They are the run's: its checksum is the same."),
        (0, 6, "After 3 they were the run's; the next checksum to compare with is after 7 (--to-generation 7)."),
        (5, 6, "They were not compared with the run's; the next checksum to compare with is after 7 (--to-"),
        (5, 9, "After 8 they were the run's; the journal has no later checksum to compare with."),
        (0, 9, None),
    ],
)
def test_the_command_line_says_how_far_weights_were_compared(tmp_path, capsys, first, to, says):
    path, algorithm = tmp_path / "run.evoj", algorithms.get("openai_es")(population=4)
    snapshots = train(path, 9, algorithm, keep=(5,), checksums=(2, 3, 7, 8), meddle=clamped_at_4)
    torch.save(snapshots[first], tmp_path / "base.ckpt")
    base = str(tmp_path / "base.ckpt")
    command = ["replay", "--checkpoint", base, "--journal", str(path), "--to-generation", str(to)]
    output = tmp_path / "out.ckpt"
    if says is None:
        with pytest.raises(SystemExit, match="lightning-evo replay: Between generations 3 and 7 .* departed"):
            main([*command, "--output", str(output)])
        assert not output.exists()
        with pytest.warns(UserWarning, match="Between generations 3 and 7 .* departed"):
            main([*command, "--output", str(output), "--inexact"])
        says = "After 3 they were the run's; the journal has no later checksum to compare with."
    else:
        main([*command, "--output", str(output)])
    assert says in " ".join(capsys.readouterr().out.split())
    main(["journal", str(path)])
    assert "checksums │ 4 of weights, the last after 8 generations" in " ".join(capsys.readouterr().out.split())


def test_what_does_not_fit_together(tmp_path):
    path = tmp_path / "run.evoj"
    algorithm = algorithms.get("openai_es")(population=4)
    snapshots = train(path, 6, algorithm, keep=(4,))
    start, later = snapshots[0], snapshots[4]

    def without(entry, *names):
        return {**entry, "state_dict": {n: v for n, v in entry["state_dict"].items() if n not in names}}

    def changed(entry, **values):
        return {**entry, "state_dict": {**entry["state_dict"], **values}}

    def of_run(entry, **saved):
        return {**entry, "lightning_evo": {**entry["lightning_evo"], **saved}}

    bare, state = {"state_dict": later["state_dict"]}, start["lightning_evo"]["state"]
    unnamed = {**later, "lightning_evo": {n: v for n, v in later["lightning_evo"].items() if n != "journal"}}
    for checkpoint, arguments, message in (
        (later, {"to": 3}, "The checkpoint is of generation 4, and a replay only goes forward: 3 is before it"),
        (start, {"to": 7}, "ends at generation 6, before 7. Replay to 6 at most"),
        ({**start, "lightning_evo": {"generation": 0}}, {}, "written by an older version of lightning-evo"),
        (of_run(start, state={**state, "islands": 2}), {}, "has islands, which ESState does not know"),
        (of_run(start, state={**state, "generation": 8}), {}, "of generation 8, and .* has generations 0 to 6"),
        (
            of_run(later, journal={"run": 5}),
            {},
            "is of the run 0+5, and .* is of the run 0+9",
        ),
        (unnamed, {}, "does not name its journal, and .* is of the run 0+9"),
        (bare, {}, "weights have the checksum .*; .* begins with"),
        (without(start, "across"), {}, "parameter across is not in the checkpoint, which has count, embedding.weight"),
        (
            changed(start, across=torch.zeros(2)),
            {},
            r"is float32 \[33, 7\]; in the checkpoint it is float32 \[2\]",
        ),
        (changed(start, across=torch.zeros(33, 7).double()), {}, r"it is float64 \[33, 7\]"),
        (
            start,
            {"algorithm": algorithms.get("openai_es")(population=4, sigma=1.0)},
            "another algorithm: sigma",
        ),
    ):
        with pytest.raises(JournalError, match=message):
            replay(checkpoint, path, **arguments)
    replayed = replay(without(start, "head.weight"), path)["state_dict"]  # one of the names is enough
    assert_same(replayed, without(snapshots[6], "head.weight")["state_dict"])
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(JournalError, match=r"text.ckpt can't be read as plain data"):
        replay(tmp_path / "text.ckpt", path)
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(JournalError, match=r"list.ckpt is not a checkpoint: it holds a list"):
        replay(tmp_path / "list.ckpt", path)


def test_failed_members_and_generations_with_nothing_to_learn(tmp_path):
    calls = count(1)

    class Failing(Network):
        def fitness(self, target):
            call = next(calls)
            if 5 <= call <= 8:
                return torch.tensor(math.nan)
            return torch.tensor(math.inf) if call == 10 else super().fitness(target)

    algorithm = algorithms.get("openai_es")(population=4)
    with pytest.warns(UserWarning, match="NaN or infinite"):
        snapshots = train(tmp_path / "run.evoj", 4, algorithm, keep=(1, 2), network=Failing)
    assert_same(snapshots[1]["state_dict"], snapshots[2]["state_dict"])
    assert_same(replay(snapshots[0], tmp_path / "run.evoj")["state_dict"], snapshots[4]["state_dict"])


def test_2000_generations_of_two_members(tmp_path, monkeypatch):
    """Rounding and counters go far without a difference. (How large such a journal is, its own tests say.)"""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # here nothing crashes
    path = tmp_path / "run.evoj"

    class Small(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)

        def fitness(self, target):
            return -(self.weight.double() - target.mean()).square().sum() - self.bias.double().square().sum()

    algorithm = algorithms.get("mezo")(sigma=0.01)
    every = range(100, 2001, 100)
    snapshots = train(path, 2000, algorithm, rates=(1e-2,), keep=(1900,), network=Small, checksums=every)
    assert_same(replay(snapshots[1900], path)["state_dict"], snapshots[2000]["state_dict"])
    assert_same(replay(snapshots[0], path)["state_dict"], snapshots[2000]["state_dict"])


# --- files ---


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "out.ckpt"

    def write(text, overwrite=False):
        with written_file(path, overwrite=overwrite) as new:
            new.write_text("half")
            if text is None:
                raise KeyError
            new.write_text(text)

    with pytest.raises(KeyError):
        write(None)
    assert list(path.parent.iterdir()) == []
    write("one")
    with pytest.raises(FileExistsError, match="not overwritten without --overwrite"):
        write("two")
    with pytest.raises(KeyError):
        write(None, overwrite=True)
    assert path.read_text() == "one"
    write("two", overwrite=True)
    assert [file.read_text() for file in path.parent.iterdir()] == ["two"]


def test_weights_that_a_callback_averages(tmp_path):
    """Lightning's WeightAveraging saves the average as the weights, and those that evolve under another key."""
    path = tmp_path / "run.evoj"
    checkpoints = train(path, 6, algorithms.get("mezo")(), keep=(2,))
    saved = checkpoints[2]
    average = {name: torch.zeros_like(value) for name, value in saved["state_dict"].items()}
    saved = {**saved, "current_model_state": saved["state_dict"], "state_dict": average, "averaging_state": {}}
    replayed = replay(saved, path)
    expected = checkpoints[6]["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in replayed["state_dict"].items())
    assert not {"current_model_state", "averaging_state"} & replayed.keys()
