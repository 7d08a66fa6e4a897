"""The (mu/mu_w, lambda)-ES against the tutorial's equations, written once more in NumPy."""

import math

import numpy
import pytest
import torch

from lightning_evo import algorithms
from lightning_evo.algorithms import CSAEvolutionStrategy
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw

DIMENSION = 6


def ellipsoid(x):
    return -(x**2 * 10.0 ** numpy.linspace(0, 2, DIMENSION)).sum(-1)


def by_the_tutorial(members, sigma, seed, generations):
    """Centers and step sizes by arXiv:1604.00772, with the covariance matrix left at the identity."""
    n, mu = DIMENSION, members // 2
    w = numpy.array([math.log((members + 1) / 2) - math.log(i) for i in range(1, mu + 1)])
    w /= w.sum()
    mu_eff = w.sum() ** 2 / (w**2).sum()
    c = (mu_eff + 2) / (n + mu_eff + 5)
    d = 1 + 2 * max(0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c
    chi = math.sqrt(2) * math.gamma((n + 1) / 2) / math.gamma(n / 2)
    m, path = numpy.ones(n), numpy.zeros(n)
    found = []
    for g in range(generations):
        z = draw(NoiseKey(seed, g), range(members), 0, 0, n, dtype=torch.float64).numpy()
        x = m + sigma * z
        best = numpy.argsort(-ellipsoid(x))[:mu]
        step = (w[:, None] * z[best]).sum(0)
        m = (w[:, None] * x[best]).sum(0)
        path = (1 - c) * path + math.sqrt(c * (2 - c) * mu_eff) * step
        sigma *= math.exp(c / d * (numpy.linalg.norm(path) / chi - 1))
        found.append((m, sigma))
    return found


@pytest.mark.parametrize("members", [4, 7, 20])
def test_equals_the_equations(members):
    algorithm = CSAEvolutionStrategy(population=members, sigma=0.3)
    state = algorithm.init(torch.ones(DIMENSION, dtype=torch.float64), seed=5)
    for center, sigma in by_the_tutorial(members, 0.3, 5, 40):
        population = algorithm.ask(state)
        assert len(population) == members
        state = algorithm.tell(state, population, torch.from_numpy(ellipsoid(population.vectors().numpy())))
        numpy.testing.assert_allclose(state.center.numpy(), center, rtol=1e-9, atol=1e-12)
        assert algorithm.current_sigma(state) == pytest.approx(sigma, rel=1e-9)
        assert population.sigma != state.sigma


def test_sigma_grows_on_a_slope_and_shrinks_at_the_optimum():
    algorithm = CSAEvolutionStrategy(population=12, sigma=0.1)
    for function, larger in ((lambda x: x.sum(1), True), (lambda x: -x.square().sum(1), False)):
        state = algorithm.init(torch.zeros(10, dtype=torch.float64), seed=0)
        for _ in range(60):
            population = algorithm.ask(state)
            state = algorithm.tell(state, population, function(population.vectors()))
        assert (state.sigma > 10) if larger else (state.sigma < 1e-3)


def test_ties_share_their_weights_and_failures_have_none():
    algorithm = CSAEvolutionStrategy(population=6, sigma=1.0)
    state = algorithm.init(torch.zeros(3, dtype=torch.float64), seed=0)
    z = algorithm.ask(state).vectors()
    w = [math.log(3.5) - math.log(i) for i in (1, 2, 3)]
    both = (w[0] + w[1]) / 2
    _, lesson = algorithm.learn(state, algorithm.ask(state), torch.tensor([2.0, 0, 2, 1, -1, -2]), 3)
    expected = (both * (z[0] + z[2]) + w[2] * z[3]) / sum(w)
    torch.testing.assert_close(lesson.center, expected)
    nan = math.nan
    _, lesson = algorithm.learn(state, algorithm.ask(state), torch.tensor([nan, 0, nan, 1, -1, -2]), 3)
    four = [math.log(2.5) - math.log(i) for i in (1, 2)]  # as if only four had been there
    torch.testing.assert_close(lesson.center, (four[0] * z[3] + four[1] * z[1]) / sum(four))


def test_a_generation_that_ties_changes_neither_center_nor_sigma():
    algorithm = CSAEvolutionStrategy(population=6, sigma=1.0)
    state = algorithm.init(torch.zeros(3), seed=0)
    for value in (3.0, math.nan, math.inf):
        learnt, lesson = algorithm.learn(state, algorithm.ask(state), torch.full((6,), value), 3)
        assert not lesson
        assert (learnt.generation, learnt.sigma, learnt.path) == (1, None, None)
        assert torch.equal(learnt.center, state.center)


def test_a_sigma_that_was_set_counts_and_goes_on_from_there():
    algorithm = CSAEvolutionStrategy(population=6, sigma=1.0)
    state = algorithm.init(torch.zeros(3), seed=0, sigma=1e-3)
    population = algorithm.ask(state)
    assert population.sigma == 1e-3
    learnt = algorithm.tell(state, population, population.vectors().sum(1))
    assert 0.3e-3 < learnt.sigma < 3e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 3}, "population must be a whole number >= 4 .half of them are the parents"),
        ({"sigma": 0.0}, "sigma must be a number > 0, got 0.0"),
        ({"rank": 4}, "'csa_es' has no option 'rank'"),
    ],
)
def test_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        algorithms.get("csa_es")(**options)


def test_without_a_center():
    algorithm = algorithms.get("csa_es")()
    with pytest.raises(ValueError, match="This search has no center yet. Give `init` a vector"):
        algorithm.ask(algorithm.init())
