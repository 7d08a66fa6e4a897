import math

import pytest

from lightning_evo.algorithms import Schedule


@pytest.mark.parametrize("generation", [0, 1, 7, 25, 50, 99, 100])
def test_schedules_follow_their_formulas(generation):
    start, end, t = 0.5, 0.02, generation / 100
    assert Schedule("linear", start, end, 100)(generation) == pytest.approx(start + (end - start) * t, rel=1e-14)
    cosine = end + (start - end) * math.cos(math.pi * t / 2) ** 2
    assert Schedule("cosine", start, end, 100)(generation) == pytest.approx(cosine, rel=1e-13)
    exponential = math.exp((1 - t) * math.log(start) + t * math.log(end))
    assert Schedule("exponential", start, end, 100)(generation) == pytest.approx(exponential, rel=1e-13)


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.02), (0.02, 0.5)])
def test_schedules_start_move_and_stay(kind, start, end):
    schedule = Schedule(kind, start, end, 10)
    values = [schedule(generation) for generation in range(13)]
    assert values[0] == pytest.approx(start, rel=1e-14)
    assert values[10:] == pytest.approx([end] * 3, rel=1e-14)
    assert values[:11] == sorted(values[:11], reverse=start > end)
    assert len(set(values[:11])) == 11


def test_a_schedule_may_end_at_zero():
    assert Schedule("linear", 1.0, 0.0, 4)(4) == 0
    assert Schedule("cosine", 1.0, 0.0, 4)(9) == pytest.approx(0, abs=1e-16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step", 1.0, 0.1, 10), "Unknown schedule 'step'; choose linear, cosine or exponential"),
        (("linear", 0.0, 0.1, 10), "start > 0 to end >= 0; got start=0.0"),
        (("linear", 1.0, -0.1, 10), "got start=1.0, end=-0.1"),
        (("linear", math.nan, 0.1, 10), "got start=nan"),
        (("linear", 1.0, math.inf, 10), "end=inf"),
        (("exponential", 1.0, 0.0, 10), "never reaches 0"),
        (("linear", 1.0, 0.1, 0), "generations >= 1, got 0"),
    ],
)
def test_schedule_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)
