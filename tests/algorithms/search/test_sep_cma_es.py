"""Separable CMA-ES: one generation against its equations in NumPy, the shape that it learns, and its memory."""

import math

import numpy
import pytest
import torch

from lightning_evo.algorithms import SepCMAEvolutionStrategy
from lightning_evo.algorithms.search.search import expected_length


def by_the_equations(n, members, sigma, samples, fitness):
    """Center, sigma and variances after each generation."""
    raw = (math.log((members + 1) / 2) - numpy.log(numpy.arange(1, members + 1))).clip(min=0)
    w = raw / raw.sum()
    mu_eff = 1 / (w**2).sum()
    c_s = min(0.5, (mu_eff + 2) / (n + mu_eff + 3))
    d_s = 1 + 2 * max(0, max(1, 3 - 3 * 2 ** (-n / 9)) * math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_s
    c_c = (1 + 1 / n + mu_eff / n) / (n**0.5 + 1 / n + 2 * mu_eff / n)
    c_1 = 1 / (n + 2 * n**0.5 + mu_eff / n)
    c_mu = min(1 - c_1, (0.25 + mu_eff + 1 / mu_eff - 2) / (n + 4 * n**0.5 + mu_eff / 2))
    c, p_s, p_c, found = numpy.ones(n), numpy.zeros(n), numpy.zeros(n), []
    for g, (m, x, f) in enumerate(zip(*samples, fitness, strict=True), start=1):
        y = (x - m)[numpy.argsort(-f)] / sigma
        step = w @ y
        p_s = (1 - c_s) * p_s + math.sqrt(c_s * (2 - c_s) * mu_eff) * step / numpy.sqrt(c)
        h = (p_s @ p_s) / (1 - (1 - c_s) ** (2 * g)) < n * (2 + 4 / (n + 1))
        p_c = (1 - c_c) * p_c + h * math.sqrt(c_c * (2 - c_c) * mu_eff) * step
        keep = 1 - c_1 - c_mu + (1 - h) * c_1 * c_c * (2 - c_c)
        c = keep * c + c_1 * p_c**2 + c_mu * w @ y**2
        center, sigma = (
            m + sigma * step,
            sigma * math.exp(min(1, c_s / d_s * (numpy.linalg.norm(p_s) / expected_length(n) - 1))),
        )
        found.append((center, sigma, c))
    return found


@pytest.mark.parametrize(("n", "members"), [(3, 4), (10, 10), (25, 7)])
def test_equals_the_equations(n, members):
    algorithm = SepCMAEvolutionStrategy(population=members, sigma=0.4)
    scales = torch.logspace(0, 4, n, dtype=torch.float64)
    states, means, samples, fitness = [algorithm.init(torch.ones(n, dtype=torch.float64), seed=5)], [], [], []
    for _ in range(40):
        population = algorithm.ask(states[-1])
        means.append(states[-1].center.numpy())
        samples.append(population.vectors().numpy())
        fitness.append(-(population.vectors().square() @ scales))
        states.append(algorithm.tell(states[-1], population, fitness[-1]))
    expected = by_the_equations(n, members, 0.4, (means, samples), [each.numpy() for each in fitness])
    for state, (center, sigma, variances) in zip(states[1:], expected, strict=True):
        # steps are in float32
        numpy.testing.assert_allclose(state.center.numpy(), center, rtol=1e-5, atol=1e-6)
        assert state.sigma == pytest.approx(sigma, rel=1e-5)
        numpy.testing.assert_allclose(state.variances.numpy(), variances, rtol=1e-4)


def test_variances_become_the_inverse_hessian():
    n = 8
    scales = torch.logspace(0, 4, n, dtype=torch.float64)
    algorithm = SepCMAEvolutionStrategy(population=40, sigma=0.5)
    state = algorithm.init(torch.ones(n, dtype=torch.float64), seed=1)
    for _ in range(80):
        population = algorithm.ask(state)
        state = algorithm.tell(state, population, -(population.vectors().square() @ scales))
    product = state.variances * scales
    assert product.max() / product.min() < 4  # where those of one alone differ by 1e4


def test_converges_beyond_the_precision_of_its_steps():
    """They are relative to sigma, and the center is in float64."""
    algorithm = SepCMAEvolutionStrategy(sigma=0.5)
    state = algorithm.init(torch.ones(10, dtype=torch.float64), seed=1)
    scales = torch.logspace(0, 6, 10, dtype=torch.float64)
    for _ in range(500):
        population = algorithm.ask(state)
        fitness = -((population.vectors() - 100).square() @ scales)
        state = algorithm.tell(state, population, fitness)
        if fitness.max() > -1e-14:
            break
    assert (state.center - 100).square() @ scales < 1e-12


def test_chunks_do_not_show():
    """More elements than are summed at a time, of which the last part is not full."""
    algorithm = SepCMAEvolutionStrategy(population=4, sigma=0.5)
    center = torch.zeros(40_000, dtype=torch.float64)
    state = algorithm.init(center, seed=1)
    y = algorithm.steps(state).double()
    learnt = algorithm.tell(state, algorithm.ask(state), torch.tensor([2.0, 3.0, 1.0, 0.0]))
    raw = [math.log(2.5), math.log(2.5) - math.log(2)]
    w = [raw[0] / sum(raw), raw[1] / sum(raw)]
    torch.testing.assert_close(learnt.center, 0.5 * (w[0] * y[1] + w[1] * y[0]), rtol=1e-5, atol=1e-7)


def test_a_large_search_holds_five_vectors_beside_its_members():
    algorithm = SepCMAEvolutionStrategy(population=4, sigma=0.5, noeffectcoord=False)
    state = algorithm.init(torch.zeros(1000), seed=1)
    for _ in range(3):
        population = algorithm.ask(state)
        assert population.perturbation.table.dtype == torch.float32
        state = algorithm.tell(state, population, -population.vectors().square().sum(1))
    held = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    assert sorted(value.numel() for value in held) == [1000] * 5  # center, start, two paths, variances
