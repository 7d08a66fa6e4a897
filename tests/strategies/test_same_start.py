"""One process and several go through the same batches, members and weights, whatever draws random numbers meanwhile."""

import os
import random
import sys
from functools import partial

import lightning as L
import numpy
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_evo import EvoStrategy
from tests.strategies.test_ddp import digest, only, quietly


class Augmented(Dataset):
    """Draws from each generator, in whichever process loads it."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        noise = torch.rand(6) + random.random() + float(numpy.random.rand())
        return torch.full((6,), index / 40) + 0.1 * noise, index % 2


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 2))

    def prepare_data(self):  # by rank 0 alone
        torch.rand(3), random.random()

    def setup(self, stage):
        self.split = torch.rand(1).item()
        if self.trainer.is_global_zero:
            torch.rand(2), random.random()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):  # of which each process has a part
        torch.rand(5), random.random(), numpy.random.rand()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(name, folder="", shuffle=True, workers=0, seeds="seed_everything", resume=False):
    """The weights after a training, of two fits with a checkpoint between them or of one; and what is drawn next."""
    import multiprocessing

    import lightning_evo

    quietly()
    multiprocessing.current_process()._config["daemon"] = False  # else there are no workers of a dataloader's
    before = dict(os.environ)
    try:
        if seeds == "seed_everything":
            L.seed_everything(7, workers=True)
        else:  # each process draws for itself until it meets the others
            for seed in (torch.manual_seed, random.seed, numpy.random.seed):
                seed(7 + int(os.environ["RANK"]))
        module, count = Model(), int(os.environ["WORLD_SIZE"])
        initial = digest(module)
        for steps in (14, 20) if resume else (20,):  # the 14th step, amid an epoch, is followed by validation
            saving = ModelCheckpoint(folder, f"{name}{count}", every_n_epochs=1, save_on_train_epoch_end=False)
            strategy = getattr(lightning_evo, name)(population=6, sigma=0.1, evaluation="plain", seed=3)
            trainer = L.Trainer(
                strategy=strategy, accelerator="cpu", devices=count, max_steps=steps, val_check_interval=4,
                num_sanity_val_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
                callbacks=saving if steps == 14 else [], enable_checkpointing=steps == 14,
            )  # fmt: skip
            context = "fork" if workers and sys.platform == "linux" else None  # quicker than this process's own, spawn
            train_data = DataLoader(
                Augmented(), 4, shuffle=shuffle, num_workers=workers, multiprocessing_context=context
            )
            validation = DataLoader(Augmented(), 3, shuffle=True)
            going_on = os.path.join(folder, f"{name}{count}.ckpt") if resume and steps == 20 else None
            trainer.fit(module, train_data, validation, ckpt_path=going_on)
        assert digest(module) != initial
        return digest(module), module.split, torch.rand(1).item(), random.random(), float(numpy.random.rand())
    finally:
        for variable in os.environ.keys() - before.keys():
            del os.environ[variable]


def test_each_validation_draws_other_numbers_than_training_and_the_one_before():
    seen = []

    class Watched(Model):
        def validation_step(self, batch, batch_idx):
            seen.append((torch.rand(1).item(), random.random(), float(numpy.random.rand())))

    strategy = EvoStrategy(population=2, sigma=0.1, evaluation="plain", seed=3)
    trainer = L.Trainer(
        strategy=strategy, accelerator="cpu", max_steps=3, val_check_interval=1, limit_val_batches=1, logger=False,
        num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Watched()
    module.net[1].p = 0.0  # training draws nothing
    trainer.fit(module, DataLoader(Augmented(), 4), DataLoader(Augmented(), 3))
    after = (torch.rand(1).item(), random.random(), float(numpy.random.rand()))
    assert len({number for numbers in [*seen, after] for number in numbers}) == 3 * (len(seen) + 1) == 12
    assert "run" not in vars(trainer.fit_loop.epoch_loop.val_loop)  # nothing of ours is left, and it can be pickled


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        pytest.param({}, (1, 2, 3), id="shuffled"),
        pytest.param({"shuffle": False}, (2,), id="in_order"),
        pytest.param({"workers": 1}, (2,), id="workers"),
        pytest.param({"resume": True}, (2,), id="resumed"),
        pytest.param({"seeds": "own"}, (2,), id="unseeded"),
    ],
)
def test_any_number_of_processes_starts_as_one(world, tmp_path, options, counts):
    run = partial(train, folder=str(tmp_path), **options)
    alone = world(1).run(run, "EvoStrategy", timeout=100)
    found = [world(count).run(run, "EvoDDPStrategy", timeout=100) for count in counts]
    assert only([*alone, *(result for results in found for result in results)])
