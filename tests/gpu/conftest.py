"""Where tests of this folder run: on a GPU if there is one, and on the CPU, so that their code is run everywhere."""

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A device, with the fastest kernels that there are for it."""
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "auto")
    return torch.device(request.param, 0 if request.param == "cuda" else None)
