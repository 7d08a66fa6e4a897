"""One step of every recipe against its paper's formula, written down again in NumPy."""

import numpy
import pytest
import torch
from scipy import stats

from lightning_evo.algorithms import available, get
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.perturbations import Part

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
    key, double = NoiseKey(seed, generation), torch.float64
    noise = draw(key, range(directions), 0, 0, DIMENSION, distribution=algorithm.noise, dtype=double).numpy()
    return algorithm.tell(state, population, fitness).center.numpy(), noise


ROWS, COLUMNS = 5, 4
MATRIX = numpy.linspace(-1, 1, ROWS * COLUMNS).reshape(ROWS, COLUMNS)


def fitness_of_matrix(matrix):
    return numpy.sin(matrix * numpy.arange(1, COLUMNS + 1)).sum() - (matrix @ matrix.T)[0].sum()


def steps_of_a_matrix(name, steps, seed=4, first=2, **options):
    """Where each step of some generations leads from ``MATRIX``, as inside a module, where there may be matrices."""
    algorithm = get(name)(**options)
    state, center, found = algorithm.init(seed=seed), torch.from_numpy(MATRIX), []
    for _ in range(first):
        state = algorithm.advance(state, [0.0])
    numel = center.numel()
    for _ in range(steps):
        population, sigma = algorithm.ask(state), algorithm.current_sigma(state)
        signs = [sigma, -sigma] if algorithm.antithetic else [sigma]
        members = [
            member
            for d in range(population.directions)
            for member in population.perturbation.members([d], signs, [Part(0, center)])[0]
        ]
        fitness = torch.tensor([fitness_of_matrix(member.numpy()) for member in members], dtype=torch.float64)
        state, lesson = algorithm.learn(state, population, fitness, numel)
        estimate = sum(noise.weighted_sum(weights, 0, center) for noise, weights in lesson.terms).view(ROWS, COLUMNS)
        found.append((center + lesson.learning_rate * estimate).numpy())
    return found


def factor(generation, direction, first_row, last_row, rank, seed=4):
    """Rows of A, followed by those of B, which come at the next offsets of the same address."""
    start, stop = first_row * rank, last_row * rank
    values = draw(NoiseKey(seed, generation), [direction], 0, start, stop, dtype=torch.float64)
    return values.view(-1, rank).numpy()


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


