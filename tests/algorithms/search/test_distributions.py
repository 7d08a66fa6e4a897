"""xnes, snes, pgpe and cem: one generation against the papers' formulas, written once more in NumPy."""

import math

import numpy
import pytest
import torch

from lightning_evo import algorithms

DIMENSION = 4


def after(name, generations=3, **options):
    """A state that has learnt, its population and fitness, and the state after it."""
    algorithm = algorithms.get(name)(sigma=0.5, **options)
    state = algorithm.init(torch.ones(DIMENSION, dtype=torch.float64), seed=3)
    for _ in range(generations):
        before, population = state, algorithm.ask(state)
        fitness = -(population.vectors() ** 2 @ torch.tensor([1.0, 2.0, 4.0, 8.0]).double())
        state = algorithm.tell(state, population, fitness)
    return before, population, fitness.numpy(), state


def utilities(fitness):
    members = len(fitness)
    raw = [max(0.0, math.log(members / 2 + 1) - math.log(i)) for i in range(1, members + 1)]
    u = numpy.empty(members)
    u[numpy.argsort(-fitness)] = numpy.array(raw) / sum(raw) - 1 / members
    return u


def test_snes():
    before, population, fitness, state = after("snes", population=9)
    deviations = before.sigma * before.scales.numpy()
    z = (population.vectors() - before.center).numpy() / deviations
    u = utilities(fitness)
    eta = (3 + math.log(DIMENSION)) / (5 * math.sqrt(DIMENSION))
    numpy.testing.assert_allclose(state.center, before.center.numpy() + deviations * (u @ z), rtol=1e-9)
    expected = deviations * numpy.exp(eta / 2 * (u @ (z**2 - 1)))
    numpy.testing.assert_allclose(state.sigma * state.scales.numpy(), expected, rtol=1e-9)
    assert float(state.scales.log().mean()) == pytest.approx(0, abs=1e-12)


def test_xnes():
    before, population, fitness, state = after("xnes", population=9)
    A = before.sigma * before.B.numpy()
    z = numpy.linalg.solve(A, (population.vectors() - before.center).numpy().T).T
    u = utilities(fitness)
    eta = 3 * (3 + math.log(DIMENSION)) / (5 * DIMENSION * math.sqrt(DIMENSION))
    M = sum(w * (numpy.outer(x, x) - numpy.eye(DIMENSION)) for w, x in zip(u, z, strict=True))
    values, vectors = numpy.linalg.eigh(eta / 2 * M)  # whose rates are equal: one exponential has both
    expected = A @ (vectors * numpy.exp(values)) @ vectors.T
    numpy.testing.assert_allclose(state.center, before.center.numpy() + A @ (u @ z), rtol=1e-9)
    numpy.testing.assert_allclose(state.sigma * state.B.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert float(torch.linalg.det(state.B)) == pytest.approx(1, rel=1e-9)


def test_pgpe():
    before, population, fitness, state = after("pgpe", population=10)
    deviations = before.sigma * before.scales.numpy()
    steps = (population.vectors() - before.center).numpy()
    numpy.testing.assert_allclose(steps[::2], -steps[1::2], atol=1e-12)
    r = numpy.argsort(numpy.argsort(fitness)) / 9 - 0.5
    g = ((r[::2] - r[1::2]) / 2) @ steps[::2]
    largest = 0.5 * math.sqrt(DIMENSION) / 15
    v = 0.9 * before.velocity.numpy() + 0.75 * largest * g / numpy.linalg.norm(g)
    v *= min(1, largest / numpy.linalg.norm(v))
    numpy.testing.assert_allclose(state.center, before.center.numpy() + v, rtol=1e-9)
    grad = (((r[::2] + r[1::2]) / 2) @ ((steps[::2] ** 2 - deviations**2) / deviations)) / 5
    change = numpy.clip(0.1 * grad, -0.2 * deviations, 0.2 * deviations)
    numpy.testing.assert_allclose(state.sigma * state.scales.numpy(), deviations + change, rtol=1e-9)


def test_pgpe_changes_deviations_by_a_fifth_at_most():
    before, _, _, state = after("pgpe", population=10, sigma_learning_rate=1e6)
    change = (state.sigma * state.scales / (before.sigma * before.scales)).numpy()
    numpy.testing.assert_allclose(numpy.abs(change - 1), 0.2, rtol=1e-9)


def test_cem():
    before, population, fitness, state = after("cem", population=10, elites=0.3, smoothing=0.7)
    x, center = population.vectors().numpy(), before.center.numpy()
    elites = x[numpy.argsort(-fitness)[:3]]
    deviations = before.sigma * before.scales.numpy()
    expected = (0.7 * elites.std(0) + 0.3 * deviations) ** 2 + 0.01 * 0.95**2 * 0.5**2
    numpy.testing.assert_allclose(state.center, 0.7 * elites.mean(0) + 0.3 * center, rtol=1e-9)
    numpy.testing.assert_allclose((state.sigma * state.scales.numpy()) ** 2, expected, rtol=1e-9)
    again = algorithms.get("cem")(population=10).ask(state).vectors()
    numpy.testing.assert_allclose(again[0], elites[0], rtol=1e-9)  # the best is evaluated again


@pytest.mark.parametrize(("name", "bound"), [("snes", 1e-8), ("xnes", 1e-8)])
def test_natural_gradients_converge_on_an_ellipsoid(name, bound):
    *_, state = after(name, 500)
    assert float(state.center.norm()) < bound


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pgpe", {"population": 5}, "population must be an even number"),
        ("pgpe", {"momentum": 1.0}, "momentum must be a number in"),
        ("cem", {"elites": 1.0}, "elites must be a number in"),
        ("cem", {"smoothing": 0.0}, "smoothing must be a number in"),
    ],
)
def test_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        algorithms.get(name)(**options)
