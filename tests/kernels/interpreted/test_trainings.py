"""Whole trainings by the interpreted Triton kernels end with the weights of the CPU's kernels, bit for bit."""

import pytest
import torch
from torch import nn

from lightning_evo.generation.evolution import Evolution
from lightning_evo.kernels import backend_for
from lightning_evo.kernels.triton.backend import Triton
from tests.kernels.bits import bits

GENERATIONS = 20


def trained(dtype, options):
    """A module whose fitness depends on its weights alone, moved in place."""
    torch.manual_seed(0)
    module = nn.ParameterList([nn.Parameter(torch.randn(9, 21).to(dtype))])
    subject = Evolution(**{"population": 2, "sigma": 0.1, "learning_rate": 0.05, **options}, seed=3, evaluation="plain")
    subject.setup(module)
    for _ in range(GENERATIONS):
        assert subject.evaluate(lambda batch: -(module[0].double() - 1).square().sum(), torch.zeros(1))
        update = subject.conclude()
        assert update.apply() > 0
    return module[0].detach()


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.float16, {"noise": "rademacher"}),
        (torch.float32, {"noise": "rademacher", "weight_decay": 0.01, "antithetic": False}),
        (torch.bfloat16, {"rank": 2}),
        (torch.float32, {"sparsity": 0.5}),
        (torch.float16, {"sigma_scale": "rms"}),
        (torch.bfloat16, {"noise": "uniform", "anchor": 0.5}),
    ],
    ids=str,
)
def test_trainings_end_with_the_same_weights(dtype, options, monkeypatch):
    assert not isinstance(backend_for(torch.zeros(1)), Triton)
    expected = trained(dtype, options)
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "triton")
    assert isinstance(backend_for(torch.zeros(1)), Triton)
    found = trained(dtype, options)
    assert torch.equal(bits(found), bits(expected))
    torch.manual_seed(0)
    assert not torch.equal(found, torch.randn(9, 21).to(dtype))
