"""Ctrl-C in the middle of a generation: the weights are the center's, and nothing that was finished is lost."""

import itertools
import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_evo import EvoStrategy
from lightning_evo.journal import Journal
from tests.strategies.models import ConvNet, assert_same_weights, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Interrupted(ConvNet):
    """A member of the third generation presses Ctrl-C. (Ours counts outside: attributes of members are forgotten.)"""

    third = itertools.count()

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 2 and next(Interrupted.third) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch, batch_idx)


class Watch(Callback):
    """The weights before each generation, and when it was interrupted."""

    before = after = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = weights(pl_module)

    def on_exception(self, trainer, pl_module, exception):
        assert isinstance(exception, KeyboardInterrupt)
        self.after = weights(pl_module)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("evaluation", ["plain", "in_forward"])
def test_interrupted_and_resumed(tmp_path, evaluation):
    def fit(module, folder, **options):
        strategy = EvoStrategy("openai_es", population=8, update="in_place", evaluation=evaluation, seed=3)
        callbacks = [watch, ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)]
        own = trainer(strategy, callbacks=callbacks, max_steps=4, enable_checkpointing=True)
        torch.manual_seed(0)
        own.fit(module, **options)
        return module

    start = ConvNet().state_dict()

    def begin(kind):
        module = kind(batch_size=64)  # one for each epoch
        module.load_state_dict(start)
        return module

    watch = Watch()
    undisturbed = fit(begin(ConvNet), tmp_path / "undisturbed")
    assert watch.after is None

    Interrupted.third = itertools.count()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(begin(Interrupted), tmp_path / "run")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves its own
    assert_same_weights(watch.after, watch.before)
    with Journal.open(tmp_path / "run" / "evolution.evoj") as journal:
        assert len(journal) == 2

    resumed = fit(begin(ConvNet), tmp_path / "run", ckpt_path=tmp_path / "run" / "last.ckpt")
    assert_same_weights(weights(resumed), weights(undisturbed))
    with Journal.open(tmp_path / "run" / "evolution.evoj") as journal:
        assert len(journal) == 4
