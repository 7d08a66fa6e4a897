"""One noise, two uses: what members see is what the update sums."""

import math

import pytest
import torch

from lightning_evo.kernels import backend
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.perturbations import Dense, Part, dense, noise_dtype

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


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_update_sums_the_noise_of_the_members(distribution, like):
    like, subject = LIKE[like], perturbation(distribution)
    total = subject.weighted_sum(WEIGHTS, 7, like)
    assert total.shape == (like.numel(),)
    assert total.dtype == (torch.float64 if like.dtype == torch.float64 else torch.float32)
    expected = torch.zeros(like.shape, dtype=total.dtype)
    for direction, weight in enumerate(WEIGHTS):
        values = subject.noise([direction], 7, like)
        assert values.shape == (1, *like.shape)
        assert values.dtype == total.dtype
        expected += values[0] * weight
    assert torch.equal(total, expected.reshape(-1))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_members_are_the_center_plus_steps_of_the_noise(distribution, like):
    subject, center = perturbation(distribution), LIKE[like] + torch.randn(LIKE[like].shape).to(LIKE[like].dtype)
    steps = [0.1, -0.1, 3e-5, -0.2, 0.3, -3e-5]
    noises = subject.noise([4, 0], 7, center)
    [members] = subject.members([4, 0], steps, [Part(7, center)])
    assert members.shape == (6, *center.shape)
    assert members.dtype == center.dtype
    for number, (member, step) in enumerate(zip(members, steps, strict=True)):
        noise = noises[number // 3]
        assert torch.equal(member, (center.to(noise.dtype) + noise * step).to(center.dtype))
        assert member.numel() == 0 or not torch.equal(member, center) or abs(step) == 3e-5


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("first", "last"), [(0, 60), (0, 1), (16, 48), (7, 60), (59, 60), (32, 33)])
def test_some_rows_of_a_member(distribution, dtype, first, last):
    """Also where they begin in the middle of a row of noise."""
    center = torch.randn(60, 8, 16).to(dtype)
    parts = [Part(7, center), Part.of_rows(7, center, first, last)]
    whole, some = perturbation(distribution).members([3], [0.5, -0.5], parts)
    for part, member in zip(some, whole, strict=True):
        assert torch.equal(part, member[first:last])


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(60, 8, 16), (60, 7), (60, 130), (3, 20_001), (60,)], ids=str)
def test_chosen_rows_of_a_member(distribution, dtype, shape):
    """Rows of less and of more than a row of noise, and those that begin in the midst of one."""
    for center in (torch.randn(shape).to(dtype), torch.randn(shape[::-1]).to(dtype).permute(*range(len(shape))[::-1])):
        chosen = torch.tensor([[2, 0, 2], [len(center) - 1, 1, 0]])
        [whole] = perturbation(distribution).members([3, 5], [0.5, -0.5, 2.0, 0.1], [Part(7, center)])
        some = perturbation(distribution).chosen_rows([3, 5], [0.5, -0.5, 2.0, 0.1], 7, center, chosen)
        assert some.dtype == dtype
        assert torch.equal(some, whole[:, chosen])
        none = perturbation(distribution).chosen_rows([3], [0.5], 7, center, chosen[:, :0])
        assert none.shape == (1, 2, 0, *center.shape[1:])


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_any_part_of_the_sum(distribution, dtype):
    like = torch.zeros(5000, dtype=dtype)
    whole = perturbation(distribution).weighted_sum(WEIGHTS, 7, like)
    for start, stop in [(0, 5000), (0, 0), (128, 4096), (100, 3000), (2048, None), (4999, None), (2049, 4097)]:
        part = perturbation(distribution).weighted_sum(WEIGHTS, 7, like, start, stop)
        assert torch.equal(part, whole[start:stop]), (start, stop)


def test_tensors_that_have_more_elements_than_there_are_numbers():
    like = torch.empty((1 << 34) + 1, device="meta")
    with pytest.raises(ValueError, match="stop=17179869185"):
        perturbation().members([0], [1.0], [Part(0, like)])
    with pytest.raises(ValueError, match="stop=17179869185"):
        perturbation().weighted_sum([1.0], 0, like)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_is_addressed_by_the_row_major_offset(distribution):
    """Of whatever tensor: shape and strides do not matter, only how many elements come before."""
    flat = perturbation(distribution).noise([2], 3, torch.zeros(660))[0]
    for name in ("matrix", "transposed", "bfloat16", "float16"):
        values = perturbation(distribution).noise([2], 3, LIKE[name])[0]
        assert torch.equal(values.reshape(-1), flat)
    drawn = draw(NoiseKey(5, 0), [2], 3, 0, 660, distribution=distribution)[0]
    assert torch.equal(flat, (drawn - 0.5) * math.sqrt(12) if distribution == "uniform" else drawn)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_float64_noise_is_the_same_noise(distribution):
    single, double = (perturbation(distribution).noise([0], 0, LIKE[name]) for name in ("matrix", "float64"))
    assert torch.equal(double, single.double())


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("chunk", [7, 64, 256, 1000, 5000])
def test_chunk_sizes_do_not_change_a_bit(chunk, monkeypatch):
    center = torch.randn(3000)

    def results():
        [members] = perturbation().members([3, 4], [0.5, -0.5, 1.0, 2.0], [Part(7, center)])
        rows = perturbation().chosen_rows([3], [0.5, -0.5], 7, center.view(30, 100), torch.arange(30).flip(0))
        return perturbation().weighted_sum(WEIGHTS, 7, center), members, rows

    expected = results()
    monkeypatch.setattr(backend, "CHUNK", chunk)
    monkeypatch.setattr(backend, "AT_ONCE", chunk)
    found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("elements", [33, 2000])
def test_directions_of_weight_zero_are_not_even_drawn(elements, monkeypatch):
    like, subject, asked = torch.zeros(elements), perturbation(), []
    used = dense.backend_for(like)
    weighted_sum = type(used).weighted_sum
    monkeypatch.setattr(
        type(used), "weighted_sum", lambda self, *args: asked.append(args[1]) or weighted_sum(self, *args)
    )
    subject.weighted_sum(WEIGHTS, 7, like)
    assert asked == [[0, 2, 3, 4, 5]]
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
