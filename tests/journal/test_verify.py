"""Whether a run's weights are what its journal gives, in one sentence that is right."""

import re

import pytest
import torch

from lightning_evo import algorithms
from lightning_evo.journal import Journal, JournalError
from lightning_evo.journal.verify import verify
from tests.journal.test_replay import clamped_at_4, train


def run_with(folder, keep=(), checksums=(), meddle=lambda generation, module: None, generations=9, leave_out=()):
    """A journal, and files of the checkpoints at its start, ``keep`` and its end."""
    path = folder / "run.evoj"
    algorithm = algorithms.get("openai_es")(population=4)
    snapshots = train(path, generations, algorithm, keep=keep, checksums=checksums, meddle=meddle)
    files = []
    for generation, snapshot in snapshots.items():
        if generation not in leave_out:
            files.append(folder / f"at_{generation}.ckpt")
            torch.save(snapshot, files[-1])
    return path, files


def sentence(path, files):
    with Journal.open(path) as journal:
        found = verify(journal, files)
    assert found.holds == found.sentence.startswith("Verified: ")
    assert found.sentence.count(". ") == 0
    assert found.sentence.endswith(".")
    return found


SAME = "the run's weights are what its journal gives, bit for bit"


@pytest.mark.parametrize(
    ("keep", "checksums", "leave_out", "says"),
    [
        ((4,), (3, 9), (), f"after 0 to 9 generations {SAME} (3 checksums and 2 later checkpoints agree)."),
        ((), (), (), f"after 0 to 9 generations {SAME} (1 checksum and 1 later checkpoint agree)."),
        ((4,), (7,), (0, 9), f"after 4 to 7 generations {SAME} (1 checksum agrees), and there is nothing to compare "
                             "the 2 after those with."),
        ((4,), (), (0,), f"after 4 to 9 generations {SAME} (1 later checkpoint agrees)."),
    ],
)  # fmt: skip
def test_a_run_that_is_what_its_journal_gives(tmp_path, keep, checksums, leave_out, says):
    path, files = run_with(tmp_path, keep, checksums, leave_out=leave_out)
    assert sentence(path, files[::-1]).sentence == f"Verified: {says}"


def test_weights_alone_are_enough_to_begin_with(tmp_path):
    path, files = run_with(tmp_path)
    torch.save(torch.load(files[0], weights_only=True)["state_dict"], tmp_path / "start.pt")
    assert sentence(path, [tmp_path / "start.pt", files[1]]).holds


@pytest.mark.parametrize(
    ("keep", "checksums", "says"),
    [
        ((), (2, 3, 7, 8), r"between 3 and 7 generations the run's weights departed from"),
        ((2, 6), (), r"between 2 and 6 generations the run's weights \(.*at_6\.ckpt\) departed from"),
        ((), (), r"between 0 and 9 generations the run's weights \(.*at_9\.ckpt\) departed from"),
        ((6,), (3,), r"between 3 and 6 generations the run's weights \(.*at_6\.ckpt\) departed from"),
    ],
)
def test_weights_that_something_else_moved(tmp_path, keep, checksums, says):
    found = sentence(*run_with(tmp_path, keep, checksums, meddle=clamped_at_4))
    assert not found.holds
    assert re.match(rf"Not verified: {says} what its journal gives, most likely because a callback", found.sentence)


def test_one_changed_bit_of_the_last_checkpoint(tmp_path):
    path, files = run_with(tmp_path, keep=(4,), checksums=(9,))
    end = torch.load(files[-1], weights_only=True)
    weight = end["state_dict"]["short.weight"]
    weight.view(torch.int16)[3, 5] ^= 1
    torch.save(end, files[-1])
    found = sentence(path, files)
    assert found.sentence.startswith(
        "Not verified: between 4 and 9 generations the run's weights (short.weight of at_9.ckpt)"
    )
    assert (found.first, found.last) == (0, 4)


def test_what_does_not_evolve_is_not_compared(tmp_path):
    path, files = run_with(tmp_path)
    end = torch.load(files[-1], weights_only=True)
    end["state_dict"]["count"] += 1
    end["state_dict"]["frozen.weight"] += 1
    torch.save(end, files[-1])
    assert sentence(path, files).holds


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (4, "there is one checkpoint, after 4 generations, and from there on the journal has no checksum to compare"),
        (9, "the checkpoint is that of the journal's end, after 9 generations, so nothing was replayed; name an"),
    ],
)
def test_nothing_to_compare_with(tmp_path, at, why):
    path, files = run_with(tmp_path, keep=(4,), checksums=(3,), leave_out={0, 4, 9} - {at})
    assert sentence(path, files).sentence.startswith(f"Not verified: {why}")


def test_a_machine_that_rounds_differently(tmp_path, monkeypatch):
    path, files = run_with(tmp_path, keep=(4,))
    monkeypatch.setattr("lightning_evo.journal.replay.check_of", lambda update: -1)
    assert sentence(path, files).sentence.startswith(
        "Not verified: the fitness of generation 0 gives another update here than when it was recorded, so verify"
    )


def test_checkpoints_of_other_runs_and_none(tmp_path):
    path, files = run_with(tmp_path)
    other = torch.load(files[1], weights_only=True)
    other["lightning_evo"]["journal"] = {"run": 8}
    torch.save(other, files[1])
    with Journal.open(path) as journal:
        with pytest.raises(JournalError, match="is of the run 0000000000000008, and .* is of the run 0000000000000009"):
            verify(journal, files)
        with pytest.raises(ValueError, match="no checkpoint to begin with"):
            verify(journal, [])
        torch.save(torch.load(files[0], weights_only=True)["state_dict"] | {"frozen.bias": torch.ones(3)}, files[1])
        assert verify(journal, [files[1]]).first == 0
        torch.save({"first.weight": torch.ones(6, 6)}, files[1])
        with pytest.raises(JournalError, match="is not in the checkpoint"):
            verify(journal, [files[1]])
