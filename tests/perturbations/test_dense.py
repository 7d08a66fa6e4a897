"""One noise, two uses: what members see is what the update sums."""

import math

import pytest
import torch

from lightning_evo import noise
from lightning_evo.noise import NoiseKey
from lightning_evo.perturbations import dense
from lightning_evo.perturbations.dense import Dense, noise_dtype

DISTRIBUTIONS = ["gaussian", "rademacher", "uniform"]
WEIGHTS = [0.5, 0.0, -1.25, 3e-5, -7.0, 0.1]

LIKE = {
    "vector": torch.zeros(1000),
    "matrix": torch.zeros(20, 33),
    "scalar": torch.zeros(()),
    "empty": torch.zeros(0, 4),
    "channels_last": torch.zeros(3, 5, 4, 6).contiguous(memory_format=torch.channels_last),
    "transposed": torch.zeros(33, 20).T,
    "slice": torch.zeros(40, 40)[3:23, ::2],
    "float64": torch.zeros(20, 33, dtype=torch.float64),
    "bfloat16": torch.zeros(20, 33, dtype=torch.bfloat16),
    "float16": torch.zeros(20, 33, dtype=torch.float16),
}


def perturbation(distribution="gaussian", generation=0):
    return Dense(NoiseKey(seed=5, generation=generation), distribution)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_update_sums_the_noise_of_the_members(distribution, like, keep):
    like, subject = LIKE[like], perturbation(distribution)
    if keep:
        subject.keep(len(WEIGHTS), 7, like)
    total = subject.weighted_sum(WEIGHTS, 7, like)
    assert total.shape == like.shape
    assert total.dtype == (torch.float64 if like.dtype == torch.float64 else torch.float32)
    expected = torch.zeros(like.shape, dtype=total.dtype)
    for direction, weight in enumerate(WEIGHTS):
        values = subject.noise([direction], 7, like)
        assert values.shape == (1, *like.shape)
        assert values.dtype == total.dtype
        expected += values[0] * weight
    assert torch.equal(total, expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_is_addressed_by_the_row_major_offset(distribution):
    """Of whatever tensor: shape and strides do not matter, only how many elements come before."""
    flat = perturbation(distribution).noise([2], 3, torch.zeros(660))[0]
    for name in ("matrix", "transposed", "bfloat16", "float16"):
        values = perturbation(distribution).noise([2], 3, LIKE[name])[0]
        assert torch.equal(values.reshape(-1), flat)
    drawn = noise.draw(NoiseKey(5, 0), [2], 3, 0, 660, distribution=distribution)[0]
    assert torch.equal(flat, (drawn - 0.5) * math.sqrt(12) if distribution == "uniform" else drawn)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_float64_noise_is_the_same_noise(distribution):
    single, double = (perturbation(distribution).noise([0], 0, LIKE[name]) for name in ("matrix", "float64"))
    assert torch.equal(double, single.double())


def test_kept_noise_is_the_noise_that_would_be_drawn():
    like, kept, drawn = LIKE["matrix"], perturbation(), perturbation()
    kept.keep(6, 7, like)
    for directions in ([0], [5], [3, 1], range(6), [0, 1, 2, 3, 4, 5]):
        assert torch.equal(kept.noise(directions, 7, like), drawn.noise(directions, 7, like))
    assert torch.equal(kept.noise([2], 8, like), drawn.noise([2], 8, like))  # of another tensor none was kept


def test_noise_is_kept_once_per_generation(monkeypatch):
    """Each batch of an accumulation window asks for it anew."""
    like, subject = LIKE["matrix"], perturbation()
    expected = subject.weighted_sum(WEIGHTS, 7, like)
    subject.keep(6, 7, like)
    monkeypatch.setattr(dense, "draw", None)
    subject.keep(6, 7, like)
    assert torch.equal(subject.weighted_sum(WEIGHTS, 7, like), expected)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 5000])
def test_chunk_sizes_do_not_change_a_bit(chunk, keep, monkeypatch):
    like = LIKE["matrix"]
    expected = perturbation().weighted_sum(WEIGHTS, 7, like)
    monkeypatch.setattr(dense, "_CHUNK", chunk)
    subject = perturbation()
    if keep:
        subject.keep(6, 7, like)
    assert torch.equal(subject.weighted_sum(WEIGHTS, 7, like), expected)


@pytest.mark.parametrize("keep", [False, True])
def test_directions_of_weight_zero_are_not_even_drawn(keep, monkeypatch):
    like, subject, asked = LIKE["vector"], perturbation(), []
    original = subject._flat
    monkeypatch.setattr(
        subject, "_flat", lambda directions, *rest: asked.extend(directions) or original(directions, *rest)
    )
    if keep:
        subject.keep(6, 7, like)
    subject.weighted_sum(WEIGHTS, 7, like)
    assert asked == [0, 2, 3, 4, 5]
    assert torch.equal(subject.weighted_sum([0.0] * 6, 7, like), like)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution_has_mean_0_and_variance_1(distribution):
    n = 1 << 20
    values = perturbation(distribution).noise([0], 0, torch.zeros(n, dtype=torch.float64))[0]
    fourth_moment = {"gaussian": 3, "rademacher": 1, "uniform": 9 / 5}[distribution]
    # 4.9 standard errors are exceeded once in a million.
    assert abs(values.mean()) < 4.9 / math.sqrt(n)
    assert abs(values.square().mean() - 1) <= 4.9 * math.sqrt((fourth_moment - 1) / n)
    if distribution == "uniform":
        assert values.abs().max() <= math.sqrt(3)


def test_generations_parameters_and_directions_differ():
    like = torch.zeros(16)
    draws = [
        perturbation(generation=generation).noise([direction], parameter, like)[0]
        for generation in (0, 1)
        for direction in (0, 1)
        for parameter in (0, 1)
    ]
    assert len({tuple(values.tolist()) for values in draws}) == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [("gausian", r"Unknown noise 'gausian'\. Did you mean 'gaussian'\? Choose one of gaussian, rademacher, uniform\.")],
)
def test_unknown_noise(name, message):
    with pytest.raises(ValueError, match=message):
        perturbation(name)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_noise_dtype(dtype, expected):
    assert noise_dtype(torch.zeros(1, dtype=dtype)) == expected
