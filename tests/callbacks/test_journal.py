"""A run that goes on from its journal is the undisturbed run, bit for bit, and evaluates nothing again."""

import copy
import errno
import os
import shutil
from collections import Counter
from itertools import count
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
)
from lightning.pytorch.tuner import Tuner
from packaging.version import Version
from torch import nn
from torch.utils.data import DataLoader

from lightning_evo import EvolutionMixin, EvoStrategy
from lightning_evo.callbacks import SeedJournal
from lightning_evo.journal import Journal, JournalError, weights_checksum
from lightning_evo.journal import resume as journal_resume
from lightning_evo.journal.replay import replay
from tests.strategies.models import CallCounter, assert_same_weights, images, trainer, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # pytest.warns shows it again, as if it came from here
    pytest.mark.skipif(
        Version(L.__version__) < Version("2.5.3"),
        reason="Lightning before 2.5.3 draws the order of the first resumed epoch twice, also with backpropagation",
    ),
]


class Net(L.LightningModule):
    """Shuffling, dropout, a scheduler that steps every batch, and two parameter groups."""

    def __init__(self, precise=True):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.evaluated = Counter()
        self.logged = []
        self.rates = []

    def fitness_step(self, batch, batch_idx):
        x, y = batch
        self.trainer.evaluated[self.trainer.strategy.evolution.state.generation] += 1
        return -nn.functional.cross_entropy(self.net(x.to(self.net[1].weight.dtype)).float(), y)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x.to(self.net[1].weight.dtype)).float(), y)
        self.logged.append(float(loss))
        self.rates.append([group["lr"] for group in self.optimizers().param_groups])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        groups = [{"params": self.net[1].parameters(), "lr": 0.05}, {"params": self.net[4].parameters(), "lr": 0.1}]
        optimizer = torch.optim.SGD(groups)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self):
        return DataLoader(images(), 16, shuffle=True)


def in_place(algorithm="openai_es", population=4, **options):
    return EvoStrategy(algorithm, population=population, sigma=0.05, update="in_place", evaluation="plain", **options)


