"""What every test gets: fixed seeds, an environment of its own, little logging; and GPU tests skipped without a GPU."""

import logging
import os
import random
from collections.abc import Iterator

import numpy
import pytest
import torch

# Compiling noise changes no value, only when the compiler runs: not in the middle of whichever test draws the most.
os.environ.setdefault("LIGHTNING_EVO_COMPILE", "0")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU, and torch sees none")


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Lightning leaves variables behind (PL_GLOBAL_SEED, LOCAL_RANK …) that would change the next test's Trainer."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def quiet_logging() -> None:
    # For every test anew: Lightning sets its loggers to INFO when it is imported, which a test may be the first to do.
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
