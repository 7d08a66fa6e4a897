"""Generations whose fitness has missing samples and a tie breaker, in every way, on several processes, resumed."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_evo import Fitness
from lightning_evo.generation.evolution import Evolution
from lightning_evo.generation.scores import break_ties
from lightning_evo.processes.ranks import Ranks
from lightning_evo.utils.random_state import RandomState
from tests.generation.test_scores import by_hand
from tests.processes.together import together

CPU = torch.device("cpu")
MEMBERS = 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def data(samples=12, seed=1):
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitness_of(module):
    """Whether an output is large; missing where it is very large. The tie breaker is its mean."""

    def fitness(x):
        outputs = module(x)[:, 0]
        return Fitness(outputs > -0.1, outputs, outputs > 0.4)

    return fitness


def evolution(module, **options):
    subject = Evolution(population=MEMBERS, sigma=0.3, seed=3, **options)
    subject.setup(module)
    return subject


def generation(subject, module, *batches):
    for batch in batches:
        assert subject.evaluate(fitness_of(module), batch)
    return subject.conclude()


def expected(*blocks):
    """Of blocks of samples, by hand: the fitness, and the tie breaker's means."""
    module, tables, ties, counts = network(), [], torch.zeros(MEMBERS).double(), torch.zeros(MEMBERS).double()
    parameters = list(module.parameters())
    center, noise = [parameter.detach().clone() for parameter in parameters], []
    population = evolution(module).population
    for index, parameter in enumerate(parameters):
        noise.append(population.perturbation.noise(range(population.directions), index, parameter.detach()))
    for block in blocks:
        rows = []
        for member in range(MEMBERS):
            sign = 1 - 2 * (member % 2)
            for parameter, start, of_member in zip(parameters, center, noise, strict=True):
                parameter.data = start + 0.3 * sign * of_member[member // 2]
            outputs = module(block)[:, 0].detach()
            rows.append((outputs > -0.1).double().where(outputs <= 0.4, math.nan).tolist())
            has = outputs <= 0.4
            ties[member] += outputs[has].sum() / len(block)
            counts[member] += has.sum() / len(block)
        tables.append(rows)
    assert 0.1 < torch.tensor(tables[0]).isnan().double().mean() < 0.9
    return break_ties(torch.tensor(by_hand(tables, [1.0] * len(blocks)), dtype=torch.float64), ties / counts)


@pytest.mark.parametrize("evaluation", ["auto", "plain", "in_forward", "batched"])
def test_in_every_way(evaluation):
    module = network()
    subject = evolution(module, evaluation=evaluation)
    update = generation(subject, module, data())
    torch.testing.assert_close(update.fitness, expected(data()), rtol=1e-12, atol=1e-12)
    assert update.fitness.unique().numel() == MEMBERS
    assert subject.evaluation.summary.startswith(f"evaluation: {'batched' if evaluation == 'auto' else evaluation}")


def test_batches_of_a_window_are_one_batch():
    module, parts = network(), data().split(6)
    update = generation(evolution(module), module, *parts)
    torch.testing.assert_close(update.fitness, expected(*parts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("groups", "parts"), [(2, 1), (3, 1), (1, 2), (1, 3), (2, 2)])
@pytest.mark.parametrize("evaluation", ["plain", "batched"])
def test_several_processes(groups, parts, evaluation):
    """Groups divide the members, the processes of one the samples."""
    batch = data()

    def run(rank, gather_from_all):
        module = network()
        subject = evolution(module, evaluation=evaluation, members_per_forward=2 if evaluation == "batched" else None)
        subject.ranks = Ranks(groups, parts, rank, gather_from_all)
        mine = batch.tensor_split(parts)[rank % parts]
        assert subject.evaluate(fitness_of(module), mine)
        statistics = subject.statistics()
        return subject.conclude(), statistics

    updates = together(run, groups * parts)
    assert len({update.weights for update, _ in updates}) == 1
    wanted = expected(*batch.tensor_split(parts))
    torch.testing.assert_close(updates[0][0].fitness, wanted, rtol=1e-12, atol=1e-12)
    assert len({tuple(statistics.items()) for _, statistics in updates}) == 1
    if parts == 1:
        module = network()
        alone = generation(
            evolution(module, evaluation=evaluation, members_per_forward=2 if evaluation == "batched" else None),
            module,
            batch,
        )
        assert torch.equal(alone.fitness, updates[0][0].fitness)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("parts", [1, 2])
def test_samples_count_the_same_on_several_processes(groups, parts):
    """Of 10 samples that a generation wants, each of two processes gives 5, or one all: the mean of those seen."""
    seen = []

    def run(rank, gather_from_all):
        module = network()
        subject = evolution(module, evaluation="plain", samples_per_generation=10, shaping="raw")
        subject.ranks = Ranks(groups, parts, rank, gather_from_all)

        def fitness(x):
            seen.append(x)
            return module(x).mean()

        assert subject.evaluate(fitness, data(seed=rank % parts))
        statistics = subject.statistics()
        return subject.conclude().fitness, statistics["fitness_mean"]

    found = together(run, groups * parts)
    samples = torch.cat(list({x.data_ptr(): x for x in seen}.values()))
    assert sum(len(x) for x in seen) == 10 * MEMBERS
    single = evolution(module := network(), evaluation="plain", shaping="raw")
    values = []
    single.evaluate(lambda x: values.append(float(module(samples).mean())) or 0.0, samples)
    assert found[0][1] == pytest.approx(sum(values) / MEMBERS, rel=1e-12)
    torch.testing.assert_close(found[0][0], torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_a_resumed_window_is_the_uninterrupted_one(tmp_path):
    module, parts = network(), data().split(4)
    subject = evolution(module)
    for part in parts[:2]:
        subject.evaluate(fitness_of(module), part)
    torch.save(subject.state_dict(RandomState(CPU)), tmp_path / "evolution.pt")
    twin = copy.deepcopy(module)
    update = generation(subject, module, parts[2])

    resumed = evolution(twin)
    resumed.load_state_dict(torch.load(tmp_path / "evolution.pt", weights_only=True), CPU)
    again = generation(resumed, twin, parts[2])
    assert torch.equal(again.fitness, update.fitness)
    assert again.weights == update.weights
    torch.testing.assert_close(update.fitness, expected(*parts), rtol=1e-12, atol=1e-12)


def test_the_recorded_fitness_gives_the_same_update():
    module = network()
    update = generation(evolution(module), module, data())
    replayed = evolution(module)
    replayed.recall(update.fitness)
    again = replayed.conclude()
    assert torch.equal(again.fitness, update.fitness)
    assert again.weights == update.weights


def test_a_nan_fails_the_member_and_a_missing_sample_does_not():
    module = network()
    subject = evolution(module, evaluation="plain")
    members = iter(range(MEMBERS))

    def fitness(x):
        values = module(x)[:, 0]
        member = next(members)
        values = values.index_fill(0, torch.tensor([0]), math.nan) if member < 2 else values
        return Fitness(values, missing=torch.arange(len(x)) == (0 if member == 0 else -1))

    subject.evaluate(fitness, data())
    assert subject.statistics()["failed_members"] == 1
    with pytest.warns(UserWarning, match="1 of 8 members is NaN"):
        assert subject.conclude().fitness.isnan().tolist() == [False, True, *[False] * 6]


def test_a_member_that_reports_something_else_is_refused():
    subject = evolution(network(), evaluation="plain")
    values = iter([Fitness(1.0, 2.0), 1.0] * 4)
    with pytest.raises(ValueError, match="reported a number and a number with a tie breaker for the same batch"):
        subject.evaluate(lambda x: next(values), data())
