"""A process that holds a part of a tensor does to it what it would do to that part of the whole.

No process groups here: a shard is a range of memory. tests/strategies/test_fsdp.py and test_deepspeed.py run them.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_evo import algorithms
from lightning_evo.algorithms import Directions, Term
from lightning_evo.evaluation.job import Job
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.generation.laying import laid_over, noise_over
from lightning_evo.generation.step import Clipping
from lightning_evo.generation.update import AlongDirections
from lightning_evo.isolation import Isolation
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.perturbations import Dense, LowRank, Part
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.spaces.shards import Shard, shard_of

KEY = NoiseKey(seed=3, generation=5)
PERTURBATIONS = {
    "gaussian": Dense(KEY),
    "rademacher": Dense(KEY, "rademacher"),
    "uniform": Dense(KEY, "uniform"),
    "rank 1": LowRank(KEY, 1),
    "rank 3": LowRank(KEY, 3),
    "another basis": LowRank(KEY, 2, NoiseKey(seed=3, generation=0)),
}
SHAPES = [(90, 61), (7, 3, 5, 2), (1000,), (), (1, 4)]
# Rows of random numbers have 64 to 4096 elements: ranges that are such rows, contain some, or lie within one.
RANGES = [(0.0, 1.0), (0.0, 0.0), (0.3, 0.31), (0.1, 0.9), (0.5, 1.0)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("perturbation", PERTURBATIONS.values(), ids=PERTURBATIONS.keys())
def test_a_range_of_a_member_has_the_bits_of_the_whole(perturbation, shape, dtype):
    center = torch.randn(shape).to(dtype)
    flat, steps = center.reshape(-1), [0.3, -0.3]
    noise = perturbation.noise([1], 2, center)[0].reshape(-1)
    [members] = perturbation.members([1], steps, [Part(2, center)])
    for ends in RANGES:
        start, stop = (round(end * flat.numel()) for end in ends)
        stand_in = center.new_zeros(()).expand(shape)  # of the tensor's shape, but not its values
        assert torch.equal(perturbation.noise_of_range([1], 2, stand_in, start, stop)[0], noise[start:stop])
        [parts] = perturbation.members([1], steps, [Part(2, stand_in, start, flat[start:stop])])
        for part, member in zip(parts, members, strict=True):
            assert part.dtype == dtype
            assert torch.equal(part, member.reshape(-1)[start:stop])


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(13, 6, padding_idx=4), nn.Linear(6, 50), nn.Linear(50, 1)).to(dtype)


def shards_of(space, process, processes):
    """The space as one of some processes sees it that hold consecutive elements, the last perhaps fewer or none."""
    mine = []
    for parameter in space:
        count = -(-parameter.tensor.numel() // processes)
        values = parameter.tensor.detach().view(-1)[process * count : (process + 1) * count]
        shard = Shard(values, min(process * count, parameter.tensor.numel()), parameter.tensor.shape)
        mine.append(replace(parameter, shard=shard))
    return space.subset(mine)


def generation(name, **options):
    algorithm = algorithms.get(name)(population=4, sigma=0.1, **options)
    state = replace(algorithm.init(seed=7), generation=2)
    return laid_over(algorithm.ask(state), SearchSpace(model()))


def update(space, population, weight_decay):
    terms = (Term(population.perturbation, (0.5, -2.0)), Term(noise_over(Dense(NoiseKey(7, 1)), space), (0.25, 0.0)))
    lesson = Directions(terms, weight_decay, learning_rate=0.1)
    return AlongDirections(population, space, torch.zeros(4), lesson)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("processes", [1, 3, 16])
@pytest.mark.parametrize(
    ("name", "weight_decay"), [("openai_es", 0.0), ("openai_es", 0.1), ("eggroll", 0.0), ("fzoo", 0.0)]
)
def test_shards_move_as_the_whole_does(name, weight_decay, processes, dtype):
    expected, found, population = model(dtype), model(dtype), generation(name)
    norm = float(update(SearchSpace(expected), population, weight_decay).apply())
    space = SearchSpace(found)
    norms = [
        update(shards_of(space, process, processes), population, weight_decay).apply() for process in range(processes)
    ]
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(norm, rel=1e-6)
    assert torch.equal(found[0].weight[4], model(dtype)[0].weight[4])  # the padding row


def test_values_are_clipped_within_shards():
    expected, found, population = model(), model(), generation("openai_es")
    clipping = Clipping(0.3, "value")
    for space in (SearchSpace(expected), *(shards_of(SearchSpace(found), process, 4) for process in range(4))):
        part = update(space, population, 0.0)
        part.apply(part.step(clipping=clipping))
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("name", ["openai_es", "eggroll"])
def test_members_of_the_plain_loop(name, processes):
    """What is read while a member runs is the member's, in its own part and nowhere else; then all is as before."""
    module, population = model(torch.bfloat16), generation(name)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    space = SearchSpace(module)

    def seen():
        return [parameter.detach().clone() for parameter in module.parameters()]

    def run(space):
        with Isolation(module, torch.device("cpu")) as isolation:
            return Plain().run(Job(space, population, seen, isolation, range(4)))

    whole = run(space)
    for process in range(processes):
        mine = shards_of(space, process, processes)
        for expected, found in zip(whole, run(mine), strict=True):
            for parameter, a, b, center in zip(mine, expected, found, before, strict=True):
                own = slice(parameter.shard.start, parameter.shard.start + len(parameter.shard.values))
                wanted = center.clone().view(-1)
                wanted[own] = a.view(-1)[own]
                assert torch.equal(b.view(-1), wanted)
    for a, b in zip(before, module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_ordinary_parameter_is_no_shard():
    assert shard_of(nn.Parameter(torch.zeros(3))) is None
    space = SearchSpace(model())
    assert not space.is_sharded
    assert shards_of(space, 0, 2).is_sharded
    assert shards_of(space, 0, 2).numel == space.numel
