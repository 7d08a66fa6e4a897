"""Workers: whatever a function does, the run goes on, and nothing stays behind."""

import copy
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from lightning_evo.rewards import Call, RewardError, RewardFunctions, TrainerState
from lightning_evo.rewards.calling import WrongRewards
from lightning_evo.rewards.workers import pool as workers_module
from lightning_evo.rewards.workers import process as process_module
from tests.rewards import misbehaving

TIMEOUT = 2.0  # a sample alone has half of it, which is much for what takes no time

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Reward function .* is said once:UserWarning")]


def call(*completions, step=0, **columns):
    ids = [[1] for _ in completions]
    return Call(["" for _ in completions], list(completions), ids, columns, TrainerState(step, 0, -1))


@pytest.fixture
def made():
    """Makes reward functions with a timeout, and closes them."""
    all_made = []

    def make(*functions, timeout=TIMEOUT, **options):
        all_made.append(RewardFunctions(list(functions), timeout=timeout, **options))
        return all_made[-1]

    yield make
    for each in all_made:
        each.close()


def is_there(process):
    """Whether a process runs: neither ended nor waiting to be counted."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_the_same_as_in_this_process(made):
    functions = [misbehaving.lengths, misbehaving.doing(len)]
    calls = [call("a", "bb"), call("ccc", "")]
    for here, there in zip(RewardFunctions(functions)(calls), made(*functions)(calls), strict=True):
        assert torch.equal(here.values, there.values)
        assert here.rewards == there.rewards
        assert there.values.tolist() != [0.0, 0.0]


HANG = [misbehaving.sleeps, misbehaving.backtracks, misbehaving.ignores_signals, misbehaving.stops_itself]
END = [
    (misbehaving.segfaults, "ended its process by SIGSEGV"),
    (misbehaving.leaves, "ended its process with exit status 3"),
    (misbehaving.kills_itself, "ended its process by SIGKILL"),
    (misbehaving.kills_its_group, "ended its process"),
    (misbehaving.kills_its_parent, "ended its process"),
    (misbehaving.closes_files, "closed files that were not its own"),
]


@pytest.mark.parametrize("act", HANG, ids=lambda act: act.__name__)
def test_what_hangs_is_missing_and_the_others_are_not(made, act):
    score = made(misbehaving.doing(act))
    with pytest.warns(UserWarning, match=f"'{act.__name__}' took longer than reward_timeout=2.0 s. .* 1 of 3 samples"):
        bad, good = score([call("a", "bad", "cc"), call("ddd", "", "f")])
    assert bad.values.tolist() == [1.0, 0.0, 2.0]
    assert bad.missing.tolist() == bad.timed_out.tolist() == [False, True, False]
    assert not bad.crashed.any()
    assert bad.rewards == {act.__name__: [1.0, None, 2.0]}
    assert good.values.tolist() == [3.0, 0.0, 1.0]
    assert not good.missing.any()
    assert (score.timed_out_rewards, score.crashed_rewards) == (1, 0)
    assert score.restarts == 2


@pytest.mark.parametrize(("act", "reason"), END, ids=lambda each: getattr(each, "__name__", ""))
def test_what_ends_its_process_is_missing_and_the_others_are_not(made, act, reason):
    score = made(misbehaving.doing(act), timeout=60.0)
    with pytest.warns(UserWarning, match=f"'{act.__name__}' {reason}.* 1 of 3 samples"):
        bad, good = score([call("a", "bad", "cc"), call("ddd", "", "f")])
    assert bad.values.tolist() == [1.0, 0.0, 2.0]
    assert bad.missing.tolist() == bad.crashed.tolist() == [False, True, False]
    assert good.values.tolist() == [3.0, 0.0, 1.0]
    assert (score.timed_out_rewards, score.crashed_rewards) == (0, 1)


@pytest.mark.parametrize(
    "act",
    [
        misbehaving.forks,
        misbehaving.prints_a_megabyte,
        misbehaving.reads,
        misbehaving.alarms,
        misbehaving.moves,
    ],
    ids=lambda act: act.__name__,
)
def test_what_disturbs_nothing(made, act, capfd):
    score = made(misbehaving.doing(act), timeout=60.0)
    for _ in range(2):
        [scored] = score([call("a", "bad", "cc")])
        assert scored.values.tolist() == [1.0, 3.0, 2.0]
    assert score.restarts == 0
    score.close()
    assert capfd.readouterr().out == ""


def test_an_alarm_that_a_function_leaves_behind_ends_nothing(made):
    score = made(misbehaving.doing(misbehaving.leaves_an_alarm), misbehaving.worker, timeout=60.0)
    score([call("bad")])
    time.sleep(0.5)
    [scored] = score([call("a")])
    assert scored.values[0] > 1
    assert score.restarts == 0


def test_messages_that_a_function_breaks_end_its_worker(made):
    score = made(misbehaving.doing(misbehaving.writes_to_all_files))
    [scored] = score([call("a", "bad", "cc")])
    assert scored.values.tolist() == [1.0, 0.0, 2.0]
    assert scored.missing.tolist() == [False, True, False]


def test_output_is_shown_up_to_a_bound(made, capfd):
    score = made(misbehaving.doing(misbehaving.prints_a_megabyte), timeout=60.0)
    score([call("bad")])
    score.close()
    shown = capfd.readouterr().err
    assert "xxxx" in shown
    assert len(shown) < (1 << 17)
    assert "reward functions said more, which is not shown" in shown


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux finds children that left the session")
@pytest.mark.parametrize("then", [misbehaving.sleeps, misbehaving.kills_itself], ids=lambda act: act.__name__)
def test_children_end_with_the_function_that_started_them(made, tmp_path, then):
    score = made(misbehaving.leaves_children(tmp_path / "numbers", then), timeout=3.0)
    [scored] = score([call("bad")])
    assert scored.missing.tolist() == [True]
    numbers = [int(line) for line in (tmp_path / "numbers").read_text().split()]
    assert len(numbers) == (4 if then is misbehaving.sleeps else 8)  # what crashed is tried once more
    wait_until(lambda: not any(map(is_there, numbers)))


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_close_leaves_no_process(made):
    score = made(misbehaving.worker, timeout=60.0)
    found = {int(scored.values[0]) for scored in score([call("a") for _ in range(8)])}
    assert all(map(is_there, found))
    score.close()
    assert not any(map(is_there, found))
    [again] = score([call("a")])  # it starts anew
    assert int(again.values[0]) not in found


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_workers_end_with_what_holds_them():
    score = RewardFunctions(misbehaving.worker, timeout=60.0)
    [scored] = score([call("a")])
    process = int(scored.values[0])
    assert is_there(process)
    del score
    assert not is_there(process)


def test_workers_stay_warm(made):
    score = made(misbehaving.worker, timeout=60.0)
    first = {value for _ in range(3) for scored in score([call("a")]) for value in scored.values.tolist()}
    assert len(first) == 1


def test_a_worker_that_was_killed_while_idle_is_replaced_unseen(made):
    score = made(misbehaving.worker, timeout=60.0)
    [scored] = score([call("a")])
    os.kill(int(scored.values[0]), 9)
    wait_until(lambda: not is_there(int(scored.values[0])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [again] = score([call("a")])
    assert again.values[0] not in (0, scored.values[0])
    assert score.crashed_rewards == 0


def test_a_worker_that_grows_is_replaced(made, monkeypatch):
    monkeypatch.setattr(workers_module, "GROWTH", 1 << 26)  # two of the function's blocks
    score = made(misbehaving.grows, misbehaving.worker, timeout=60.0)
    for _ in range(6):
        [scored] = score([call("a")])
        assert scored.rewards["grows"] == [1.0]
    assert score.restarts >= 1
    assert score.crashed_rewards == 0


def test_calls_run_next_to_each_other(made):
    score = made(misbehaving.worker, timeout=60.0)
    score._pool = workers_module.Pool([("worker", misbehaving.worker)], most=3)
    score([call("a") for _ in range(64)])
    assert score._pool.processes() == 3


def test_coroutines_of_all_calls_run_at_the_same_time(made):
    score = made(misbehaving.sleeps_later, timeout=TIMEOUT)
    scored = score([call("a", "bad"), *(call("a", "cc") for _ in range(100))])
    assert scored[0].values.tolist() == [1.0, 0.0]
    assert scored[0].timed_out.tolist() == [False, True]
    assert all(each.values.tolist() == [1.0, 2.0] for each in scored[1:])
    assert score.restarts == 0  # the loop saw to it


def test_a_coroutine_that_blocks_takes_no_other_with_it(made):
    score = made(misbehaving.blocks_later, timeout=TIMEOUT)
    scored = score([call("a", "bad"), call("a", "cc")])
    assert [each.values.tolist() for each in scored] == [[1.0, 0.0], [1.0, 2.0]]
    assert scored[0].timed_out.tolist() == [False, True]
    assert not scored[1].missing.any()


def test_the_whole_is_bounded(made):
    score = made(misbehaving.doing(misbehaving.sleeps), timeout=1.0)
    score._pool = workers_module.Pool([("sleeps", misbehaving.doing(misbehaving.sleeps))], most=1)
    score([call("a")])  # start the worker
    begin = time.monotonic()
    [scored] = score([call(*["bad"] * 40)])
    assert scored.timed_out.all()
    # At most 1 s for the call and 2 s for its samples, of which 40 alone would take 20 s; workers have to start, too.
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("act", [misbehaving.exits, misbehaving.interrupts])
def test_what_a_function_raises_fails_the_call(made, act):
    bad, good = made(misbehaving.doing(act), timeout=60.0)([call("bad"), call("a")])
    assert isinstance(bad.error, RewardError)
    assert f"Reward function '{act.__name__}' raised" in str(bad.error)
    assert f"in {act.__name__}" in str(bad.error)  # the traceback
    assert bad.values.isnan().all()
    assert good.error is None
    assert good.values.tolist() == [1.0]


def test_mistakes_name_the_function(made):
    with pytest.raises(WrongRewards, match="'returns_too_few' returned 1 reward for 2 completions"):
        made(misbehaving.returns_too_few, timeout=60.0)([call("a", "b")])
    with pytest.raises(WrongRewards, match="'returns_what_cannot_be_sent' returned <one that can't be sent>"):
        made(misbehaving.returns_what_cannot_be_sent, timeout=60.0)([call("a", "b")])


def test_what_is_logged_and_cannot_be_sent_is_shown(made):
    [scored] = made(misbehaving.logs_what_cannot_be_sent, timeout=60.0)([call("a", "bb")])
    assert scored.values.tolist() == [1.0, 2.0]
    assert scored.extras == {"object": ["<one that can't be sent>"] * 2}


def test_random_numbers_are_those_of_the_step_in_every_worker(made):
    score = made(misbehaving.draws, timeout=60.0)
    first = score([call("a", "b", step=3) for _ in range(8)])
    assert all(torch.equal(each.values, first[0].values) for each in first)
    [later] = score([call("a", "b", step=4)])
    assert not torch.equal(first[0].values, later.values)
    score.close()
    [again] = score([call("a", "b", step=3)])
    assert torch.equal(again.values, first[0].values)


def test_time_for_imports_does_not_count(made, tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(3)\nVALUE = 7.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    [scored] = made(misbehaving.imports_slowly, timeout=1.0)([call("a", "b")])
    assert scored.values.tolist() == [7.0, 7.0]
    assert not scored.missing.any()


def test_scripts_may_have_put_paths_into_the_search_path(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # which imports ignore
    [scored] = made(misbehaving.lengths, timeout=60.0)([call("a")])
    assert scored.values.tolist() == [1.0]


def test_lambdas_and_local_functions_are_sent_with_their_code(made):
    factor = 3
    score = made(lambda completions, **kwargs: [factor * len(text) for text in completions], timeout=60.0)
    [scored] = score([call("aa")])
    assert scored.values.tolist() == [6.0]
    assert score.names == ["lambda"]


def test_a_function_that_cannot_be_sent_is_named(made):
    file = open(os.devnull)  # noqa: SIM115

    def reads_file(completions, **kwargs):
        return [len(file.read()) for _ in completions]

    sock = __import__("socket").socket()

    def talks(completions, **kwargs):
        return [sock.fileno() for _ in completions]

    with pytest.raises(ValueError, match="'talks' can't be sent to a worker: .* must be picklable"):
        made(talks)([call("a")])
    sock.close()
    file.close()


def test_a_module_that_workers_cannot_find_is_sent_with_its_code(made):
    module = type(sys)("only_here")
    exec(
        "FACTOR = 3\ndef local(completions, **kwargs):\n    return [FACTOR * len(t) for t in completions]\n",
        vars(module),
    )
    sys.modules["only_here"] = module
    try:
        [scored] = made(module.local, timeout=60.0)([call("a", "bb")])
    finally:
        del sys.modules["only_here"]
    assert scored.values.tolist() == [3.0, 6.0]


def test_a_function_that_workers_cannot_load_is_named(made, tmp_path, monkeypatch):
    (tmp_path / "needs_gpu.py").write_text(
        "import os\nassert os.environ.get('CUDA_VISIBLE_DEVICES') != '', 'no GPU'\ndef judge(**kwargs): return [0.0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    import needs_gpu

    with pytest.raises(RuntimeError, match="can't load the reward function 'judge': AssertionError: no GPU. Workers"):
        made(needs_gpu.judge)([call("a")])


def test_data_that_cannot_be_sent_is_said(made):
    score = made(misbehaving.lengths)
    with pytest.raises(ValueError, match="The data can't be sent to workers"):
        score([call("a", column=[misbehaving.Unpicklable()])])


def test_workers_see_no_gpu_and_the_environment_of_the_training(made, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    names = ["PYTHONPATH", "PYTHONSAFEPATH", "CUDA_VISIBLE_DEVICES"]

    def look(completions, log_extra, **kwargs):
        import os
        import sys

        log_extra("seen", [(os.environ.get(name), os.getcwd(), "torch" in sys.modules) for name in names])
        return [0.0] * len(completions)

    [scored] = made(look, timeout=60.0)([call("a", "b", "c")])
    seen = scored.extras["seen"]
    assert [each[0] for each in seen] == ["/nowhere", None, ""]
    assert seen[0][1] == os.getcwd()
    assert not seen[0][2]


def test_a_copy_and_a_pickle_have_workers_of_their_own(made):
    score = made(misbehaving.worker, timeout=60.0)
    [first] = score([call("a")])
    for other in (copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        [second] = other([call("a")])
        assert second.values[0] != first.values[0]
        other.close()
    [third] = score([call("a")])
    assert torch.equal(first.values, third.values)


def test_a_fork_leaves_the_workers_to_its_parent(made):
    score = made(misbehaving.worker, timeout=60.0)
    [before] = score([call("a")])
    child = os.fork()
    if not child:
        status = 2
        try:
            [own] = score([call("a")])
            score.close()
            status = int(torch.equal(own.values, before.values))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    [after] = score([call("a")])
    assert torch.equal(before.values, after.values)


def test_a_worker_that_cannot_start_is_said(made, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 5\n")
    broken.chmod(0o755)
    monkeypatch.setattr(process_module.sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match="A worker for reward functions ended its process, 3 times in a row"):
        made(misbehaving.lengths)([call("a")])


def test_a_worker_starts_without_torch():
    code = (
        "import sys, lightning_evo.rewards.workers.worker\n"
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
