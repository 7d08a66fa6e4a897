"""Killed twenty times at random moments, a journaled run ends as if nothing had happened."""

import os
import subprocess
import sys
import textwrap

import lightning as L
import pytest
import torch
from packaging.version import Version

from tests.strategies.models import assert_same_weights

# Imports once and forks for every run: the import takes far longer than the little that a run gets done.
SCRIPT = """
import logging, os, random, select, signal, sys, time, warnings
from pathlib import Path

import torch
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_evo import EvoStrategy
from lightning_evo.journal import Journal
from tests.callbacks.test_journal import Net

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
folder, kills, checkpoints = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "checkpoints"
GENERATIONS = 4 * 75  # more than twenty runs get done before they are killed
PAGE = 4096  # so many bytes fill a pipe soon: no run gets farther than sixteen members ahead of what was read


class Watched(Net):
    def fitness_step(self, batch, batch_idx):
        generation = self.trainer.strategy.evolution.state.generation
        os.write(self.evaluations, f"{os.getpid()} {generation}\\n".encode())
        os.write(self.signal, bytes(PAGE))
        return super().fitness_step(batch, batch_idx)


def fit(pipe):
    torch.set_num_threads(1)
    L.seed_everything(7, verbose=False)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    model = Watched()
    model.evaluations = os.open(folder / "evaluations.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    model.signal = pipe
    last = folder / "last.ckpt"
    every = 5 if checkpoints else 10**6
    trainer = L.Trainer(
        strategy=EvoStrategy(population=2, sigma=0.05, update="in_place", evaluation="plain"),
        max_epochs=GENERATIONS // 4, accelerator="cpu", logger=False, default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, save_last=checkpoints, save_top_k=1, every_n_epochs=every)],
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.02,
    )
    trainer.evaluated = __import__("collections").Counter()
    trainer.fit(model, ckpt_path=last if last.exists() else None)
    torch.save(model.state_dict(), folder / "final.pt")


def child():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    try:
        fit(writer)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def recorded():
    path = folder / "evolution.evoj"
    if not path.exists():
        return 0
    with Journal.open(path) as journal:
        return journal.end


folder.mkdir()
moments = random.Random(0)
ends = []
for kill in range(kills):
    pid, reader = child()
    if moments.random() < 0.2:  # at any moment, the start included, but before it gets far
        end = time.monotonic() + moments.uniform(0, 0.4)
        for _ in range(16):
            if not select.select([reader], [], [], max(0, end - time.monotonic()))[0] or not os.read(reader, PAGE):
                break
    else:  # soon after some member's evaluation has begun: there, while recording, or while the weights move
        for _ in range(moments.randrange(1, 9)):
            if not os.read(reader, PAGE):
                break
        time.sleep(moments.uniform(0, 0.012))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(reader)
    assert os.WIFSIGNALED(status) or status == 0, status
    assert len(list(folder.glob("*.evoj"))) <= 1
    ends.append((pid, recorded(), os.WIFSIGNALED(status)))
pid, reader = child()
while os.read(reader, 1 << 16):
    pass
_, status = os.waitpid(pid, 0)
assert status == 0, status
ends.append((pid, recorded(), False))
for pid, end, killed in ends:
    print(pid, end, int(killed))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.skipif(
    Version(L.__version__) < Version("2.5.3"),
    reason="Lightning before 2.5.3 draws the order of the first resumed epoch twice, also with backpropagation",
)
@pytest.mark.parametrize("checkpoints", ["checkpoints", "none"])
def test_killed_twenty_times(tmp_path, checkpoints):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}

    def run(folder, kills):
        command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / folder), str(kills), checkpoints]
        done = subprocess.run(command, env=environment, timeout=280, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (tmp_path / folder / "evaluations.txt").read_text().splitlines()
        evaluations = [tuple(map(int, line.split())) for line in lines]
        return [tuple(map(int, line.split())) for line in done.stdout.splitlines()], evaluations

    _, undisturbed = run("whole", 0)
    assert [generation for _, generation in undisturbed] == [g for g in range(300) for _ in range(2)]

    runs, evaluations = run("killed", 20)
    assert sum(killed for _, _, killed in runs) == 20  # while it ran
    start = 0
    for pid, end, _ in runs:
        mine = [generation for process, generation in evaluations if process == pid]
        complete = [generation for generation in range(start, end) for _ in range(2)]
        assert mine[: len(complete)] == complete  # each once, from where the run before it had stopped
        assert len(mine) - len(complete) <= 2  # members of a generation that was not recorded
        assert set(mine[len(complete) :]) <= {end}
        start = end
    assert start == 300
    whole, killed = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    assert_same_weights(killed, whole)
