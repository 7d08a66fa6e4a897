import math

import numpy
import pytest
import torch

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


def test_scalars_become_numbers():
    schedule = Schedule("linear", numpy.float32(1.0), torch.tensor(0.5), numpy.int64(10))
    assert schedule == Schedule("linear", 1.0, 0.5, 10)
    assert [type(value) for value in (schedule.start, schedule.end, schedule.generations)] == [float, float, int]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step", 1.0, 0.1, 10), "Unknown kind of schedule 'step'. Choose one of linear, cosine, exponential"),
        (("lineal", 1.0, 0.1, 10), "Did you mean 'linear'"),
        (([], 1.0, 0.1, 10), r"Unknown kind of schedule \[\]"),
        (("linear", 0.0, 0.1, 10), "Schedule's start must be a number > 0, got 0.0"),
        (("linear", 1.0, -0.1, 10), "Schedule's end must be a number >= 0, got -0.1"),
        (("linear", math.nan, 0.1, 10), "Schedule's start must be a number > 0, got nan"),
        (("linear", 1.0, math.inf, 10), "Schedule's end must be a number >= 0, got inf"),
        (("linear", "1.0", 0.1, 10), "Schedule's start must be a number > 0, got '1.0'"),
        (("linear", 1e300, 0.1, 10), "Schedule's start must be a number > 0 that float32 can hold"),
        (("exponential", 1.0, 0.0, 10), "never reaches 0"),
        (("exponential", 1e-300, 1e38, 10), "can't go from 1e-300 to 1e[+]38, which is too far"),
        (("exponential", 1e38, 1e-300, 10), "can't go from 1e[+]38 to 1e-300, which is too far"),
        (("linear", 1.0, 0.1, 0), "Schedule's generations must be a whole number >= 1, got 0"),
        (("linear", 1.0, 0.1, 10.0), "Schedule's generations must be a whole number >= 1, got 10.0"),
    ],
)
def test_schedule_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)