def fit(folder, epochs=3, ckpt_path=None, strategy=None, module=None, seed=7, callbacks=(), **options):
    """Four generations in each epoch, and a checkpoint of each."""
    seed_everything(seed, verbose=False)
    module = module() if module else Net()  # made under the seed
    callbacks = [*callbacks, ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")]
    defaults = {"max_epochs": epochs, "max_steps": -1, "enable_checkpointing": True, "default_root_dir": folder}
    t = trainer(strategy or in_place(), callbacks=callbacks, **{**defaults, **options})
    t.evaluated = Counter()
    t.fit(module, ckpt_path=ckpt_path)
    return t, module


def read(folder, name="evolution"):
    with Journal.open(Path(folder) / f"{name}.evoj") as opened:
        return list(opened)


class Stop(Exception):
    """What ends a run where a kill would."""


class StopAt(Callback):
    """Ends the run in a generation, before or after its weights move."""

    def __init__(self, generation, moment):
        self.generation, self.moment = generation, moment

    def on_train_start(self, trainer, module):
        strategy = trainer.strategy
        learn, record = strategy._moves.learn, strategy._journal.record

        def failing_record(trainer, update, step):
            if update.population.generation == self.generation and self.moment == "before the record":
                raise Stop
            result = record(trainer, update, step)
            if update.population.generation == self.generation and self.moment == "before the move":
                raise Stop
            return result

        def failing_move(update):
            norm = learn(update)
            if update.population.generation == self.generation and self.moment == "after the move":
                raise Stop
            return norm

        strategy._journal.record, strategy._moves.learn = failing_record, failing_move


@pytest.fixture
def restarted(monkeypatch):
    """As if the next fit, and each after :func:`new_process`, were the first one of a process started again."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    new_process(monkeypatch)
    return lambda: new_process(monkeypatch)


def new_process(monkeypatch):
    monkeypatch.setattr(journal_resume, "_fits_started", count())
    monkeypatch.setattr(journal_resume, "_appended_here", set())


# --- the journal of a run ---


def test_a_run_that_writes_checkpoints_has_a_journal_next_to_them(tmp_path):
    t, _ = fit(tmp_path)
    records = read(tmp_path)
    assert [record.generation for record in records] == list(range(12))
    assert all(len(record.fitness) == 4 and record.sigma == 0.05 and record.batches == 1 for record in records)
    assert [list(record.learning_rates) for record in records] == t.lightning_module.rates
    for epoch in range(3):
        saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["lightning_evo"]
        run = saved["journal"]["run"]
        checksum = saved["journal"].pop("weights")
        assert saved["journal"] == {"run": run, "path": str(tmp_path / "evolution.evoj"), "batches": 0}
    assert checksum == weights_checksum(t.strategy.evolution.space)
    with Journal.open(tmp_path / "evolution.evoj") as opened:
        assert opened.header.run == run
        assert opened.conditions.evaluation == (("evaluation", "plain"),)
        assert [parameter.group for parameter in opened.conditions.parameters] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (lambda: in_place(journal=False), {}),
        (lambda: EvoStrategy(population=4), {}),
        (in_place, {"fast_dev_run": True}),
        (in_place, {"no_checkpoints": True}),
    ],
    ids=["journal=False", "update=optimizer", "fast_dev_run", "no checkpoints"],
)
def test_no_journal(tmp_path, strategy, options):
    if options.pop("no_checkpoints", False):
        t = trainer(strategy(), max_epochs=1, max_steps=-1, default_root_dir=tmp_path)
        t.evaluated = Counter()
        t.fit(Net())
    else:
        fit(tmp_path, 1, strategy=strategy(), **options)
    assert not list(tmp_path.rglob("*.evoj"))


def test_a_journal_without_checkpoints_when_it_is_asked_for(tmp_path):
    callback = SeedJournal(tmp_path / "mine", "digits")
    for name, options in (("a", {"strategy": in_place(journal=True)}), ("b", {"callbacks": [callback]})):
        t = trainer(options.pop("strategy", None) or in_place(), max_epochs=1, max_steps=-1,
                    default_root_dir=tmp_path / name, **options)  # fmt: skip
        t.evaluated = Counter()
        t.fit(Net())
    assert len(read(tmp_path / "a")) == len(read(tmp_path / "mine", "digits")) == 4
    assert callback.path == tmp_path / "mine" / "digits.evoj"
    assert not (tmp_path / "b").exists()


def test_the_journal_changes_nothing(tmp_path):
    """Not the weights, and no count of a hook."""
    counts = []
    for options in ({}, {"journal": False}):
        counter = CallCounter()
        _, module = fit(tmp_path / str(options), strategy=in_place(**options), callbacks=[counter])
        counts.append((counter.calls, module.logged, weights(module)))
    assert counts[0][:2] == counts[1][:2]
    assert_same_weights(counts[0][2], counts[1][2])


def test_a_new_fit_in_the_same_folder_overwrites_nothing(tmp_path):
    fit(tmp_path, 1)
    before = (tmp_path / "evolution.evoj").read_bytes()
    t, _ = fit(tmp_path, 1)  # from the same weights: only a launcher's restart goes on with the same journal
    assert sum(t.evaluated.values()) == 16
    assert (tmp_path / "evolution.evoj").read_bytes() == before
    assert len(read(tmp_path, "evolution-v1")) == 4


def test_a_second_fit_of_the_same_trainer_has_a_journal_of_its_own(tmp_path):
    t, module = fit(tmp_path, 1)
    t.fit_loop.max_epochs = 2
    t.fit(module)
    assert [record.generation for record in read(tmp_path, "evolution-v1")] == [4, 5, 6, 7]


class Tunable(Net):
    def __init__(self, learning_rate=0.05):
        super().__init__()
        self.learning_rate = learning_rate
        self.batch_size = 4

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def train_dataloader(self):
        return DataLoader(images(), self.batch_size)


class InTheMiddle(LearningRateFinder):
    """Looks before each epoch but the first. (One at the start of a fit makes Lightning forget that it resumes.)"""

    def on_fit_start(self, trainer, module):
        pass

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch > 0:
            self.lr_find(trainer, module)


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize(
    "tuner",
    [
        lambda: LearningRateFinder(num_training_steps=5),
        lambda: BatchSizeFinder(steps_per_trial=2, max_trials=2, init_val=4),
        lambda: InTheMiddle(num_training_steps=5),
    ],
    ids=["learning rate", "batch size", "in the middle"],
)
def test_what_a_tuner_tries_is_not_recorded(tmp_path, tuner):
    t, module = fit(tmp_path, 2, module=Tunable, callbacks=[tuner()], strategy=in_place())
    assert [path.name for path in tmp_path.glob("*.evoj")] == ["evolution.evoj"]
    assert [record.generation for record in read(tmp_path)] == list(range(t.global_step))
    assert {rate for record in read(tmp_path)[-2:] for rate in record.learning_rates} == {
        group["lr"] for group in t.optimizers[0].param_groups
    }
    replayed = replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj")
    assert_same_weights(replayed["state_dict"], weights(module))
    # A resumed fit's tuner does not lose it the journal.
    again = [callback for callback in [tuner()] if isinstance(callback, InTheMiddle)]
    resumed, _ = fit(tmp_path, 3, tmp_path / "epoch=1.ckpt", module=Tunable, callbacks=again)
    assert [record.generation for record in read(tmp_path)] == list(range(resumed.global_step))
    assert [path.name for path in tmp_path.glob("*.evoj")] == ["evolution.evoj"]


def test_a_tuner_before_the_fit(tmp_path):
    seed_everything(7, verbose=False)
    t = trainer(in_place(), max_epochs=2, max_steps=-1, enable_checkpointing=True, default_root_dir=tmp_path,
                callbacks=[ModelCheckpoint(tmp_path)])  # fmt: skip
    t.evaluated = Counter()
    module = Tunable()
    Tuner(t).lr_find(module, num_training=5)
    assert not list(tmp_path.rglob("*.evoj"))
    t.fit(module)
    assert [record.generation for record in read(tmp_path)] == list(range(t.global_step))
    assert len(list(tmp_path.rglob("*.evoj"))) == 1


# --- resuming ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.02},
        {"gradient_clip_val": 0.002, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-true", "gradient_clip_val": 0.02, "accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_resumed_is_undisturbed(tmp_path, options):
    whole, expected = fit(tmp_path / "whole", 4, **options)
    fit(tmp_path / "part", 3, **options)
    records = read(tmp_path / "part")
    resumed, actual = fit(tmp_path / "part", 4, tmp_path / "part" / "epoch=0.ckpt", seed=99, **options)
    assert_same_weights(weights(actual), weights(expected))
    assert actual.logged == expected.logged[len(expected.logged) // 4 :]
    assert actual.rates == expected.rates[len(expected.rates) // 4 :]
    assert resumed.global_step == whole.global_step
    assert all(a.same_as(b) for a, b in zip(read(tmp_path / "part"), read(tmp_path / "whole"), strict=True))
    assert min(resumed.evaluated) == len(records)  # nothing that was recorded was evaluated again
    assert max(resumed.evaluated) == len(read(tmp_path / "whole")) - 1
    assert resumed.callback_metrics["evo/fitness_mean"] == whole.callback_metrics["evo/fitness_mean"]


@pytest.mark.parametrize("moment", ["before the record", "before the move", "after the move"])
def test_a_run_that_ends_between_record_and_move_loses_nothing(tmp_path, moment):
    _, expected = fit(tmp_path / "whole")
    with pytest.raises(Stop):
        fit(tmp_path / "part", callbacks=[StopAt(6, moment)])
    recorded = 6 if moment == "before the record" else 7
    assert len(read(tmp_path / "part")) == recorded
    resumed, actual = fit(tmp_path / "part", ckpt_path=tmp_path / "part" / "epoch=0.ckpt", seed=99)
    assert_same_weights(weights(actual), weights(expected))
    assert resumed.evaluated == dict.fromkeys(range(recorded, 12), 4)


def test_a_launchers_restart_without_a_checkpoint(tmp_path, restarted):
    _, expected = fit(tmp_path / "whole")
    with pytest.raises(Stop):
        fit(tmp_path / "part", callbacks=[StopAt(2, "before the move")])
    assert not list((tmp_path / "part").glob("*.ckpt"))
    restarted()
    resumed, actual = fit(tmp_path / "part")
    assert resumed.evaluated == dict.fromkeys(range(3, 12), 4)
    assert_same_weights(weights(actual), weights(expected))
    assert [path.name for path in (tmp_path / "part").glob("*.evoj")] == ["evolution.evoj"]


@pytest.mark.parametrize("changed", ["seed", "population", "weights"])
def test_a_launchers_restart_of_something_else_begins_a_journal_of_its_own(tmp_path, restarted, changed):
    fit(tmp_path, 1)
    restarted()

    class Moved(Net):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.net[1].bias[0] += 1

    strategy = in_place(population=6) if changed == "population" else in_place()
    t, _ = fit(
        tmp_path,
        1,
        strategy=strategy,
        module=Moved if changed == "weights" else Net,
        seed=8 if changed == "seed" else 7,
    )
    assert min(t.evaluated) == 0
    assert len(read(tmp_path)) == len(read(tmp_path, "evolution-v1")) == 4


def test_a_launchers_restart_in_the_next_folder_of_a_logger(tmp_path, restarted):
    """Loggers give every start a folder of its own: version_0/checkpoints, version_1/checkpoints, …"""
    for version in (0, 1):
        seed_everything(7, verbose=False)
        callbacks = [ModelCheckpoint(tmp_path / f"version_{version}" / "checkpoints")]
        t = trainer(in_place(), max_epochs=1 + version, max_steps=-1, callbacks=callbacks, enable_checkpointing=True)
        t.evaluated = Counter()
        restarted()
        t.fit(Net())
    assert min(t.evaluated) == 4
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.evoj")] == [
        "version_0/checkpoints/evolution.evoj"
    ]


@pytest.mark.parametrize("folders", ["fold_{}/checkpoints", "version_{}/checkpoints", "same"])
def test_only_the_first_fit_of_a_restarted_process_goes_on(tmp_path, restarted, folders):
    """Folds of a cross-validation begin with the same seed, weights and options, and differ in data only."""

    def fold(index):
        class Fold(Net):
            def train_dataloader(self):
                x, y = images().tensors
                return DataLoader(torch.utils.data.TensorDataset(x + index, y), 16)

        return Fold

    runs = []
    for index in range(3):
        t, module = fit(tmp_path / folders.format(index), 1, module=fold(index))
        assert t.evaluated == dict.fromkeys(range(4), 4)
        runs.append(module)
    assert not torch.equal(runs[0].net[1].weight, runs[1].net[1].weight)
    assert len(list(tmp_path.rglob("*.evoj"))) == 3


def test_a_restart_does_not_guess_which_of_several_journals_is_its(tmp_path, restarted):
    for _ in range(2):
        fit(tmp_path, 1)
    restarted()
    with pytest.warns(UserWarning, match="all began as this run does"):
        t, _ = fit(tmp_path, 1)
    assert min(t.evaluated) == 0


def test_a_restart_does_not_go_on_with_a_journal_of_another_folder(tmp_path, restarted):
    fit(tmp_path / "fold_0" / "checkpoints", 1)
    restarted()
    t, _ = fit(tmp_path / "fold_1" / "checkpoints", 1)
    assert min(t.evaluated) == 0


def test_the_journal_of_a_run_whose_checkpoints_go_to_another_folder_is_continued_where_it_is(tmp_path):
    fit(tmp_path / "a", 2)
    resumed, _ = fit(tmp_path / "b", 3, tmp_path / "a" / "epoch=0.ckpt")
    assert min(resumed.evaluated) == 8
    again, _ = fit(tmp_path / "c", 4, tmp_path / "b" / "epoch=2.ckpt")  # named by the checkpoint
    assert min(again.evaluated) == 12
    assert len(read(tmp_path / "a")) == 16
    assert not list(tmp_path.glob("[bc]/*.evoj"))


def test_a_window_that_is_broken_off_in_the_middle(tmp_path):
    """The checkpoint falls between the batches of a generation that is recorded later."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx == 9:  # the second batch of the third window of four
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    class InOrder(Net):
        def train_dataloader(self):
            return Place(DataLoader(images(), 16))

    class Place:
        """A dataloader that saves its place."""

        def __init__(self, loader):
            self.batches, self.next = list(loader), 0

        def __len__(self):
            return 4

        def __iter__(self):
            for index in range(self.next, 4):
                self.next = (index + 1) % 4
                yield self.batches[index]

        def state_dict(self):
            return {"next": self.next}

        def load_state_dict(self, state):
            self.next = state["next"]

    options = {"accumulate_grad_batches": 4, "val_check_interval": None}
    _, expected = fit(tmp_path, 4, module=InOrder, callbacks=[Save()], **options)
    saved = torch.load(tmp_path / "middle.ckpt", weights_only=True)["lightning_evo"]
    assert (saved["state"]["generation"], saved["fitness_weight"], saved["journal"]["batches"]) == (2, 2, 2)
    resumed, actual = fit(tmp_path, 4, tmp_path / "middle.ckpt", module=InOrder, seed=99, **options)
    assert not resumed.evaluated
    assert_same_weights(weights(actual), weights(expected))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_batches_that_members_decline_are_counted(tmp_path):
    class Declining(Net):
        fitness_step = None

        def training_step(self, batch, batch_idx):
            self.trainer.evaluated[self.trainer.strategy.evolution.state.generation] += 1  # the center, too
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    _, expected = fit(tmp_path / "whole", module=Declining)
    assert [record.batches for record in read(tmp_path / "whole")] == [1, 2, 1] * 3
    fit(tmp_path / "part", module=Declining)
    resumed, actual = fit(tmp_path / "part", 3, tmp_path / "part" / "epoch=0.ckpt", module=Declining, seed=99)
    assert sum(resumed.evaluated.values()) == 8  # the center, on each batch
    assert_same_weights(weights(actual), weights(expected))


def test_members_that_fail(tmp_path):
    """NaN is written, and the generations are repeated as they were."""

    class Failing(Net):
        def fitness_step(self, batch, batch_idx):
            fitness = super().fitness_step(batch, batch_idx)
            generation = self.trainer.strategy.evolution.state.generation
            return fitness * float("nan") if self.trainer.evaluated[generation] == 1 or generation == 5 else fitness

    with pytest.warns(UserWarning, match="NaN or infinite"):
        _, expected = fit(tmp_path / "whole", module=Failing)
    with pytest.warns(UserWarning, match="NaN or infinite"):
        fit(tmp_path / "part", 2, module=Failing)
    with pytest.warns(UserWarning, match="NaN or infinite"):
        resumed, actual = fit(tmp_path / "part", 3, tmp_path / "part" / "epoch=0.ckpt", module=Failing)
    assert min(resumed.evaluated) == 8
    assert_same_weights(weights(actual), weights(expected))


@pytest.mark.parametrize("algorithm", ["lozo", "fzoo", "eggroll", "sparse_mezo", "ars", "csa_es"])
def test_resumed_and_replayed_with_every_kind_of_noise(tmp_path, algorithm):
    options = {"momentum": 0.9, "basis_reuse": 3} if algorithm == "lozo" else {}

    def strategy():
        return EvoStrategy(
            algorithm, population=8, sigma=0.05, update="in_place", evaluation="plain", **options,
            **({"top_k": 2} if algorithm == "ars" else {}),
        )  # fmt: skip

    _, expected = fit(tmp_path, strategy=strategy())
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    resumed, actual = fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", strategy=strategy(), seed=99)
    assert not resumed.evaluated
    assert_same_weights(weights(actual), weights(expected))
    replayed = replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj")
    assert_same_weights(replayed["state_dict"], weights(expected))


def test_a_shaping_of_ones_own_is_resumed(tmp_path):
    def mine(fitness, per_direction):
        return fitness - fitness.mean()

    def strategy():
        return in_place(shaping=mine)

    _, expected = fit(tmp_path, strategy=strategy())
    resumed, actual = fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", strategy=strategy(), seed=99)
    assert not resumed.evaluated
    assert_same_weights(weights(actual), weights(expected))
    with pytest.raises(JournalError, match="mine is code"):
        replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj")
    replayed = replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj", algorithm=strategy().evolution.algorithm)
    assert_same_weights(replayed["state_dict"], weights(expected))


def test_sigma_and_parameters_that_callbacks_change(tmp_path):
    class Change(Callback):
        def on_train_epoch_start(self, trainer, module):
            module.net[1].weight.requires_grad_(trainer.current_epoch != 1)
            trainer.strategy.sigma = 0.05 / (1 + trainer.current_epoch)

    _, expected = fit(tmp_path, callbacks=[Change()])
    assert [record.sigma for record in read(tmp_path)] == [0.05] * 4 + [0.025] * 4 + [0.05 / 3] * 4
    resumed, actual = fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", seed=99, callbacks=[Change()])
    assert not resumed.evaluated
    assert_same_weights(weights(actual), weights(expected))
    replayed = replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj")
    assert_same_weights(replayed["state_dict"], weights(expected))


@pytest.mark.parametrize("evaluation", ["auto", "in_forward", "batched"])
def test_the_way_of_evaluating_is_taken_over_without_a_checkpoint(tmp_path, restarted, evaluation):
    def strategy(evaluation=evaluation):
        return EvoStrategy(population=4, sigma=0.05, update="in_place", evaluation=evaluation)

    whole, expected = fit(tmp_path / "whole", strategy=strategy())
    chosen = whole.strategy.evolution.evaluation.state_dict()
    with pytest.raises(Stop):
        fit(tmp_path / "part", strategy=strategy(), callbacks=[StopAt(2, "before the move")])
    restarted()
    resumed, actual = fit(tmp_path / "part", strategy=strategy())
    assert min(resumed.evaluated) == 3
    assert_same_weights(weights(actual), weights(expected))
    assert resumed.strategy.evolution.evaluation.state_dict() == chosen


# --- what does not fit together ---


def test_a_replay_begins_with_weights_of_the_run_only(tmp_path):
    class Freeze(Callback):
        def on_train_epoch_start(self, trainer, module):
            module.net[1].weight.requires_grad_(trainer.current_epoch != 1)

    fit(tmp_path, 3, callbacks=[Freeze()])
    for epoch in range(3):  # in each, other parameters evolve before and after the checkpoint
        checkpoint = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        replay(checkpoint, tmp_path / "evolution.evoj")
        checkpoint["state_dict"]["net.4.bias"] *= 0.5
        with pytest.raises(
            JournalError, match=r"something else was saved \(for example averaged weights\) or changed since"
        ):
            replay(checkpoint, tmp_path / "evolution.evoj")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (lambda: in_place(population=6), "population: 4 there, 6 here"),
        (lambda: in_place(scaling="sigma"), "scaling: 'gradient' there, 'sigma' here"),
        (lambda: in_place(evolve="weight"), "parameters: net.1.weight float32"),
        pytest.param(lambda: in_place(seed=1), "seed: 7 there, 1 here",
                     marks=pytest.mark.filterwarnings("ignore:Resuming with seed=1")),
    ],
    ids=["population", "scaling", "evolve", "seed"],
)  # fmt: skip
def test_other_options_while_recorded_generations_are_to_come(tmp_path, strategy, message):
    fit(tmp_path, 2)
    before = (tmp_path / "evolution.evoj").read_bytes()
    with pytest.raises(JournalError, match=f"generations 4 to 7 of this run, but .* other options: {message}"):
        fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", strategy=strategy())
    assert (tmp_path / "evolution.evoj").read_bytes() == before
    t, _ = fit(tmp_path / "elsewhere", 3, tmp_path / "epoch=0.ckpt", strategy=in_place(journal=False))
    assert min(t.evaluated) == 4