@pytest.mark.parametrize("rank", [1, 3])
def test_eggroll(rank):
    """Sarkar et al.: ``M + alpha / N sum_i f_i E_i``, ``E_i = A_i B_i^T / sqrt(r)``, in antithetic pairs."""
    n, sigma, alpha = 128, 1e-3, 1e-3
    (actual,) = steps_of_a_matrix("eggroll", 1, rank=rank)
    a = [factor(2, k, 0, ROWS, rank) for k in range(n // 2)]
    b = [factor(2, k, ROWS, ROWS + COLUMNS, rank) for k in range(n // 2)]
    e = [sign * a[k] @ b[k].T / numpy.sqrt(rank) for k in range(n // 2) for sign in (1, -1)]
    f = z_scores(numpy.array([fitness_of_matrix(MATRIX + sigma * e_i) for e_i in e]))
    expected = MATRIX + alpha / n * sum(f_i * e_i for f_i, e_i in zip(f, e, strict=True))
    numpy.testing.assert_allclose(actual - MATRIX, expected - MATRIX, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("beta", [None, 0.9])
@pytest.mark.parametrize("pairs", [1, 3])
def test_lozo(pairs, beta):
    """Chen et al.: ``theta - eta c U V^T / r``; LOZO-M: ``N = beta N + (1 - beta) c U``, ``theta - eta N V^T / r``.

    V stays for two generations of the four, and the center is always the same here.
    """
    rank, epsilon, eta, first = 2, 1e-3, 1e-2, 6
    steps = steps_of_a_matrix(
        "lozo",
        4,
        first=first,
        population=2 * pairs,
        sigma=epsilon * rank**0.5,
        learning_rate=eta,
        basis_reuse=2,
        momentum=beta,
    )
    for t, actual in enumerate(steps, start=first):
        v = [factor(t // 2, k, ROWS, ROWS + COLUMNS, rank) for k in range(pairs)]
        if t % 2 == 0:
            momenta = [numpy.zeros((ROWS, rank))] * pairs
        g = []
        for k in range(pairs):
            u = factor(t, k, 0, ROWS, rank)
            losses = [-fitness_of_matrix(MATRIX + sign * epsilon * u @ v[k].T) for sign in (1, -1)]
            g.append((losses[0] - losses[1]) / (2 * epsilon) * u)
        if beta is not None:
            momenta = g = [beta * m + (1 - beta) * g_k for m, g_k in zip(momenta, g, strict=True)]
        step = -eta * sum(g[k] @ v[k].T / rank for k in range(pairs)) / pairs
        numpy.testing.assert_allclose(actual - MATRIX, step, rtol=1e-8, atol=1e-13)


def test_fzoo():
    """Dang et al.: ``theta - eta / (N std(L)) sum_i (L_i - L_0) u_i``, the mean of L in the place of L_0."""
    n, epsilon, eta = 8, 1e-4, 5e-5  # of the authors' example, and the recipe's
    actual, u = one_step("fzoo")
    assert set(u.flatten()) == {-1, 1}
    losses = -numpy.array([fitness_of(START + epsilon * u_i) for u_i in u])
    close(actual, START - eta / (n * (losses.std() + 1e-8)) * ((losses - losses.mean()) @ u))
    paper, _ = one_step("fzoo", scaling="sigma", learning_rate=eta * epsilon)
    close(paper, actual)


@pytest.mark.parametrize("pairs", [1, 5])
def test_sparse_mezo(pairs):
    """Liu et al.: MeZO with ``m z`` for z; of these six weights -0.2 and 0.2, or all but -1 and 1, are small."""
    epsilon, eta = 1e-3, 1e-2
    for sparsity, m in ((0.7, [0, 0, 1, 1, 0, 0]), (0.4, [0, 1, 1, 1, 1, 0])):
        actual, z = one_step("sparse_mezo", population=2 * pairs, learning_rate=eta, sparsity=sparsity)
        z = z * m
        c = [(fitness_of(START - epsilon * z_k) - fitness_of(START + epsilon * z_k)) / (2 * epsilon) for z_k in z]
        close(actual, START - eta * (c @ z) / pairs)


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
    "eggroll": {
        "population": 128,
        "sigma": 1e-3,
        "learning_rate": 1e-3,
        "antithetic": True,
        "shaping": "z_score",
        "scaling": "none",
        "rank": 1,
    },
    "lozo": {"population": 2, "sigma": 1e-3, "learning_rate": 1e-7, "rank": 2, "basis_reuse": 50, "momentum": 0},
    "fzoo": {"population": 8, "sigma": 1e-4, "learning_rate": 5e-5, "antithetic": False, "noise": "rademacher"},
    "sparse_mezo": {"population": 2, "sigma": 1e-3, "antithetic": True, "shaping": "raw", "sparsity": 0.8},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name):
    algorithm = get(name)()
    assert {option: getattr(algorithm, option) for option in PUBLISHED[name]} == PUBLISHED[name]
    assert algorithm.weight_decay == 0
    if "noise" not in PUBLISHED[name]:
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


@pytest.mark.parametrize(
    ("options", "top_k"),
    [
        ({}, 16),
        ({"population": 256}, 16),
        ({"population": 32}, 16),
        ({"population": 30}, 7),
        ({"population": 8}, 2),
        ({"population": 2}, 1),
        ({"population": 16, "antithetic": False}, 16),
        ({"population": 8, "antithetic": False}, 4),
        ({"population": 4, "antithetic": False}, 2),
        ({"population": 8, "top_k": 3}, 3),
    ],
)
def test_the_recipes_top_k_fits_the_population(options, top_k):
    """It is the published one as far as there are so many directions; of fewer, half count, as published."""
    assert get("ars")(**options).top_k == top_k


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ars", {"population": 8, "top_k": 5}, r"number of directions \(4, with population=8\), got 5\.$"),
        ("lozo", {"noise_reuse": 3}, r"while its basis changes\. \(basis_reuse=50: lozo's own\.\)$"),
        ("eggroll", {"sparsity": 0.5}, r"Leave one out\. \(rank=1: eggroll's own\.\)$"),
        ("sparse_mezo", {"rank": 1}, r"Leave one out\. \(sparsity=0\.8: sparse_mezo's own\.\)$"),
        ("openai_es", {"population": 7}, r"or antithetic=False\. \(antithetic=True: openai_es's own\.\)$"),
        ("openai_es", {"population": 7, "antithetic": True}, r"or antithetic=False\.$"),
        ("mezo", {"sigma": -1}, r"^sigma must be a number > 0, got -1\.$"),
    ],
)
def test_an_error_says_which_options_are_the_recipes(name, options, message):
    with pytest.raises(ValueError, match=message):
        get(name)(**options)
