"""Differential evolution, particle swarm and genetic algorithm: steps by hand, failures, bounds, and stale fitness."""

import io
import math
from dataclasses import replace

import numpy
import pytest
import torch

from lightning_evo import algorithms
from lightning_evo.algorithms.search.members import uniform

NAMES = ["differential_evolution", "particle_swarm", "genetic"]


def sphere(x):
    return -x.square().sum(-1)


def run(name, generations, start=1.0, **options):
    algorithm = algorithms.get(name)(**{"population": 8, "sigma": 0.5, **options})
    state = algorithm.init(torch.full((3,), start, dtype=torch.float64), seed=2)
    for _ in range(generations):
        population = algorithm.ask(state)
        state = algorithm.tell(state, population, sphere(population.vectors()))
    return algorithm, state


@pytest.mark.parametrize("mutation", ["rand_1", "best_1"])
def test_differential_evolution_by_hand(mutation):
    options = {"mutation": mutation, "weight": 0.7, "crossover": 0.4, "reevaluate": 0}
    algorithm, state = run("differential_evolution", 2, **options)
    x, trials = state.members.numpy(), algorithm.ask(state).vectors().numpy()
    order = uniform(state, 1, 8, 8).numpy()
    crossing, one = uniform(state, 2, 8, 3).numpy() < 0.4, uniform(state, 3, 8, 2).numpy()[:, 0]
    for i in range(8):
        others = [k for k in numpy.argsort(order[i], kind="stable") if k != i][:3]
        assert len({i, *others}) == 4
        base = x[others[0]] if mutation == "rand_1" else state.center.numpy()
        v = base + 0.7 * (x[others[1]] - x[others[2]])
        crossing[i, int(one[i] * 3)] = True
        numpy.testing.assert_allclose(trials[i], numpy.where(crossing[i], v, x[i]), rtol=1e-9)
    fitness = sphere(torch.from_numpy(trials))
    following = algorithm.tell(state, algorithm.ask(state), fitness)
    wins = fitness >= state.fitness
    assert torch.equal(following.fitness, torch.maximum(fitness, state.fitness))
    numpy.testing.assert_allclose(following.members[wins], trials[wins], rtol=1e-9)
    assert torch.equal(following.members[~wins], state.members[~wins])
    assert torch.equal(following.center, following.members[following.fitness.argmax()])


def test_shade_remembers_what_succeeded():
    algorithm, state = run("differential_evolution", 1, history=4)
    population = algorithm.ask(state)
    assert len(population) == 16  # the parents again
    x = population.vectors()
    torch.testing.assert_close(x[8:], state.members)
    fitness = sphere(x)
    following = algorithm.tell(state, population, fitness)
    F, CR = (value[:, 0] for value in algorithm._parameters(state, 8))
    gain = (fitness[:8] - fitness[8:]).clamp(min=0)
    w = gain / gain.sum()
    assert float(following.weight_memory[0]) == pytest.approx(float((w @ F**2) / (w @ F)))
    assert float(following.crossover_memory[0]) == pytest.approx(float(w @ CR))
    assert following.weight_memory[1:].tolist() == [0.5] * 3
    assert following.slot == 1
    torch.testing.assert_close(following.archive, state.members[gain > 0])
    for _ in range(30):
        population = algorithm.ask(following)
        following = algorithm.tell(following, population, sphere(population.vectors()))
    assert len(following.archive) <= 8


def test_particle_swarm_by_hand():
    algorithm, state = run("particle_swarm", 3, inertia=0.6, cognitive=1.2, social=1.7, reevaluate=0)
    r1, r2 = uniform(state, 1, 8, 3), uniform(state, 2, 8, 3)
    best, x, v = state.members, state.positions, state.velocities
    v = 0.6 * v + 1.2 * r1 * (best - x) + 1.7 * r2 * (state.center - x)
    population = algorithm.ask(state)
    torch.testing.assert_close(population.vectors(), x + v)
    following = algorithm.tell(state, population, sphere(population.vectors()))
    torch.testing.assert_close(following.velocities, v)
    better = sphere(x + v) > state.fitness
    torch.testing.assert_close(following.members, torch.where(better[:, None], x + v, best))


