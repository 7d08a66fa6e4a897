"""LM-MA-ES against the paper's Algorithm 1 in NumPy, and what it keeps in memory."""

import math

import numpy
import pytest
import torch

from lightning_evo.algorithms import LMMAEvolutionStrategy
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw


def by_the_paper(n, members, m, sigma, seed, generations, function):
    """Center, sigma and the vectors m_i after each generation."""
    raw = (math.log((members + 1) / 2) - numpy.log(numpy.arange(1, members + 1))).clip(min=0)
    w = raw / raw.sum()
    mu_eff = 1 / (w**2).sum()
    c_s = min(0.5, 2 * members / n)
    c_d = [1 / (1.5 ** (i - 1) * n) for i in range(1, m + 1)]
    c_c = [min(0.5, members / (4 ** (i - 1) * n)) for i in range(1, m + 1)]
    y, p, vectors, found = numpy.ones(n), numpy.zeros(n), numpy.zeros((m, n)), []
    for t in range(generations):
        z = draw(NoiseKey(seed, t), range(members), 0, 0, n, dtype=torch.float64).numpy()
        d = z.copy()
        for i in range(members):
            for j in range(min(t, m)):
                d[i] = (1 - c_d[j]) * d[i] + c_d[j] * vectors[j] * (vectors[j] @ d[i])
        order = numpy.argsort(-function(torch.from_numpy(y + sigma * d)).numpy())
        y = y + sigma * sum(w[k] * d[order[k]] for k in range(members))
        mean = sum(w[k] * z[order[k]] for k in range(members))
        p = (1 - c_s) * p + math.sqrt(mu_eff * c_s * (2 - c_s)) * mean
        for i in range(m):
            vectors[i] = (1 - c_c[i]) * vectors[i] + math.sqrt(mu_eff * c_c[i] * (2 - c_c[i])) * mean
        sigma *= math.exp(min(1, c_s / 2 * ((p @ p) / n - 1)))
        found.append((y, sigma, vectors.copy()))
    return found


def ellipsoid(x):
    return -(x.square() @ torch.logspace(0, 3, x.shape[1], dtype=torch.float64))


@pytest.mark.parametrize(("n", "members", "m"), [(60, 10, 5), (200, 16, None), (8, 6, 3)])
def test_equals_the_paper(n, members, m):
    algorithm = LMMAEvolutionStrategy(population=members, sigma=0.3, m=m)
    state = algorithm.init(torch.ones(n, dtype=torch.float64), seed=5)
    m = 4 + math.floor(3 * math.log(n)) if m is None else m
    for center, sigma, vectors in by_the_paper(n, members, m, 0.3, 5, 25, ellipsoid):
        population = algorithm.ask(state)
        state = algorithm.tell(state, population, ellipsoid(population.vectors()))
        # steps are in float32
        numpy.testing.assert_allclose(state.center.numpy(), center, rtol=1e-4, atol=1e-5)
        assert state.sigma == pytest.approx(sigma, rel=1e-4)
        numpy.testing.assert_allclose(state.directions.numpy(), vectors, rtol=1e-3, atol=1e-4)


def test_steps_become_long_along_a_valley():
    n = 30
    along = torch.ones(n, dtype=torch.float64) / math.sqrt(n)
    algorithm = LMMAEvolutionStrategy(population=12, sigma=0.1)
    state = algorithm.init(torch.full((n,), 3.0, dtype=torch.float64), seed=1)
    for _ in range(150):
        population = algorithm.ask(state)
        x = population.vectors()
        state = algorithm.tell(state, population, -(x.square().sum(1) - 0.9999 * (x @ along).square()))
    steps = LMMAEvolutionStrategy(population=500, sigma=0.1).steps(state).double()
    variance = (steps @ along).square().mean()
    across = (steps.square().sum(1).mean() - variance) / (n - 1)
    assert variance > 4 * across  # of 500 samples, each within 15 % or so


def test_members_are_made_when_they_are_needed():
    algorithm = LMMAEvolutionStrategy(population=6, sigma=0.1, m=3)
    state = algorithm.init(torch.zeros(50), seed=1)
    for _ in range(3):
        population = algorithm.ask(state)
        assert population.perturbation._made is None
        vectors = population.vectors()
        one = population.perturbation.noise([4], 0, state.center)[0]
        assert torch.equal(vectors[4], state.center + algorithm.current_sigma(state) * one)
        state = algorithm.tell(state, population, -vectors.square().sum(1))
    held = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in held) == (3 + 2) * 50  # directions, path, center
    assert torch.equal(algorithm.steps(state)[4], algorithm.ask(state).perturbation.noise([4], 0, state.center)[0])


def test_options():
    with pytest.raises(ValueError, match="m must be a whole number >= 1, got 0"):
        LMMAEvolutionStrategy(sigma=0.1, m=0)
