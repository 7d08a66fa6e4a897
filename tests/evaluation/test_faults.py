"""Members that fail or hang are left out; too many of them stop the run with the first one's exception."""

import itertools
import math
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from lightning_evo.evaluation import faults
from lightning_evo.evaluation.choice import Choice
from lightning_evo.evaluation.faults import limited
from lightning_evo.evaluation.ways.in_forward import InForward
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.generation.evolution import Evolution

WAYS = ["plain", "in_forward", "batched"]


def subject(evaluation="plain", population=8, **options):
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    evolution = Evolution(population=population, seed=0, evaluation=evaluation, **options)
    evolution.setup(module)
    return evolution, module


class Clock:
    """Time that passes in :meth:`sleep` only, with an interval timer: what takes no time here is never too late."""

    def __init__(self):
        self.now = self.left = self.interval = 0.0

    def monotonic(self):
        return self.now

    def setitimer(self, which, seconds, interval=0.0):
        before = self.left, self.interval
        self.left, self.interval = seconds, interval
        return before

    def getitimer(self, which):
        return self.left, self.interval

    def sleep(self, seconds):
        end = self.now + seconds
        while 0 < self.left <= end - self.now:
            self.now, self.left = self.now + self.left, self.interval
            signal.raise_signal(signal.SIGALRM)  # the handler may raise, and end the sleep
        if self.left:
            self.left -= end - self.now
        self.now = end


