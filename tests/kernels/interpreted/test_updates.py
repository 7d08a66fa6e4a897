"""Updates in one pass: the reference's bits, its norms, and its way back to an anchor."""

from dataclasses import replace

import pytest
import torch

from lightning_evo.kernels import REFERENCE, Moved, Pull, Values
from tests.kernels.bits import difficult, same_bits

NOISE, ROUNDING = (7, 2**32 - 1, 2**32 - 5, 2**31 + 3), (9 | 1 << 28, 2**32 - 2, 5, 2**32 - 1)
KINDS = [
    ("gaussian", torch.float32),
    ("gaussian", torch.bfloat16),
    ("gaussian", torch.float16),
    ("rademacher", torch.float16),
    ("uniform", torch.bfloat16),
]


@pytest.mark.parametrize(("distribution", "dtype"), KINDS)
def test_updates_of_several_tensors(distribution, dtype, triton_backend):
    ordinary = torch.randn(8500).to(dtype)
    centers = [ordinary, ordinary[:512], difficult(300, dtype), ordinary[:0], ordinary[1:].double(), ordinary[1:700]]
    pulls = {1: Pull(ordinary[-512:], "l2", 0.25, 0.01), 5: Pull(ordinary[1:700].clone(), "l1", 0.01)}
    coefficients, weights = [0.25, -0.5, 1e-3, 1.0, 0.5, 2e-2], [0.5, -1.25]
    results, norms, ways = [], [], []
    for backend in (triton_backend, REFERENCE):
        moving = [
            Moved(Values(distribution, (i, *NOISE[1:])), ROUNDING, center.clone(), coefficient, pull)
            for i, (center, coefficient) in enumerate(zip(centers, coefficients, strict=True))
            for pull in [replace(pulls[i]) if i in pulls else None]
        ]
        norms.append(backend.update(moving, [0, 5], weights))
        results.append([moved.center for moved in moving])
        ways.append(torch.stack([moved.pull.distance for moved in moving if moved.pull is not None]))
    assert [i for i, (a, b) in enumerate(zip(*results, strict=True)) if not same_bits(a, b)] == []
    assert norms[0].dtype == ways[0].dtype == torch.float64
    torch.testing.assert_close(*norms, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(*ways, rtol=1e-6, atol=0.0)


def test_coefficients_that_only_the_device_knows(triton_backend):
    """As of clipping by norm: beside others that are known, and again with another one in the same place."""
    values, center = Values("gaussian", NOISE), torch.randn(700).bfloat16()
    for coefficient in (-0.3, 1e-3):
        results = []
        for kind in (float, lambda number: torch.tensor(number, dtype=torch.float64)):
            moving = [Moved(values, ROUNDING, center.clone(), each) for each in (0.5, kind(coefficient), 0.25)]
            triton_backend.update(moving, [0, 5], [0.5, -1.25])
            results.append([moved.center for moved in moving])
        assert all(map(same_bits, *results))
        assert not same_bits(results[0][0], results[0][1])


def test_nothing_to_learn_changes_no_bit(triton_backend):
    center = difficult(300, torch.bfloat16)
    moving = center.clone()
    values = Values("gaussian", NOISE)
    for coefficient, directions, weights in ((0.0, [0], [1.0]), (1.0, [], [])):
        norms = triton_backend.update([Moved(values, ROUNDING, moving, coefficient)], directions, weights)
        assert torch.equal(moving.view(torch.int16), center.view(torch.int16))
    assert norms.tolist() == [0.0]
    assert triton_backend.update([], [0], [1.0]).shape == (0,)


@pytest.mark.parametrize(("distribution", "start", "stop"), [("gaussian", 77, 5000), ("rademacher", 0, 2048)])
def test_sums(distribution, start, stop, triton_backend):
    values, like = Values(distribution, NOISE), torch.zeros(1, dtype=torch.bfloat16)
    for weights in ([0.5, -1.25, 3e-5], []):
        directions = [9, 0, 2**32 - 1][: len(weights)]
        found, expected = (
            backend.weighted_sum(values, directions, weights, start, stop, like)
            for backend in (triton_backend, REFERENCE)
        )
        assert same_bits(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moves_by_steps_of_all_sizes(dtype, triton_backend):
    center = difficult(3000, dtype)
    step = torch.randn(3000) * 10.0 ** torch.randint(-30, 31, (3000,))
    step[::7] = 0
    found, expected = center.clone(), center.clone()
    for backend, moving in ((triton_backend, found), (REFERENCE, expected)):
        backend.move(ROUNDING, 128 * 1001, moving, step)
        backend.move(ROUNDING, 0, moving[1:300], step[1:300])  # not aligned
    assert same_bits(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("by", "amount", "decay"), [("l2", 1e-3, 0.5), ("l1", 0.1, 0.0)])
def test_moves_that_are_drawn_back(by, amount, decay, dtype, triton_backend):
    center = difficult(2000, dtype)
    pull = Pull(center.roll(1), by, amount, decay)
    pull.anchor[::3] = center[::3]
    step = torch.randn(2000)
    step[::7] = 0
    found, expected = center.clone(), center.clone()
    for backend, moving in ((triton_backend, found), (REFERENCE, expected)):
        backend.pull(ROUNDING, 128, moving, step, pull)
    assert same_bits(found, expected)