def test_other_options_from_the_journals_end_on_begin_a_new_one(tmp_path):
    fit(tmp_path, 1)
    before = (tmp_path / "evolution.evoj").read_bytes()
    fit(tmp_path, 2, tmp_path / "epoch=0.ckpt", strategy=in_place(population=6))
    assert (tmp_path / "evolution.evoj").read_bytes() == before
    assert [record.generation for record in read(tmp_path, "evolution-v1")] == [4, 5, 6, 7]
    resumed, _ = fit(tmp_path, 3, tmp_path / "epoch=1.ckpt", strategy=in_place(population=6))
    assert min(resumed.evaluated) == 8
    assert len(read(tmp_path, "evolution-v1")) == 8


def test_a_checkpoint_of_another_run(tmp_path):
    fit(tmp_path / "a", 1)
    fit(tmp_path / "b", 1)
    saved = torch.load(tmp_path / "a" / "epoch=0.ckpt", weights_only=True)
    shutil.move(tmp_path / "a" / "epoch=0.ckpt", tmp_path / "b" / "other.ckpt")
    shutil.rmtree(tmp_path / "a")
    before = (tmp_path / "b" / "evolution.evoj").read_bytes()
    run = f"{saved['lightning_evo']['journal']['run']:016x}"
    with pytest.raises(
        JournalError, match=f"checkpoint is of the run {run}, and the journals next to it are of other runs"
    ):
        fit(tmp_path / "b", 2, tmp_path / "b" / "other.ckpt")
    assert (tmp_path / "b" / "evolution.evoj").read_bytes() == before


