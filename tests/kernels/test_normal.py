"""Normal values: how far they are from the normal distribution, and that every way to them gives the same bits."""

import hashlib
import math

import numpy
import pytest
import torch
from scipy import stats

from lightning_evo.kernels import values as kernel_values
from lightning_evo.kernels.normal import SLICES, normal_table
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from tests.conftest import has_kernels

TABLE = normal_table(torch.device("cpu"))
MAGNITUDES, COEFFICIENTS = TABLE[:SLICES], TABLE[SLICES:].view(4, 32)


def slice_means():
    """Of the half-normal distribution, of variance 1 together, by scipy: float64 [32768], rising."""
    edges = stats.halfnorm.isf(numpy.arange(SLICES, -1, -1) / SLICES)  # the last one is infinite
    means = -numpy.diff(stats.halfnorm.pdf(edges)) * SLICES
    return means / math.sqrt((means**2).mean())


def test_values_are_the_slice_means_of_the_normal_distribution():
    assert TABLE.dtype == torch.float32
    assert numpy.abs(MAGNITUDES.numpy() - slice_means()).max() < 2.5e-5
    assert (MAGNITUDES.diff() > 0).all()
    assert MAGNITUDES[0] > 0


def test_the_map_from_bits_to_values_is_as_exact_as_documented():
    """Not by chance: over all of the 2^16 values."""
    halves = torch.arange(1 << 16)
    words = (halves | halves << 16).view(-1, 16)
    low, high = kernel_values._gaussian(words, TABLE).unbind(1)
    assert torch.equal(low, high)
    values = low.flatten()
    assert torch.equal(values[:SLICES], MAGNITUDES)
    assert torch.equal(values[SLICES:], -MAGNITUDES)
    values, magnitudes = values.double(), MAGNITUDES.double()
    assert abs(float(values.mean())) == 0
    assert abs(float((values**2).mean()) - 1) < 1e-7
    assert 2.9998 < float((values**4).mean()) < 2.99985
    assert 4.387 < float(values.max()) < 4.388
    # Both sides of every step of the distribution function.
    normal = torch.special.ndtr(magnitudes)
    below, above = (0.5 + torch.arange(i, SLICES + i) / 2**16 for i in (0, 1))
    assert float(torch.maximum((normal - below).abs(), (normal - above).abs()).max()) < 2e-5


def test_values_are_those_of_the_polynomials():
    """By NumPy, from the definition: u counts slices from the tail, and u = t 2^e."""
    u = numpy.arange(SLICES, 0, -1)
    exponent = numpy.floor(numpy.log2(u)).astype(int)
    t = (u / 2.0**exponent).astype(numpy.float32)
    value = numpy.zeros(SLICES, dtype=numpy.float32)
    for power in (3, 2, 1, 0):
        value = value * t + COEFFICIENTS[power].numpy()[(2 * exponent + (t >= 1.5) - 2) % 32]
    assert numpy.array_equal(value, MAGNITUDES.numpy())


def test_values_are_the_same_everywhere():
    """Other bits here would be other noise, and runs that don't resume."""
    digest = hashlib.sha256(TABLE.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "abe1660a77d000ebbc85f97f5d0fa7a2567755d314969b31107d7cf0d8234402"


@pytest.mark.skipif(not has_kernels(), reason="needs the noise kernels")
def test_kernels_give_every_value(monkeypatch):
    count = 1 << 20  # each of 65,536 values is missed once in e^16 = 9 M times
    found = draw(NoiseKey(0, 0), [0], 0, 0, count)
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "torch")
    assert torch.equal(found, draw(NoiseKey(0, 0), [0], 0, 0, count))
    assert len(found.unique()) == 2 * SLICES
