"""One step of every recipe against its paper's formula, written down again in NumPy."""

import numpy
import pytest
import torch
from scipy import stats

from lightning_evo.algorithms import available, get
from lightning_evo.noise import NoiseKey, draw

DIMENSION = 6
START = numpy.linspace(-1, 1, DIMENSION)


def fitness_of(theta):
    """Neither symmetric nor linear."""
    return numpy.sin(theta).sum() - (theta**2 * numpy.arange(1, DIMENSION + 1)).sum() + 0.3 * theta[0] * theta[1] ** 3


def one_step(name, seed=4, generation=2, **options):
    """The center after a step, and the noise ``[directions, d]`` as addressed by seed, generation and direction."""
    algorithm = get(name)(**options)
    state = algorithm.init(torch.from_numpy(START), seed=seed)
    for _ in range(generation):  # nothing to learn: on to the next noise
        state = algorithm.tell(state, algorithm.ask(state), torch.zeros(algorithm.population))
    population = algorithm.ask(state)
    fitness = torch.tensor([fitness_of(member) for member in population.vectors().numpy()], dtype=torch.float64)
    directions = algorithm.population // (2 if algorithm.antithetic else 1)
    noise = draw(NoiseKey(seed, generation), range(directions), 0, 0, DIMENSION, dtype=torch.float64).numpy()
    return algorithm.tell(state, population, fitness).center.numpy(), noise


def close(actual, expected):
    # 1e-9 of the step, not of the center.
    numpy.testing.assert_allclose(actual - START, expected - START, rtol=1e-9, atol=1e-15)


def z_scores(values):
    return (values - values.mean()) / (values.std() + 1e-8)


