"""Noise of low rank: its moments, its factors, and the one matrix product that sums it."""

import math

import pytest
import torch

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.perturbations import Dense, LowRank, Part, low_rank

DISTRIBUTIONS = ["gaussian", "rademacher", "uniform"]
WEIGHTS = [0.5, 0.0, -1.25, 3e-5, -7.0, 0.1]

CENTERS = {
    "matrix": torch.zeros(20, 33),
    "tall": torch.zeros(200, 7),
    "convolution": torch.zeros(6, 3, 2, 2),
    "transposed": torch.zeros(33, 20).T,
    "float64": torch.zeros(20, 33, dtype=torch.float64),
    "bfloat16": torch.zeros(20, 33, dtype=torch.bfloat16),
    "experts": torch.zeros(3, 20, 17),
    "one_expert": torch.zeros(1, 20, 17),
}


def sizes(center):
    """How many matrices a tensor is, and their rows and columns."""
    return tuple(center.shape) if center.shape[1:] == (20, 17) else (1, len(center), center[0].numel())


def perturbation(rank=2, generation=3, **options):
    return LowRank(NoiseKey(seed=5, generation=generation), rank, **options)


def standard(key, directions, parameter, start, stop, distribution="gaussian"):
    values = draw(key, directions, parameter, start, stop, distribution=distribution, dtype=torch.float64)
    return (values - 0.5) * math.sqrt(12) if distribution == "uniform" else values


