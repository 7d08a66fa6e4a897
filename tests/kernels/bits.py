"""Difficult values, and the comparison of values by their bits."""

import math

import torch


def bits(values):
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def same_bits(a, b):
    """Of all values but NaN, whose bits the standard leaves open."""
    assert a.dtype == b.dtype
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and torch.equal(bits(a)[~nan], bits(b)[~nan])


def difficult(elements, dtype):
    """Values of all sizes: subnormal and huge ones, zeros of both signs, infinities, NaN."""
    exponent = torch.randint(-150, 128, (elements,)) if dtype != torch.float16 else torch.randint(-26, 16, (elements,))
    values = (torch.randn(elements, dtype=torch.float64) * 2.0**exponent).to(dtype)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max, -torch.finfo(dtype).max]
    special += [torch.finfo(dtype).tiny, torch.finfo(dtype).tiny / 2, -torch.finfo(dtype).smallest_normal / 4]
    values[torch.randperm(elements)[: len(special)]] = torch.tensor(special, dtype=torch.float64).to(dtype)
    return values
