"""Threads as a test wants them, and the results without kernels."""

import pytest
import torch


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def plain(monkeypatch):
    """Calls a function without the kernels."""

    def call(function):
        with monkeypatch.context() as context:
            context.setenv("LIGHTNING_EVO_KERNELS", "torch")
            return function()

    return call
