"""Stochastic rounding: exact values stay, the rest goes to a neighbour, the expectation is kept."""

import math

import pytest
import torch

from lightning_evo.rounding import stochastic_round

SHORT = [torch.bfloat16, torch.float16]
LARGEST = 1 - 2.0**-24  # of the uniform values


def every_finite_value(dtype):
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    return values[values.isfinite()]


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("uniform", [0.0, 0.5, LARGEST])
def test_values_that_the_dtype_holds_stay_bit_for_bit(dtype, uniform):
    values = every_finite_value(dtype)  # all of them: zeros of both signs and subnormal numbers, too
    rounded = stochastic_round(values.float(), dtype, torch.full(values.shape, uniform))
    assert rounded.dtype == dtype
    assert torch.equal(rounded.view(torch.int16), values.view(torch.int16))


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("fraction", [2**-9, 0.25, 0.5, 0.875])
def test_rounds_up_exactly_as_often_as_the_fraction_says(dtype, fraction):
    """Between all neighbours of the dtype: with an evenly spaced uniform, the count is exact."""
    values = every_finite_value(dtype)
    values = values[values >= 0].sort().values[:-1:97]
    below = values.float()
    above = (values.view(torch.int16) + 1).view(dtype).float()
    between = (below.double() + fraction * (above.double() - below.double())).float()
    held = between.double() == below.double() + fraction * (above.double() - below.double())
    assert held.float().mean() > 0.98  # float32 has no room for a fraction of the smallest bfloat16 numbers
    below, above, between = below[held], above[held], between[held]
    n = 1 << 9
    uniform = (torch.arange(n) / n)[:, None].expand(n, len(between))
    for sign in (1, -1):
        rounded = stochastic_round(sign * between.expand(n, -1), dtype, uniform).float()
        up = rounded == sign * above
        assert (up | (rounded == sign * below)).all()
        assert torch.equal(up.float().mean(0), torch.full_like(between, fraction))


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("value", [1 + 2.0**-13, -3.14159, 1e-3, 6e-6, -1e-7, 1e-9])
def test_the_expectation_is_the_value(dtype, value):
    n = 1 << 20
    uniform = torch.rand(n)
    values = torch.full((n,), value)
    rounded = stochastic_round(values, dtype, uniform).double()
    low, high = rounded.min().item(), rounded.max().item()
    exact = values[0].double().item()
    assert low < exact < high
    # A two-point distribution; 4.9 standard errors are exceeded once in a million.
    p = (exact - low) / (high - low)
    assert abs(float(rounded.mean()) - exact) < 4.9 * (high - low) * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("dtype", SHORT)
def test_infinities_and_nan_stay(dtype):
    values = torch.tensor([math.inf, -math.inf, math.nan])
    rounded = stochastic_round(values, dtype, torch.full((3,), LARGEST))
    assert rounded[:2].tolist() == [math.inf, -math.inf]
    assert rounded[2].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_other_dtypes(dtype):
    with pytest.raises(ValueError, match=f"bfloat16 or float16, not {dtype}"):
        stochastic_round(torch.zeros(1), dtype, torch.zeros(1))
