"""Shapings: closed forms, invariances, and the rules for failures and ties."""

import math

import numpy
import pytest
import torch
from scipy import stats

from lightning_evo.algorithms import shaping
from lightning_evo.algorithms.shaping import centered_ranks, linear_ranks, raw, resolve, shape, top_k, z_score

NAN, INF = math.nan, math.inf
NAMES = [*shaping.SHAPINGS, "top_k"]


def function(name, k=3):
    return resolve(name, k if name == "top_k" else None)


def fitness(n=10, seed=0):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_z_score():
    values = fitness()
    numbers = values.numpy()
    expected = (numbers - numbers.mean()) / (numbers.std() + 1e-8)  # numpy's std is the population's
    torch.testing.assert_close(z_score(values), torch.from_numpy(expected), rtol=1e-14, atol=1e-15)
    # The 1e-8 damps differences far below it.
    torch.testing.assert_close(
        z_score(float64(0, 1e-12)), float64(-0.5e-12, 0.5e-12) / (0.5e-12 + 1e-8), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("n", [2, 3, 10, 1001])
def test_ranks(n):
    values = fitness(n)
    ranks = torch.from_numpy(stats.rankdata(values.numpy()) - 1)
    torch.testing.assert_close(centered_ranks(values), ranks / (n - 1) - 0.5, rtol=0, atol=1e-15)
    torch.testing.assert_close(linear_ranks(values), 2 * ranks / (n - 1) - 1, rtol=0, atol=1e-15)


def test_ties_share_the_mean_of_their_ranks():
    values = float64(3, 1, 3, 0, 1, 3, 7)
    ranks = torch.from_numpy(stats.rankdata(values.numpy(), method="average") - 1)
    assert ranks.tolist() == [4, 1.5, 4, 0, 1.5, 4, 6]
    torch.testing.assert_close(centered_ranks(values), ranks / 6 - 0.5, rtol=0, atol=1e-15)


def test_raw_is_fitness_minus_its_mean():
    assert raw(float64(1, 2, 6)).tolist() == [-2, -1, 3]


def ars_direction_weights(plus, minus, b):
    """Mania et al., Algorithm 2, line 7: ``1 / (b sigma_R) (r(delta_k, +) - r(delta_k, -))`` over the b best."""
    order = sorted(range(len(plus)), key=lambda k: -max(plus[k], minus[k]))[:b]
    sigma_r = numpy.std([plus[k] for k in order] + [minus[k] for k in order])
    weights = numpy.zeros(len(plus))
    for k in order:
        weights[k] = (plus[k] - minus[k]) / (b * sigma_r)
    return weights


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_top_k_is_the_formula_of_ars(k):
    values = fitness(16, seed=k)
    weights = top_k(values, 2, k=k).view(8, 2)
    # The estimate is the mean over all 16 members of weight times signed noise; it divides by 2 b where ARS has b.
    estimate = (weights[:, 0] - weights[:, 1]) / 16
    expected = ars_direction_weights(values[::2].tolist(), values[1::2].tolist(), k) / 2
    numpy.testing.assert_allclose(estimate.numpy(), expected, rtol=1e-13, atol=0)


def test_top_k_without_pairs():
    weights = top_k(float64(5, 1, 3, 4), 1, k=2)
    assert weights.tolist() == [2, 0, 0, -2]  # of 5 and 4, (x - 4.5) / 0.5, times 4 / 2


def test_top_k_with_equal_rewards_among_the_best():
    assert top_k(float64(5, 5, 1, 5), 1, k=2).tolist() == [0, 0, 0, 0]
    assert torch.equal(top_k(fitness(4), 2, k=3), top_k(fitness(4), 2, k=2))  # fewer are left after failures
    with pytest.raises(ValueError, match="at least 1, got 0"):
        top_k(fitness(4), 2, k=0)


# --- properties of all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_direction", [1, 2])
def test_weights_follow_their_members(name, per_direction):
    """Permuting directions (and the members of a pair) permutes the weights, and nothing else."""
    values, function_ = fitness(12), function(name)
    weights = shape(values, function_, per_direction)
    order = torch.randperm(12 // per_direction).repeat_interleave(per_direction) * per_direction
    order += torch.tensor([1, 0] if per_direction == 2 else [0]).repeat(12 // per_direction)
    torch.testing.assert_close(shape(values[order], function_, per_direction), weights[order], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [-1e6, 3.5])
def test_a_constant_added_to_the_fitness_changes_nothing(name, shift):
    values, function_ = fitness(12), function(name)
    torch.testing.assert_close(
        shape(values + shift, function_, 2), shape(values, function_, 2), rtol=1e-8, atol=1e-9
    )  # 1e6 costs ten of float64's sixteen digits


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"raw"}))
def test_the_scale_of_the_fitness_changes_nothing(name):
    values, function_ = fitness(12), function(name)
    torch.testing.assert_close(shape(values * 1e3, function_, 2), shape(values, function_, 2), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["centered_ranks", "linear_ranks"])
