"""`evo_ddp` on two hosts under torchrun: a link that drops, workers that are killed, a host that is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_evo.journal import Journal, JournalError
from tests.strategies.hosts import Unavailable, two_hosts, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

GENERATIONS = 48
MEMBERS = (6, 4)  # of ten in pairs: those of each process
LAST_CALL = 15  # seconds that a host waits for the second one, where it may go on alone
STARTING = 150.0  # seconds that importing everything, twice, may take on a busy machine

SCRIPT = """
import hashlib, json, os, sys, time, warnings
from collections import Counter
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from lightning_evo import EvoDDPStrategy
from lightning_evo.callbacks import SeedJournal

folder, generations, checkpoints = Path(sys.argv[1]), int(sys.argv[2]), "checkpoints" in sys.argv
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
(folder / f"pid-{rank}").write_text(str(os.getpid()))
warnings.simplefilter("ignore")


PAUSE = 0.0 if "undisturbed" in sys.argv else 0.015
count = Counter(evaluated=0)  # none, where the journal holds all


class Model(L.LightningModule):
    evolution_shared = {"count"}

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

    def fitness_step(self, batch, batch_idx):
        count["evaluated"] += 1
        time.sleep(PAUSE)
        end = time.monotonic() + 60
        while PAUSE and self.global_step == 28 and not (folder / "disturbed").exists() and time.monotonic() < end:
            time.sleep(0.05)  # no run gets to its end before it is disturbed
        return -torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        count.setdefault("begun", self.global_step)
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


L.seed_everything(0)
model = Model()
x = torch.randn(32, 6)
strategy = EvoDDPStrategy(population=10, seed=5, update="in_place", evaluation="plain", checksum_every=10)
trainer = L.Trainer(
    strategy=strategy, accelerator="cpu", devices=int(os.environ["LOCAL_WORLD_SIZE"]),
    num_nodes=int(os.environ["GROUP_WORLD_SIZE"]), max_epochs=generations // 4, logger=False,
    enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, enable_checkpointing=checkpoints,
    callbacks=[SeedJournal(folder), *([ModelCheckpoint(folder, save_last=True)] if checkpoints else [])],
)
trainer.fit(model, DataLoader(TensorDataset(x, (x[:, 0] > x[:, 1]).long()), 8, shuffle=True), ckpt_path="last")
bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
count.setdefault("begun", trainer.global_step)  # resumed where all was done
result = {"weights": hashlib.sha256(bits).hexdigest(), **count, "generations": trainer.global_step, "world": world,
          "restarts": os.environ["TORCHELASTIC_RESTART_COUNT"]}
part = folder / f"part-{rank}"
part.write_text(json.dumps(result))
part.rename(folder / f"result-{rank}")
"""


def train(folder, *how):
    (folder / "train.py").write_text(SCRIPT)
    return [str(folder / "train.py"), str(folder), str(GENERATIONS), *how]


def torchrun(*options):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", *options]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = torchrun("--standalone", *train(folder, "undisturbed"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=STARTING, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "result-0").read_text())["weights"]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


class Cluster:
    """torchrun on two hosts, and what is to be seen of the training from outside."""

    def __init__(self, folder, hosts, nodes, how):
        self.folder, self.hosts = folder, hosts
        self.agents = []
        for number, host in enumerate(hosts):
            command = torchrun(
                f"--nnodes={nodes}", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=test",
                f"--rdzv-endpoint={hosts[0].address}:29400", f"--local-addr={host.address}",
                f"--rdzv-conf=is_host={1 - number},last_call_timeout={LAST_CALL}", *train(folder, *how),
            )  # fmt: skip
            self.agents.append(host.start(command, folder / f"log-{number}"))

    @property
    def generations(self):
        """How many the journal holds."""
        try:
            with Journal.open(self.folder / "evolution.evoj") as journal:
                return journal.end
        except (OSError, JournalError):
            return 0

    def wait_for(self, generations):
        wait(lambda: self.generations >= generations or not self.running, STARTING, f"{generations} generations")
        assert self.generations >= generations, self.log

    @property
    def running(self):
        return any(agent.poll() is None for agent in self.agents)

    @property
    def log(self):
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("log-*")))

    def disturbed(self):
        (self.folder / "disturbed").touch()

    def worker(self, rank):
        return int((self.folder / f"pid-{rank}").read_text())

    def results(self, ranks):
        """What the processes have found, once torchrun has ended."""
        wait(lambda: not self.running, STARTING, "the end")
        assert [agent.returncode for agent in self.agents][: len(ranks)] == [0] * len(ranks), self.log
        with Journal.open(self.folder / "evolution.evoj") as journal:
            assert [record.generation for record in journal] == list(range(GENERATIONS))
        assert [path.name for path in self.folder.glob("*.evoj")] == ["evolution.evoj"]
        return [json.loads((self.folder / f"result-{rank}").read_text()) for rank in ranks]


@pytest.fixture
def cluster(tmp_path):
    """Starts torchrun on two hosts."""
    try:
        with two_hosts() as hosts:
            yield lambda *how, nodes="2": Cluster(tmp_path, hosts, nodes, how)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("where", ["at a host", "on the way"])
def test_a_link_that_drops_for_ten_seconds(cluster, undisturbed, where):
    running = cluster()
    running.wait_for(20)
    first, second = running.hosts

    def link(state):
        if where == "at a host":
            second.link(state)
        else:
            first.path(state, second)
            second.path(state, first)

    link("down")
    running.disturbed()
    before = running.generations
    time.sleep(10)
    assert before <= running.generations <= before + 1 < GENERATIONS  # that was on its way
    link("up")
    for result in running.results([0, 1]):
        assert result["weights"] == undisturbed
        assert (result["world"], result["restarts"], result["begun"]) == (2, "0", 0)


@pytest.mark.parametrize("how", [(), ("checkpoints",)], ids=["journal", "checkpoints"])
def test_workers_of_a_host_that_are_killed(cluster, undisturbed, how):
    running = cluster(*how)
    running.wait_for(20)
    os.kill(running.worker(1), signal.SIGKILL)
    running.disturbed()
    results = running.results([0, 1])
    assert "are taken from it, not evaluated" in running.log or how
    for result, members in zip(results, MEMBERS, strict=True):
        assert result["weights"] == undisturbed
        assert result["evaluated"] <= (GENERATIONS - 20) * members  # the killed generations were not evaluated again
        assert result["begun"] >= 16 if how else result["begun"] == 0  # an epoch's checkpoint, or the journal's start
    assert int(results[1]["restarts"]) >= 1


def test_a_host_that_is_lost(cluster, undisturbed):
    """Its torchrun is gone, too: the other host goes on alone."""
    running = cluster("checkpoints", nodes="1:2")
    running.wait_for(20)
    running.hosts[1].kill()
    running.disturbed()
    (result,) = running.results([0])
    assert (result["weights"], result["world"]) == (undisturbed, 1)
    assert result["begun"] >= 16
    assert result["evaluated"] <= (GENERATIONS - 20) * sum(MEMBERS)
