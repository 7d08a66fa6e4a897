"""Checksums of the weights in a journal: that of each is what the run had, and what departs from it is said."""

import errno
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback

from lightning_evo.callbacks import SeedJournal
from lightning_evo.journal import Journal, JournalError, weights_checksum
from lightning_evo.journal import checksums as journal_checksums
from lightning_evo.journal.replay import replay
from tests.callbacks.test_journal import Net, Stop, StopAt, fit, in_place, pytestmark, read
from tests.strategies.models import assert_same_weights, trainer, weights

__all__ = ["pytestmark"]


@pytest.fixture
def every_third(monkeypatch):
    """A checksum every three generations, however long it takes."""
    monkeypatch.setattr(journal_checksums, "_EVERY", 3)
    monkeypatch.setattr(journal_checksums, "_SHARE", 1e9)


class Clamp(Callback):
    """What a user may do to weights, from some generation on."""

    def __init__(self, limit=0.1, since=0):
        self.limit, self.since = limit, since

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step > self.since:
            with torch.no_grad():
                module.net[1].weight.clamp_(-self.limit, self.limit)


class Begin(Callback):
    """The checksum of the weights with which each generation begins, and of those that the last batch leaves."""

    def __init__(self):
        self.weights = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.weights[trainer.global_step] = weights_checksum(trainer.strategy.evolution.space)

    def on_train_end(self, trainer, module):
        self.weights[trainer.global_step] = weights_checksum(trainer.strategy.evolution.space)


def checksums(folder, name="evolution"):
    with Journal.open(Path(folder) / f"{name}.evoj") as opened:
        return dict(opened.weights)


# --- where there is one ---


@pytest.mark.parametrize("callbacks", [(), (Clamp,)], ids=["evolution alone", "clamped"])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=str)
def test_they_are_of_the_weights_with_which_generations_begin(tmp_path, every_third, callbacks, options):
    begin = Begin()
    t, _ = fit(tmp_path, callbacks=[*(callback() for callback in callbacks), begin], **options)
    assert t.global_step == (6 if options else 12)
    assert checksums(tmp_path) == {g: begin.weights[g] for g in range(3, t.global_step + 1, 3)}


