"""The gradient estimate against theory, and the options of the family.

Statistical tests are deterministic; n and the threshold's meaning are next to each.
"""

import math
from dataclasses import replace

import numpy
import pytest
import torch

from lightning_evo.algorithms import EvolutionStrategy, Schedule

SLOPE = torch.tensor([3.0, -1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
CENTER = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.3], dtype=torch.float64)


def strategy(**options):
    return EvolutionStrategy(
        **{"population": 8, "sigma": 0.1, "learning_rate": 1.0, "shaping": "raw", "scaling": "sigma", **options}
    )


def linear(x):
    return x @ SLOPE


def estimates(subject, fitness, seeds):
    """The gradient estimate for each seed, ``[seeds, d]``: with learning rate 1 it is the step itself."""
    steps = []
    for seed in range(seeds):
        state = subject.init(CENTER, seed=seed)
        population = subject.ask(state)
        steps.append(subject.tell(state, population, fitness(population.vectors())).center - CENTER)
    return torch.stack(steps)


def assert_mean(values, expected, errors=4.9):
    """The mean over rows is ``expected`` within 4.9 of its own standard errors: chance fails once in a million."""
    standard_error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - expected).abs() < errors * standard_error).all(), (values.mean(0), standard_error)


# --- the estimate against theory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["gaussian", "rademacher", "uniform"])
def test_mean_and_variance_for_a_linear_fitness(noise):
    """``g = (a . eps) eps`` averaged over the pairs. Var_i = (|a|^2 - a_i^2) + a_i^2 (E eps^4 - 1)."""
    seeds, pairs = 1000, 4
    g = estimates(strategy(population=2 * pairs, noise=noise), linear, seeds)
    assert_mean(g, SLOPE)
    fourth_moment = {"gaussian": 3, "rademacher": 1, "uniform": 9 / 5}[noise]
    variance = (SLOPE.square().sum() + (fourth_moment - 2) * SLOPE.square()) / pairs
    # A sample variance of n values has the relative standard error sqrt((kurtosis - 1) / n).
    centred = g - g.mean(0)
    kurtosis = centred.pow(4).mean(0) / centred.square().mean(0).square()
    relative = g.var(0) / variance - 1
    assert (relative.abs() < 4.9 * ((kurtosis - 1) / seeds).sqrt()).all(), relative


def test_mean_for_a_quadratic_fitness_is_its_gradient():
    """Smoothing a quadratic leaves its gradient as it is."""
    matrix = torch.randn(5, 5, dtype=torch.float64)
    hessian = matrix @ matrix.T
    g = estimates(strategy(), lambda x: -((x @ hessian) * x).sum(-1) / 2 + linear(x), seeds=700)
    assert_mean(g, SLOPE - hessian @ CENTER)


def test_mean_for_a_cubic_fitness_is_the_gradient_of_the_smoothed_one():
    """``E (x + sigma eps)^3 = x^3 + 3 sigma^2 x``, whose derivative is ``3 x^2 + 3 sigma^2``; sigma is large here."""
    sigma = 0.8
    g = estimates(strategy(sigma=sigma), lambda x: (x**3).sum(-1), seeds=700)
    assert_mean(g, 3 * CENTER**2 + 3 * sigma**2)
    with pytest.raises(AssertionError):  # the plain gradient would not pass
        assert_mean(g, 3 * CENTER**2)


def test_mean_without_pairs():
    """The baseline holds a member's own fitness, too, which takes 1/N off the estimate."""
    g = estimates(strategy(antithetic=False), lambda x: linear(x) + 10, seeds=1000)
    assert_mean(g, SLOPE * (1 - 1 / 8))


@pytest.mark.parametrize(("directions", "dimension"), [(1, 1), (2, 50), (40, 5), (8, 8)])
def test_gradient_scaling_gives_the_length_of_the_gradient(directions, dimension):
    """Root mean square over seeds, for a linear fitness and raw shaping exactly that of the gradient."""
    slope = torch.linspace(-1, 2, dimension, dtype=torch.float64)
    subject = strategy(population=2 * directions, scaling="gradient")
    squares = []
    for seed in range(700):
        state = subject.init(torch.zeros(dimension, dtype=torch.float64), seed=seed)
        population = subject.ask(state)
        squares.append(subject.tell(state, population, population.vectors() @ slope).center.square().sum())
    assert_mean(torch.stack(squares)[:, None], slope.square().sum())