def test_ranks_see_only_the_order(name):
    values = fitness(12)
    assert torch.equal(shape(values.exp(), function(name)), shape(values, function(name)))


@pytest.mark.parametrize("name", NAMES)
def test_better_members_weigh_more_and_the_weights_sum_to_zero(name):
    values, function_ = fitness(12).sort().values, function(name, k=12)
    weights = shape(values, function_)
    assert (weights.diff() > 0).all()
    assert abs(weights.sum()) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_float64_and_the_fitness_stays_as_it_is(name):
    values = fitness(12).float()
    before = values.clone()
    assert shape(values, function(name)).dtype == torch.float64
    assert torch.equal(values, before)


# --- failures and ties ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("failure", [INF, -INF])
def test_an_infinite_member_ranks_just_below_the_worst(name, failure):
    values, function_ = fitness(12), function(name, k=12)
    values[4] = failure
    expected = values.clone()
    expected[4] = numpy.nextafter(values[values.isfinite()].min().item(), -INF)
    weights = shape(values, function_)
    assert torch.equal(weights, shape(expected, function_))
    assert weights[4] <= weights.min()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_direction", [1, 2])
def test_a_member_without_fitness_is_left_out_with_its_partner(name, per_direction):
    values, function_ = fitness(12), function(name)
    values[4] = NAN
    others = [i for i in range(12) if i // per_direction != 4 // per_direction]
    weights = shape(values, function_, per_direction)
    assert torch.equal(weights[others], shape(values[others], function_, per_direction))
    assert weights.count_nonzero() <= len(others)


def test_several_failures_share_the_lowest_rank():
    assert shape(float64(1, INF, 3, -INF, INF), centered_ranks).tolist() == [0.25, -0.25, 0.5, -0.25, -0.25]
    assert shape(float64(1, NAN, 3, -INF, INF), centered_ranks, 1)[1] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, -2.5, 1e300])
def test_nothing_to_learn_gives_zero_weights(name, value):
    weights = shape(torch.full((6,), value, dtype=torch.float64), function(name))
    assert weights.tolist() == [0.0] * 6


@pytest.mark.parametrize("name", NAMES)
def test_mixed_failures_without_a_success(name):
    assert shape(float64(NAN, INF, -INF, NAN), function(name)).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0, -1e300])
def test_one_failure_among_equals_gives_finite_weights(name, value):
    values = torch.full((6,), value, dtype=torch.float64)
    values[0] = INF
    weights = shape(values, function(name))
    assert weights.isfinite().all()
    assert weights[0] <= weights[1:].min()


# --- resolve and errors ---------------------------------------------------------------------------------------------


def test_resolve():
    assert resolve("raw") is raw
    own = lambda fitness, per_direction: fitness  # noqa: E731
    assert resolve(own) is own
    assert torch.equal(resolve("top_k", 3)(fitness(), 2), top_k(fitness(), 2, k=3))


@pytest.mark.parametrize(
    ("name", "k", "message"),
    [
        (
            "centred_ranks",
            None,
            r"Unknown shaping 'centred_ranks'\. Did you mean 'centered_ranks'\? Choose one of z_score",
        ),
        ("zscore", None, r"Did you mean 'z_score'\?"),
        ("xyz", None, r"'xyz'\. Choose one of .*top_k"),
        ("top_k", None, "go together; got shaping='top_k' and top_k=None"),
        ("raw", 3, "go together; got shaping='raw' and top_k=3"),
        (raw, 3, "top_k has no effect with a shaping of your own"),
    ],
)
def test_resolve_errors(name, k, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, k)


@pytest.mark.parametrize(
    "broken", [lambda fitness, _: fitness[:2], lambda fitness, _: fitness * NAN, lambda fitness, _: fitness.sum()]
)
def test_a_shaping_of_ones_own_must_give_finite_weights(broken):
    with pytest.raises(ValueError, match="one finite weight for each of the 6 members"):
        shape(fitness(6), broken)


def test_a_shaping_of_ones_own_sees_the_pairs():
    seen = []
    shape(fitness(6).float(), lambda values, per_direction: seen.append((values.dtype, per_direction)) or values, 2)
    assert seen == [(torch.float64, 2)]
