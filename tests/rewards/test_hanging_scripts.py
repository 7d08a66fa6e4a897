"""Scripts as users write them, with reward functions that hang: they end, run once, and leave no process behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc"),
]

ROOT = Path(__file__).parents[2]

MISBEHAVE = """
import os, re, subprocess, sys, time, warnings
print("the script runs")
warnings.simplefilter("ignore")
from lightning_evo.rewards import Call, RewardFunctions

def hang(completions, **kwargs):
    if "bad" in completions:
        print("a reward function says something")
        for own_session in (False, True):
            subprocess.Popen(["sleep", "1000"], start_new_session=own_session)
        re.match(r"(a|a)*b", "a" * 100)
    return [len(text) for text in completions]

def call(*completions):
    return Call(["" for _ in completions], list(completions), [[] for _ in completions])
"""

RUNS_ON = (
    MISBEHAVE
    + """
score = RewardFunctions([hang, lambda completions, **kwargs: [10 for _ in completions]], timeout=2.0)
for scored in score([call("a", "bad", "cc"), call("ddd")]):
    print(scored.values.tolist(), scored.missing.tolist())
print("timed out:", score.timed_out_rewards)
"""
)

HANGS = (
    MISBEHAVE
    + """
score = RewardFunctions(hang, timeout=1000.0)
score([call("a")])
open(sys.argv[1], "w").close()
score([call("bad")])
"""
)

# What holds the sockets of the training, as the workers of a DataLoader do, must not keep reward functions alive.
HANGS_BESIDE_A_FORK = HANGS.replace(
    'open(sys.argv[1], "w").close()',
    "if not os.fork():\n    time.sleep(60)\n    os._exit(0)\nopen(sys.argv[1], 'w').close()",
)

TRAINS = """
import os, time, warnings
warnings.simplefilter("ignore")
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning_evo import EvoStrategy, Fitness
from lightning_evo.rewards import Call, RewardFunctions
print("the script runs")

class Writer(LightningModule):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(3, 4))
        self.score = RewardFunctions(self.reward, timeout=2.0)

    @staticmethod
    def reward(completions, hangs, **kwargs):
        for text, hang in zip(completions, hangs):
            if hang:
                time.sleep(1000)
        return [text.count("d") for text in completions]

    def fitness_step(self, batch, batch_idx):
        texts = ["".join("abcd"[i] for i in self.logits.argmax(1).tolist()) for _ in range(4)]
        [scored] = self.score([Call(texts, texts, [[]] * 4, {"hangs": [batch_idx == 2, False, False, False]})])
        return Fitness(scored.values, missing=scored.missing)

    def training_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

seed_everything(1)
module = Writer()
trainer = Trainer(strategy=EvoStrategy("openai_es", population=2, sigma=0.5, evaluation="plain"), accelerator="cpu",
    max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(4, 1)))
print("steps:", trainer.global_step, "timed out:", module.score.timed_out_rewards)
print("finite:", bool(module.logits.isfinite().all()), "moved:", bool(module.logits.any()))
"""


@pytest.fixture
def mark(monkeypatch):
    """In the environment of every process that a script starts; what is left of them at the end is killed."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("MARK_OF_TEST", value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield value
    for process in left(value):
        os.kill(process, signal.SIGKILL)


def left(mark, command=""):
    """Processes with a mark, whose command line has a text."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            has_mark = folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes()
            if has_mark and int(folder.name) != os.getpid() and command in (folder / "cmdline").read_text():
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                found += [] if state in "ZX" else [int(folder.name)]
        except OSError:  # it has ended, or is another user's
            continue
    return found


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def run(code, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
    )


EXPECTED = ["the script runs", "[11.0, 0.0, 12.0] [False, True, False]", "[13.0] [False]", "timed out: 1"]


def test_an_unguarded_script_runs_once_and_to_its_end(mark, tmp_path):
    ran = run(RUNS_ON, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == EXPECTED
    assert "a reward function says something" in ran.stderr
    wait_until(lambda: not left(mark))


def test_a_cell_of_a_notebook(mark, tmp_path):
    # Code without a file, in `__main__`, while an event loop runs.
    code = f"""
import asyncio, sys
async def cell():
    exec(compile({RUNS_ON!r}, "<ipython-input-1>", "exec"), sys.modules["__main__"].__dict__)
asyncio.run(cell())
"""
    ran = run(code, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == EXPECTED
    wait_until(lambda: not left(mark))


def test_code_from_standard_input(mark, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-"], input=RUNS_ON, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == EXPECTED
    wait_until(lambda: not left(mark))


@pytest.mark.parametrize("output", ["> ran 2> said", "<&- 2>&-"])
def test_output_may_go_anywhere(mark, tmp_path, output):
    script = tmp_path / "script.py"
    script.write_text(RUNS_ON)
    ran = subprocess.run(
        f"exec {sys.executable} script.py {output}",
        shell=True, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False,
    )  # fmt: skip
    file = tmp_path / "ran"
    assert ran.returncode == 0
    lines = (file.read_text() if file.exists() else ran.stdout).splitlines()
    assert [line for line in lines if line != "a reward function says something"] == EXPECTED


def test_a_training_goes_on(mark, tmp_path):
    ran = run(TRAINS, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("the script runs") == 1
    steps, timed_out = (line for line in ran.stdout.splitlines() if "steps:" in line).__next__().split("timed out: ")
    assert "4" in steps
    assert int(timed_out) >= 2  # one sample of each member
    assert "finite: True moved: True" in ran.stdout
    wait_until(lambda: not left(mark))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_no_process_is_left_when_the_training_ends(mark, tmp_path, interruptible, number):
    training = start(HANGS, tmp_path)
    wait_until(lambda: len(left(mark, "sleep")) == 2)  # the function has started
    os.killpg(training.pid, number)  # as a terminal sends Ctrl-C, to all of a group
    said = training.communicate(timeout=60)[0]
    assert training.returncode != 0
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    wait_until(lambda: not left(mark))


def test_no_worker_is_left_where_a_fork_of_the_training_lives_on(mark, tmp_path):
    training = start(HANGS_BESIDE_A_FORK, tmp_path)
    wait_until(lambda: len(left(mark, "sleep")) == 2)
    training.kill()
    wait_until(lambda: not left(mark, "rewards.workers.worker") and not left(mark, "sleep"))
    assert left(mark, "script.py")  # the fork
    for process in left(mark):
        os.kill(process, signal.SIGKILL)
    training.communicate(timeout=60)


def start(code, tmp_path):
    script, ready = tmp_path / "script.py", tmp_path / "ready"
    script.write_text(code)
    training = subprocess.Popen(
        [sys.executable, str(script), str(ready)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: ready.exists() or training.poll() is not None)
    assert training.poll() is None, training.communicate()[0]
    return training
