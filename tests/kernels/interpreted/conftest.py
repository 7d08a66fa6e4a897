"""Tests of the Triton kernels on CPU tensors, by Triton's interpreter: ``tests/kernels/test_triton.py`` starts them.

``TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted`` runs them alone. A program takes the interpreter a
tenth of a second, so sizes are small.
"""

from __future__ import annotations

import os

import pytest
import torch

from lightning_evo.kernels.triton.language import jit, missing, tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and missing is None

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@jit
def lanes(SIZE: tl.constexpr):
    return tl.arange(0, SIZE)


@jit
def times_kernel(count, out, SIZE: tl.constexpr):
    total = tl.zeros((SIZE,), tl.int64)
    for i in range(tl.load(count).to(tl.int32)):
        total += lanes(SIZE) + i
    tl.store(out + lanes(SIZE), total)


def what_is_lacking():
    """Why the interpreter can't run such kernels: those of older Tritons call no functions, or need an older NumPy."""
    out = torch.zeros(4, dtype=torch.int64)
    try:
        times_kernel[(1,)](torch.tensor([3]), out, SIZE=4)
    except Exception as error:  # whatever the interpreter stumbles over
        return f"Triton's interpreter can't run kernels with loops and functions ({type(error).__name__})"
    return None if out.tolist() == [3, 6, 9, 12] else "Triton's interpreter computes wrongly"


def pytest_collection_modifyitems(items):
    if not INTERPRETED:
        return
    lacking = what_is_lacking()
    for item in items:
        if lacking is not None:
            item.add_marker(pytest.mark.skip(reason=lacking))
        # The interpreter computes by NumPy, which warns of infinities and NaN.
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


@pytest.fixture(scope="session")
def triton_backend():
    from lightning_evo.kernels.triton.backend import Triton

    return Triton()