# --- the formula ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis_generation", [None, 1])
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("name", CENTERS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_is_the_product_of_its_factors(distribution, name, rank, basis_generation):
    """``A B^T / sqrt(r)``, A at the first offsets of the address and B behind it."""
    center = CENTERS[name]
    e, m, n = sizes(center)
    key = NoiseKey(5, 3)
    basis_key = None if basis_generation is None else NoiseKey(5, basis_generation)
    subject = perturbation(rank, basis_key=basis_key, distribution=distribution)
    noise = subject.noise([4, 0], 7, center)
    assert noise.shape == (2, *center.shape)
    assert noise.dtype == (torch.float64 if name == "float64" else torch.float32)
    start, stop = e * m * rank, e * (m + n) * rank
    expected_a = standard(key, [4, 0], 7, 0, start, distribution).view(2, e, m, rank) / math.sqrt(rank)
    expected_b = standard(basis_key or key, [4, 0], 7, start, stop, distribution).view(2, e, n, rank)
    tolerances = {"rtol": 1e-12, "atol": 1e-12} if name == "float64" else {"rtol": 1e-5, "atol": 1e-5}
    if e == 1 and m == len(center):
        a, b = subject.factors([4, 0], 7, center)
        torch.testing.assert_close(a, expected_a[:, 0].to(noise.dtype), **tolerances)
        torch.testing.assert_close(b, expected_b[:, 0].to(noise.dtype), **tolerances)
    else:
        assert subject.factors([4, 0], 7, center) is None  # of the whole there are none
    expected = (expected_a @ expected_b.mT).view(2, *center.shape).to(noise.dtype)
    torch.testing.assert_close(noise, expected, **tolerances)


@pytest.mark.parametrize("shape", [(1000,), (), (0, 4), (4, 0), (2, 50), (50, 2), (2, 1, 30)])
def test_where_low_rank_saves_nothing_noise_is_dense(shape):
    center, subject, dense = torch.zeros(shape), perturbation(rank=2), Dense(NoiseKey(5, 3))
    assert subject.factors([0], 1, center) is None
    assert torch.equal(subject.noise([2, 0], 1, center), dense.noise([2, 0], 1, center))
    assert torch.equal(subject.weighted_sum(WEIGHTS, 1, center), dense.weighted_sum(WEIGHTS, 1, center))
    both = [other.members([2], [0.1, -0.1], [Part(1, center)])[0] for other in (subject, dense)]
    assert all(torch.equal(mine, others) for mine, others in zip(*both, strict=True))


def test_each_expert_has_a_direction_of_its_own():
    """At rank 1 the noise of e matrices spans e directions, where that of one matrix of e rows spans one."""
    noise = perturbation(rank=1).noise([0], 7, torch.zeros(3, 20, 17, dtype=torch.float64))[0]
    assert [int(torch.linalg.matrix_rank(expert)) for expert in noise] == [1, 1, 1]
    assert int(torch.linalg.matrix_rank(noise.flatten(1))) == 3


@pytest.mark.parametrize("shape", [(8, 20, 3), (8, 15, 20), (8, 20, 15)])
def test_kernels_of_a_convolution_are_one_matrix(shape):
    a, b = perturbation(rank=1).factors([0], 7, torch.zeros(shape))
    assert (a.shape, b.shape) == ((1, 8, 1), (1, shape[1] * shape[2], 1))


@pytest.mark.parametrize("name", CENTERS)
def test_a_shard_has_the_noise_of_its_place(name):
    center, subject = CENTERS[name], perturbation(basis_key=NoiseKey(5, 1))
    whole, end = subject.noise([4], 7, center).flatten(), center.numel()
    for start, stop in [(0, 0), (0, 1), (1, 8), (0, end - 1), (end // 3, end // 3 * 2 + 1), (end - 1, end), (0, end)]:
        assert torch.equal(subject.noise_of_range([4], 7, center, start, stop)[0], whole[start:stop])


def test_small_tensors_are_made_together_whatever_is_among_them(monkeypatch):
    """Those with dense noise in one call, be there a stack or not; each as it is made alone."""
    calls = []
    original = Dense.write_members
    monkeypatch.setattr(Dense, "write_members", lambda self, *args: calls.append(len(args[2])) or original(self, *args))
    centers = [torch.randn(5), torch.randn(3, 20, 17), torch.randn(7), torch.randn(20, 33)]
    parts = [Part(number, center) for number, center in enumerate(centers)]
    made = perturbation().members([2], [0.1, -0.1], parts)
    assert calls == [2]
    for members, part in zip(made, parts, strict=True):
        assert torch.equal(members, perturbation().members([2], [0.1, -0.1], [part])[0])


def test_members_are_center_plus_step_times_noise():
    center = torch.randn(20, 33)
    noise = perturbation().noise([2], 7, center)[0]
    [[plus, minus]] = perturbation().members([2], [0.1, -0.1], [Part(7, center)])
    assert torch.equal(plus, center + noise * 0.1)
    assert torch.equal(minus, center + noise * -0.1)


def test_the_basis_outlives_the_generation():
    """LOZO: A is new in each generation, B only in each window."""
    center = CENTERS["matrix"]
    (a0, b0), (a1, b1) = (
        perturbation(generation=generation, basis_key=NoiseKey(5, 0)).factors([0, 1], 7, center)
        for generation in (50, 51)
    )
    assert torch.equal(b0, b1)
    assert not torch.equal(a0, a1)
    assert not torch.equal(b0[0], b0[1])  # each direction has its own


def test_an_enclosing_autocast_changes_nothing():
    center, subject = CENTERS["matrix"], perturbation()
    noise, total = subject.noise([0], 7, center), subject.weighted_sum(WEIGHTS, 7, center)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(subject.noise([0], 7, center), noise)
        assert torch.equal(subject.weighted_sum(WEIGHTS, 7, center), total)


# --- moments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_moments(distribution, rank):
    """Mean 0, variance 1, elements uncorrelated; but the squares of two of one row are not.

    ``Cov(E_ij^2, E_ik^2) = E[(sum_s a_s b_js)^2 (sum_s a_s b_ks)^2] / r^2 - 1 = (E a^4 - 1) / r`` for unit variances.
    n = 40,000 directions; 4.9 standard errors are exceeded by chance once in a million.
    """
    n = 40_000
    center = torch.zeros(4, 5, dtype=torch.float64)
    noise = perturbation(rank, distribution=distribution).noise(range(n), 0, center).view(n, 20)

    def within(values, expected):
        error = values.std(0) / math.sqrt(n) + 1e-12  # a product of signs has no spread
        assert ((values.mean(0) - expected).abs() < 4.9 * error).all(), values.mean(0)

    within(noise, 0)
    products = noise[:, :, None] * noise[:, None, :]
    within(products, torch.eye(20, dtype=torch.float64))
    fourth_moment = {"gaussian": 3, "rademacher": 1, "uniform": 9 / 5}[distribution]
    squares = noise.view(n, 4, 5).square()
    within(squares[:, :, 0] * squares[:, :, 1], 1 + (fourth_moment - 1) / rank)
    within(squares[:, 0, :] * squares[:, 1, :], 1 + (fourth_moment - 1) / rank)
    within(squares[:, 0, 0] * squares[:, 1, 1], 1)  # neither row nor column in common


@pytest.mark.parametrize("rank", [1, 3])
def test_the_estimate_of_a_linear_fitness_is_unbiased(rank):
    """``E[<G, E> E] = G`` for n = 40,000 directions, within 4.9 standard errors."""
    n = 40_000
    slope = torch.linspace(-2, 3, 20, dtype=torch.float64)
    noise = perturbation(rank).noise(range(n), 0, torch.zeros(4, 5, dtype=torch.float64)).view(n, 20)
    samples = (noise @ slope)[:, None] * noise
    assert ((samples.mean(0) - slope).abs() < 4.9 * samples.std(0) / math.sqrt(n)).all()


# --- the sum --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("name", CENTERS)
def test_the_update_sums_the_noise_of_the_members(name, rank):
    center, subject = CENTERS[name], perturbation(rank, basis_key=NoiseKey(5, 1))
    total = subject.weighted_sum(WEIGHTS, 7, center)
    assert total.dtype == (torch.float64 if name == "float64" else torch.float32)
    noise = perturbation(rank, basis_key=NoiseKey(5, 1)).noise(range(6), 7, center).double()
    expected = sum(noise[d] * weight for d, weight in enumerate(WEIGHTS))
    accuracy = 1e-13 if name == "float64" else 1e-6
    torch.testing.assert_close(total.double(), expected.flatten(), rtol=0, atol=accuracy * float(expected.norm()))


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@pytest.mark.parametrize("name", ["matrix", "tall", "convolution", "experts"])
def test_ranges_are_slices_of_the_whole_bit_for_bit(name, block, monkeypatch):
    monkeypatch.setattr(low_rank, "_BLOCK", block)
    center, subject = CENTERS[name], perturbation()
    whole = subject.weighted_sum(WEIGHTS, 7, center)
    end = center.numel()
    for start, stop in [(0, 0), (0, 1), (1, 8), (0, end - 1), (20, 61), (end // 2, end), (end - 1, end), (3, None)]:
        assert torch.equal(subject.weighted_sum(WEIGHTS, 7, center, start, stop), whole[start:stop])


def test_block_sizes_change_only_the_rounding(monkeypatch):
    center, subject = CENTERS["matrix"], perturbation()
    whole = subject.weighted_sum(WEIGHTS, 7, center)
    monkeypatch.setattr(low_rank, "_BLOCK", 70)  # two rows, one direction
    torch.testing.assert_close(subject.weighted_sum(WEIGHTS, 7, center), whole, rtol=1e-5, atol=1e-5)


def test_directions_of_weight_zero_are_not_even_drawn(monkeypatch):
    center, asked = CENTERS["matrix"], set()
    original = low_rank.draw
    monkeypatch.setattr(
        low_rank,
        "draw",
        lambda key, members, *rest, **options: asked.update(members) or original(key, members, *rest, **options),
    )
    perturbation().weighted_sum(WEIGHTS, 7, center)
    assert asked == {0, 2, 3, 4, 5}
    assert torch.equal(perturbation().weighted_sum([0.0] * 6, 7, center), torch.zeros(660))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "2"])
def test_rank_out_of_range(rank):
    with pytest.raises(ValueError, match=r"rank must be a whole number >= 1, got"):
        perturbation(rank)


def test_unknown_noise():
    with pytest.raises(ValueError, match=r"Unknown noise 'gausian'"):
        perturbation(distribution="gausian")
