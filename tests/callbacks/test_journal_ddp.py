"""Several processes share one journal: the first one reads and writes it."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_evo import EvoDDPStrategy
from lightning_evo.journal import Journal
from lightning_evo.journal.replay import replay
from tests.strategies.processes import Failed, processes, run_script
from tests.strategies.test_ddp import Model, data, digest, only, quietly, trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two():
    with processes(2) as pool:
        yield pool


class Counted(Model):
    def fitness_step(self, batch, batch_idx):
        self.trainer.evaluated.add(self.trainer.strategy.evolution.state.generation)
        return -super().training_step(batch, batch_idx)


def train(folder, epochs, ckpt_path=None, **options):
    """Six generations in each epoch."""
    quietly()
    torch.manual_seed(3)
    module = Counted()
    strategy = EvoDDPStrategy(
        **{"population": 6, "seed": 5, "sigma": 0.1, "update": "in_place", "evaluation": "plain", **options}
    )
    run = trainer(
        strategy, -1, max_epochs=epochs, enable_checkpointing=True, gradient_clip_val=0.05,
        callbacks=[ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")],
    )  # fmt: skip
    run.evaluated = set()  # generations that this process evaluates
    run.fit(module, DataLoader(data(), 8, shuffle=True), ckpt_path=ckpt_path)
    return digest(module), sorted(run.evaluated)


@pytest.mark.parametrize("update_sync", ["sharded", "replicated"])
def test_resumed_is_undisturbed(tmp_path, two, update_sync):
    whole = two.run(train, tmp_path / "whole", 3, None)
    resumed_from = tmp_path / "part" / "epoch=0.ckpt"
    run = partial(train, update_sync=update_sync)
    two.run(run, tmp_path / "part", 2, None)
    resumed = two.run(run, tmp_path / "part", 3, resumed_from)
    assert only([weights for weights, _ in resumed]) == only([weights for weights, _ in whole])
    assert [evaluated for _, evaluated in resumed] == [list(range(12, 18))] * 2
    assert [path.name for path in (tmp_path / "part").glob("*.evoj")] == ["evolution.evoj"]
    with Journal.open(tmp_path / "part" / "evolution.evoj") as journal:
        assert len(journal) == 18
        assert list(journal.weights) == [12, 18]  # at the end of either fit
    replayed = replay(resumed_from, tmp_path / "part" / "evolution.evoj")["state_dict"]
    module = Counted()
    module.load_state_dict(replayed)
    assert digest(module) == resumed[0][0]


def test_an_error_of_the_first_process_ends_all(tmp_path, two):
    two.run(train, tmp_path, 2, None)
    path = tmp_path / "evolution.evoj"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(Failed, match="JournalError.*is damaged"):
        two.run(train, tmp_path, 3, tmp_path / "epoch=0.ckpt")


FULL_DISK = """
import errno, os, sys

import torch
import lightning as L
from torch.utils.data import DataLoader, TensorDataset
from lightning_evo import EvoDDPStrategy

real = os.write


def full(descriptor, data):
    os.write = real
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        if self.trainer.is_global_zero and self.trainer.strategy.evolution.state.generation == 3:
            os.write = full  # what is written next is that generation
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


torch.manual_seed(0)
trainer = L.Trainer(
    strategy=EvoDDPStrategy(population=4, sigma=0.1, update="in_place", journal=True), devices=2, accelerator="cpu",
    max_steps=10, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    default_root_dir=os.getcwd(),
)
try:
    trainer.fit(Model(), DataLoader(TensorDataset(torch.randn(64, 4)), 8))
except BaseException as error:
    print(f"ended {os.environ['LOCAL_RANK']} {type(error).__name__}: {error}", flush=True)
    sys.exit(1)
"""


def test_a_full_disk_of_the_first_process_ends_all_at_once(tmp_path):
    """No message tells the others: they see that its connection was closed. They must not wait for a timeout:
    torch's takes 30 minutes, ours here two."""
    with pytest.raises(Failed) as failed:
        run_script(FULL_DISK, tmp_path, timeout=120)
    ends = {}
    for line in str(failed.value).splitlines():
        if line.startswith("ended "):
            _, rank, error = line.split(" ", 2)
            ends[int(rank)] = error
    assert sorted(ends) == [0, 1]
    assert "Generation 3 could not be written to the journal" in ends[0]
    assert "there is no space left on the disk" in ends[0]
    assert "by peer" in ends[1]  # gloo's "Connection closed by peer. … Check the logs of the remote worker"
    with Journal.open(tmp_path / "evolution.evoj") as journal:
        assert (len(journal), journal.torn) == (3, 0)