@pytest.mark.parametrize("selection", ["truncation", "tournament"])
def test_genetic_by_hand(selection):
    algorithm, state = run("genetic", 2, selection=selection, elites=2, parents=0.5, crossover=1.0, tournament=3)
    x, found = state.members.numpy(), algorithm.ask(state).vectors().numpy()
    order = numpy.argsort(-state.fitness.numpy())
    numpy.testing.assert_allclose(found[:2], x[order[:2]], rtol=1e-9)
    rounds = 3 if selection == "tournament" else 1
    u, crossing = uniform(state, 1, 8, 2 * rounds).numpy(), uniform(state, 2, 8, 3).numpy() < 0.5
    noise = algorithm.normal(state).numpy()
    pool = 8 if selection == "tournament" else 4
    for i in range(2, 8):
        one, two = (order[(u[i, k * rounds : (k + 1) * rounds] * pool).astype(int).min()] for k in (0, 1))
        expected = numpy.where(crossing[i], x[two], x[one]) + 0.5 * noise[i]
        numpy.testing.assert_allclose(found[i], expected, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_member_is_never_kept_as_the_best(name):
    algorithm, state = run(name, 0)
    for _ in range(3):
        population = algorithm.ask(state)
        fitness = sphere(population.vectors())
        fitness[int(fitness.argmax())] = math.nan
        before = fitness.nan_to_num(-math.inf)
        state = algorithm.tell(state, population, fitness)
        assert float(sphere(state.center)) == pytest.approx(float(before.max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("repair", ["midpoint", "reflect"])
def test_bounds(name, repair):
    options = {"repair": repair} if name == "differential_evolution" else {}
    algorithm, state = run(name, 0, start=0.9, bounds=[0.5, 1.0], sigma=2.0, **options)
    for _ in range(10):
        population = algorithm.ask(state)
        x = population.vectors()
        assert ((x >= 0.5 - 1e-12) & (x <= 1 + 1e-12)).all()
        state = algorithm.tell(state, population, sphere(x))
    assert float(state.center.max()) < 0.6
    with pytest.raises(ValueError, match="bounds must be two numbers, the lower one first"):
        algorithms.get(name)(bounds=(1, 0))


@pytest.mark.parametrize("name", ["differential_evolution", "particle_swarm"])
def test_a_lucky_member_stays_no_longer_than_its_batch(name):
    for reevaluate, expected in ((1, False), (0, True)):
        algorithm, state = run(name, 2, reevaluate=reevaluate)
        population = algorithm.ask(state)
        state = algorithm.tell(state, population, sphere(population.vectors()) + 100)  # an easy batch
        stored = state.fitness.clone()
        population = algorithm.ask(state)
        state = algorithm.tell(state, population, sphere(population.vectors()))
        assert torch.equal(state.fitness, stored) == expected
        assert len(population) == (8 if expected else 16)


@pytest.mark.parametrize("name", NAMES)
def test_a_center_that_was_moved_takes_the_elites_place(name):
    algorithm, state = run(name, 2)
    moved = replace(state, center=torch.full((3,), 0.01, dtype=torch.float64))
    population = algorithm.ask(moved)
    following = algorithm.tell(moved, population, sphere(population.vectors()))
    assert float(sphere(following.center)) >= float(sphere(moved.center)) - 1e-12


@pytest.mark.parametrize("name", [*NAMES, "xnes", "snes", "pgpe", "cem"])
def test_a_saved_state_goes_on_bit_for_bit(name):
    algorithm, state = run(name, 3)
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    loaded = algorithm.State.from_state_dict(torch.load(file, weights_only=True))
    for _ in range(2):
        population, again = algorithm.ask(state), algorithm.ask(loaded)
        assert torch.equal(population.vectors(), again.vectors())
        state = algorithm.tell(state, population, sphere(population.vectors()))
        loaded = algorithm.tell(loaded, again, sphere(again.vectors()))
    assert torch.equal(state.center, loaded.center)


def test_differential_evolution_is_no_worse_than_scipys():
    optimize = pytest.importorskip("scipy.optimize")
    _, state = run("differential_evolution", 100, population=15, reevaluate=0)
    peer = optimize.differential_evolution(
        lambda x: float((x**2).sum()), [(-0.5, 2.5)] * 3, popsize=5, maxiter=100, seed=1, tol=0, polish=False,
        updating="deferred",
    )  # fmt: skip
    assert -float(sphere(state.center)) < max(1e-8, 10 * peer.fun)
