"""Random values: Random123's known answer, and the reference's bits at every kind of place."""

import pytest
import torch

from lightning_evo.kernels import REFERENCE, Values

CPU = torch.device("cpu")
ADDRESS = (7 | 5 << 28, 2**32 - 1, 2**32 - 5, 2**31 + 3)


def test_philox_gives_its_published_answer(triton_backend):
    drawn = triton_backend.draw(Values("uniform", (0, 0, 0, 0)), [0], 0, 64, torch.float32, CPU)[0]
    words = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])
    assert torch.equal(drawn[::16], (words >> 8) * 2.0**-24)


@pytest.mark.parametrize(
    ("distribution", "start", "stop"),
    [
        ("gaussian", 0, 4096 + 129),  # two programs
        ("gaussian", 61, 200),
        ("gaussian", 2**34 - 99, 2**34),
        ("rademacher", 2000, 4100),
        ("rademacher", 2**34 - 3000, 2**34 - 16),
        ("uniform", 3, 4),
        ("uniform", 2**34 - 300, 2**34),
        ("uniform16", 77, 1000),
    ],
)
def test_values_are_those_of_the_reference(distribution, start, stop, triton_backend):
    values = Values(distribution, ADDRESS)
    found, expected = (
        backend.draw(values, [0, 2**32 - 1], start, stop, torch.float32, CPU) for backend in (triton_backend, REFERENCE)
    )
    assert torch.equal(found, expected)


def test_other_dtypes_and_no_values(triton_backend):
    values = Values("gaussian", ADDRESS)
    for dtype in (torch.float64, torch.bfloat16):
        found, expected = (backend.draw(values, [1], 5, 99, dtype, CPU) for backend in (triton_backend, REFERENCE))
        assert torch.equal(found, expected)
        assert found.dtype == dtype
    assert triton_backend.draw(values, [], 0, 100, torch.float32, CPU).shape == (0, 100)
    assert triton_backend.draw(values, [1], 100, 100, torch.float32, CPU).shape == (1, 0)
