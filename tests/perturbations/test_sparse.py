"""Only the small weights of a tensor are perturbed and learn."""

import pytest
import torch

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.perturbations import Dense, Part, Sparse, sparse

WEIGHTS = [0.5, 0.0, -1.25]
KEY = NoiseKey(seed=5, generation=3)


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


CENTERS = {
    "vector": random(1000).float(),
    "matrix": random(20, 33).float(),
    "transposed": random(33, 20).float().T,
    "channels_last": random(3, 5, 4, 6).float().contiguous(memory_format=torch.channels_last),
    "float64": random(20, 33),
    "bfloat16": random(20, 33).bfloat16(),
    "float16": random(20, 33).half(),
}


def perturbation(sparsity=0.75):
    return Sparse(Dense(KEY), sparsity)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("name", CENTERS)
def test_the_smallest_weights_are_chosen(name, sparsity):
    center = CENTERS[name]
    perturbed = perturbation(sparsity).noise([0], 1, center)[0] != 0
    order = center.double().abs().flatten().sort()
    count = max(1, center.numel() - round(sparsity * center.numel()))
    threshold = order.values[count - 1]
    assert torch.equal(perturbed, center.double().abs() <= threshold)
    if name in ("vector", "matrix", "float64"):  # short numbers tie
        assert int(perturbed.sum()) == count


@pytest.mark.parametrize("name", CENTERS)
def test_noise_members_and_sum_are_those_of_the_inner_one_where_the_mask_is(name):
    center, inner, subject = CENTERS[name], Dense(KEY), perturbation()
    chosen = subject.noise([0], 1, center)[0] != 0
    noise = subject.noise([2, 0], 1, center)
    assert torch.equal(noise, inner.noise([2, 0], 1, center) * chosen)
    [members] = subject.members([2], [0.1, -0.1], [Part(1, center)])
    [expected] = inner.members([2], [0.1, -0.1], [Part(1, center)])
    for member, dense in zip(members, expected, strict=True):
        assert member.dtype == center.dtype
        assert torch.equal(member, torch.where(chosen, dense, center))
    total = inner.weighted_sum(WEIGHTS, 1, center) * chosen.flatten()
    assert torch.equal(subject.weighted_sum(WEIGHTS, 1, center), total)
    assert torch.equal(subject.weighted_sum(WEIGHTS, 1, center, 5, 77), total[5:77])
    assert subject.factors([0], 1, center) is None


def test_the_threshold_is_that_of_the_first_use():
    """While an update moves one range after the other, only the elements of the present one are looked at."""
    center = torch.randn(1000)
    expected = perturbation().weighted_sum(WEIGHTS, 1, center)
    moving, subject, parts = center.clone(), perturbation(), []
    for start in range(0, 1000, 300):
        parts.append(subject.weighted_sum(WEIGHTS, 1, moving, start, min(start + 300, 1000)))
        moving[start : start + 300] = 1e6
    assert torch.equal(torch.cat(parts), expected)


def test_each_tensor_has_its_own_threshold():
    small, large, subject = torch.randn(1000), torch.randn(1000) * 1e4, perturbation()
    for parameter, center in enumerate((small, large)):
        assert int((subject.noise([0], parameter, center) != 0).sum()) == 250


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_tensor_is_perturbed_whole(value):
    assert (perturbation(0.9).noise([0], 1, torch.full((50,), value)) != 0).all()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3)])
def test_tiny_tensors(shape):
    center = torch.ones(shape)
    assert (perturbation().noise([0], 1, center)[0] != 0).all()
    assert perturbation().weighted_sum(WEIGHTS, 1, center).shape == (center.numel(),)


def test_a_very_large_tensor_is_sampled(monkeypatch):
    """Every third of 1,000 elements, and so 84 of 334 are small; the quantile's standard error is 2.4 %."""
    monkeypatch.setattr(sparse, "_SAMPLE", 400)
    center = torch.randn(1000)
    threshold = center[::3].abs().sort().values[334 - 250 - 1]
    perturbed = perturbation().noise([0], 1, center)[0] != 0
    assert torch.equal(perturbed, center.abs() <= threshold)
    assert abs(float(perturbed.double().mean()) - 0.25) < 4.9 * 0.024


@pytest.mark.parametrize("sparsity", [0, 1, 1.0, -0.5, 75, True, "0.5"])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be a number in \(0, 1\), got"):
        perturbation(sparsity)
