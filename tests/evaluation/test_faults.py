"""Members that fail or hang are left out; too many of them stop the run with the first one's exception."""

import math
import signal
import threading
import time
from collections import Counter

import pytest
import torch

from lightning_evo.evaluation.faults import Pace, time_limit
from lightning_evo.evolution import Evolution

WAYS = ["plain", "in_forward", "batched"]


def subject(evaluation="plain", population=8, **options):
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    evolution = Evolution(population=population, seed=0, evaluation=evaluation, **options)
    evolution.setup(module)
    return evolution, module


def fails_for(numbers, module):
    """A fitness that fails at some calls."""
    calls = []

    def fitness(batch):
        calls.append(0)
        if len(calls) - 1 in numbers:
            raise ValueError("no reward today")
        return -module(batch).square().sum()

    return fitness


def test_the_others_carry_the_generation():
    evolution, module = subject()
    batch = torch.ones(4, 3)
    with pytest.warns(UserWarning, match="2 of 8 members failed and are left out, the first with ValueError: no"):
        assert evolution.evaluate(fails_for({2, 5}, module), batch)
    assert evolution.statistics()["failed_members"] == 2
    weights = evolution.conclude().weights
    assert weights[1] == weights[2] == 0  # with their partners
    assert weights[0] != 0


def test_said_once():
    evolution, module = subject()
    with pytest.warns(UserWarning, match="failed and are left out"):
        evolution.evaluate(fails_for({2}, module), torch.ones(4, 3))
    evolution.conclude()
    evolution.evaluate(fails_for({3}, module), torch.ones(4, 3))


@pytest.mark.parametrize("way", WAYS)
def test_a_generation_in_mid_run(way):
    """After the first generation has proven a way, a failure costs the members that fail, in batches, too."""
    evolution, module = subject(way, antithetic=False)
    batch, broken = torch.ones(4, 3), []

    def fitness(batch):
        if broken and module.weight.sum() > broken[0]:  # half of them
            raise ArithmeticError("overflow")
        return -module(batch).square().sum()

    evolution.evaluate(fitness, batch)
    evolution.conclude().apply()
    summary = evolution.evaluation.summary
    broken.append(float(module.weight.detach().sum()))
    before = module.weight.detach().clone()
    with pytest.warns(UserWarning, match="[3-5] of 8 members failed"):
        assert evolution.evaluate(fitness, batch)
    assert torch.equal(before, module.weight)
    assert evolution.evaluation.summary == summary
    broken.clear()
    evolution.conclude()
    evolution.evaluate(fitness, batch)
    assert evolution.statistics()["failed_members"] == 0


@pytest.mark.parametrize(("minimum", "failing"), [(0.5, 5), (1.0, 1), (0.0, 8), (0.8, 2)])
def test_too_many(minimum, failing):
    evolution, module = subject(minimum_evaluated=minimum)
    with pytest.raises(ValueError, match="no reward today") as raised:
        evolution.evaluate(fails_for(range(failing), module), torch.ones(4, 3))
    assert any(entry.name == "fitness" for entry in raised.traceback)  # of the member


@pytest.mark.parametrize(("minimum", "failing"), [(0.5, 4), (0.0, 7), (0.75, 2)])
@pytest.mark.filterwarnings("ignore:.*failed and are left out")
def test_enough(minimum, failing):
    evolution, module = subject(minimum_evaluated=minimum)
    assert evolution.evaluate(fails_for(range(failing), module), torch.ones(4, 3))


def test_on_another_process():
    from dataclasses import replace

    evolution, module = subject()

    def gather(values):
        failed = torch.tensor([[math.nan, -1.0]] * 4, dtype=torch.float64)
        return [values, failed]

    evolution.minimum_evaluated = 0.75
    evolution.ranks = replace(evolution.ranks, population=2, gather_from_all=gather)
    with pytest.raises(RuntimeError, match="4 of 8 members failed on other processes"):
        evolution.evaluate(fails_for((), module), torch.ones(4, 3))


@pytest.mark.parametrize("way", WAYS)
def test_members_that_hang(way):
    evolution, module = subject(way, member_timeout=0.3, antithetic=False)
    slow = []

    def fitness(batch):
        if slow and module.weight.sum() > slow[0]:
            time.sleep(30)
        return -module(batch).square().sum()

    evolution.evaluate(fitness, torch.ones(4, 3))
    evolution.conclude().apply()
    slow.append(float(module.weight.detach().sum()))
    with pytest.warns(UserWarning, match=r"[3-5] of 8 .*TimeoutError: The member's evaluation took longer than"):
        assert evolution.evaluate(fitness, torch.ones(4, 3))
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert left == 0 or left > 1  # pytest-timeout's


def test_an_alarm_of_the_users_goes_on():
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        before = signal.setitimer(signal.ITIMER_REAL, 50)
        with time_limit(1):
            time.sleep(0.01)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50 - 0.01
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


def test_outside_the_main_thread():
    errors = []

    def run():
        try:
            with time_limit(1):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread only" in errors[0]


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, math.inf, True, "1"])
def test_impossible_timeouts(timeout):
    with pytest.raises(ValueError, match="member_timeout must be a positive number of seconds"):
        subject(member_timeout=timeout)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, True, "all"])
def test_impossible_shares(share):
    with pytest.raises(ValueError, match=r"minimum_evaluated must be a share of the members, in \[0, 1\]"):
        subject(minimum_evaluated=share)


def test_what_a_forward_has_finished_is_kept():
    """Others have done enough after the first two forwards of three members each."""
    evolution, module = subject("batched", population=12, antithetic=False, members_per_forward=3)

    def fitness(batch):
        return -module(batch).square().sum()

    batch, numbers = torch.ones(4, 3), Counter()
    evolution.evaluate(fitness, batch)
    evolution.conclude()

    def add(name, amount):
        numbers[name] += amount
        return numbers[name]

    evolution.evaluation.pace = Pace(add, drop=0.5)
    with pytest.warns(UserWarning, match="6 of 12 members failed and are left out, the first with LeftOut: 6 of 12"):
        assert evolution.evaluate(fitness, batch)
    assert list(numbers.values()) == [6]


def test_a_first_call_that_hangs():
    evolution, module = subject("in_forward", member_timeout=0.3)
    calls = []

    def fitness(batch):
        calls.append(0)
        if len(calls) == 1:
            time.sleep(30)
        return -module(batch).square().sum()

    start = time.perf_counter()
    with pytest.warns(UserWarning, match="in_forward is not possible: TimeoutError"):
        assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert time.perf_counter() - start < 10