def test_a_journal_that_is_damaged_or_no_journal_is_not_touched(tmp_path):
    fit(tmp_path, 2)
    path = tmp_path / "evolution.evoj"
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    damaged = (bytes(whole), "is damaged: the record of generation")
    for content, message in (damaged, (b"", "is empty"), (b"x", "not a seed journal")):
        path.write_bytes(content)
        with pytest.raises(JournalError, match=message):
            fit(tmp_path, 3, tmp_path / "epoch=0.ckpt")
        assert path.read_bytes() == content


def test_a_torn_journal_goes_on(tmp_path):
    _, expected = fit(tmp_path / "whole")
    fit(tmp_path / "part", 2)
    path = tmp_path / "part" / "evolution.evoj"
    path.write_bytes(path.read_bytes()[: -28 - 5])  # the checksum of the weights at the end, and of a generation
    with pytest.warns(UserWarning, match=r"\d+ bytes were cut off after generation 6"):
        resumed, actual = fit(tmp_path / "part", 3, tmp_path / "part" / "epoch=0.ckpt")
    assert min(resumed.evaluated) == 7
    assert_same_weights(weights(actual), weights(expected))


def test_a_checkpoint_newer_than_the_journal(tmp_path):
    """As when the journal comes from a backup. A journal has no gaps, so another one begins."""
    fit(tmp_path, 1)
    old = (tmp_path / "evolution.evoj").read_bytes()
    fit(tmp_path, 3, tmp_path / "epoch=0.ckpt")
    (tmp_path / "evolution.evoj").write_bytes(old)
    with pytest.warns(UserWarning, match="ends with generation 3, and the checkpoint is of generation 8"):
        t, _ = fit(tmp_path, 4, tmp_path / "epoch=1.ckpt")
    assert min(t.evaluated) == 8
    assert (tmp_path / "evolution.evoj").read_bytes() == old
    assert [record.generation for record in read(tmp_path, "evolution-v1")] == list(range(8, 16))