def test_by_default_there_is_one_every_hundred_generations_and_one_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_checksums, "_SHARE", 1e9)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    _, module = fit(tmp_path, 51, callbacks=[begin := Begin()])
    assert checksums(tmp_path) == {g: begin.weights[g] for g in (100, 200, 204)}
    assert_same_weights(replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj")["state_dict"], weights(module))


def test_they_take_at_most_a_hundredth_of_the_time(tmp_path, monkeypatch):
    """One that takes two seconds is followed by 200 seconds without: here 25 generations."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()

    def slow(space):
        clock.now += 2.0
        return weights_checksum(space)

    class Tick(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            clock.now += 8.0

    monkeypatch.setattr(journal_checksums, "_EVERY", 3)
    monkeypatch.setattr(journal_checksums, "time", clock)
    monkeypatch.setattr(journal_checksums, "weights_checksum", slow)
    seed_everything(7, verbose=False)
    t = trainer(in_place(journal=True), callbacks=[Tick()], max_epochs=16, max_steps=-1, default_root_dir=tmp_path)
    t.evaluated = Counter()
    t.fit(Net())
    assert list(checksums(tmp_path)) == [3, 28, 53, 64]  # 64 is the end


def test_one_where_a_killed_run_goes_on(tmp_path, every_third):
    with pytest.raises(Stop):
        fit(tmp_path, callbacks=[StopAt(7, "after the move")])
    assert list(checksums(tmp_path)) == [3, 6]  # none at the end: an error may come in the middle of a move
    begin = Begin()
    fit(tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt", callbacks=[begin])
    assert list(checksums(tmp_path)) == [3, 6, 8, 11, 12]
    assert {g: s for g, s in checksums(tmp_path).items() if g >= 4} == {g: begin.weights[g] for g in (6, 8, 11, 12)}


def test_a_full_disk_at_the_very_end_is_only_said(tmp_path, monkeypatch):
    class Fill(Callback):
        def on_train_end(self, trainer, module):
            real = os.write

            def full(descriptor, data):
                monkeypatch.setattr(os, "write", real)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "write", full)

    journal = SeedJournal(tmp_path)
    with pytest.warns(UserWarning, match="ends without a checksum of the weights: .* before generation 4 could not be"):
        fit(tmp_path, 1, callbacks=[Fill(), journal])
    assert (len(read(tmp_path)), checksums(tmp_path)) == (4, {})


# --- a replay ---


@pytest.mark.parametrize(("since", "between"), [(0, "4 and 6"), (7, "6 and 9"), (11, "9 and 12")])
def test_a_replay_stops_where_other_code_has_moved_weights(tmp_path, every_third, since, between):
    _, module = fit(tmp_path, callbacks=[Clamp(since=since)])
    base, path = tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj"
    message = f"Between generations {between} of .* weights departed .* your code or a callback moved them, too"
    with pytest.raises(JournalError, match=message):
        replay(base, path)
    agreed = int(between.split()[0])
    assert replay(base, path, to=agreed)["lightning_evo"]["compared"] == agreed
    with pytest.warns(UserWarning, match=message) as said:
        other = replay(base, path, exact=False)
    assert len(said) == 1
    assert other["lightning_evo"]["compared"] == agreed
    assert not torch.equal(other["state_dict"]["net.1.weight"], module.net[1].weight)


def test_a_replay_stops_at_a_checkpoint_that_was_saved_before_other_code_moved_weights(tmp_path, every_third):
    """The module's own hook comes after the callbacks'."""

    class Clamped(Net):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            Clamp().on_train_batch_end(self.trainer, self, outputs, batch, batch_idx)

    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "at_6.ckpt")

    fit(tmp_path, module=Clamped, callbacks=[Save()])
    for to in (None, 6):
        with pytest.raises(JournalError, match="Before generation 6 of .* weights departed from what its fitness"):
            replay(tmp_path / "at_6.ckpt", tmp_path / "evolution.evoj", to=to)


def test_what_callbacks_do_when_training_has_ended_is_no_departure(tmp_path):
    class Average(Callback):
        def on_train_end(self, trainer, module):
            self.last = weights(module)
            with torch.no_grad():
                module.net[1].weight.mul_(0.5)

    average = Average()
    fit(tmp_path, callbacks=[average])
    replayed = replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj")
    assert_same_weights(replayed["state_dict"], average.last)
    t, _ = fit(tmp_path, 4, tmp_path / "epoch=2.ckpt", callbacks=[average])
    assert min(t.evaluated) == 12


@pytest.mark.parametrize("stop", [2, 3])
def test_while_callbacks_change_what_evolves(tmp_path, monkeypatch, stop):
    """Before each generation: each is of what evolved in the generation before."""
    monkeypatch.setattr(journal_checksums, "_EVERY", 1)
    monkeypatch.setattr(journal_checksums, "_SHARE", 1e9)

    class Freeze(Callback):
        def on_train_epoch_start(self, trainer, module):
            module.net[1].weight.requires_grad_(trainer.current_epoch != 1)
            module.net[4].bias.requires_grad_(trainer.current_epoch != 2)

    _, expected = fit(tmp_path / "whole", 3, callbacks=[Freeze()])
    fit(tmp_path / "part", stop, callbacks=[Freeze()])
    for epoch in range(stop):
        _, actual = fit(tmp_path / "part", 3, tmp_path / "part" / f"epoch={epoch}.ckpt", callbacks=[Freeze()])
        assert_same_weights(weights(actual), weights(expected))
    assert list(checksums(tmp_path / "part")) == list(range(1, 13))
    assert checksums(tmp_path / "part") == checksums(tmp_path / "whole")
    for epoch in range(3):
        for last in range(4 * epoch + 4, 13):
            base, path = tmp_path / "whole" / f"epoch={epoch}.ckpt", tmp_path / "whole" / "evolution.evoj"
            replayed = replay(base, path, to=last)
            assert replayed["lightning_evo"]["compared"] == last
    assert_same_weights(replayed["state_dict"], weights(expected))


# --- a resumed fit ---


def test_a_resumed_fit_runs_other_code_again_and_compares(tmp_path, every_third):
    _, expected = fit(tmp_path / "whole", callbacks=[Clamp()])
    fit(tmp_path / "part", 2, callbacks=[Clamp()])
    assert list(checksums(tmp_path / "part")) == [3, 6, 8]
    resumed, actual = fit(tmp_path / "part", 3, tmp_path / "part" / "epoch=0.ckpt", callbacks=[Clamp()], seed=99)
    assert min(resumed.evaluated) == 8
    assert_same_weights(weights(actual), weights(expected))
    whole, part = checksums(tmp_path / "whole"), checksums(tmp_path / "part")
    assert list(part) == [3, 6, 8, 11, 12]
    assert all(part[generation] == whole[generation] for generation in (3, 6, 12))


def test_a_resumed_fit_says_that_its_weights_are_others(tmp_path, every_third):
    """Once; and what it records from then on is of its own weights."""
    fit(tmp_path, 2, callbacks=[Clamp()])
    before = checksums(tmp_path)
    begin = Begin()
    with pytest.warns(UserWarning, match="began with other weights when it was written") as said:
        fit(tmp_path, 3, tmp_path / "epoch=0.ckpt", callbacks=[begin])
    (message,) = (str(warning.message) for warning in said if "began with other" in str(warning.message))
    assert message.startswith(f"Generation 6 of {tmp_path / 'evolution.evoj'} began")
    assert "another version or processor rounds differently" in message
    assert checksums(tmp_path) == {3: before[3], 6: before[6], **{g: begin.weights[g] for g in (8, 11, 12)}}
    with pytest.raises(JournalError, match="Between generations 4 and 6"):
        replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj")


def test_a_resumed_fit_that_records_nothing_compares_at_its_end(tmp_path):
    fit(tmp_path, 2, callbacks=[Clamp()])
    before = (tmp_path / "evolution.evoj").read_bytes()
    with pytest.warns(UserWarning, match="Generation 8 of .* began with other weights when it was written"):
        fit(tmp_path, 2, tmp_path / "epoch=0.ckpt")
    assert (tmp_path / "evolution.evoj").read_bytes() == before
