"""Tests of the Triton kernels on CPU tensors, by Triton's interpreter: ``tests/kernels/test_triton.py`` starts them.

``TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted`` runs them alone. A program takes the interpreter a
tenth of a second, so sizes are small.
"""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@pytest.fixture(scope="session")
def triton_backend():
    from lightning_evo.kernels.triton.backend import Triton

    return Triton()


def pytest_collection_modifyitems(items):
    for item in items:  # the interpreter computes by NumPy, which warns of infinities and NaN
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
