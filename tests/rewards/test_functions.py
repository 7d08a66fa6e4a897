"""Reward functions are called as TRL calls them, and what they give is one number per sample, or an error in words."""

import asyncio
import copy
import functools
import math
import pickle
import sys
import warnings
from decimal import Decimal

import numpy
import pytest
import torch
from torch import nn

from lightning_evo.isolation import Isolation
from lightning_evo.rewards import Call, RewardError, RewardFunctions, TrainerState
from lightning_evo.rewards.calling import WrongRewards
from tests.rewards import trl_users_rewards as users
from tests.rewards.modes import Follows, Foreign


def call(*completions, **columns):
    ids = [list(range(len(text))) for text in completions]
    return Call([f"p{i}" for i in range(len(completions))], list(completions), ids, columns, TrainerState(7, 2, 100))


def conversation(*answers, **columns):
    prompts = [[{"role": "user", "content": f"question {i}"}] for i in range(len(answers))]
    completions = [[{"role": "assistant", "content": text}] for text in answers]
    return Call(prompts, completions, [[1] * i for i in range(len(answers))], columns, TrainerState(1, 0, 10))


def values(function, *calls, **options):
    return [scored.values.tolist() for scored in RewardFunctions(function, **options)(calls or [call("a", "bb")])]


# --- the call -------------------------------------------------------------------------------------------------------


def test_arguments_are_those_of_trl():
    seen = []

    def function(**kwargs):
        seen.append(kwargs)
        return [0.0, 0.0]

    RewardFunctions(function)([call("a", "bb", answer=["x", "y"], level=[1, 2])])
    [given] = seen
    assert set(given) == {
        "prompts", "completions", "completion_ids", "answer", "level", "trainer_state", "log_extra", "log_metric",
    }  # fmt: skip
    assert given["prompts"] == ["p0", "p1"]
    assert given["completions"] == ["a", "bb"]
    assert given["completion_ids"] == [[0], [0, 1]]
    assert (given["answer"], given["level"]) == (["x", "y"], [1, 2])
    assert (given["trainer_state"].global_step, given["trainer_state"].epoch) == (7, 2)


def test_a_function_is_called_once_for_each_member():
    sizes = []
    RewardFunctions(lambda completions, **kwargs: [sizes.append(len(completions)) or 0.0] * len(completions))(
        [call("a", "b"), call("c"), call("d", "e", "f")]
    )
    assert sizes == [2, 1, 3]


def test_a_function_gets_what_its_signature_names():
    assert values(lambda completions: [len(text) for text in completions]) == [[1.0, 2.0]]
    assert values(lambda level, unknown=5: [unknown * x for x in level], call("a", "b", level=[1, 2])) == [[5.0, 10.0]]


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(WrongRewards, match="'strict' needs an argument 'answer', which is no column of the data"):
        values(strict)


def strict(completions, answer, **kwargs):
    return [float(text == expected) for text, expected in zip(completions, answer, strict=True)]


def test_what_a_function_changes_is_its_own():
    def greedy(completions, level, **kwargs):
        level.clear()
        return [completions.pop() == "bb" for _ in range(2)]

    scored = RewardFunctions([greedy, strict])([call("a", "bb", answer=["a", "b"], level=[1, 2])])
    assert scored[0].rewards == {"greedy": [1.0, 0.0], "strict": [1.0, 0.0]}


@pytest.mark.parametrize("name", ["prompts", "completions", "trainer_state", "log_extra"])
def test_a_column_must_not_have_the_name_of_an_argument(name):
    with pytest.raises(ValueError, match=f"column named '{name}'.* Rename"):
        Call(["a"], ["b"], [[1]], {name: [1]})


def test_lengths_of_a_call_must_agree():
    with pytest.raises(ValueError, match="answer has 1 entries for 2 prompts"):
        call("a", "b", answer=["x"])
    with pytest.raises(ValueError, match="completion_ids has 0 entries for 1 prompts"):
        Call(["a"], ["b"], [])


ANSWERS = [
    "<think>hm</think><answer>42</answer>",
    "<think>question 1</think> <answer>7</answer>",
    "42, I think",
]


