"""How processes divide a generation among them, without processes."""

import math
import threading

import pytest
import torch
import torch.distributed
from torch.distributed import all_reduce, broadcast_object_list

from lightning_evo.algorithms import get
from lightning_evo.processes.collectives import no_collectives
from lightning_evo.processes.ranks import Ranks
from tests.processes.together import together


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


def world(groups, data, results, everyone, batches=None):
    """What every rank gathers, given what each has found, and how many batches it has.

    Each runs one member more at once than the one before it.
    """
    batches, sent = batches or [(math.inf, False)] * len(results), []

    def gather(rank, gather_from_all):
        def send(values):
            sent.append(values.shape)
            return gather_from_all(values)

        ranks = Ranks(groups, data, rank, send, batches=lambda: batches[rank])
        return ranks.gather(results[rank], everyone, size=rank + 1)

    gathered = together(gather, groups * data)
    largest = max(len(Ranks(groups).share(everyone, group)) for group in range(groups))
    wide = gathered[0][0].shape[2]
    assert set(sent) == {(largest + 2, 2)} | ({(largest, wide - 2)} if wide > 2 else set())
    for members, sizes in gathered:
        assert sizes == [*range(1, groups * data + 1)]
        assert torch.equal(gathered[0][0].nan_to_num(99), members.nan_to_num(99))
    return gathered[0][0]


def results(*rows):
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), -1 if rows else 2)


nan = math.nan


def same(found, expected):
    return torch.equal(found.nan_to_num(99), torch.tensor(expected, dtype=torch.float64).nan_to_num(99))


def test_gathering_members():
    found = world(3, 1, [results((1, 1), (2, 1)), results((nan, 0), (nan, -1)), results((5, 1), (6, 1))], population(6))
    assert same(found, [[[1, 1], [2, 1], [nan, 0], [nan, -1], [5, 1], [6, 1]]])


def test_gathering_data():
    mine = [[1, 1], [2, 1], [nan, 0], [nan, 0]], [[3, 1], [nan, -1], [5, 1], [nan, 0]]
    assert same(world(1, 2, [results(*rows) for rows in mine], population(4)), mine)


def test_gathering_a_grid_with_more_ranks_than_pairs():
    nothing = results()
    found = world(3, 2, [results((1, 1), (2, 1)), results((3, 1), (4, 1)), *[nothing] * 4], population(2))
    assert same(found, [[[1, 1], [2, 1]], [[3, 1], [4, 1]]])


def test_gathering_single_samples():
    """A grid: processes 0 and 2 have two samples each, 1 and 3 one; no member of 2 reported anything."""
    found = world(
        2,
        2,
        [
            results((1.5, 1, nan, 1, 2), (3, 1, nan, nan, 3)),
            results((4, 1, nan, 4), (5, 1, nan, 5)),
            results((nan, -1), (nan, 0)),
            results((6, 1, nan, 6), (7, 1, nan, 7)),
        ],
        population(4),
    )
    first = [[1.5, 1, nan, 1, 2], [3, 1, nan, nan, 3], [nan, -1, *[math.inf] * 3], [nan, 0, *[math.inf] * 3]]
    second = [[member, 1, nan, member, math.inf] for member in (4, 5, 6, 7)]
    assert same(found, [first, second])


@pytest.mark.parametrize(
    ("groups", "data", "found"),
    [
        (2, 1, [results((1, 1), (2, 1)), results((1, 1, 5), (2, 1, 6))]),
        (1, 2, [results((1, 1, 5), (2, 1, 6)), results((1, 1, 5, 1), (2, 1, 6, 2))]),
        (2, 1, [results((1, 1, 5, 1), (2, 1, 6, 2)), results((1, 1, 5, 1, 1), (2, 1, 6, 2, 2))]),
    ],
)
def test_processes_that_report_different_things(groups, data, found):
    with pytest.raises(ValueError, match="different processes reported (a number|values) .*all need it"):
        world(groups, data, found, population(4 if groups > 1 else 2))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(8, False), (6, False)], r"process 0 has 8, process 1 has 6\..*limit_train_batches=6"),
        ([(8, False), (8, True)], r"this is the last one of processes 1, but not of the others"),
        ([(math.inf, True), (math.inf, False)], r"this is the last one of processes 0, but not of the others"),
        ([(8, True), (8, True)], None),
        ([(math.inf, False), (8, False)], None),  # it can't be known yet
    ],
)
def test_processes_with_different_numbers_of_batches(batches, message):
    found = [results((1, 1), (2, 1)), results((3, 1), (4, 1))]
    if message is None:
        assert world(2, 1, found, population(4), batches)[0, :, 0].tolist() == [1, 2, 3, 4]
        return
    with pytest.raises(RuntimeError, match="different numbers of training batches: " + message):
        world(2, 1, found, population(4), batches)


def test_a_rank_outside_the_grid():
    with pytest.raises(ValueError, match="Rank 4 is outside a grid of 2 x 2"):
        Ranks(2, 2, 4)


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def functional(tensor):
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    wait_tensor(all_reduce(tensor, "sum", torch.distributed.group.WORLD))


CALLS = {
    "all_reduce": lambda: torch.distributed.all_reduce(torch.ones(1)),
    "all_reduce, imported before": lambda: all_reduce(torch.ones(1)),
    "all_gather": lambda: torch.distributed.all_gather_object([None], "x"),
    "reduce": lambda: torch.distributed.reduce(torch.ones(1), 0),
    "barrier": lambda: torch.distributed.barrier(),
    "broadcast, imported before": lambda: broadcast_object_list([1]),
    "scatter": lambda: torch.distributed.scatter(torch.ones(1), [torch.ones(1)]),
    "all_reduce, of autograd": lambda: torch.distributed.nn.functional.all_reduce(
        torch.ones(1), group=torch.distributed.group.WORLD
    ),
    "_functional_collectives.all_reduce": lambda: functional(torch.ones(1)),
}


@pytest.mark.filterwarnings("ignore:.*torch.distributed.nn.*:FutureWarning")
@pytest.mark.parametrize("name", CALLS)
def test_collectives_are_refused_in_their_context(group, name):
    import torch.distributed.nn

    call, function = CALLS[name], name.partition(",")[0]
    call()
    homes = [torch.distributed.ProcessGroup, torch.ops._c10d_functional, torch.ops._c10d_functional_autograd]
    before = [dict(vars(home)) for home in homes]
    for _ in range(2):
        message = rf"torch\.distributed\.{function} was called while members are evaluated"
        with pytest.raises(RuntimeError, match=message), no_collectives(), no_collectives():
            call()
        call()
    for home, attributes in zip(homes, before, strict=True):
        for key, value in attributes.items():
            assert vars(home)[key] is value


def test_collectives_of_other_threads_are_left_alone(group):
    found = []

    def elsewhere():
        tensor = torch.ones(1)
        torch.distributed.all_reduce(tensor)
        found.append(tensor.item())

    with no_collectives():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert found == [1.0]
