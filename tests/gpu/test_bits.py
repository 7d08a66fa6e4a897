"""Noise, members and updates on a GPU have the CPU's bits, with each of the backends."""

import pytest
import torch

from lightning_evo.kernels import Backend, Moved, Pull, Span, Values, backend_for
from lightning_evo.kernels.triton import proven
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from tests.kernels.bits import difficult, same_bits

pytestmark = [
    pytest.mark.filterwarnings("ignore:The (noise|Triton) kernels (could|can)"),
    pytest.mark.filterwarnings("ignore:Noise will not be compiled"),
]

DISTRIBUTIONS = ["gaussian", "rademacher", "uniform"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ADDRESS, ROUNDING = (3, 7, 2**32 - 5, 2**32 - 1), (3 | 1 << 28, 7, 2**32 - 5, 2**32 - 1)
SIZES = (9001, 8192, 2049, 31, 1)
STEPS = (([4], [0.1, -0.1]), ([5], [0.25]), ([4, 0, 2**32 - 1], [0.1, -0.1, 7.0, 0.0, 1.0, -3e38]))


@pytest.fixture(params=["torch", "auto"], ids=["plain", "kernels"])
def backend(request, device, monkeypatch):
    """The plain operations on the device, and the fastest kernels that there are."""
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", request.param)
    return backend_for(torch.empty(0, device=device))


@pytest.fixture
def compare(backend, device):
    """Compares what a function gives by the reference on the CPU, and by a backend on the device."""

    def compare(function):
        torch.manual_seed(0)
        expected = list(function(Backend(), torch.device("cpu")))
        torch.manual_seed(0)
        found = [each.cpu() for each in function(backend, device)]
        assert len(expected) == len(found) > 0
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert same_bits(one, other), number

    return compare


@pytest.mark.gpu
def test_triton_kernels_can_be_used():
    """The other tests pass without them, too, by slower backends."""
    pytest.importorskip("triton")
    found = proven(torch.device("cuda", 0))
    assert isinstance(found, Backend), found


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_values(distribution, dtype, backend, device):
    for start, stop in [(0, 1), (61, 5000), (2048, 4096), (10**9 + 1, 10**9 + 4000), (2**34 - 99, 2**34)]:
        numbers = NoiseKey(2**64 - 5, 7), [0, 2**32 - 1, 5], 3, start, stop
        there = draw(*numbers, distribution=distribution, dtype=dtype, device=device)
        assert there.device.type == device.type
        assert same_bits(there.cpu(), draw(*numbers, distribution=distribution, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_members(distribution, dtype, compare):
    values = Values(distribution, ADDRESS)

    def members(backend, device):
        for directions, steps in STEPS:
            centers = [difficult(9001, dtype)[:size].to(device) for size in SIZES]
            outs = [torch.empty(len(steps), len(center), dtype=dtype, device=device) for center in centers]
            spans = [Span(values, 61 * i, *each) for i, each in enumerate(zip(centers, outs, strict=True))]
            backend.members(spans, directions, steps)
            yield from outs

    compare(members)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [128, 100, 3])
def test_chosen_rows(width, dtype, compare):
    def rows(backend, device):
        center = difficult(9000 // width * width, dtype).view(-1, width).to(device)
        chosen = torch.tensor([len(center) - 1, 0, 7, 7], device=device)
        for distribution in DISTRIBUTIONS:
            out = torch.empty(4, len(chosen), width, dtype=dtype, device=device)
            backend.chosen_rows(Values(distribution, ADDRESS), [4, 0], [0.1, -0.1, 7.0, 0.0], center, chosen, out)
            yield out

    compare(rows)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_sums(distribution, dtype, compare):
    def sums(backend, device):
        like, values = torch.zeros(8, dtype=dtype, device=device), Values(distribution, ADDRESS)
        for span in ((0, 9001), (128, 2176), (77, 5000)):
            yield backend.weighted_sum(values, [0, 2, 9], [0.5, -1.25, 3e-5], *span, like)

    compare(sums)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pull", [None, Pull(torch.zeros(0), "l2", 0.25, 0.5), Pull(torch.zeros(0), "l1", 0.1)])
def test_updates(pull, dtype, compare):
    def update(backend, device):
        for weights in ([1.0], [0.5, -1.25, 3e-5]):
            centers = [difficult(9001, dtype)[:size].nan_to_num(1, 2, -2).to(device) for size in SIZES]
            pulls = [None if pull is None else Pull(c.roll(1), pull.by, pull.amount, pull.decay) for c in centers]
            moved = [
                Moved(Values("gaussian", ADDRESS), ROUNDING, center, 0.25, each)
                for center, each in zip(centers, pulls, strict=True)
            ]
            norms = backend.update(moved, range(len(weights)), weights)
            assert norms.device.type == device.type
            assert norms.dtype == torch.float64
            expected = Backend().update(
                [one._replace(center=torch.zeros(len(one.center)), pull=None) for one in moved],
                range(len(weights)),
                weights,
            )
            torch.testing.assert_close(norms.cpu(), expected, rtol=1e-5, atol=0)
            yield from centers

    compare(update)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moves(dtype, compare):
    def moves(backend, device):
        for size in (0.0, 1e-30, 1e-4, 1.0):
            step = torch.randn(9001)
            step[::7] = 0
            for start in (0, 128 * 1001):
                center = difficult(9001, dtype).to(device)
                backend.move(ROUNDING, start, center, (step * size).to(device))
                yield center

    compare(moves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 3])
def test_products_of_low_rank_agree_to_rounding(rank, dtype, backend, device):
    torch.manual_seed(0)
    b, a, x, bias = torch.randn(4, rank, 60), torch.randn(4, rank, 50), torch.randn(4, 7, 60), torch.randn(4, 50)
    expected = bias[:, None] + (x @ b.mT) @ a
    for several in (slice(None), slice(0, 1)):
        given, shift = x[several].to(device, dtype), bias.to(device, dtype)
        found = backend.low_rank(b.to(device), a.to(device))(shift, given)
        expected = shift.cpu().float()[:, None] + (given.cpu().float() @ b.mT) @ a
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found.cpu().float(), expected, rtol=tolerance, atol=10 * tolerance)
