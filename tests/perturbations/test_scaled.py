"""Noise in units of each tensor's root mean square, and the composition of perturbations."""

import pytest
import torch

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.perturbations import Dense, LowRank, Part, Scaled, Sparse, compose

WEIGHTS = [0.5, 0.0, -1.25]
KEY = NoiseKey(seed=5, generation=3)

INNER = {"dense": lambda: Dense(KEY), "low_rank": lambda: LowRank(KEY, 2), "sparse": lambda: Sparse(Dense(KEY), 0.5)}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_everything_is_the_inner_ones_times_the_root_mean_square(inner, dtype):
    center = (torch.randn(20, 33) * 7).to(dtype)
    scale = float(center.double().square().mean().sqrt())
    subject, inner = Scaled(INNER[inner]()), INNER[inner]()
    torch.testing.assert_close(
        subject.noise([2, 0], 1, center), inner.noise([2, 0], 1, center) * scale, rtol=2e-6, atol=0
    )
    torch.testing.assert_close(
        subject.weighted_sum(WEIGHTS, 1, center, 5, 77),
        inner.weighted_sum(WEIGHTS, 1, center, 5, 77) * scale,
        rtol=2e-6,
        atol=0,
    )
    [members] = subject.members([2], [0.1, -0.1], [Part(1, center)])
    [expected] = inner.members([2], [0.1 * scale, -0.1 * scale], [Part(1, center)])
    for member, other in zip(members, expected, strict=True):
        assert member.dtype == dtype
        torch.testing.assert_close(member, other, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    mine, others = subject.factors([2, 0], 1, center), inner.factors([2, 0], 1, center)
    if others is None:
        assert mine is None
    else:
        torch.testing.assert_close(mine[0], others[0] * scale, rtol=2e-6, atol=0)
        assert torch.equal(mine[1], others[1])


@pytest.mark.parametrize(("value", "scale"), [(0.0, 1e-3), (1e-5, 1e-3), (0.25, 0.25), (-8.0, 8.0)])
def test_the_floor(value, scale):
    center = torch.full((4, 8), value)
    noise = Scaled(Dense(KEY)).noise([0], 1, center)
    torch.testing.assert_close(noise, Dense(KEY).noise([0], 1, center) * scale, rtol=1e-6, atol=0)


def test_an_empty_tensor():
    assert Scaled(Dense(KEY)).noise([0], 1, torch.zeros(0, 3)).shape == (1, 0, 3)


def test_the_scale_is_that_of_the_first_use():
    center = torch.randn(1000)
    expected = Scaled(Dense(KEY)).weighted_sum(WEIGHTS, 1, center)
    moving, subject, parts = center.clone(), Scaled(Dense(KEY)), []
    for start in range(0, 1000, 300):
        parts.append(subject.weighted_sum(WEIGHTS, 1, moving, start, min(start + 300, 1000)))
        moving[start : start + 300] = 1e6
    assert torch.equal(torch.cat(parts), expected)


# --- composition ----------------------------------------------------------------------------------------------------


def chain(perturbation):
    names = [type(perturbation).__name__]
    while hasattr(perturbation, "inner"):
        perturbation = perturbation.inner
        names.append(type(perturbation).__name__)
    return names


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["Dense"]),
        ({"rank": 2}, ["LowRank"]),
        ({"sparsity": 0.5}, ["Sparse", "Dense"]),
        ({"sigma_scale": "rms"}, ["Scaled", "Dense"]),
        ({"rank": 2, "sigma_scale": "rms"}, ["Scaled", "LowRank"]),
        ({"sparsity": 0.5, "sigma_scale": "rms"}, ["Scaled", "Sparse", "Dense"]),
    ],
)
def test_compose(options, names):
    perturbation = compose(KEY, "rademacher", **options)
    assert chain(perturbation) == names
    while hasattr(perturbation, "inner"):
        perturbation = perturbation.inner
    assert (perturbation.key, perturbation.distribution) == (KEY, "rademacher")


def test_compose_hands_on_the_options_of_low_rank_noise():
    perturbation = compose(KEY, rank=3, basis_key=NoiseKey(5, 0))
    assert (perturbation.rank, perturbation.basis_key) == (3, NoiseKey(5, 0))


def test_a_masked_matrix_is_not_of_low_rank():
    with pytest.raises(ValueError, match="rank and sparsity don't go together"):
        compose(KEY, rank=2, sparsity=0.5)
