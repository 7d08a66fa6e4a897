"""The reduction of members' values to one number each, against its formula by plain loops; and ties."""

import itertools
import math

import pytest
import torch

from lightning_evo.evaluation.faults import Failure
from lightning_evo.evaluation.fitness import Fitness, as_record
from lightning_evo.generation.scores import Scores, break_ties, results_of

nan, inf = math.nan, math.inf


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def same(found, expected, **tolerance):
    torch.testing.assert_close(found, vector(*expected), equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))


def records(*values):
    """One batch of one process."""
    return results_of([value if value is None else as_record(value) for value in values], 1.0)[None]


def with_missing(table, tie_breakers=None):
    """A batch of members' values; NaN where one is missing."""
    tie_breakers = tie_breakers or [None] * len(table)
    rows = [torch.tensor(row, dtype=torch.float64) for row in table]
    return [
        Fitness(row.nan_to_num(7e7), tie_breaker, row.isnan())
        for row, tie_breaker in zip(rows, tie_breakers, strict=True)
    ]


def by_hand(blocks, weights):
    """The formula at the head of scores.py: blocks of ``[members][samples]``, NaN where a value is missing."""
    members = range(len(blocks[0]))
    own, own_weight, level, total = [0.0] * len(members), [0.0] * len(members), 0.0, 0.0
    for block, weight in zip(blocks, weights, strict=True):
        for sample in zip(*block, strict=True):
            u, has = weight / len(block[0]), [member for member in members if not math.isnan(sample[member])]
            if not has:
                continue
            mean = sum(sample[member] for member in has) / len(has)
            level, total = level + u * mean, total + u
            for member in has:
                own[member] += u * (sample[member] - mean)
                own_weight[member] += u
    return [d / w + level / total if w else nan for d, w in zip(own, own_weight, strict=True)]


