"""How processes divide a generation among them, without processes."""

import math

import pytest
import torch
import torch.distributed

from lightning_evo.algorithms import get
from lightning_evo.ranks import Ranks, no_collectives


def population(members, antithetic=True):
    algorithm = get("openai_es")(population=members, antithetic=antithetic)
    return algorithm.ask(algorithm.init())


@pytest.mark.parametrize("members", [2, 3, 8, 10, 33])
@pytest.mark.parametrize("groups", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
@pytest.mark.parametrize("antithetic", [True, False])
def test_every_member_belongs_to_one_group_and_chunks_stay_together(members, groups, chunk, antithetic):
    if antithetic and members % 2:
        members += 1
    everyone, ranks = population(members, antithetic), Ranks(groups, chunk=chunk)
    shares = [ranks.share(everyone, group) for group in range(groups)]
    assert [member for share in shares for member in share] == list(range(members))
    whole = max(2, chunk // 2 * 2) if antithetic else chunk
    assert all(share.start % whole == 0 for share in shares if share)
    sizes = [math.ceil(len(share) / whole) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def world(groups, data, results, everyone):
    """What every rank gathers, given what each has found."""
    shares = [Ranks(groups).share(everyone, group) for group in range(groups)]
    largest = max(map(len, shares))
    padded = []
    for found in results:
        padded.append(torch.zeros(largest, 2, dtype=torch.float64))
        padded[-1][: len(found)] = found
    gathered = [
        Ranks(groups, data, rank, gather_from_all=lambda values, rank=rank: check(values, padded, rank)).gather(
            results[rank], everyone
        )
        for rank in range(groups * data)
    ]
    assert all(torch.equal(gathered[0].nan_to_num(99), other.nan_to_num(99)) for other in gathered)
    return gathered[0]


def check(values, padded, rank):
    assert torch.equal(values.nan_to_num(99), padded[rank].nan_to_num(99))
    return padded


def results(*pairs):
    return torch.tensor(pairs, dtype=torch.float64).view(-1, 2)


def test_gathering_members():
    nan = math.nan
    found = world(3, 1, [results((1, 1), (2, 1)), results((nan, 0), (nan, -1)), results((5, 1), (6, 1))], population(6))
    assert found[:, 1].tolist() == [1, 1, 0, -1, 1, 1]
    assert found[[0, 1, 4, 5], 0].tolist() == [1, 2, 5, 6]
    assert found[2:4, 0].isnan().all()


def test_gathering_data():
    nan = math.nan
    found = world(
        1, 2, [results((1, 1), (2, 1), (nan, 0), (nan, 0)), results((3, 1), (nan, -1), (5, 1), (nan, 0))], population(4)
    )
    assert found[:, 1].tolist() == [2, -1, 1, 0]
    assert found[[0, 2], 0].tolist() == [2, 5]


def test_gathering_a_grid_with_more_ranks_than_pairs():
    nothing = results()
    found = world(3, 2, [results((1, 1), (2, 1)), results((3, 1), (4, 1)), *[nothing] * 4], population(2))
    assert found.tolist() == [[2, 2], [3, 2]]


def test_a_rank_outside_the_grid():
    with pytest.raises(ValueError, match="Rank 4 is outside a grid of 2 x 2"):
        Ranks(2, 2, 4)


def test_collectives_are_refused_in_their_context():
    original = torch.distributed.all_reduce
    with no_collectives(), pytest.raises(RuntimeError, match=r"torch.distributed.all_reduce was called while members"):
        torch.distributed.all_reduce(torch.ones(1))
    assert torch.distributed.all_reduce is original
