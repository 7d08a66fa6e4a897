"""Freed memory stays with the process, unless the user's environment says something else."""

import os
import platform
import statistics
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from lightning_evo.generation.evolution import Evolution

model = torch.nn.Linear(4, 4)
evolution = Evolution(population=4, seed=0, evaluation="in_forward")
evolution.setup(model)

def fitness(batch):
    large = [torch.zeros(1 << size) for size in (21, 21, 24)]  # 8, 8 and 64 MB
    return model(batch).mean() + sum(x.sum() for x in large)

faults = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    evolution.evaluate(fitness, torch.ones(2, 4))
    evolution.conclude().apply()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def faults(**environment):
    """In a generation, the median of nine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.check_output(command, env=inherited | environment, text=True, timeout=120)
    return statistics.median(map(int, output.split()))  # a heap may still grow now and then


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_generation_takes_no_memory_from_the_system():
    pages = 4 * 10 * (1 << 23) // os.sysconf("SC_PAGE_SIZE")  # of one generation's activations
    assert faults() < pages / 100
    assert faults(MALLOC_MMAP_THRESHOLD_="65536") > pages / 2
    assert faults(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=65536") > pages / 2
