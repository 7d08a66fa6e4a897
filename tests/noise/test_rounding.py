"""Stochastic rounding: exact values stay, the rest goes to a neighbour, the expectation is kept."""

import math

import pytest
import torch

from lightning_evo.kernels.normal import normal_table
from lightning_evo.kernels.values import rows
from lightning_evo.noise.philox import NoiseKey, Stream, address_of
from lightning_evo.noise.rounding import move, stochastic_round

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


# --- move -----------------------------------------------------------------------------------------------------------

KEY = NoiseKey(seed=11, generation=5)


def moved(center, step, **options):
    center = center.clone()
    move(center, step, KEY, 3, **options)
    return center


def bits(values):
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def uniforms(elements):
    """The 16-bit numbers of the rounding's stream, in the order of the elements."""
    address = torch.tensor(address_of(NoiseKey(KEY.seed, KEY.generation, Stream.ROUNDING), 3))
    count = -(-elements // 128)
    values = rows("uniform16", torch.arange(count), torch.tensor(0), address, normal_table(torch.device("cpu")))
    return values.flatten()[:elements]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("size", [1e-7, 3e-5, 1e-2, 1.0, 1e3, 1e38])
@pytest.mark.parametrize("dtype", SHORT)
def test_moving_is_adding_and_rounding_with_the_numbers_of_the_rounding_stream(dtype, size):
    center = every_finite_value(dtype)
    step = torch.randn(len(center)) * size
    expected = stochastic_round(center.float() + step, dtype, uniforms(len(center)))
    assert torch.equal(bits(moved(center, step)), bits(expected))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_longer_floats_move_exactly(dtype):
    center, step = torch.randn(1000, dtype=dtype), torch.randn(1000, dtype=dtype)
    assert torch.equal(moved(center, step), center + step)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("dtype", [*SHORT, torch.float32, torch.float64])
def test_where_the_step_is_zero_not_a_bit_changes(dtype, zero):
    center = torch.cat([every_finite_value(torch.bfloat16).to(dtype), torch.tensor([math.inf, -math.inf], dtype=dtype)])
    step = torch.full((len(center),), zero, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(bits(moved(center, step)), bits(center))
    step[::3] = 1e-3
    still = step == 0
    assert torch.equal(bits(moved(center, step))[still], bits(center)[still])


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [*SHORT, torch.float32])
def test_infinities_and_nan_move_as_they_do_by_adding(dtype):
    center = torch.tensor([math.inf, -math.inf, math.nan, 1.0, 1.0, math.inf, torch.finfo(dtype).max], dtype=dtype)
    step = torch.tensor([1.0, -1.0, 1.0, math.nan, -math.inf, -math.inf, math.inf])
    expected = [math.inf, -math.inf, math.nan, math.nan, -math.inf, math.nan, math.inf]
    torch.testing.assert_close(moved(center, step).float(), torch.tensor(expected), equal_nan=True, rtol=0, atol=0)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [*SHORT, torch.float32])
def test_pieces_move_as_the_whole_does(dtype):
    center, step = torch.randn(1000).to(dtype), torch.randn(1000) * 1e-3
    whole = moved(center, step)
    for borders in ([0, 128, 1000], [0, 384, 512, 1000], [0, 896, 1000], [0, 1, 100, 100, 300, 999, 1000]):
        pieces = [
            moved(center[start:stop], step[start:stop], start=start)
            for start, stop in zip(borders, borders[1:], strict=False)
        ]
        assert torch.equal(torch.cat(pieces), whole)
    strided = torch.empty(2000, dtype=dtype)[::2]  # not contiguous
    strided.copy_(center)
    move(strided, step, KEY, 3)
    assert torch.equal(strided, whole)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(("dtype", "value"), [(torch.bfloat16, 1.0), (torch.float16, 1.0), (torch.float16, 3e-6)])
def test_steps_below_the_spacing_act_in_full_on_average(dtype, value):
    n = 1 << 20
    center = torch.full((n,), value).to(dtype)
    spacing = max(torch.finfo(dtype).eps * value, 2.0**-24 if dtype == torch.float16 else 0)
    share = 1 / 16
    result = moved(center, torch.full((n,), spacing * share)).double() - center.double()
    assert set((result / spacing).unique().tolist()) == {0.0, 1.0}
    # Two-point; 4.9 standard errors are exceeded once in a million. Numbers of 16 bits err by less than 2^-16.
    error = 4.9 * math.sqrt(share * (1 - share) / n) + 2**-16
    assert abs(float(result.mean()) / spacing - share) < error


@pytest.mark.usefixtures("either_way")
def test_what_can_not_be_moved():
    center, step = torch.zeros(300, dtype=torch.bfloat16), torch.zeros(300)
    for bad_step, start in [(step[:299], 0), (step.bfloat16(), 0), (step.double(), 0)]:
        with pytest.raises(ValueError, match="step of torch.float32 for each element, got"):
            move(center, bad_step, KEY, 3, start)
    with pytest.raises(ValueError, match="2\\^34"):
        move(center, step, KEY, 3, 1 << 34)