@pytest.mark.parametrize("shaping", ["centered_ranks", "linear_ranks", "z_score", "raw", "top_k"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_gradient_scaling_of_shaped_weights(shaping, antithetic):
    """Parallel to the unscaled estimate, never longer than with raw fitness, in proportion to the fitness."""
    options = {"shaping": shaping, "top_k": 3 if shaping == "top_k" else None, "antithetic": antithetic}
    state = strategy().init(CENTER, seed=7)
    population = strategy(**options).ask(state)
    fitness = linear(population.vectors()) + population.vectors()[:, 0] ** 2

    def weights(scaling, fitness=fitness, **changes):
        subject = strategy(**{**options, "scaling": scaling, **changes})
        return subject.direction_weights(population, fitness, 5)

    scaled, plain = weights("gradient"), weights("none")
    torch.testing.assert_close(scaled / scaled.norm(), plain / plain.norm())
    raw = weights("gradient", shaping="raw", top_k=None)
    assert scaled.norm() <= raw.norm() * (1 + 1e-12)
    torch.testing.assert_close(scaled @ raw, scaled @ scaled)  # the best fit to the raw quotients along `plain`
    torch.testing.assert_close(weights("gradient", fitness * 1000 + 5), scaled * 1000, rtol=1e-4, atol=1e-9)


def test_gradient_scaling_never_turns_the_weights_around():
    """Not even where they disagree with the raw fitness, as those of a shaping of one's own may on purpose."""
    opposite = strategy(shaping=lambda fitness, _: -fitness, scaling="gradient")
    state = opposite.init(CENTER, seed=7)
    population = opposite.ask(state)
    fitness = linear(population.vectors())
    expected = -strategy(scaling="gradient").direction_weights(population, fitness, 5)
    torch.testing.assert_close(opposite.direction_weights(population, fitness, 5), expected)


def test_scaling():
    state = strategy().init(CENTER, seed=7)
    population = strategy().ask(state)
    fitness = linear(population.vectors())
    none, sigma = (strategy(scaling=scaling).direction_weights(population, fitness, 5) for scaling in ("none", "sigma"))
    torch.testing.assert_close(none, sigma * 0.1, rtol=1e-14, atol=0)
    pairs = fitness.view(4, 2)
    torch.testing.assert_close(none, (pairs[:, 0] - pairs[:, 1]) / 8, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shaping", ["z_score", "raw", "centered_ranks", "linear_ranks", "top_k"])
@pytest.mark.parametrize("scaling", ["none", "sigma", "gradient"])
@pytest.mark.parametrize("base", [0.0, 1.0])
def test_a_failure_among_equals_gives_finite_weights(shaping, scaling, base):
    subject = strategy(shaping=shaping, scaling=scaling, top_k=4 if shaping == "top_k" else None)
    fitness = torch.full((8,), base, dtype=torch.float64)
    fitness[2] = math.nan
    weights = subject.direction_weights(subject.ask(subject.init(CENTER)), fitness, 5)
    assert weights.isfinite().all()
    assert weights[1] <= 0
    assert weights[[0, 2, 3]].tolist() == [0, 0, 0]


# --- members --------------------------------------------------------------------------------------------------------


def test_members_are_center_plus_and_minus_sigma_times_noise():
    population = strategy().ask(strategy().init(CENTER, seed=3))
    assert len(population) == 8
    assert population.signs.tolist() == [1, -1] * 4
    noise = population.perturbation.noise(range(4), 0, CENTER)
    expected = torch.stack([CENTER + sign * 0.1 * noise[k] for k in range(4) for sign in (1, -1)])
    assert torch.equal(population.vectors(), expected)
    assert [population.address(member) for member in range(8)] == [
        (k, sign * 0.1) for k in range(4) for sign in (1, -1)
    ]
    alone = strategy(antithetic=False)
    population = alone.ask(alone.init(CENTER, seed=3))
    assert len(population) == 8
    torch.testing.assert_close(population.vectors(), CENTER + 0.1 * population.perturbation.noise(range(8), 0, CENTER))
    assert [population.address(member) for member in range(8)] == [(k, 0.1) for k in range(8)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_centers_keep_their_dtype(dtype):
    subject = strategy()
    state = subject.init(CENTER.to(dtype), seed=3)
    population = subject.ask(state)
    assert population.vectors().dtype == dtype
    assert subject.tell(state, population, linear(population.vectors().double())).center.dtype == dtype


# --- noise over generations -----------------------------------------------------------------------------------------


def run(subject, generations, center=CENTER, fitness=linear, seed=3):
    """Populations and states, one after the other."""
    states, populations = [subject.init(center, seed=seed)], []
    for _ in range(generations):
        populations.append(subject.ask(states[-1]))
        states.append(subject.tell(states[-1], populations[-1], fitness(populations[-1].vectors())))
    return populations, states


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("rank", [None, 2])
def test_noise_reuse(antithetic, rank):
    """The noise of generation g is that of g // reuse; its number is g all the same."""
    matrix = torch.zeros(9, 7)
    populations, _ = run(strategy(noise_reuse=3, antithetic=antithetic, rank=rank), 7)
    plain, _ = run(strategy(antithetic=antithetic, rank=rank), 3)
    assert [population.generation for population in populations] == list(range(7))
    for g, population in enumerate(populations):
        expected = plain[g // 3].perturbation
        for tensor in (matrix, CENTER):
            assert torch.equal(population.perturbation.noise(range(4), 2, tensor), expected.noise(range(4), 2, tensor))


def test_basis_reuse():
    """LOZO: B stays for a window of generations, A does not."""
    matrix = torch.zeros(9, 7)
    populations, _ = run(strategy(rank=2, basis_reuse=3), 7)
    factors = [population.perturbation.factors(range(4), 2, matrix) for population in populations]
    for g in range(7):
        for h in range(g):
            assert not torch.equal(factors[g][0], factors[h][0])
            assert torch.equal(factors[g][1], factors[h][1]) == (g // 3 == h // 3)


def test_a_basis_of_several_noises():
    matrix = torch.zeros(9, 7)
    populations, _ = run(strategy(rank=2, noise_reuse=2, basis_reuse=4), 8)
    factors = [population.perturbation.factors(range(4), 2, matrix) for population in populations]
    for g in range(8):
        for h in range(g):
            assert torch.equal(factors[g][0], factors[h][0]) == (g // 2 == h // 2)
            assert torch.equal(factors[g][1], factors[h][1]) == (g // 4 == h // 4)


@pytest.mark.parametrize("noise_reuse", [1, 2])
@pytest.mark.parametrize("scaling", ["sigma", "none", "gradient"])
def test_momentum(scaling, noise_reuse):
    """``m = beta m + (1 - beta) g``, step along m; m starts from zero with each new basis.

    g is the estimate that a strategy without momentum makes at the same center; the noise is the same.
    """
    beta, window = 0.8, 4
    options = {"rank": 2, "noise_reuse": noise_reuse, "basis_reuse": window, "scaling": scaling}

    def fitness(x):
        return linear(x) - (x**2).sum(-1)

    _, states = run(strategy(momentum=beta, **options), 2 * window + 1, fitness=fitness)
    plain, m = strategy(**options), torch.zeros_like(CENTER)
    for g, (state, following) in enumerate(zip(states, states[1:], strict=False)):
        m = torch.zeros_like(CENTER) if g % window == 0 else m
        population = plain.ask(state)
        estimate = plain.tell(state, population, fitness(population.vectors())).center - state.center
        m = beta * m + (1 - beta) * estimate
        torch.testing.assert_close(following.center - state.center, m, rtol=1e-9, atol=1e-12)
        assert len(following.momentum) == g % window // noise_reuse + 1


def test_momentum_of_a_matrix_stays_in_the_basis():
    """For a matrix, against the formula in the space of A: ``N = beta N + (1 - beta) c A``, step along ``N B^T``."""
    beta, matrix = 0.8, torch.zeros(9, 7, dtype=torch.float64)
    subject = strategy(rank=2, basis_reuse=10, momentum=beta, population=2)
    state, n = subject.init(seed=3), 0
    for g in range(5):
        population = subject.ask(state)
        following, lesson = subject.learn(state, population, torch.tensor([g + 1.0, -g * 2.0]), 63)
        slope = (3 * g + 1) / (2 * 0.1)
        a, b = population.perturbation.factors([0], 5, matrix)
        n = beta * n + (1 - beta) * slope * a[0]
        total = sum(noise.weighted_sum(weights, 5, matrix) for noise, weights in lesson.terms).view(9, 7)
        torch.testing.assert_close(total, n @ b[0].T, rtol=1e-9, atol=1e-12)
        state = following


def test_momentum_survives_a_generation_without_lesson_and_a_checkpoint(tmp_path):
    subject = strategy(rank=2, basis_reuse=10, momentum=0.8)
    _, (*_, state) = run(subject, 3)
    idle = subject.tell(state, subject.ask(state), torch.zeros(8))
    assert idle.momentum == state.momentum
    assert idle.generation == state.generation + 1
    torch.save(state.momentum, tmp_path / "momentum.pt")
    assert torch.load(tmp_path / "momentum.pt", weights_only=True) == state.momentum


def test_momentum_of_another_basis_is_forgotten():
    """Also if the generation was set by hand."""
    subject = strategy(rank=2, basis_reuse=10, momentum=0.8)
    _, (*_, state) = run(subject, 3)
    for generation, terms in ((state.generation, 4), (10, 1)):
        asked = replace(state, generation=generation)
        _, lesson = subject.learn(asked, subject.ask(asked), torch.arange(8.0), 5)
        assert len(lesson.terms) == terms
    assert len(subject.advance(replace(state, generation=10), [1.0] * 4).momentum) == 1


def test_momentum_of_another_population_size():
    subject, other = (strategy(rank=2, noise_reuse=2, basis_reuse=4, momentum=0.5, population=p) for p in (8, 4))
    state = subject.advance(subject.init(), [1.0, 2.0, 3.0, 4.0])
    assert other.advance(state, [1.0, 1.0]).momentum == ((0, (1.5, 2.0, 1.5, 2.0)),)


@pytest.mark.parametrize(("sparsity", "sigma_scale"), [(0.5, "none"), (None, "rms"), (0.5, "rms")])
def test_sparse_and_scaled_members(sparsity, sigma_scale):
    noise = strategy().ask(strategy().init(CENTER, seed=3)).perturbation.noise(range(4), 0, CENTER)
    if sparsity:
        noise = noise * torch.tensor([1, 0, 0, 1, 1])  # all but the two largest, -1 and 2
    if sigma_scale == "rms":
        noise = noise * CENTER.square().mean().sqrt()
    subject = strategy(sparsity=sparsity, sigma_scale=sigma_scale)
    vectors = subject.ask(subject.init(CENTER, seed=3)).vectors()
    torch.testing.assert_close(vectors[::2], CENTER + 0.1 * noise, rtol=1e-12, atol=0)
    torch.testing.assert_close(vectors[1::2], CENTER - 0.1 * noise, rtol=1e-12, atol=0)


def test_gradient_scaling_of_sparse_noise_gives_the_length_of_the_gradient_that_is_left():
    """As for dense noise, in the space of the 10 of 40 weights that are perturbed; 500 seeds."""
    slope = torch.linspace(-1, 2, 40, dtype=torch.float64)
    center = torch.linspace(0.1, 4, 40, dtype=torch.float64)
    subject = strategy(population=8, scaling="gradient", sparsity=0.75)
    squares = []
    for seed in range(500):
        state = subject.init(center, seed=seed)
        population = subject.ask(state)
        step = subject.tell(state, population, population.vectors() @ slope).center - center
        assert not step[10:].any()
        squares.append(step.square().sum())
    assert_mean(torch.stack(squares)[:, None], slope[:10].square().sum())


@pytest.mark.parametrize("directions", [1, 8])
def test_gradient_scaling_of_low_rank_noise(directions):
    """For rank 1 ``E[<G, E>^2 |E|^2] = (m + 2) (n + 2) |G|^2``, for dense noise ``(m n + 2) |G|^2``.

    So the root mean square length of the estimate is a little more than the gradient's; 1,000 seeds.
    """
    m, n = 4, 6
    center = torch.zeros(m, n, dtype=torch.float64)
    slope = torch.linspace(-1, 2, m * n, dtype=torch.float64).view(m, n)
    subject = strategy(population=2 * directions, scaling="gradient", rank=1)
    squares = []
    for seed in range(1000):
        population = subject.ask(subject.init(seed=seed))
        along = (population.perturbation.noise(range(directions), 0, center) * slope).sum((1, 2))
        weights = subject.direction_weights(population, torch.stack([along, -along], 1).flatten() * 0.1, m * n)
        squares.append(population.perturbation.weighted_sum(weights.tolist(), 0, center).square().sum())
    expected = ((m + 2) * (n + 2) + directions - 1) / (m * n + directions + 1) * slope.square().sum()
    assert_mean(torch.stack(squares)[:, None], expected)


# --- options --------------------------------------------------------------------------------------------------------


def test_weight_decay():
    """``theta + learning_rate (g - weight_decay theta)``."""
    steps = []
    for weight_decay in (0.0, 0.25):
        subject = strategy(weight_decay=weight_decay, learning_rate=0.1)
        state = subject.init(CENTER, seed=3)
        population = subject.ask(state)
        steps.append(subject.tell(state, population, linear(population.vectors())).center)
    torch.testing.assert_close(steps[1], steps[0] - 0.1 * 0.25 * CENTER, rtol=1e-13, atol=0)


def test_schedules_of_sigma_and_learning_rate():
    sigma, rate = Schedule("exponential", 0.1, 0.01, 4), Schedule("linear", 1.0, 0.0, 4)
    subject = strategy(sigma=sigma, learning_rate=rate)
    state = subject.init(CENTER, seed=3)
    for generation in range(6):
        assert subject.current_sigma(state) == sigma(generation)
        assert subject.current_learning_rate(state) == rate(generation)
        population = subject.ask(state)
        assert population.sigma == sigma(generation)
        following = subject.tell(state, population, linear(population.vectors()))
        constant = strategy(sigma=sigma(generation)).tell(state, population, linear(population.vectors()))
        torch.testing.assert_close(following.center - state.center, (constant.center - state.center) * rate(generation))
        state = following
    assert torch.equal(following.center, state.center)


def test_sigma_set_by_hand_overrides_a_schedule():
    subject = strategy(sigma=Schedule("linear", 0.1, 0.01, 4))
    state = subject.init(CENTER, sigma=0.7)
    for _ in range(3):
        assert subject.ask(state).sigma == 0.7
        state = subject.tell(state, subject.ask(state), torch.arange(8.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 7}, r"population=7 is odd, but antithetic members come in pairs\. Use 8, or antithetic=False"),
        ({"population": 0}, "population must be a whole number"),
        ({"population": 1, "antithetic": False}, "nothing to compare"),
        ({"population": 4.0}, "population must be a whole number"),
        ({"population": True}, "population must be a whole number"),
        ({"sigma": 0}, "sigma must be a number > 0, got 0"),
        ({"sigma": -0.1}, "sigma must be a number > 0, got -0.1"),
        ({"sigma": math.nan}, "sigma must be a number > 0, got nan"),
        ({"sigma": math.inf}, "sigma must be a number > 0, got inf"),
        ({"sigma": True}, "sigma must be a number > 0, got True"),
        ({"sigma": "0.1"}, "sigma must be a number > 0, got '0.1'"),
        ({"sigma": Schedule("linear", 0.1, 0.0, 5)}, "sigma schedule must end above 0"),
        ({"learning_rate": -1}, "learning_rate must be a number >= 0, got -1"),
        ({"weight_decay": -1}, "weight_decay must be a number >= 0, got -1"),
        ({"weight_decay": Schedule("linear", 0.1, 0.0, 5)}, "weight_decay must be a number >= 0"),
        ({"samples_per_generation": 0}, "samples_per_generation must be"),
        ({"samples_per_generation": 2.5}, "samples_per_generation must be"),
        ({"scaling": "gradiant"}, r"Unknown scaling 'gradiant'\. Did you mean 'gradient'\?"),
        ({"shaping": "rank"}, r"Unknown shaping 'rank'\. Did you mean"),
        ({"noise": "normal"}, r"Unknown noise 'normal'"),
        ({"rank": 0}, "rank must be a whole number >= 1, got 0"),
        ({"rank": 1.0}, "rank must be a whole number >= 1, got 1.0"),
        ({"rank": 1, "sparsity": 0.5}, "rank and sparsity don't go together"),
        ({"sparsity": 1.0}, r"sparsity must be a number in \(0, 1\), got 1.0"),
        ({"noise_reuse": 0}, "noise_reuse must be a whole number >= 1, got 0"),
        ({"noise_reuse": None}, "noise_reuse must be a whole number >= 1, got None"),
        ({"basis_reuse": 2.0, "rank": 1}, "basis_reuse must be a whole number >= 1, got 2.0"),
        ({"basis_reuse": 2}, "basis_reuse=2 has no effect without rank"),
        ({"basis_reuse": 6, "noise_reuse": 4, "rank": 1}, "basis_reuse=6 must be a multiple of noise_reuse=4"),
        ({"momentum": 1.0, "basis_reuse": 2, "rank": 1}, r"momentum must be a number in \[0, 1\), got 1.0"),
        ({"momentum": 0.9, "rank": 1}, "momentum=0.9 has no effect without basis_reuse"),
        ({"momentum": 0.9}, "momentum=0.9 has no effect without basis_reuse"),
        ({"sigma_scale": "rsm"}, r"Unknown sigma_scale 'rsm'\. Did you mean 'rms'\?"),
        ({"shaping": "top_k"}, "go together"),
        ({"shaping": "top_k", "top_k": 5}, r"between 1 and the number of directions \(4, with population=8\), got 5"),
        ({"shaping": "top_k", "top_k": 0}, "top_k must be a whole number >= 1, got 0"),
        ({"shaping": "top_k", "top_k": 2.5}, "top_k must be"),
        ({"shaping": "top_k", "top_k": 2.0}, "top_k must be a whole number >= 1, got 2.0"),
        ({"shaping": []}, r"Unknown shaping \[\]\. Choose one of"),
        ({"shaping": 1}, r"Unknown shaping 1\. Choose one of"),
        ({"shaping": len}, r"shaping must be a function of \(fitness, per_direction\), got <built-in function len>"),
        ({"population": 1 << 64}, "population must be a whole number <= 4294967296, got 18446744073709551616"),
        ({"population": "8"}, "population must be a whole number >= 2 .*, got '8'"),
        ({"rank": 1 << 64}, "rank must be a whole number <= 9223372036854775807"),
        ({"sigma": 10**400}, "sigma must be a number > 0 that float32 can hold"),
        ({"learning_rate": 1e300}, "learning_rate must be a number >= 0 that float32 can hold"),
        ({"antithetic": "no"}, "antithetic must be True or False, got 'no'"),
        ({"antithetic": 0}, "antithetic must be True or False, got 0"),
        ({"noise": {}}, r"Unknown noise \{\}"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        strategy(**options)


def test_scalars_become_numbers():
    """So that journals and checkpoints, which hold plain data, can hold them."""
    subject = strategy(
        population=numpy.int64(8),
        sigma=torch.tensor(0.5),
        learning_rate=numpy.float32(0.25),
        rank=torch.tensor(2),
        antithetic=numpy.True_,
    )
    assert subject == strategy(population=8, sigma=0.5, learning_rate=0.25, rank=2, antithetic=True)
    values = (subject.population, subject.sigma, subject.learning_rate, subject.rank, subject.antithetic)
    assert [type(value) for value in values] == [int, float, float, int, bool]
    state = subject.init(sigma=numpy.float64(0.5), seed=numpy.uint8(3))
    assert (type(state.sigma), type(state.seed)) == (float, int)


def test_the_largest_options_work():
    subject = strategy(noise_reuse=(1 << 63) - 1, samples_per_generation=(1 << 63) - 1, rank=(1 << 63) - 1)
    (population, *_), (*_, state) = run(subject, 2)
    assert state.center.isfinite().all()
    assert not torch.equal(state.center, CENTER)
    assert len(strategy(population=1 << 32).ask(strategy().init())) == 1 << 32


@pytest.mark.parametrize("antithetic", [True, False])
def test_two_members_and_a_z_score(antithetic):
    with pytest.warns(UserWarning, match=r"With 2 members the z-score is always \+1 and -1.*shaping='raw'"):
        strategy(population=2, shaping="z_score", antithetic=antithetic)


@pytest.mark.parametrize(
    ("center", "sigma", "message"),
    [
        (torch.zeros(2, 2), None, r"floating vector \[d\], got torch.float32 \[2, 2\]"),
        (torch.zeros(2, dtype=torch.int64), None, "got torch.int64"),
        (CENTER, 0.0, "sigma must be a number > 0"),
        (CENTER, math.nan, "sigma must be a number > 0"),
        (CENTER, "0.1", "sigma must be a number > 0, got '0.1'"),
    ],
)
def test_init_errors(center, sigma, message):
    with pytest.raises(ValueError, match=message):
        strategy().init(center, sigma=sigma)


@pytest.mark.parametrize("seed", [1.0, "3", True, None])
def test_impossible_seeds(seed):
    with pytest.raises(TypeError, match="seed must be a whole number, got"):
        strategy().init(seed=seed)


def test_without_a_center():
    state = strategy().init(seed=3)
    population = strategy().ask(state)
    assert len(population) == 8
    with pytest.raises(ValueError, match="lives in a module. Give `init` a vector"):
        population.vectors()
    with pytest.raises(ValueError, match="this state has none. Give `init` a vector"):
        strategy().tell(state, population, torch.arange(8.0))


@pytest.mark.parametrize("shape", [(7,), (8, 1), ()])
def test_fitness_of_another_shape(shape):
    state = strategy().init(CENTER)
    with pytest.raises(ValueError, match=r"one value per member, \[8\]; got"):
        strategy().tell(state, strategy().ask(state), torch.zeros(shape))