def random_block(members, samples, share, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(members, samples, generator=generator, dtype=torch.float64)
    return values.masked_fill(torch.rand(members, samples, generator=generator) < share, nan).tolist()


def test_a_member_that_misses_the_hard_sample_gains_nothing():
    """Sample 0 is hard (all that have it get 0), sample 1 easy (1): the third is as good as the others."""
    scores = Scores(4)
    assert scores.add(records(*with_missing([[0.0, 1.0], [0.0, 1.0], [nan, 1.0], [0.0, nan]])))
    same(scores.fitness, [0.5, 0.5, 0.5, 0.5])
    statistics = scores.statistics()
    assert statistics["fitness_mean"] == 0.5  # of the raw means 1/2, 1/2, 1 and 0
    assert statistics["fitness_best"] == 1.0


def test_closed_form():
    """Means of the samples: 2, 5. Member 0: (1-2 + 4-5)/2 + 3.5; member 1: (3-2) + 3.5; member 2: (6-5) + 3.5."""
    scores = Scores(3)
    scores.add(records(*with_missing([[1.0, 4.0], [3.0, nan], [nan, 6.0]])))
    same(scores.fitness, [2.5, 4.5, 4.5])


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_missing_samples_against_plain_loops(share, seed):
    blocks, weights = [random_block(6, samples, share, seed + samples) for samples in (1, 4, 9)], [1.0, 4.0, 9.0]
    expected = by_hand(blocks, weights)
    scores = Scores(6)
    for block, weight in zip(blocks, weights, strict=True):
        scores.add(results_of([as_record(fitness) for fitness in with_missing(block)], weight)[None])
    same(scores.fitness, expected, rtol=1e-12, atol=1e-12)

    # The same as the data of three processes, whose parts are narrower than the widest.
    data = [
        results_of([as_record(fitness) for fitness in with_missing(block)], weight)
        for block, weight in zip(blocks, weights, strict=True)
    ]
    padded = [torch.cat([rows, torch.full((6, 12 - rows.shape[1]), inf)], 1) for rows in data]
    together = Scores(6)
    together.add(torch.stack(padded))
    same(together.fitness, expected, rtol=1e-12, atol=1e-12)

    # And, since weights are numbers of samples, the same as one large batch.
    once = Scores(6)
    once.add(records(*with_missing([[value for block in blocks for value in block[member]] for member in range(6)])))
    same(once.fitness, expected, rtol=1e-12, atol=1e-12)


def test_complete_data_gives_the_plain_mean():
    block = random_block(5, 8, 0.0, 1)
    scores, plain = Scores(5), Scores(5)
    scores.add(records(*with_missing(block)))
    plain.add(records(*[torch.tensor(row, dtype=torch.float64) for row in block]))
    same(scores.fitness, plain.fitness.tolist(), rtol=1e-15, atol=0)


def test_the_quick_way_is_the_same():
    """Where nothing is missing; a declined batch of another process takes the other way, and weighs nothing here."""
    plain = results_of([as_record(Fitness(f, t)) for f, t in zip([0.1, 0.7, 0.2], [1.0, -inf, 3.0], strict=True)], 5.0)
    quick, usual = Scores(3), Scores(3)
    quick.add(torch.stack([plain, plain]))
    usual.add(torch.stack([plain, plain, vector(nan, 0, nan).expand(3, 3)]))
    torch.testing.assert_close(quick.sums, usual.sums, rtol=1e-15, atol=0)
    assert quick.statistics() == usual.statistics()


def test_a_batch_of_means_and_one_of_samples():
    """Batches weigh the same: the first is one sample of each member."""
    scores = Scores(3)
    scores.add(records(torch.tensor(1.0), torch.tensor([1.0, 3.0]), 6.0))
    scores.add(records(*with_missing([[1.0, 2.0], [nan, nan], [3.0, nan]])))
    same(
        scores.fitness,
        by_hand([[[1.0], [2.0], [6.0]], [[1.0, 2.0], [nan, nan], [3.0, nan]]], [1, 1]),
        rtol=1e-15,
        atol=0,
    )


def test_who_fails():
    """By NaN, by an exception, by declining what others evaluate, by missing all; infinite stays infinite."""
    scores = Scores(7)
    fitness = with_missing([[1.0, 2.0], [3.0, nan], [nan, nan], [0.0, 0.0], [5.0, 5.0]])
    fitness[3] = Fitness(torch.tensor([nan, 1.0]), missing=torch.tensor([False, True]))
    fitness[4] = Fitness(torch.tensor([inf, 1.0]), missing=torch.tensor([False, True]))
    rows = [as_record(value) for value in fitness]
    results = results_of([*rows, None, Failure(ValueError())], 1.0)
    assert results[:, 1].tolist() == [1, 1, 1, 1, 1, 0, -1]
    scores.add(results[None])
    same(scores.fitness, [1.5, 3.0 - 2.0 + 2.0, nan, nan, inf, nan, nan])
    assert scores.failed.tolist() == [False] * 6 + [True]
    assert scores.statistics()["failed_members"] == 5
    # In the next batch the third has samples, so it has not failed; the others stay failed.
    scores.add(records(*with_missing([[0.0], [0.0], [1.0], [1.0], [1.0], [1.0], [1.0]])))
    expected = scores.fitness.tolist()
    assert [math.isfinite(value) for value in expected] == [True, True, True, False, False, False, False]
    assert expected[4] == inf


def test_all_members_miss_all():
    scores = Scores(2)
    assert scores.add(records(*with_missing([[nan], [nan]])))  # which is said, not skipped
    same(scores.fitness, [nan, nan])
    scores.add(records(*with_missing([[1.0], [2.0]])))
    same(scores.fitness, [1.0, 2.0])


def test_processes_weigh_by_their_samples():
    """Two processes that saw 3 and 1 samples; the last member declined one of them."""
    scores = Scores(3)
    scores.add(torch.stack([torch.tensor([[1.0, 3], [2, 3], [2, 3]]), torch.tensor([[5.0, 1], [2, 1], [nan, 0]])]))
    assert scores.weight == 4
    # Sample means of the two: 5/3 and 7/2, weighted 17/8.
    same(scores.fitness, [2.0, 2.0, 2 - 5 / 3 + 17 / 8], rtol=1e-15, atol=0)


def test_different_reports_are_refused():
    one, two = as_record(1.0), as_record(Fitness(1.0, tie_breaker=2.0))
    with pytest.raises(ValueError, match="reported a number and a number with a tie breaker for .*all need it"):
        results_of([one, two, None], 1.0)


# --- ties -----------------------------------------------------------------------------------------------------------


def test_ties_closed_form():
    """Gap 1/2; ranks of the tie breakers of five members -1/2, -1/4, 0, 1/4, 1/2."""
    fitness, tie_breaker = vector(1, 1, 1, 1.5, 4), vector(0.3, 0.1, 0.2, 0.4, 0.0)
    same(break_ties(fitness, tie_breaker), [1 + 0.25 / 4, 1 - 0.25 / 4, 1, 1.5 + 0.125, 4 - 0.125])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("offset", [0.0, 1.0, -1e6])
def test_members_are_ordered_by_fitness_and_then_by_the_tie_breaker(seed, offset):
    generator = torch.Generator().manual_seed(seed)
    fitness = torch.randint(4, (50,), generator=generator).double() / 3 + offset
    tie_breaker = torch.randint(6, (50,), generator=generator).double()
    broken = break_ties(fitness, tie_breaker).tolist()
    for (f, t, b), (g, u, c) in itertools.combinations(
        zip(fitness.tolist(), tie_breaker.tolist(), broken, strict=True), 2
    ):
        assert ((f, t) < (g, u)) == (b < c)
        assert ((f, t) == (g, u)) == (b == c)


def test_a_tie_breaker_never_outweighs_fitness():
    """The better one has the worst tie breaker, the worse one the best."""
    broken = break_ties(vector(0, 1, 1), vector(9, 0, 1))
    assert broken.argsort().tolist() == [0, 1, 2]
    assert broken.unique().numel() == 3


def test_differences_of_rounding_are_ties():
    third = sum([0.1] * 3) / 3  # not 0.1
    assert third != 0.1
    broken = break_ties(vector(third, 0.1, 0.2), vector(1, 2, 0))
    assert broken.argsort().tolist() == [0, 1, 2]
    assert broken[1] - broken[0] > 0.01


def test_one_fitness_for_all_leaves_it_to_the_tie_breaker():
    worst = math.nextafter(-3.5, -inf)
    same(break_ties(vector(2, 2, nan, 2, inf), vector(-3.5, 0.25, 9, -inf, 1)), [-3.5, 0.25, nan, worst, inf])


def test_failed_members_have_no_part_in_ties():
    """Their tie breakers take no rank, and infinite fitness makes no gap."""
    fitness, tie_breaker = vector(nan, 1, 1, 2, -inf), vector(5, 0, 1, 0.5, 9)
    same(break_ties(fitness, tie_breaker), [nan, 1 - 0.25, 1 + 0.25, 2, -inf])
    same(break_ties(vector(nan, inf), vector(1, 2)), [nan, inf])


def test_scores_with_a_tie_breaker():
    scores = Scores(4)
    scores.add(records(*[Fitness(f, t) for f, t in zip([1, 1, 2, nan], [1.0, nan, 4.0, 0.0], strict=True)]))
    same(scores.fitness, [1, 0.75, 2.25, nan])
    assert scores.statistics()["tie_breaker_mean"] == 2.5  # of those that have not failed and are finite
    assert scores.statistics()["fitness_mean"] == pytest.approx(4 / 3)
    # The next batch turns the order: tie breakers are averaged, as fitness is; a NaN stays worst.
    scores.add(records(*[Fitness(f, t) for f, t in zip([2, 2, 1, nan], [1.0, 8.0, 2.0, 0.0], strict=True)]))
    same(scores.fitness, [1.0, math.nextafter(1.0, -inf), 3.0, nan])


def test_the_tie_breaker_of_what_a_member_has():
    """Half of the second batch is missing, so it weighs half."""
    first = with_missing([[0.0, 0.0], [0.0, 0.0]], [3.0, 0.0])
    second = with_missing([[0.0, nan], [0.0, 0.0]], [torch.tensor([0.0, 1e9]), 0.0])
    scores = Scores(2)
    scores.add(records(*first))
    scores.add(records(*second))
    same(scores.fitness, [2.0, 0.0])


def test_a_batch_without_a_tie_breaker_leaves_ties():
    scores = Scores(2)
    scores.add(records(Fitness(1.0, 1.0), Fitness(1.0, 2.0)))
    scores.add(records(1.0, 1.0))
    same(scores.fitness, [1.0, 1.0])
    assert "tie_breaker_mean" not in scores.statistics()


def test_a_recorded_fitness_is_taken_as_it_is():
    scores = Scores(4)
    recorded = vector(1.0, nan, -inf, 0.1 + 0.2)
    scores.recall(recorded)
    same(scores.fitness, recorded.tolist())
    assert scores.weight == 1


def test_the_middle_of_a_generation_can_be_saved():
    first, second = (with_missing(random_block(3, 4, 0.3, seed), [1.0, 2.0, 3.0]) for seed in (1, 2))
    scores, resumed = Scores(3), Scores(3)
    assert scores.state_dict() == {"fitness_weight": 0.0}
    scores.add(records(*first))
    resumed.load_state_dict(scores.state_dict())
    for each in (scores, resumed):
        each.add(records(*second))
    assert torch.equal(scores.fitness, resumed.fitness)
    assert resumed.statistics() == scores.statistics()
    with pytest.raises(ValueError, match="middle of a generation of 3 members; this run has population=4"):
        Scores(4).load_state_dict(scores.state_dict())


def test_some_tie_breakers_among_samples_are_refused():
    """Their records are equally long."""
    nan = math.nan
    some = [torch.tensor([1.0, t, 1.0, nan], dtype=torch.float64) for t in (0.5, nan)]
    with pytest.raises(ValueError, match="Some members reported a tie breaker for a batch, and others none"):
        results_of(some, 1.0)
    assert results_of([some[0], None, Failure(RuntimeError())], 1.0)[0, 2] == 0.5


def test_tie_breakers_that_are_no_numbers_rank_worst_and_are_not_taken_for_fitness():
    tied, inf = torch.full((3,), 2.0, dtype=torch.float64), math.inf
    broken = break_ties(tied, torch.tensor([0.5, -inf, 0.25], dtype=torch.float64))
    assert broken.isfinite().all()
    assert broken.argsort().tolist() == [1, 2, 0]
    assert torch.equal(break_ties(tied, torch.full((3,), -inf, dtype=torch.float64)), tied)


def test_who_failed_is_saved_in_the_midst_of_a_generation():
    """Or a resumed generation would report the same failures once more, as fitness that is no number."""
    scores, resumed = Scores(3), Scores(3)
    assert "failed" not in scores.state_dict()
    scores.add(results_of([torch.tensor(1.0), Failure(RuntimeError()), torch.tensor(2.0)], 1.0)[None])
    resumed.load_state_dict(scores.state_dict())
    assert resumed.failed.tolist() == [False, True, False]
    same(resumed.fitness, [1, nan, 2])