@pytest.fixture
def clock(monkeypatch):
    """A clock for the limits, since real time is never enough on a busy machine."""
    clock = Clock()
    monkeypatch.setattr(faults, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(signal, "setitimer", clock.setitimer)
    monkeypatch.setattr(signal, "getitimer", clock.getitimer)
    return clock


def fails_for(numbers, module):
    """A fitness that fails at some calls."""
    calls = []

    def fitness(batch):
        calls.append(0)
        if len(calls) - 1 in numbers:
            raise ValueError("no reward today")
        return -module(batch).square().sum()

    return fitness


def test_a_generation_goes_on_with_the_others():
    evolution, module = subject()
    batch = torch.ones(4, 3)
    with pytest.warns(UserWarning, match="2 of 8 members failed and are left out, the first with ValueError: no"):
        assert evolution.evaluate(fails_for({2, 5}, module), batch)
    assert evolution.statistics()["failed_members"] == 2
    weights = evolution.conclude().weights
    assert weights[1] == weights[2] == 0  # with their partners
    assert weights[0] != 0


def test_shown_once():
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
        failed = torch.tensor([[math.nan, -1.0]] * 4 + [[1.0, 0.0], [math.inf, 0.0]], dtype=torch.float64)
        return [values, failed]

    evolution.minimum_evaluated = 0.75
    evolution.ranks = replace(evolution.ranks, groups=2, gather_from_all=gather)
    with pytest.raises(RuntimeError, match="4 of 8 members failed on other processes"):
        evolution.evaluate(fails_for((), module), torch.ones(4, 3))


@pytest.mark.parametrize("way", WAYS)
def test_members_that_hang(way, clock):
    evolution, module = subject(way, member_timeout=0.3, antithetic=False)
    slow = []

    def fitness(batch):
        if slow and module.weight.sum() > slow[0]:
            clock.sleep(30)
        return -module(batch).square().sum()

    evolution.evaluate(fitness, torch.ones(4, 3))
    evolution.conclude().apply()
    slow.append(float(module.weight.detach().sum()))
    with pytest.warns(UserWarning, match=r"[3-5] of 8 .*TimeoutError: The member's evaluation took longer than"):
        assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert clock.now == pytest.approx(0.3 * evolution.statistics()["failed_members"])
    assert clock.left == 0


def test_a_real_alarm(no_alarm):
    """By the system's own timer and clock."""
    slept = []
    with pytest.raises(TimeoutError, match="member_timeout=0.05"):
        limited(lambda: time.sleep(60) or slept.append(0), 0.05)()
    assert not slept
    signal.setitimer(signal.ITIMER_REAL, 5000)
    limited(lambda: time.sleep(0.01), 1000)()
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 5000 - 0.01
    assert not no_alarm


def test_an_alarm_of_the_users_goes_on(clock):
    clock.setitimer(signal.ITIMER_REAL, 50, 7)
    limited(lambda: clock.sleep(3), 5)()
    assert (clock.left, clock.interval) == (47, 7)


def test_outside_the_main_thread():
    errors = []

    def run():
        try:
            limited(lambda: None, 1)()
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


@pytest.fixture
def no_alarm():
    """Without pytest-timeout's alarm, and with a handler of its own, whose calls it counts."""
    calls = []
    handler = signal.signal(signal.SIGALRM, lambda *_: calls.append(0))
    before = signal.setitimer(signal.ITIMER_REAL, 0)
    yield calls
    signal.setitimer(signal.ITIMER_REAL, *before)
    signal.signal(signal.SIGALRM, handler)


def test_a_late_alarm_is_ignored(no_alarm):
    """It may come when the member has finished, up to the last instruction of the clean-up and after it."""
    handlers = []
    fitness = limited(lambda: handlers.append(signal.getsignal(signal.SIGALRM)) or 1.0, 5)
    assert fitness() == 1.0
    handlers[0](signal.SIGALRM, None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    signal.raise_signal(signal.SIGALRM)
    assert len(no_alarm) == 1  # the user's handler is back


@pytest.mark.parametrize("raises", [False, True])
def test_an_alarm_during_the_clean_up_is_ignored(no_alarm, monkeypatch, raises):
    set_timer, alarms = signal.setitimer, []

    def fitness():
        def stop_timer(which, seconds, interval=0.0):
            signal.raise_signal(signal.SIGALRM)  # in the last moment
            alarms.append(0)
            return set_timer(which, seconds, interval)

        monkeypatch.setattr(signal, "setitimer", stop_timer)
        if raises:
            raise ValueError("its own")
        return 1.0

    if raises:
        with pytest.raises(ValueError, match="its own"):
            limited(fitness, 5)()
    else:
        assert limited(fitness, 5)() == 1.0
    assert len(alarms) == 1
    assert not no_alarm
    signal.raise_signal(signal.SIGALRM)
    assert len(no_alarm) == 1


def test_an_alarm_of_the_users_is_no_timeout(no_alarm, clock, monkeypatch):
    """The user's handler gets it, if it comes before the member begins; else it comes when the member has finished."""
    set_handler = signal.signal

    def alarm_before(number, handler):
        signal.raise_signal(signal.SIGALRM)
        monkeypatch.setattr(signal, "signal", set_handler)
        return set_handler(number, handler)

    monkeypatch.setattr(signal, "signal", alarm_before)
    assert limited(lambda: 1.0, 5)() == 1.0
    assert len(no_alarm) == 1
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    assert limited(lambda: clock.sleep(0.2) or len(no_alarm), 5)() == 1
    clock.sleep(0.01)
    assert len(no_alarm) == 2


def test_limits_within_each_other(no_alarm, clock):
    """The inner one ends by itself; the outer one's time goes on meanwhile, and it speaks when the inner has ended."""

    def inner():
        with pytest.raises(TimeoutError, match="member_timeout=0.05"):
            limited(lambda: clock.sleep(10), 0.05)()
        assert clock.now == 0.05
        clock.sleep(10)

    with pytest.raises(TimeoutError, match="member_timeout=0.2"):
        limited(inner, 0.2)()
    assert clock.now == pytest.approx(0.2)

    def outer():
        limited(lambda: clock.sleep(0.2), 5)()
        clock.sleep(0.01)  # the alarm comes here: its time was over when the inner one ended

    with pytest.raises(TimeoutError, match="member_timeout=0.05"):
        limited(outer, 0.05)()
    assert not no_alarm
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_handler_that_python_did_not_set(no_alarm, monkeypatch):
    """Of a library in C: Python can't set it again, and says None."""
    set_handler = signal.signal
    given = []

    def by_c(number, handler):
        given.append(handler)
        set_handler(number, handler)

    monkeypatch.setattr(signal, "signal", by_c)
    assert limited(lambda: 1.0, 5)() == 1.0
    assert given[1] == signal.SIG_DFL


# --- the first generation's check ------------------------------------------------------------------------------------


def positive(value):
    """Raises where the value of a member is not, by a function that vmap can do."""
    torch.linalg.cholesky(value.double().view(1, 1))


def trouble(kind, module):
    """Raises at some calls, of members and the check's alike."""
    calls, center = itertools.count(1), module.weight.detach().clone()

    def raise_now_and_then():
        call = next(calls)
        if (kind == "first_call" and call == 1) or (kind == "every_third_call" and call % 3 == 0):
            raise ValueError("no reward today")
        if kind == "far_members":  # the check's, farther away than any other
            positive(0.12 - (module.weight - center).norm())

    return raise_now_and_then


@pytest.mark.parametrize("way", ["in_forward", "batched"])
@pytest.mark.parametrize("kind", ["first_call", "every_third_call", "far_members"])
@pytest.mark.filterwarnings("ignore:.*failed and are left out")
def test_what_members_raise_now_and_then_does_not_count_against_a_way(way, kind):
    options = {"members_per_forward": 2} if way == "batched" else {}
    evolution, module = subject(way, minimum_evaluated=0.25, **options)
    raise_now_and_then, before, raised = trouble(kind, module), module.weight.detach().clone(), []

    def fitness(batch):
        try:
            raise_now_and_then()
        except Exception as error:
            raised.append(error)
            raise
        return -module(batch).square().sum()

    assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert raised
    assert evolution.evaluation.summary.startswith(f"evaluation: {way}")
    assert "not possible" not in evolution.evaluation.summary
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("way", ["in_forward", "batched"])
@pytest.mark.filterwarnings("ignore:.*failed and are left out")
def test_members_that_always_raise_do_not_count_against_a_way(way):
    """Nor do they stop the others of their forward; those of the check are among them in some generations."""
    options = {"members_per_forward": 4} if way == "batched" else {}
    evolution, module = subject(way, antithetic=False, minimum_evaluated=0.1, **options)
    with torch.no_grad():
        module.bias.zero_()
    failed = []

    def fitness(batch):
        positive(0.01 - module.bias.sum())
        return -module(batch).square().sum()

    while not evolution.evaluation.summary:
        assert evolution.evaluate(fitness, torch.ones(4, 3))
        failed.append(evolution.statistics()["failed_members"])
        evolution.conclude()
        assert len(failed) < 10
    assert evolution.evaluation.summary.startswith(f"evaluation: {way}")
    assert "not possible" not in evolution.evaluation.summary
    assert 0 < max(failed) < 8


def test_checks_that_members_break_off_are_given_up_after_ten_batches():
    """The center raises, and no member: a check needs it, and the plain loop does not."""
    evolution, module = subject("in_forward", population=4)
    center, checks = module.weight.detach().clone(), []

    def fitness(batch):
        if torch.equal(module.weight.view(-1).clone(), center.view(-1)):
            checks.append(0)
            raise ValueError("no reward for the center")
        return -module(batch).square().sum()

    for _ in range(9):
        assert evolution.evaluate(fitness, torch.ones(4, 3))
        assert evolution.evaluation.state_dict() == {}
    with pytest.warns(UserWarning, match="the check was interrupted in 10 batches: ValueError: no reward for the cen"):
        assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert evolution.evaluation.state_dict() == {"evaluation": "plain"}
    assert len(checks) == 20  # twice each
    evolution.evaluate(fitness, torch.ones(4, 3))
    assert len(checks) == 20
    assert evolution.statistics()["failed_members"] == 0


@pytest.mark.parametrize("batches", [1, 4])
def test_an_exception_of_the_way_alone_counts_against_it_at_once(batches):
    """Code that batches can't run, and a member that fails by itself."""
    evolution, module = subject("batched", antithetic=False, members_per_forward=8 // batches)

    def fitness(batch):
        return -module(batch).square().sum() * (1 + 0 * float(module(batch)[0, 0].item()))

    with pytest.warns(UserWarning, match=r"batched is not possible: `.*item.* makes a Python number"):
        assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert evolution.evaluation.state_dict() == {"evaluation": "in_forward"}
    assert evolution.statistics()["failed_members"] == 0


def test_what_only_some_batches_of_members_can_not_do_is_found_in_the_first_generation():
    """Code that branches for the last members, which the check does not see."""
    evolution, module = subject("batched", antithetic=False, members_per_forward=2)
    calls = itertools.count()

    def fitness(batch):
        output = module(batch)
        if next(calls) >= 7:
            output = output * (1 + 0 * output.sum().item())
        return -output.square().sum()

    with pytest.warns(UserWarning, match=r"batched is not possible: `.*item.* makes a Python number"):
        assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert evolution.evaluation.state_dict() == {"evaluation": "in_forward"}
    assert evolution.statistics()["failed_members"] == 0


def test_exceptions_while_the_faster_way_is_measured():
    evolution, module = subject("auto", antithetic=False)
    evolution.evaluation._choice = Choice((InForward(), Plain()))
    calls = itertools.count()

    def fitness(batch):
        if next(calls) >= 8 + 8:
            raise ValueError("no reward today")
        return -module(batch).square().sum()

    assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert evolution.evaluation.state_dict() == {"evaluation": "in_forward"}


def test_a_first_call_that_hangs(clock):
    """It proves nothing: the second one tells."""
    evolution, module = subject("in_forward", member_timeout=0.3)
    calls = []

    def fitness(batch):
        calls.append(0)
        if len(calls) == 1:
            clock.sleep(30)
        return -module(batch).square().sum()

    assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert clock.now < 1
    assert evolution.evaluation.summary == "evaluation: in_forward"


@pytest.mark.parametrize("asked_for", [1000, "auto"])
def test_members_of_a_forward_have_as_many_times_longer(asked_for, clock):
    """As many as there are: four of them 0.4 seconds, whatever was asked for."""
    evolution, module = subject(
        "batched", member_timeout=0.1, members_per_forward=asked_for, population=4, minimum_evaluated=0.0
    )
    takes = [0.0]

    def fitness(batch):
        clock.sleep(takes[0])
        return -module(batch).square().sum()

    assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert evolution.evaluation.summary == "evaluation: batched, 4 members per forward"
    evolution.conclude()
    takes[0] = 0.39
    assert evolution.evaluate(fitness, torch.ones(4, 3))
    evolution.conclude()
    takes[0] = 0.41
    with pytest.raises(TimeoutError, match="member_timeout=0"):
        evolution.evaluate(fitness, torch.ones(4, 3))


def test_a_forward_of_the_first_generation_that_hangs(clock):
    evolution, module = subject("batched", member_timeout=0.1, members_per_forward=2, population=4, antithetic=False)
    calls = itertools.count(1)

    def fitness(batch):
        if next(calls) == 9:  # of the members: the check has made seven calls
            clock.sleep(30)
        return -module(batch).square().sum()

    assert evolution.evaluate(fitness, torch.ones(4, 3))
    assert clock.now < 1
    assert evolution.evaluation.summary == "evaluation: batched, 2 members per forward"
    assert evolution.statistics()["failed_members"] == 0