@pytest.mark.parametrize("scaling", ["sigma", "gradient"])
def test_openai_es(scaling):
    """Salimans et al., Algorithm 1 with mirrored sampling and centered ranks (section 2.1)."""
    n, sigma, alpha = 16, 0.05, 0.1
    actual, eps = one_step("openai_es", population=n, sigma=sigma, learning_rate=alpha, scaling=scaling)
    plus = numpy.array([fitness_of(START + sigma * e) for e in eps])
    minus = numpy.array([fitness_of(START - sigma * e) for e in eps])
    f = (stats.rankdata(numpy.concatenate([plus, minus])) - 1) / (n - 1) - 0.5
    g = sum(f[k] * eps[k] for k in range(n // 2)) + sum(f[n // 2 + k] * -eps[k] for k in range(n // 2))
    g = g / (n * sigma)
    if scaling == "gradient":  # the same direction; its length by the derivation at the head of evolution_strategy.py
        slopes = (plus - minus) / (2 * sigma)  # of the fitness along eps_k, gradient . eps_k
        ranks = f[: n // 2] - f[n // 2 :]
        correlation = (ranks @ slopes) / numpy.linalg.norm(ranks) / numpy.linalg.norm(slopes)
        mean_square = (slopes**2).mean()
        unit = sum(r * e for r, e in zip(ranks / numpy.linalg.norm(ranks), eps, strict=True))
        directions = n // 2
        g = unit * numpy.sqrt(mean_square) * correlation / numpy.sqrt(directions + DIMENSION + 1)
    close(actual, START + alpha * g)


@pytest.mark.parametrize("weights", ["z_score", "linear_ranks"])
@pytest.mark.parametrize("nes", [False, True])
def test_ea4llm(weights, nes):
    """Liu et al.: ``theta + alpha / N sum_j w_j eps_j``, divided by sigma in the NES variant."""
    n, sigma, alpha = 30, 1e-3, 5e-4  # the paper's, and the recipe's
    actual, eps = one_step("ea4llm", shaping=weights, scaling="sigma" if nes else None)
    r = numpy.array([fitness_of(START + sigma * e) for e in eps])
    assert len(r) == n
    w = z_scores(r) if weights == "z_score" else 2 * (stats.rankdata(r) - 1) / (n - 1) - 1
    g = sum(w[j] * eps[j] for j in range(n)) / n
    close(actual, START + alpha * g / (sigma if nes else 1))


def test_es_at_scale():
    """Qiu et al.: ``theta + alpha / N sum_n Z_n eps_n``."""
    n, sigma, alpha = 30, 1e-3, 5e-4
    actual, eps = one_step("es_at_scale")
    z = z_scores(numpy.array([fitness_of(START + sigma * e) for e in eps]))
    close(actual, START + alpha / n * (z @ eps))


@pytest.mark.parametrize("pairs", [1, 5])
def test_mezo(pairs):
    """Malladi et al., Definition 1 and (n-)SPSA: ``g = mean (L(theta + eps z) - L(theta - eps z)) / (2 eps) z``."""
    epsilon, eta = 1e-3, 1e-2
    actual, zs = one_step("mezo", population=2 * pairs, learning_rate=eta)

    def loss(theta):
        return -fitness_of(theta)

    g = sum((loss(START + epsilon * z) - loss(START - epsilon * z)) / (2 * epsilon) * z for z in zs) / pairs
    close(actual, START - eta * g)


@pytest.mark.parametrize("b", [1, 4, 12])
def test_ars(b):
    """Mania et al., Algorithm 2: N directions, the b best, ``alpha / (b sigma_R) sum (r+ - r-) delta``."""
    n, nu, alpha = 12, 0.03, 0.02
    # The recipe's learning rate is twice the paper's alpha.
    actual, delta = one_step("ars", population=2 * n, sigma=nu, top_k=b, learning_rate=2 * alpha)
    rewards = [(fitness_of(START + nu * d), fitness_of(START - nu * d)) for d in delta]
    best = sorted(range(n), key=lambda k: max(rewards[k]), reverse=True)[:b]
    sigma_r = numpy.std([reward for k in best for reward in rewards[k]])
    step = alpha / (b * sigma_r) * sum((rewards[k][0] - rewards[k][1]) * delta[k] for k in best)
    close(actual, START + step)


PUBLISHED = {  # what the papers give; see the head of each recipe's file
    "openai_es": {"antithetic": True, "shaping": "centered_ranks", "sigma": 0.02},
    "ea4llm": {
        "population": 30,
        "sigma": 1e-3,
        "learning_rate": 5e-4,
        "antithetic": False,
        "shaping": "z_score",
        "scaling": "none",
        "samples_per_generation": 5000,
    },
    "es_at_scale": {
        "population": 30,
        "sigma": 1e-3,
        "learning_rate": 5e-4,
        "antithetic": False,
        "shaping": "z_score",
        "scaling": "none",
        "samples_per_generation": None,
    },
    "mezo": {"population": 2, "sigma": 1e-3, "antithetic": True, "shaping": "raw", "scaling": "sigma"},
    "ars": {"antithetic": True, "shaping": "top_k", "scaling": "none"},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name):
    algorithm = get(name)()
    assert {option: getattr(algorithm, option) for option in PUBLISHED[name]} == PUBLISHED[name]
    assert algorithm.weight_decay == 0
    assert algorithm.noise == "gaussian"


@pytest.mark.parametrize("name", available())
def test_none_means_the_recipes_own(name):
    factory = get(name)
    assert factory(**dict.fromkeys(factory.defaults)) == factory()


def test_another_shaping_does_without_the_recipes_top_k():
    assert get("ars")(shaping="raw").top_k is None
    assert get("ars")(shaping="top_k").top_k == 16
    assert get("ars")(shaping="top_k", top_k=3).top_k == 3
    with pytest.raises(ValueError, match="go together"):
        get("ars")(shaping="raw", top_k=3)


def test_unknown_options():
    with pytest.raises(
        TypeError, match=r"'mezo' has no option 'popluation'\. Did you mean 'population'\? Its options: "
    ):
        get("mezo")(popluation=4)
    with pytest.raises(TypeError, match=r"'mezo' has no option 'name'"):
        get("mezo")(name="x")
