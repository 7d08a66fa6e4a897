"""Floats of 16 bits: every one of them, ties, carries, subnormal numbers, infinities and NaN."""

import math

import pytest
import torch
import triton

from lightning_evo.kernels.rounding import stochastic_round
from lightning_evo.kernels.triton.language import tl
from lightning_evo.kernels.triton.rounding import narrow, stochastic, widen
from tests.kernels.bits import same_bits

DTYPES = [torch.bfloat16, torch.float16]


@triton.jit
def widen_kernel(stored, out, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    tl.store(out + lane, widen(tl.load(stored + lane), DTYPE))


@triton.jit
def narrow_kernel(values, out, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    tl.store(out + lane, narrow(tl.load(values + lane), DTYPE))


@triton.jit
def stochastic_kernel(values, random, out, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    bits = tl.load(random + lane).to(tl.uint32)
    tl.store(out + lane, stochastic(tl.load(values + lane), bits, DTYPE))


def by(kernel, dtype, *tensors):
    """What a kernel makes of vectors of a power of two elements: 16 bits each, unless ``widen`` is asked."""
    size = len(tensors[0])
    out = torch.empty(size, dtype=torch.float32 if kernel is widen_kernel else torch.int16)
    kernel[(1,)](*tensors, out, DTYPE=str(dtype).removeprefix("torch."), SIZE=size)
    return out if kernel is widen_kernel else out.view(dtype)


def everything(dtype):
    """All values of 16 bits."""
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


def between(dtype):
    """Each value of a dtype, halfway to the next one in bits, and one step of float32 on either side of both."""
    exact = everything(dtype).float().view(torch.int32)
    half = 1 << (15 if dtype == torch.bfloat16 else 12)
    bits = torch.cat([exact + offset for offset in (0, half, -1, 1, half - 1, half + 1, 3 * half, 3 * half + 1)])
    return bits.view(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_of_16_bits_is_widened(dtype):
    values = everything(dtype)
    assert same_bits(by(widen_kernel, dtype, values.view(torch.int16)), values.float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_nearest_ties_to_even(dtype):
    values = between(dtype)
    assert same_bits(by(narrow_kernel, dtype, values), values.to(dtype))
    small = torch.arange(1 << 16) * 2.0**-38  # below the smallest float16 and a little above
    assert same_bits(by(narrow_kernel, dtype, small), small.to(dtype))
    special = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 65519.996, 65520.0])
    found = by(narrow_kernel, dtype, special)
    assert same_bits(found, special.to(dtype))
    assert found[:2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_stochastically_as_the_reference(dtype):
    values = between(dtype)
    random = torch.randint(1 << 16, (len(values),))
    random[:: 1 << 4], random[1 :: 1 << 4] = 0, (1 << 16) - 1
    found = by(stochastic_kernel, dtype, values, random)
    assert same_bits(found, stochastic_round(values, dtype, random.float() * 2.0**-16))
    exact = everything(dtype)
    assert same_bits(by(stochastic_kernel, dtype, exact.float(), torch.full((1 << 16,), 65535)), exact)
