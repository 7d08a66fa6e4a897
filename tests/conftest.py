"""What every test gets: fixed seeds, an environment of its own, little logging; and GPU tests skipped without a GPU."""

import logging
import os
import random
import signal
from collections.abc import Iterator

import numpy
import pytest
import torch

from lightning_evo import kernels

# As processes that tests start have it: how many threads divide a sum says how it is rounded, on AMD's processors also
# small ones. And workers of tests would fight over the cores.
torch.set_num_threads(1)

if os.environ.get("LIGHTNING_EVO_KERNELS", "auto") != "torch":
    # Built now, not in the middle of whichever test draws noise first. Where they can't be, tests go without: the
    # warning would fail every one of them.
    os.environ["LIGHTNING_EVO_KERNELS"] = "native" if isinstance(kernels.built(), kernels.Native) else "torch"


def has_kernels() -> bool:
    return os.environ["LIGHTNING_EVO_KERNELS"] == "native"


def pytest_report_header() -> str:
    return "noise kernels: " + ("yes" if has_kernels() else "no, only plain tensor operations")


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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, here and in processes that are started, as it does in a terminal.

    Whatever nohup, cron or the ``&`` of a script starts ignores SIGINT, and so do its children.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["torch", "native"], ids=["plain", "kernels"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the plain tensor operations and, where they could be built, by the kernels."""
    if request.param == "native" and not has_kernels():
        pytest.skip("needs the noise kernels")
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", request.param)