@pytest.mark.parametrize("timeout", [None, pytest.param(100.0, marks=pytest.mark.slow)])
def test_a_file_of_a_trl_user(timeout):
    functions = [
        users.format_reward,
        users.correctness_reward,
        users.math_only_reward,
        users.length_reward,
        users.judge_reward,
    ]
    score = RewardFunctions(functions, weights=[1.0, 0.5, 2.0, 1.0, 1.0], timeout=timeout)
    [scored] = score([conversation(*ANSWERS, answer=["42", "8", "42"], task=["math", "history", "math"])])
    score.close()
    assert scored.rewards == {
        "format_reward": [1.0, 1.0, 0.0],
        "correctness_reward": [2.0, 0.0, 0.0],
        "math_only_reward": [1.0, None, 1.0],
        "length_reward": [0.0, -0.02, -0.04],
        "judge_reward": [0.0, 0.5, 0.0],
    }
    assert scored.values.tolist() == pytest.approx([4.0, 1.48, 1.96])
    assert scored.metrics == {"mean_length": 1.0}
    assert scored.extras == {"length": [0, 1, 2]}
    assert not scored.missing.any()


# --- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        [1, 0.5],
        (True, 0.5),
        numpy.array([1.0, 0.5]),
        numpy.array([1.0, 0.5], dtype=numpy.float16),
        torch.tensor([1.0, 0.5], requires_grad=True),
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16),
        [torch.tensor(1), numpy.float32(0.5)],
        [torch.tensor([1.0]), Decimal("0.5")],
        iter([1.0, 0.5]),
    ],
)
def test_numbers_of_any_kind(result):
    assert values(lambda **kwargs: result) == [[1.0, 0.5]]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "returned 1 reward for 2 completions. It must return one for each, None where it skips one"),
        ([1.0, 2.0, 3.0], "returned 3 rewards for 2 completions"),
        (torch.zeros(2, 2), r"returned \[0.0, 0.0\] \(list\) for sample 0"),
        (torch.tensor(1.0), r"returned tensor\(1.\) \(Tensor\). It must return a list with one number for each of"),
        (1.0, r"returned 1.0 \(float\)"),
        (None, r"returned None \(NoneType\)"),
        ("ab", r"returned 'ab' \(str\)"),
        ({"a": 1.0, "b": 2.0}, r"returned .* \(dict\)"),
        ([1.0, "0.5"], r"returned '0.5' \(str\) for sample 1. It must be a number, or None to skip the sample"),
        ([1.0, 1j], r"returned 1j \(complex\) for sample 1"),
        ([1.0, 10**400], r"returned 10{79}… \(int\) for sample 1"),
        ([1.0, torch.zeros(2)], r"returned .* \(Tensor\) for sample 1"),
    ],
)
def test_what_can_not_be_rewards_is_refused_by_name(result, message):
    def named(**kwargs):
        return result

    with pytest.raises(WrongRewards, match=f"^Reward function 'named' {message}"):
        values(named)


def test_none_skips_a_sample():
    first, second = (lambda **kwargs: [1.0, None, None]), (lambda **kwargs: [2.0, 3.0, None])
    [scored] = RewardFunctions([first, second], weights=[10, 0.5])([call("a", "b", "c")])
    assert scored.values.tolist() == [11.0, 1.5, 0.0]
    assert scored.values.dtype == torch.float64
    assert scored.missing.tolist() == [False, False, True]
    assert not scored.timed_out.any()
    assert scored.rewards == {"lambda": [1.0, None, None], "lambda_2": [2.0, 3.0, None]}


def test_nan_fails_the_call_and_is_said_once():
    def unsure(completions, **kwargs):
        return [math.nan if text == "bad" else None if text == "skip" else 1.0 for text in completions]

    score = RewardFunctions(unsure)
    with pytest.warns(UserWarning, match="'unsure' returned NaN, which fails the member. Return None for a sample"):
        bad, good = score([call("a", "bad", "skip"), call("a", "skip")])
    assert bad.values.isnan().all()
    assert not bad.missing.any()
    assert bad.error is None
    assert good.values.tolist() == [1.0, 0.0]
    assert good.missing.tolist() == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score([call("bad")])[0].values.isnan().all()


def test_infinite_rewards_are_numbers():
    [[first, second]] = values(lambda **kwargs: [math.inf, -math.inf])
    assert (first, second) == (math.inf, -math.inf)


