"""CMA-ES against the tutorial's equations in NumPy, against pycma, and on functions whose shape is known."""

import math

import numpy
import pytest
import torch

from lightning_evo import algorithms
from lightning_evo.algorithms import CMAEvolutionStrategy
from lightning_evo.algorithms.search.cma_es import Constants
from lightning_evo.algorithms.search.search import expected_length


def ellipsoid(x, condition=1e6):
    """Negative, for vectors in rows."""
    scales = condition ** torch.linspace(0, 1, x.shape[-1], dtype=torch.float64)
    return -(x.square() * scales).sum(-1)


def sphere(x):
    return -x.square().sum(-1)


def rosenbrock(x):
    return -(100 * (x[..., 1:] - x[..., :-1] ** 2).square() + (1 - x[..., :-1]).square()).sum(-1)


def start(dimension, value=1.0):
    return torch.full((dimension,), value, dtype=torch.float64)


def run(algorithm, state, function, generations, target=math.inf):
    for _ in range(generations):
        population = algorithm.ask(state)
        fitness = function(population.vectors())
        state = algorithm.tell(state, population, fitness)
        if fitness.max() > target:
            break
    return state


def by_the_tutorial(n, members, sigma, samples, fitness):
    """Center, sigma and C after each generation, by arXiv:1604.00772 with the constants that pycma has."""
    raw = math.log((members + 1) / 2) - numpy.log(numpy.arange(1, members + 1))
    better, worse = raw.clip(min=0), raw.clip(max=0)
    mu_eff, mu_eff_minus = better.sum() ** 2 / (better**2).sum(), worse.sum() ** 2 / (worse**2).sum()
    c_1 = min(1, members / 6) * 2 / ((n + 1.3) ** 2 + mu_eff)
    c_mu = min(1 - c_1, 2 * (0.25 + mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff))
    c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)
    c_s = min(0.5, (mu_eff + 2) / (n + mu_eff + 3))
    d_s = 1 + 2 * max(0, max(1, 3 - 3 * 2 ** (-n / 9)) * math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_s
    alpha = min(1 + c_1 / c_mu, 1 + 2 * mu_eff_minus / (mu_eff + 2), (1 - c_1 - c_mu) / (n * c_mu))
    w = better / better.sum() - alpha * worse / worse.sum()
    gap = 1 / (10 * n * (c_1 + c_mu))
    c, p_s, p_c, last, root = numpy.eye(n), numpy.zeros(n), numpy.zeros(n), 0, numpy.eye(n)
    center, found = None, []
    for g, (m, x, f) in enumerate(zip(samples[0], samples[1], fitness, strict=True), start=1):
        y = (x - m)[numpy.argsort(-f)] / sigma
        step = sum(w[i] * y[i] for i in range(members) if w[i] > 0)
        center = m + sigma * step
        inverse = numpy.linalg.inv(root)
        p_s = (1 - c_s) * p_s + math.sqrt(c_s * (2 - c_s) * mu_eff) * inverse @ step
        h = (p_s @ p_s) / (1 - (1 - c_s) ** (2 * g)) / n - 1 < 1 + 4 / (n + 1)
        p_c = (1 - c_c) * p_c + h * math.sqrt(c_c * (2 - c_c) * mu_eff) * step
        c = (1 + (1 - h) * c_1 * c_c * (2 - c_c) - c_1 - c_mu * w.sum()) * c + c_1 * numpy.outer(p_c, p_c)
        for i in range(members):
            factor = w[i] if w[i] > 0 else w[i] * n / (numpy.linalg.norm(inverse @ y[i]) + 1e-9) ** 2
            c += c_mu * factor * numpy.outer(y[i], y[i])
        sigma *= math.exp(min(1, c_s / d_s * (numpy.linalg.norm(p_s) / float(expected_length(n)) - 1)))
        if g >= last + gap:
            values, vectors = numpy.linalg.eigh(c)
            root, last = vectors * numpy.sqrt(values) @ vectors.T, g
        found.append((center, sigma, c))
    return found


@pytest.mark.parametrize(("n", "members"), [(5, 8), (3, 5), (8, 30)])
def test_equals_the_equations(n, members):
    algorithm = CMAEvolutionStrategy(population=members, sigma=0.3)
    states, means, samples, fitness = [algorithm.init(start(n), seed=5)], [], [], []
    for _ in range(40):
        population = algorithm.ask(states[-1])
        means.append(states[-1].center.numpy())
        samples.append(population.vectors().numpy())
        fitness.append(ellipsoid(population.vectors()).numpy())
        states.append(algorithm.tell(states[-1], population, torch.from_numpy(fitness[-1])))
    for state, (center, sigma, c) in zip(
        states[1:], by_the_tutorial(n, members, 0.3, (means, samples), fitness), strict=True
    ):
        numpy.testing.assert_allclose(state.center.numpy(), center, rtol=1e-9, atol=1e-12)
        assert state.sigma == pytest.approx(sigma, rel=1e-9)
        numpy.testing.assert_allclose(state.covariance.numpy(), c, rtol=1e-8, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*is not a safe string")  # pycma's, of its own default
@pytest.mark.parametrize(("n", "members", "generations"), [(5, 8, 30), (10, 10, 60), (10, 100, 20), (40, 15, 60)])
def test_equals_pycma_told_the_same_members(n, members, generations):
    cma = pytest.importorskip("cma")
    algorithm = CMAEvolutionStrategy(population=members, sigma=0.5)
    state = algorithm.init(start(n), seed=3)
    options = {"popsize": members, "verbose": -9, "verb_log": 0, "signals_filename": None, "seed": 5}
    peer = cma.CMAEvolutionStrategy(numpy.ones(n), 0.5, options)
    peer.sm.C, peer.sm.D, peer.sm.B = numpy.eye(n), numpy.ones(n), numpy.eye(n)  # it begins with 1 + 1e-4 somewhere
    chi = expected_length(n)
    cma.utilities.math.MathHelperFunctions._chiN_dict[n] = chi  # it has an approximation above n = 6
    for _ in range(generations):
        population = algorithm.ask(state)
        vectors, fitness = population.vectors(), ellipsoid(population.vectors())
        peer.ask()
        peer.tell(list(vectors.numpy()), list(-fitness.numpy()), check_points=False)
        state = algorithm.tell(state, population, fitness)
        numpy.testing.assert_allclose(state.center.numpy(), peer.mean, rtol=1e-10, atol=1e-12)
        assert state.sigma == pytest.approx(peer.sigma, rel=1e-10)
        numpy.testing.assert_allclose(state.covariance.numpy(), peer.sm.C, rtol=1e-9, atol=1e-11)


def test_the_covariance_becomes_the_inverse_hessian():
    """Up to a factor, in any rotation: C is proportional to A^-1 on x^T A x."""
    n = 6
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    hessian = rotation @ torch.diag(torch.logspace(0, 3, n, dtype=torch.float64)) @ rotation.T
    algorithm = CMAEvolutionStrategy(population=40, sigma=0.5)
    state = run(algorithm, algorithm.init(start(n), seed=1), lambda x: -((x @ hessian) * x).sum(1), 120)
    product = state.covariance @ hessian
    eigenvalues = torch.linalg.eigvals(product).real
    # Equal eigenvalues but for noise of the samples; those of C alone differ by a factor of 1,000.
    assert eigenvalues.max() / eigenvalues.min() < 4
    assert torch.linalg.cond(state.covariance) > 300


@pytest.mark.parametrize(
    ("function", "begin", "evaluations"),
    # medians of pycma 4.5 over 51 seeds, population 10, sigma 0.5, to 1e-8: 1,380, 4,690 and 5,500 or so
    [(sphere, 1.0, 2000), (ellipsoid, 1.0, 6500), (rosenbrock, 0.0, 8000)],
)
def test_converges_in_about_as_many_evaluations_as_pycma(function, begin, evaluations):
    algorithm = CMAEvolutionStrategy(sigma=0.5)
    state = run(algorithm, algorithm.init(start(10, begin), seed=1), function, evaluations // 10, -1e-9)
    assert function(state.center) > -1e-8


def test_a_large_condition_becomes_a_transformation_of_space():
    """The distribution stays as it is, and a condition of 1e14 is no obstacle."""
    scales = torch.logspace(0, 14, 5, dtype=torch.float64)
    algorithm = CMAEvolutionStrategy(population=10, sigma=0.5, tolconditioncov=0, noeffectaxis=False)
    state = algorithm.init(start(5), seed=2)
    transformed = None
    for _ in range(900):
        population = algorithm.ask(state)
        following = algorithm.tell(state, population, -(population.vectors().square() @ scales))
        if following.transform is not None and transformed is None:
            transformed = following
            old = state.axes @ torch.diag(state.lengths**2) @ state.axes.T
            new = following.transform @ following.transform.T
            torch.testing.assert_close(new.diagonal() / new[0, 0], old.diagonal() / old[0, 0], rtol=0.5, atol=0)
            assert following.covariance is None
            assert following.axes is None
        state = following
        if state.center.square() @ scales < 1e-8:
            break
    assert transformed is not None
    assert state.center.square() @ scales < 1e-8
    spread = algorithm.spread(state)
    population = algorithm.steps(state)
    assert population.std(0).log10().sub(spread.deviations.log10()).abs().max() < 0.5


def test_a_generation_that_ties_teaches_nothing():
    algorithm = CMAEvolutionStrategy(population=6, sigma=1.0)
    state = run(algorithm, algorithm.init(start(3), seed=0), sphere, 5)
    learnt, lesson = algorithm.learn(state, algorithm.ask(state), torch.full((6,), 2.0), 3)
    assert not lesson
    assert learnt.sigma == state.sigma
    for name in ("path", "path_c", "covariance", "axes", "lengths"):
        assert getattr(learnt, name) is getattr(state, name)


def test_failed_members_leave_no_trace():
    """Six members of which two failed are four."""
    six, four = (CMAEvolutionStrategy(population=members, sigma=1.0) for members in (6, 4))
    state = six.init(start(3), seed=0)
    fitness = torch.tensor([3.0, 1.0, 4.0, 2.0, math.nan, math.nan])
    learnt, lesson = six.learn(state, six.ask(state), fitness, 3)
    expected, other = four.learn(state, four.ask(state), fitness[:4], 3)
    torch.testing.assert_close(lesson.center, other.center)
    torch.testing.assert_close(learnt.covariance, expected.covariance)
    assert learnt.sigma == pytest.approx(expected.sigma)


def test_members_of_equal_fitness_are_exchangeable():
    algorithm = CMAEvolutionStrategy(population=4, sigma=1.0)
    state = algorithm.init(start(2), seed=0)
    population = algorithm.ask(state)
    y = population.vectors() - 1
    learnt, lesson = algorithm.learn(state, population, torch.tensor([1.0, 1.0, 0.0, 0.0]), 2)
    torch.testing.assert_close(lesson.center, 1 + (y[0] + y[1]) / 2)
    c = Constants.of(2, 4, 2.0, 2.0)
    path = math.sqrt(c.c_c * (2 - c.c_c) * 2) * (y[0] + y[1]) / 2
    norms = y.norm(dim=1)
    expected = (1 - c.c_1 - c.c_mu * (1 - c.negative)) * torch.eye(2, dtype=torch.float64)
    expected += c.c_1 * torch.outer(path, path)
    for i, weight in enumerate([0.5, 0.5, -c.negative / 2, -c.negative / 2]):
        expected += c.c_mu * weight * (1 if weight > 0 else 2 / norms[i] ** 2) * torch.outer(y[i], y[i])
    torch.testing.assert_close(learnt.covariance, expected)


def test_without_negative_weights():
    """As in the tutorial's first part: the worse half says nothing about the covariance matrix."""
    algorithm = CMAEvolutionStrategy(population=6, sigma=1.0, active=False)
    state = algorithm.init(start(3), seed=0)
    fitness = torch.tensor([3.0, 1.0, 4.0, 2.0, 0.0, 5.0])
    one, _ = algorithm.learn(state, algorithm.ask(state), fitness, 3)
    fitness[[3, 1, 4]] = fitness[[1, 4, 3]]
    other, _ = algorithm.learn(state, algorithm.ask(state), fitness, 3)
    torch.testing.assert_close(one.covariance, other.covariance)


def test_the_population_follows_the_dimension():
    algorithm = algorithms.get("cma_es")()
    for dimension, members in ((1, 4), (2, 6), (10, 10), (40, 15), (1000, 24)):
        state = algorithm.init(start(dimension), seed=0)
        assert len(algorithm.ask(state)) == algorithm.current_population(state) == members
    with pytest.raises(ValueError, match="This search has no center yet. Give `init` a vector"):
        algorithm.current_population(algorithm.init())


def test_one_dimension():
    algorithm = CMAEvolutionStrategy(sigma=1.0)
    state = run(algorithm, algorithm.init(start(1), seed=0), sphere, 80)
    assert abs(float(state.center)) < 1e-5


def test_a_state_round_trips():
    algorithm = CMAEvolutionStrategy(sigma=0.5)
    state = run(algorithm, algorithm.init(start(4), seed=0), ellipsoid, 12)
    again = algorithm.State.from_state_dict(state.state_dict())
    for name, value in vars(state).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
