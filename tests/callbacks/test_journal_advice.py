"""What errors of the journal advise, taken: it helps."""

import os
from dataclasses import replace

import pytest
from lightning.pytorch.callbacks import Callback

from lightning_evo.callbacks import SeedJournal
from lightning_evo.journal import Journal, JournalError
from tests.callbacks.test_journal import fit, in_place, pytestmark, read

__all__ = ["pytestmark"]


def refusals(folder, message):
    """The error of a resumed fit, which is the same with a journal in another folder."""
    for callbacks in ((), [SeedJournal(folder / "another")]):
        with pytest.raises(JournalError, match=message) as error:
            fit(folder, 3, folder / "epoch=0.ckpt", callbacks=callbacks)
    assert not (folder / "another").exists()
    return str(error.value)


def goes_on_without(folder, error):
    """That an error says how to go on without a journal, and that this is true."""
    assert "without a journal (journal=False)" in error
    assert "dirpath" not in error
    before = {path: path.read_bytes() for path in folder.rglob("*.evoj")}
    t, _ = fit(folder, 3, folder / "epoch=0.ckpt", strategy=in_place(journal=False))
    assert t.evaluated == dict.fromkeys(range(4, 12), 4)
    assert {path: path.read_bytes() for path in folder.rglob("*.evoj")} == before


def with_another_header(folder, **changed):
    """A run of one epoch, and a journal that does not fit to it."""
    fit(folder, 1)
    path = folder / "evolution.evoj"
    header = Journal.peek(path)
    path.unlink()
    Journal.create(path, replace(header, **changed)).close()


def test_the_journals_next_to_the_checkpoint_are_of_other_runs(tmp_path):
    with_another_header(tmp_path, run=1)
    goes_on_without(tmp_path, refusals(tmp_path, "journals next to it are of other runs"))


def test_the_journal_begins_later(tmp_path):
    with_another_header(tmp_path, generation=8)
    goes_on_without(tmp_path, refusals(tmp_path, "is of generation 4, but its journal .* begins with generation 8"))


def test_the_journal_begins_with_other_weights(tmp_path):
    with_another_header(tmp_path, generation=4, start="0" * 32)
    goes_on_without(tmp_path, refusals(tmp_path, "begins with weights of the checksum 0+, but the module's have"))


def test_the_journal_was_written_with_other_options(tmp_path):
    fit(tmp_path, 2, strategy=in_place(scaling="sigma"))
    goes_on_without(tmp_path, refusals(tmp_path, "other options: scaling: 'sigma' there, 'gradient' here"))


def test_something_else_evolved(tmp_path):
    class Freeze(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            module.net[1].weight.requires_grad_(trainer.global_step != 5)

    fit(tmp_path, 2, callbacks=[Freeze()])
    goes_on_without(tmp_path, refusals(tmp_path, "Generation 5 of .* evolved net.1.bias .*; now net.1.weight"))


def test_other_batches(tmp_path):
    fit(tmp_path, 2)
    with pytest.raises(
        JournalError, match="accumulate_grad_batches=1; this run has accumulate_grad_batches=2"
    ) as error:
        fit(tmp_path, 2, tmp_path / "epoch=0.ckpt", accumulate_grad_batches=2)
    goes_on_without(tmp_path, str(error.value))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_another_process_appends(tmp_path):
    fit(tmp_path, 1)
    (ready, begun), (finish, done) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with Journal.open(tmp_path / "evolution.evoj", append=True):
                os.write(begun, b".")
                os.read(finish, 1)
        finally:
            os._exit(0)
    try:
        os.read(ready, 1)
        error = refusals(tmp_path, "Another process is appending .* Wait until it has ended")
        goes_on_without(tmp_path, error)
    finally:
        os.write(done, b".")
        os.waitpid(child, 0)
        for descriptor in (ready, begun, finish, done):
            os.close(descriptor)
    fit(tmp_path, 3, tmp_path / "epoch=0.ckpt")
    assert len(read(tmp_path)) == 12


@pytest.mark.parametrize(
    ("damage", "message", "place"),
    [
        (
            lambda content: content[:30] + b"?" + content[31:],
            "header of .* is damaged: .* move it away",
            "elsewhere.evoj",
        ),
        (lambda content: content[:-100] + b"?" + content[-99:], "is damaged: .* move it away", "elsewhere.evoj"),
        (lambda content: b"", "is empty, so it is not a journal. Delete it", "elsewhere.evoj"),
        (lambda content: b"a note", "is not a seed journal: .* give it another ending", "note.txt"),
    ],
    ids=["header", "record", "empty", "no journal"],
)
def test_a_file_that_is_no_good_journal(tmp_path, damage, message, place):
    folder = tmp_path / "run"
    fit(folder, 2)
    path = folder / "evolution.evoj"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(JournalError, match=message):
        fit(folder, 3, folder / "epoch=0.ckpt")
    path.rename(folder / place if place == "note.txt" else tmp_path / place)
    with pytest.warns(UserWarning, match="was not found .* A new one begins at generation 4"):
        fit(folder, 3, folder / "epoch=0.ckpt")
    assert [record.generation for record in read(folder)] == list(range(4, 12))