def test_what_a_function_raises_fails_its_call():
    def fragile(completions, **kwargs):
        return [1 / len(text) for text in completions]

    bad, good = RewardFunctions([fragile, lambda **kwargs: [1.0]])([call(""), call("ab")])
    assert isinstance(bad.error, RewardError)
    assert str(bad.error).startswith("Reward function 'fragile' raised ZeroDivisionError: ")
    assert "return [1 / len(text) for text in completions]" in str(bad.error)
    assert bad.values.isnan().all()
    assert not bad.missing.any()
    assert bad.rewards == {"fragile": [None], "lambda": [1.0]}
    assert good.error is None
    assert good.values.tolist() == [1.5]


def test_a_function_that_exits_ends_only_its_call():
    [scored] = RewardFunctions(lambda **kwargs: exit("enough"))([call("a")])
    assert "raised SystemExit: enough" in str(scored.error)


def test_ctrl_c_is_not_held_up():
    def interrupted(**kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        values(interrupted)


def test_metrics_are_averaged():
    def logs(completions, log_metric, **kwargs):
        for text in completions:
            log_metric("length", numpy.float32(len(text)))
        return [0.0] * len(completions)

    def logs_too(log_metric, completions, **kwargs):
        log_metric("length", 7)
        return [0.0] * len(completions)

    assert RewardFunctions([logs, logs_too])([call("a", "bbbb")])[0].metrics == {"length": 4.0}


def test_wrong_use_of_the_logs_is_named():
    with pytest.raises(WrongRewards, match=r"'lambda' called log_extra\('x', …\) with \[1\]: it takes a list with one"):
        values(lambda log_extra, **kwargs: log_extra("x", [1]) or [0.0, 0.0])
    with pytest.raises(WrongRewards, match=r"'lambda' called log_metric\('x', 'much'\): it takes a number"):
        values(lambda log_metric, **kwargs: log_metric("x", "much") or [0.0, 0.0])


# --- coroutines -----------------------------------------------------------------------------------------------------


class Meeting:
    """A coroutine function that gives its rewards once so many calls of it run at the same time."""

    __name__ = "meeting"

    def __init__(self, expected):
        self.expected, self.present = expected, 0

    async def __call__(self, completions, **kwargs):
        self.present += 1
        while self.present < self.expected:
            await asyncio.sleep(0.001)
        return [len(text) for text in completions]


def test_coroutines_of_all_calls_and_functions_run_at_the_same_time():
    meeting = Meeting(6)
    score = RewardFunctions([meeting, functools.partial(meeting), lambda **kwargs: [1.0]])
    scored = score([call("a"), call("bb"), call("ccc")])
    assert [each.values.tolist() for each in scored] == [[3.0], [5.0], [7.0]]


def test_coroutines_where_a_loop_runs_already():
    async def notebook():
        return values(Meeting(2), call("a"), call("bb"))

    assert asyncio.run(notebook()) == [[1.0], [2.0]]


def test_coroutines_keep_their_loop():
    loops = []

    async def looks(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    score = RewardFunctions(looks)
    score([call("a")])
    score([call("a")])
    assert loops[0] is loops[1]
    assert not loops[0].is_closed()
    del score
    assert loops[0].is_closed()


def test_errors_of_coroutines_name_them():
    async def breaks(completions, **kwargs):
        raise OSError("no route to host")

    async def cancels(completions, **kwargs):
        raise asyncio.CancelledError

    async def short(completions, **kwargs):
        return []

    [scored] = RewardFunctions(breaks)([call("a")])
    assert str(scored.error).startswith("Reward function 'breaks' raised OSError: no route to host")
    with pytest.raises(WrongRewards, match="'short' returned 0 rewards for 1 completions"):
        RewardFunctions(short)([call("a")])


def test_a_function_may_return_a_coroutine():
    async def later():
        return [1.0, 2.0]

    assert values(lambda **kwargs: later()) == [[1.0, 2.0]]


# --- what is given --------------------------------------------------------------------------------------------------


def test_names():
    class Judge:
        def __call__(self, completions, **kwargs):
            return [0.0]

        def method(self, completions, **kwargs):
            return [0.0]

    given = [strict, functools.partial(strict, answer=["a"]), Judge(), Judge().method, lambda **kwargs: [0.0]]
    assert RewardFunctions(given).names == ["strict", "strict_2", "Judge", "method", "lambda"]


def test_names_are_different_whatever_functions_are_called():
    def strict_2(completions, **kwargs):
        return [7.0]

    [scored] = RewardFunctions([strict, strict_2, strict])([call("a", answer=["a"])])
    assert scored.rewards == {"strict": [1.0], "strict_2": [7.0], "strict_3": [1.0]}


@pytest.mark.parametrize(
    ("functions", "options", "error", "message"),
    [
        ([], {}, ValueError, "reward_funcs is empty"),
        (5, {}, TypeError, "must be a function, a sequence-classification model or a model's name, got 5"),
        ([dict], {}, TypeError, "a class: give one of its objects"),
        ([strict], {"weights": [1.0, 2.0]}, ValueError, r"one number for each of the 1 reward functions \(strict\)"),
        ([strict], {"weights": 1.0}, ValueError, "reward_weights must be"),
        ([strict], {"weights": ["x"]}, ValueError, "The weight of reward function 'strict' must be a number, got 'x'"),
        ([strict], {"timeout": 0}, ValueError, "reward_timeout must be a number > 0|reward_timeout must be"),
        ([strict], {"timeout": "soon"}, ValueError, "reward_timeout must be"),
    ],
)
def test_what_is_wrong_is_said(functions, options, error, message):
    with pytest.raises(error, match=message):
        RewardFunctions(functions, **options)


def test_what_has_to_be_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    score = RewardFunctions(strict, timeout=1.0)
    with pytest.raises(ImportError, match=r"reward_timeout needs cloudpickle.*pip install 'lightning-evo\[rewards\]'"):
        score([call("a", answer=["a"])])


def test_no_calls():
    assert RewardFunctions(strict)([]) == []


# --- among members --------------------------------------------------------------------------------------------------


def test_torch_in_a_reward_function_is_not_followed():
    weight = torch.ones(2, requires_grad=True)

    def by_torch(completions, **kwargs):
        rewards = torch.tensor([float(len(text)) for text in completions]) * weight
        assert not rewards.requires_grad
        return rewards

    with Foreign() as foreign, Follows() as follows:
        scored = RewardFunctions(by_torch)([call("a", "bb")])
        assert not follows.functions
        assert torch.tensor in foreign.functions  # modes of others go on
        torch.add(weight, 1)
    assert follows.functions == [torch.add]
    assert foreign.functions[-1] is torch.add
    assert scored[0].values.tolist() == [1.0, 2.0]
    assert torch.overrides._len_torch_function_stack() == 0


def test_modes_are_there_again_after_an_error():
    with Follows() as follows:
        with pytest.raises(WrongRewards):
            RewardFunctions(lambda **kwargs: 5)([call("a")])
        torch.ones(1)
    assert follows.functions == [torch.ones]


class Counts:
    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **kwargs):
        self.calls += 1
        return [float(self.calls)] * len(completions)


class Module(nn.Module):
    def __init__(self, score):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.score = score


def test_members_do_not_see_each_others_state_of_a_function():
    counts = Counts()
    module = Module(RewardFunctions(counts))
    with Isolation(module, torch.device("cpu")) as isolation:
        for _ in range(3):
            isolation.start_member()
            assert module.score([call("a")])[0].values.tolist() == [1.0]
    assert counts.calls == 0


@pytest.mark.slow
def test_isolation_leaves_workers_alone():
    module = Module(RewardFunctions(Counts(), timeout=100.0))
    with Isolation(module, torch.device("cpu")) as isolation:
        pools = []
        for _ in range(3):
            isolation.start_member()
            assert module.score([call("a")])[0].values[0] >= 1.0
            pools.append(module.score._pool)
    assert pools[0] is pools[1] is pools[2] is module.score._pool
    assert module.score._pool.processes() == 1
    module.score.close()


def test_a_copy_of_a_module_has_functions_of_its_own():
    module = Module(RewardFunctions([Counts(), lambda **kwargs: [0.5]], weights=[2.0, 1.0]))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.score([call("a")])[0].values.tolist() == [2.5]
        assert other.score([call("a")])[0].values.tolist() == [4.5]
    assert module.score.functions[0].calls == 0


def test_a_copy_shares_what_can_not_be_copied():
    lock = __import__("threading").Lock()

    class Locked:
        def __init__(self):
            self.lock = lock

        def __call__(self, completions, **kwargs):
            return [1.0] * len(completions)

    score = RewardFunctions(Locked())
    assert copy.deepcopy(score).functions[0] is score.functions[0]