def test_a_checkpoint_whose_journal_is_gone(tmp_path):
    fit(tmp_path, 1)
    (tmp_path / "evolution.evoj").unlink()
    with pytest.warns(UserWarning, match=r"journal of the checkpoint's run .* was not found .* begins at generation 4"):
        fit(tmp_path, 2, tmp_path / "epoch=0.ckpt")
    assert [record.generation for record in read(tmp_path)] == [4, 5, 6, 7]


def test_a_checkpoint_without_a_journal(tmp_path):
    fit(tmp_path, 1, strategy=in_place(journal=False))
    fit(tmp_path, 2, tmp_path / "epoch=0.ckpt")
    assert [record.generation for record in read(tmp_path)] == [4, 5, 6, 7]


def test_two_files_of_one_run(tmp_path):
    fit(tmp_path, 1)
    shutil.copy(tmp_path / "evolution.evoj", tmp_path / "copy.evoj")
    with pytest.raises(JournalError, match="Several journals are of the run"):
        fit(tmp_path, 2, tmp_path / "epoch=0.ckpt")


def test_another_learning_rate_or_clipping_while_generations_are_repeated(tmp_path):
    """What happened is repeated as it was; then the new values count."""
    _, expected = fit(tmp_path, 2, gradient_clip_val=0.02)

    class Faster(Net):
        def on_train_start(self):
            for group in self.optimizers().param_groups:
                group["lr"] *= 2
                group["initial_lr"] *= 2

    class Compare(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                assert_same_weights(weights(module), weights(expected))
                self.seen = True

    compare = Compare()
    with pytest.warns(UserWarning, match="has another (learning rate|clipping)") as said:
        fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", module=Faster, callbacks=[compare], gradient_clip_val=0.03)
    assert compare.seen
    assert sum("has another" in str(warning.message) for warning in said) == 2
    with Journal.open(tmp_path / "evolution.evoj") as opened:
        assert opened.conditions_at(7).clipping == (0.02, "norm")
        assert opened.conditions_at(8).clipping == (0.03, "norm")


@pytest.mark.parametrize(("recorded", "here"), [(1, 2), (2, 1), (4, 2), (2, 4), (3, 2)])
def test_another_number_of_accumulated_batches_while_generations_are_repeated(tmp_path, recorded, here):
    fit(tmp_path, 2, accumulate_grad_batches=recorded)
    before = (tmp_path / "evolution.evoj").read_bytes()
    with pytest.raises(JournalError, match=f"recorded with accumulate_grad_batches={recorded}; .*={here}. Resume with"):
        fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", accumulate_grad_batches=here)
    assert (tmp_path / "evolution.evoj").read_bytes() == before
    t, _ = fit(tmp_path, 3, tmp_path / "epoch=1.ckpt", accumulate_grad_batches=here)  # nothing is repeated
    assert t.evaluated
    again, _ = fit(tmp_path, 3, tmp_path / "epoch=1.ckpt", accumulate_grad_batches=here)
    assert not again.evaluated


def test_epochs_of_another_length_while_generations_are_repeated(tmp_path):
    """The last window of an epoch is shorter: three batches and one."""

    class Longer(Net):
        def train_dataloader(self):
            return DataLoader(images(80), 16, shuffle=True)

    fit(tmp_path, 2, accumulate_grad_batches=3)
    with pytest.raises(JournalError, match="Generation 3 .* was recorded with 1 training steps; this run has 2"):
        fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", accumulate_grad_batches=3, module=Longer)


def test_a_schedule_of_accumulated_batches_is_resumed(tmp_path):
    def callbacks():
        return [GradientAccumulationScheduler({0: 1, 1: 2, 2: 3})]

    _, expected = fit(tmp_path, 3, callbacks=callbacks())
    t, actual = fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", callbacks=callbacks(), seed=99)
    assert not t.evaluated
    assert_same_weights(weights(actual), weights(expected))


SCALES = [1.0]  # what a function reads from elsewhere is no option of the run's


def test_a_fitness_that_no_longer_gives_the_same_update_is_said(tmp_path, monkeypatch):
    def mine(fitness, per_direction):
        return (fitness - fitness.mean()) * SCALES[-1]

    fit(tmp_path, 2, strategy=in_place(shaping=mine, scaling="none"))
    monkeypatch.setattr(f"{__name__}.SCALES", [2.0])
    with (
        pytest.warns(UserWarning, match="Generation 4 of .* its fitness gives another update here"),
        pytest.warns(UserWarning, match="Generation 8 of .* began with other weights when it was written"),
    ):
        fit(tmp_path, 2, tmp_path / "epoch=0.ckpt", strategy=in_place(shaping=mine, scaling="none"))
    algorithm = in_place(shaping=mine, scaling="none").evolution.algorithm
    with pytest.raises(JournalError, match="its fitness gives another update here"):
        replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj", algorithm=algorithm)
    with pytest.warns(UserWarning, match="Between generations 4 and 8 .* weights departed"):
        replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj", algorithm=algorithm, exact=False)


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, monkeypatch):
    _, expected = fit(tmp_path / "whole")
    real = os.write
    room = 1200

    def write(descriptor, data):
        nonlocal room
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= len(data)
        return real(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(OSError, match="no space left on the disk"):
            fit(tmp_path / "part")
    assert 0 < len(read(tmp_path / "part")) < 12
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    new_process(monkeypatch)
    _, actual = fit(tmp_path / "part")
    assert_same_weights(weights(actual), weights(expected))


# --- refusals at the start ---


class Manual(EvolutionMixin, Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("strategy", "module", "callback", "message"),
    [
        (
            lambda: EvoStrategy(population=4),
            Net,
            SeedJournal,
            "needs update='in_place', and this strategy has",
        ),
        (lambda: "auto", Net, SeedJournal, "records evolution, but the strategy is SingleDeviceStrategy"),
        (in_place, Manual, SeedJournal, "can't record Manual, which is optimized manually"),
        (lambda: in_place(journal=False), Net, SeedJournal, "journal=False and the callback SeedJournal contradict"),
        (
            in_place,
            Net,
            lambda: SeedJournal("s3://bucket/runs"),
            "and s3://bucket/runs is not on one",
        ),
    ],
    ids=["optimizer", "backpropagation", "manual", "off", "remote"],
)
def test_refusals(tmp_path, strategy, module, callback, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, strategy=strategy(), module=module, callbacks=[callback()])


def test_several_journals(tmp_path):
    """The second one would be silently left out."""
    with pytest.raises(ValueError, match="has several SeedJournal callbacks, but a run writes one journal"):
        fit(tmp_path, callbacks=[SeedJournal(tmp_path / "a"), SeedJournal(tmp_path / "b")])
    assert not list(tmp_path.rglob("*.evoj"))


def test_journal_true_with_an_optimizer(tmp_path):
    with pytest.raises(ValueError, match="journal=True needs update='in_place'"):
        EvoStrategy(journal=True, update="optimizer")
    with pytest.raises(ValueError, match="journal=True needs update='in_place'"):
        fit(tmp_path, strategy=EvoStrategy(journal=True))  # not before: the module might have wanted it in place


def test_callbacks_can_be_copied():
    assert copy.deepcopy(SeedJournal("folder", "name")).filename == "name"


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"folder .*file can't be made \(File exists\)\. Give it another one"):
        fit(tmp_path, callbacks=[SeedJournal(tmp_path / "file")])
    fit(tmp_path, callbacks=[SeedJournal(tmp_path / "another")])
    assert len(read(tmp_path / "another")) == 12
