"""What members tell about their samples travels beside their fitness, by every way and from all processes."""

import pytest
import torch
from torch import nn

from lightning_evo import Evolution, Fitness, members_in_batch
from lightning_evo.evaluation.fitness import as_record, as_records, details_of
from lightning_evo.processes.ranks import Ranks
from tests.processes.together import together

MEMBERS, SAMPLES = 6, 4


def told(way="plain", ranks=None, wants=lambda generation: True, generations=1):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    subject = Evolution(population=MEMBERS, sigma=0.3, seed=3, rank=1, evaluation=way)
    subject.ranks = Ranks() if ranks is None else ranks
    subject.setup(module)
    subject.wants_details = wants
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1))
    seen, members = [], set()

    def fitness(batch):
        members.add(members_in_batch())
        values = module(batch)[:, 0]
        return Fitness(values, details=[{"value": round(value, 4)} for value in values.tolist()])

    for _ in range(generations):
        subject.evaluate(fitness, x)
        seen.append(subject.details)
        means = torch.tensor([sum(d["value"] for d in each) / SAMPLES for each in subject.details])
        if subject.details:
            torch.testing.assert_close(means.double(), subject.conclude().fitness, atol=1e-3, rtol=0)
        else:
            subject.conclude()
    return seen, members


@pytest.mark.parametrize("way", ["plain", "in_forward", "rows"])
def test_each_member_tells_of_its_own_samples(way):
    (details,), members = told(way)
    assert [len(each) for each in details] == [SAMPLES] * MEMBERS
    for found, expected in zip(details, told("plain")[0][0], strict=True):
        assert [d["value"] for d in found] == pytest.approx([d["value"] for d in expected], abs=2e-4)
    assert max(members) == (MEMBERS if way == "rows" else 1)


def test_nothing_is_kept_that_nobody_wants():
    first, second, third = told(wants=lambda generation: generation == 1, generations=3)[0]
    assert (first, third) == ([], [])
    assert len(second) == MEMBERS


@pytest.mark.parametrize("count", [2, 3])
def test_details_of_all_processes_come_together(count):
    alone = told()[0]
    everyone = together(
        lambda rank, gather: told(ranks=Ranks(groups=count, rank=rank, gather_from_all=gather))[0], count
    )
    assert everyone == [alone] * count


def test_details_that_cannot_be_sent_stop_all_processes():
    """Those of one process: the others must not wait for it."""

    def run(rank, gather):
        ranks, evolution = Ranks(groups=2, rank=rank, gather_from_all=gather), Evolution(population=2, seed=0)
        population = evolution.algorithm.ask(evolution.state)
        with pytest.raises(TypeError, match=r"details of process 1 can't be sent to the others: .*pickle"):
            ranks.gather_details([[lambda: 0] if rank else ["a"]], population)

    together(run, 2)


def test_details_of_data_shards_follow_each_other():
    ranks = Ranks(groups=1, data=2, rank=0, gather_from_all=lambda values: [values, values])
    population = Evolution(population=2, seed=0).algorithm.ask(Evolution(population=2, seed=0).state)
    assert ranks.gather_details([["a", "b"], None], population) == [["a", "b", "a", "b"], []]


def test_details_have_one_object_per_sample():
    with pytest.raises(ValueError, match=r"returned as details 3 of them\. They go with values: a list of 2, one for"):
        as_record(Fitness([1.0, 2.0], details=["a", "b", "c"]))
    with pytest.raises(ValueError, match=r"They go with values: one value per sample"):
        as_record(Fitness(1.0, details=["a"]))
    with pytest.raises(ValueError, match="returned as details str"):
        as_records(Fitness(torch.ones(4), details="abcd"), members=2)


@pytest.mark.parametrize("missing", [None, [False, True, False, False]])
def test_rows_of_members_keep_theirs(missing):
    value = Fitness(torch.arange(4.0), missing=missing and torch.tensor(missing), details=list("abcd"))
    assert [details_of(record) for record in as_records(value, 2, 2)] == [["a", "b"], ["c", "d"]]


def test_rows_are_told_apart_by_the_number_of_members():
    assert members_in_batch() == 1
