"""Freed memory stays with the process, unless the user's environment says something else."""

import os
import platform
import statistics
import subprocess
import sys

import pytest

# The size of the address space: neither swapping nor the size of pages changes it, as they do the number of page faults
# and the resident memory. One thread, so that nothing else takes memory.
SCRIPT = """
import resource
from pathlib import Path

import torch
from lightning_evo.generation.evolution import Evolution

torch.set_num_threads(1)
model = torch.nn.Linear(4, 4)
evolution = Evolution(population=4, seed=0, evaluation="in_forward")
evolution.setup(model)
sizes, ranges = [], []

def measure():
    sizes.append(int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())

def fitness(batch):
    measure()
    large = [torch.zeros(1 << size) for size in (21, 21, 24)]  # 8, 8 and 64 MB
    measure()
    return model(batch).mean() + sum(x.sum() for x in large)

for _ in range(9):
    evolution.evaluate(fitness, torch.ones(2, 4))
    evolution.conclude().apply()
    ranges.append(max(sizes) - min(sizes))
    sizes.clear()
print(*ranges)
"""


def taken_and_returned(**environment):
    """Bytes by which the process grows and shrinks in a generation. Of nine the median: a heap may grow at times."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.check_output(command, env=inherited | environment, text=True, timeout=120)
    return statistics.median(map(int, output.split()))


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_generation_takes_no_memory_from_the_system():
    activations = (8 + 8 + 64) << 20
    assert taken_and_returned() < activations / 100
    assert taken_and_returned(MALLOC_MMAP_THRESHOLD_="65536") >= activations
    assert taken_and_returned(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=65536") >= activations
