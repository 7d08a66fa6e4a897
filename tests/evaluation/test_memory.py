"""How many members are rows of one batch: by the memory that they need, the memory that is free, and where it ends."""

import warnings

import pytest
import torch
from torch import nn

from lightning_evo import Evolution
from lightning_evo.evaluation import memory
from lightning_evo.evaluation.memory import Allocated, is_low
from lightning_evo.evaluation.ways import rows
from lightning_evo.evaluation.ways.rows import Rows

MEMBERS = 16


class Steps(nn.Module):
    """Many calls, as a text has."""

    def __init__(self, steps=100):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.steps = nn.Linear(8, 8), steps

    def forward(self, x):
        for _ in range(self.steps):
            x = torch.tanh(self.layer(x) + x)
        return x.sum(1)


def evolution_of(model, evaluation="rows", **options):
    defaults = {"population": MEMBERS, "sigma": 0.1, "rank": 1, "seed": 0}
    evolution = Evolution("eggroll", evaluation=evaluation, **{**defaults, **options})
    evolution.setup(model)
    return evolution


def fitness_by(model, evaluation="rows", x=None, **options):
    evolution, found = evolution_of(model, evaluation, **options), []
    for _ in range(2):
        evolution.evaluate(model, torch.ones(4, 8) if x is None else x)
        found.append(evolution.conclude().fitness)
    return torch.stack(found), evolution.evaluation.summary


@pytest.mark.skipif(memory._mallinfo() is None, reason="needs glibc from 2.33 on")
def test_memory_in_use():
    allocated = Allocated(torch.device("cpu"))
    kept = torch.ones(1 << 18)
    allocated.look()
    more = [torch.ones(1 << 18) for _ in range(3)]
    allocated.look()
    del more
    allocated.look()
    assert kept.nbytes * 4 <= allocated.peak < kept.nbytes * 5


def test_memory_that_cannot_be_asked_for(monkeypatch):
    monkeypatch.setattr(memory, "_mallinfo", lambda: None)
    allocated = Allocated(torch.device("cpu"))
    allocated.look()
    assert allocated.peak == 0
    found, summary = fitness_by(Steps(2))
    assert summary == f"evaluation: rows, {MEMBERS} members per forward"
    torch.testing.assert_close(found, fitness_by(Steps(2), "plain")[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "low"),
    [
        ("MemTotal: 64000 kB\nMemAvailable: 1999 kB\n", True),
        ("MemTotal: 64000 kB\nMemAvailable: 2001 kB\n", False),
        ("MemTotal: 64000 kB\n", False),
        (None, False),
    ],
)
def test_whether_memory_ends(monkeypatch, tmp_path, text, low):
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *args: real(tmp_path / "meminfo", *args))
    assert is_low() is low


class Known(Allocated):
    """Two members need 2,000 bytes."""

    def look(self):
        self.peak = 2000


@pytest.mark.parametrize(
    ("free", "size"), [(4_000, 2), (8_000, 4), (15_900, 4), (16_000, 8), (31_900, 8), (32_000, 16), (1 << 30, 16)]
)
def test_half_of_what_is_free_is_used(monkeypatch, free, size):
    """A power of two, or all."""
    monkeypatch.setattr(rows, "Allocated", Known)
    monkeypatch.setattr(rows, "free_memory", lambda device: free)
    assert fitness_by(Steps(2))[1] == f"evaluation: rows, {size} members per forward"


def test_many_rows_are_enough_for_a_cpu():
    """More than 256 save nothing."""
    assert fitness_by(Steps(2), x=torch.ones(40, 8))[1] == "evaluation: rows, 4 members per forward"
    assert fitness_by(Steps(2), x=torch.ones(40, 8), members_per_forward=16)[1].startswith("evaluation: rows, 16")


def test_auto_runs_members_one_by_one_where_no_pair_fits(monkeypatch):
    monkeypatch.setattr(rows, "Allocated", Known)
    monkeypatch.setattr(rows, "free_memory", lambda device: 100)

    def fitness(x):
        model.layer.bias.isfinite().tolist()  # which vmap can't
        return model(x)

    model = Steps(2)
    evolution = evolution_of(model, "auto")
    evolution.evaluate(fitness, torch.ones(4, 8))
    assert evolution.evaluation.summary.startswith(("evaluation: in_forward", "evaluation: plain"))


def test_running_out_of_memory_halves_the_groups(monkeypatch):
    real = Rows._forward

    def forward(self, job, members):
        if len(members) > 4:
            raise torch.OutOfMemoryError("none left")
        return real(self, job, members)

    expected, _ = fitness_by(Steps(2), "plain")
    monkeypatch.setattr(Rows, "_forward", forward)
    with pytest.warns(UserWarning, match="members in one forward need more memory than there is") as warned:
        found, summary = fitness_by(Steps(2))
    assert [str(each.message)[-2:] for each in warned] == ["8.", "4."]
    assert summary == "evaluation: rows, 4 members per forward"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_groups_are_halved_before_memory_ends(monkeypatch):
    """Texts may become longer than those that were measured."""
    evolution, (expected, _) = evolution_of(Steps()), fitness_by(Steps(), "plain")
    model = evolution._module
    evolution.evaluate(model, torch.ones(4, 8))
    found = [evolution.conclude().fitness]
    asked = []
    monkeypatch.setattr(rows, "_LOOK", 16)
    monkeypatch.setattr(rows, "is_low", lambda: asked.append(1) or len(asked) <= 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evolution.evaluate(model, torch.ones(4, 8))
    found.append(evolution.conclude().fitness)
    said = [str(each.message) for each in caught if "more memory" in str(each.message)]
    assert [text.split(".")[1].strip() for text in said] == ["Going on with 8", "Going on with 4"]
    assert evolution.evaluation.state_dict()["members_per_forward"] == 4
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*members in one forward need more memory")
def test_where_not_even_a_pair_fits_members_run_one_by_one(monkeypatch):
    expected, _ = fitness_by(Steps(), "plain")
    monkeypatch.setattr(rows, "_LOOK", 16)
    monkeypatch.setattr(rows, "is_low", lambda: True)
    with pytest.warns(UserWarning, match="needs more memory .* than there is: give a smaller members_per_forward"):
        found, _ = fitness_by(Steps())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
