"""How a run of several processes ends when it does not come to its end: all of its processes do, and soon."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from tests.strategies.processes import free_port

pytestmark = pytest.mark.slow

STARTING = 150.0  # seconds that importing everything, twice, may take on a busy machine
SOON = 60.0  # seconds; mostly two, but on a busy machine; torch's own limit is 30 minutes

SCRIPT = """
import hashlib, json, sys, time, warnings
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset
from lightning_evo import EvoDDPStrategy

folder, start_method, how, who = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
warnings.simplefilter("ignore")


def digest(module):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


class Watch(L.Callback):
    "What the weights were before and after each generation, and when the run was broken off."

    def on_train_batch_start(self, trainer, module, *args):
        self.center = digest(module)

    def on_train_batch_end(self, trainer, module, *args):
        self.center = digest(module)
        if how == "fail" and trainer.global_step == 3 and trainer.global_rank == who:
            (folder / "ready").touch()
            raise ArithmeticError("on one process")

    def on_exception(self, trainer, module, exception):
        found = {"exception": type(exception).__name__, "center": digest(module) == self.center}
        (folder / f"result-{trainer.global_rank}").write_text(json.dumps(found))


class Model(L.LightningModule):
    evolution_shared = {"Counter"}  # or members would leave no trace there

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 2)

    def training_step(self, batch, batch_idx):
        Counter.members += 1
        if how == "signal" and self.trainer.global_step == 3 and Counter.members % 4 == 2:
            (folder / f"ready-{self.trainer.global_rank}").touch()
            for _ in range(1200):  # a member that takes until the signal was sent, a minute at most
                if not (folder / "sent").exists():
                    time.sleep(0.05)
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Counter:
    members = 0


if __name__ == "__main__":
    L.seed_everything(0)
    x = torch.randn(64, 6)
    strategy = EvoDDPStrategy(population=16, evaluation="plain", start_method=start_method)
    trainer = L.Trainer(
        strategy=strategy, accelerator="cpu", devices=2, max_epochs=1000, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=[Watch()],
    )
    trainer.fit(Model(), DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8))
"""


SHARDED = """
import os, signal, sys, warnings
from pathlib import Path

import lightning as L
import torch
from lightning_evo import EvoFSDPStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]


class Model(L.LightningModule):
    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = torch.nn.Linear(6, 2)
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        if (rank, attempt, batch_idx) == ("1", "0", 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


x = torch.randn(64, 6)
trainer = L.Trainer(
    strategy=EvoFSDPStrategy(population=4), accelerator="cpu", devices=2, max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, default_root_dir=sys.argv[1],
)
trainer.fit(Model(), DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8))
(Path(sys.argv[1]) / f"result-{rank}").write_text(attempt)
"""


@contextmanager
def script(folder, *arguments, launcher=(), code=SCRIPT):
    """Two processes of the script, in a session of their own."""
    (folder / "train.py").write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_PORT": str(free_port())}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *launcher, str(folder / "train.py"), str(folder), *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def members_of(session):
    """Processes of a session that have not ended; zombies count."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.getsid(int(pid)) == session:
                found.append(int(pid))
    return found


def wait(condition, seconds, what, folder):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} took too long:\n{(folder / 'log').read_text(errors='replace')[-3000:]}"
        time.sleep(0.05)


def ended(process, folder):
    """Waits until all processes have ended; how the first one did."""
    end = time.monotonic() + SOON
    wait(lambda: process.poll() is not None, SOON, "the first process's end", folder)
    wait(lambda: not members_of(process.pid), end - time.monotonic(), "the others' end", folder)
    return process.returncode


def results(folder):
    return {int(path.name[7:]): json.loads(path.read_text()) for path in folder.glob("result-*")}


linux = pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")


@linux
@pytest.mark.parametrize(  # popen's first process is the script's own; to the others both are alike
    ("start", "rank"), [("popen", 0), ("popen", 1), ("spawn", 1), ("torchrun", 0)]
)
def test_an_exception_of_one_process_ends_all(tmp_path, start, rank):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if start == "torchrun" else []
    method = "spawn" if start == "spawn" else "popen"
    with script(tmp_path, method, "fail", rank, launcher=launcher) as process:
        wait(lambda: (tmp_path / "ready").exists() or process.poll() is not None, STARTING, "the start", tmp_path)
        assert ended(process, tmp_path) != 0
    assert "ArithmeticError: on one process" in (tmp_path / "log").read_text(errors="replace")


@linux
def test_restarted_workers_of_a_sharded_model_find_each_other(tmp_path):
    """They meet at the store of those before them, which holds the addresses of those."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    with script(tmp_path, launcher=launcher, code=SHARDED) as process:
        wait(lambda: process.poll() is not None, STARTING, "the run", tmp_path)
    assert process.returncode == 0, (tmp_path / "log").read_text(errors="replace")[-3000:]
    assert results(tmp_path) == {0: 1, 1: 1}


@linux
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("target", ["all", "first"])
def test_a_signal_in_the_middle_of_a_generation_ends_all(tmp_path, sent, target):
    """Ctrl-C in a terminal reaches all processes of the script, `kill` only the first."""
    with script(tmp_path, "popen", "signal", 0) as process:
        ready = [tmp_path / "ready-0", tmp_path / "ready-1"]
        wait(
            lambda: all(path.exists() for path in ready) or process.poll() is not None, STARTING, "the start", tmp_path
        )
        (os.killpg if target == "all" else os.kill)(process.pid, sent)
        (tmp_path / "sent").touch()
        code = ended(process, tmp_path)
    found = results(tmp_path)
    interrupted = sent == signal.SIGINT
    # Lightning has its way with SIGTERM: the generation is finished, and the script ends as if all were well.
    assert (found[0]["exception"], code) == (("KeyboardInterrupt", 1) if interrupted else ("SIGTERMException", 0))
    assert all(result["center"] for result in found.values())
