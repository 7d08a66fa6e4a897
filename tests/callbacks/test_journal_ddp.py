"""Several processes share one journal: the first one reads and writes it."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_evo import EvoDDPStrategy
from lightning_evo.journal import Journal, JournalError
from lightning_evo.replay import replay
from tests.strategies.processes import Failed, processes
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


@pytest.mark.parametrize("update_sync", ["sharded", "all_reduce"])
def test_resumed_is_undisturbed(tmp_path, two, update_sync):
    whole = two.run(train, tmp_path / "whole", 3, None)
    resumed_from = tmp_path / "part" / "epoch=0.ckpt"
    run = partial(train, update_sync=update_sync)
    if update_sync == "all_reduce":  # the last bits are its own
        whole = two.run(run, tmp_path / "own", 3, None)
    two.run(run, tmp_path / "part", 2, None)
    resumed = two.run(run, tmp_path / "part", 3, resumed_from)
    assert only([weights for weights, _ in resumed]) == only([weights for weights, _ in whole])
    assert [evaluated for _, evaluated in resumed] == [list(range(12, 18))] * 2
    assert [path.name for path in (tmp_path / "part").glob("*.evoj")] == ["evolution.evoj"]
    with Journal.open(tmp_path / "part" / "evolution.evoj") as journal:
        assert len(journal) == 18
        assert journal.header.summation == ("all_reduce over 2 processes" if update_sync == "all_reduce" else "")
    if update_sync == "all_reduce":
        with pytest.raises(JournalError, match="added up by all_reduce over 2 processes"):
            replay(resumed_from, tmp_path / "part" / "evolution.evoj")
        return
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
