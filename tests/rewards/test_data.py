"""Rows of prompts from lists, files and datasets; what is held out; which batches a training sees."""

import contextlib
import json
import pickle
import warnings

import lightning as L
import pytest
import torch

from lightning_evo import EvoStrategy
from lightning_evo.rewards import PromptData

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]

ROWS = [{"prompt": f"{i}", "answer": i} for i in range(10)]


class Columns:
    """Rows by number with named columns, as a ``datasets.Dataset`` has them."""

    def __init__(self, rows):
        self.rows, self.column_names = rows, list(rows[0]) if rows else []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return dict(self.rows[index])


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def answers(loader):
    return [[row["answer"] for row in batch] for batch in loader]


@pytest.mark.parametrize("kind", ["list", "file", "name", "dataset"])
def test_rows_of_every_kind(kind, tmp_path):
    file = write(tmp_path / "rows.jsonl", ROWS)
    rows = {"list": ROWS, "file": file, "name": str(file), "dataset": Columns(ROWS)}[kind]
    data = PromptData(rows, batch_size=5, validation=rows)
    assert sorted(sum(answers(data.train_dataloader()), [])) == list(range(10))
    assert answers(data.val_dataloader()) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert next(iter(data.val_dataloader()))[3] == {"prompt": "3", "answer": 3}


def test_messages_are_rows_too():
    messages = [{"role": "user", "content": "hi"}]
    (batch,) = PromptData([{"prompt": messages}], batch_size=1).train_dataloader()
    assert batch == [{"prompt": messages}]


def test_batches_are_of_equal_size_and_in_a_new_order_each_epoch():
    torch.manual_seed(0)
    loader = PromptData(ROWS, batch_size=4).train_dataloader()
    epochs = [answers(loader) for _ in range(3)]
    assert [[len(batch) for batch in epoch] for epoch in epochs] == [[4, 4]] * 3
    assert len({str(epoch) for epoch in epochs}) == 3
    torch.manual_seed(0)
    assert answers(PromptData(ROWS, batch_size=4).train_dataloader()) == epochs[0]


def test_few_rows_are_one_batch():
    assert [len(batch) for batch in PromptData(ROWS[:3], batch_size=8).train_dataloader()] == [3]


@pytest.mark.parametrize(("validation", "held_out"), [(0.3, 3), (0.01, 1), (4, 4)])
def test_a_share_is_held_out(validation, held_out):
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = PromptData(ROWS, batch_size=2, validation=validation, validation_batch_size=10)
        (batch,) = answers(data.val_dataloader())
        assert len(batch) == held_out
        assert batch == sorted(batch)
        assert len(data.train_rows) == 10 - held_out
        assert not {row["answer"] for row in data.train_rows} & set(batch)
        found.append(batch)
    assert found[0] == found[1]  # always the same ones


def test_without_validation_lightning_says_so():
    trainer, module = fit(max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=PromptData(ROWS, batch_size=4))
    assert any("have no `val_dataloader`. Skipping val loop" in str(each.message) for each in caught)
    assert not any("is zero" in str(each.message) for each in caught)
    assert not module.validated


class OwnValidation(PromptData):
    def val_dataloader(self):
        return torch.utils.data.DataLoader(ROWS[:3], 3, collate_fn=list)


def test_a_subclass_may_say_what_validates():
    trainer, module = fit(max_epochs=1)
    trainer.fit(module, datamodule=OwnValidation(ROWS, batch_size=4))
    assert module.validated == [[0, 1, 2]]


@pytest.mark.parametrize("validation", [None, 2])
def test_it_can_be_pickled(validation):
    """As processes that are spawned get it."""
    trainer, module = fit(max_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You defined a `validation_step`")
        trainer.fit(module, datamodule=pickle.loads(pickle.dumps(PromptData(ROWS, 4, validation))))
    assert len(module.trained) == 2
    assert len(module.validated) == (validation is not None)


class Seen(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append([row["answer"] for row in batch])
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append([row["answer"] for row in batch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(kind=Seen, **options):
    module = kind()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(**quiet, enable_model_summary=False, num_sanity_val_steps=0, **options)
    return trainer, module


def test_as_a_datamodule():
    L.seed_everything(1, verbose=False)
    trainer, module = fit(max_epochs=2)
    trainer.fit(module, datamodule=PromptData(ROWS, batch_size=4, validation=2))
    assert [len(batch) for batch in module.trained] == [4, 4] * 2
    assert module.validated == [module.validated[0]] * 2
    assert not set(module.validated[0]) & set(sum(module.trained, []))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (({},), TypeError, "rows must be a list of dictionaries, a JSONL file or a dataset"),
        ((3,), TypeError, "rows must be a list of dictionaries, a JSONL file or a dataset"),
        (([],), ValueError, "rows has no rows; give at least one prompt"),
        ((["a"],), TypeError, 'Row 0 of rows must be a dictionary such as {"prompt": "…"}, got \'a\''),
        ((ROWS + [{"question": "?"}],), ValueError, 'Row 10 of rows has no "prompt", only question'),
        ((ROWS + [{"prompt": 7}],), TypeError, "The prompt of row 10 of rows is 7"),
        ((Columns([{"text": "a"}]),), ValueError, 'rows, a dataset, has no "prompt", only text'),
        (("nowhere.jsonl",), FileNotFoundError, "There is no file nowhere.jsonl"),
        ((ROWS, 0), ValueError, "batch_size must be a whole number >= 1, got 0"),
        ((ROWS, 2, None, 0), ValueError, "validation_batch_size must be a whole number >= 1, got 0"),
        ((ROWS, 2, 1.5), ValueError, "validation must be"),
        ((ROWS, 2, 10), ValueError, "validation=10 holds out 10 of 10 rows"),
        ((ROWS, 2, [{"question": 1}]), ValueError, 'Row 0 of validation has no "prompt", only question'),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        PromptData(*arguments[:3], **dict(zip(["validation_batch_size"], arguments[3:], strict=False)))


def test_a_dataset_of_splits_is_refused():
    splits = Columns(ROWS)
    splits.column_names = {"train": ["prompt"], "test": ["prompt"]}
    with pytest.raises(TypeError, match="Choose one of its splits"):
        PromptData(splits)


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("{'prompt': 'a'}", ValueError, r"Line 3 of .*rows.jsonl is not JSON \(.*this one is"),
        ('["a"]', TypeError, r"Line 3 of .*rows.jsonl must be a dictionary"),
        ('{"q": "a"}', ValueError, r'Line 3 of .*rows.jsonl has no "prompt", only q'),
        ('{"prompt": null}', TypeError, r"The prompt of line 3 of .*rows.jsonl is None"),
    ],
)
def test_errors_name_the_line(tmp_path, line, error, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(error, match=message):
        PromptData(file)


# --- resuming in the middle of an epoch -----------------------------------------------------------------------------


class Stop(L.Callback):
    """Saves a checkpoint after a step, and ends there as a kill would."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


class Plain(Seen):
    """Which rows it is trained on, by evolution, whose checkpoints hold the state of all random generators."""

    def fitness_step(self, batch, batch_idx):
        return self.layer(torch.ones(1)).sum()


def trained(path=None, stop=None, seed=3, rows=ROWS, max_steps=-1, batch_size=2, **options):
    L.seed_everything(seed, verbose=False)
    callbacks = [] if stop is None else [Stop(stop, path)]
    strategy = EvoStrategy("openai_es", population=2, sigma=0.1, seed=0)
    options = {"max_epochs": 3, "max_steps": max_steps, "strategy": strategy, "callbacks": callbacks, **options}
    trainer, module = fit(kind=Plain, **options)
    with contextlib.suppress(InterruptedError):
        trainer.fit(module, datamodule=PromptData(rows, batch_size), ckpt_path=path if path and stop is None else None)
    return trainer, module.trained


@pytest.fixture(scope="module")
def whole():
    """The batches of 3 epochs of 5, undisturbed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trained()[1]


@pytest.mark.parametrize("stop", [3, 5, 13])
def test_a_resumed_fit_goes_on_with_the_rows_that_would_have_come(tmp_path, whole, stop):
    """Stopped within the first epoch, at its end, and within the last one."""
    assert len({str(whole[start : start + 5]) for start in (0, 5, 10)}) == 3
    assert all(sorted(sum(whole[start : start + 5], [])) == list(range(10)) for start in (0, 5, 10))
    _, before = trained(tmp_path / "stopped.ckpt", stop)
    assert before == whole[:stop]
    _, after = trained(tmp_path / "stopped.ckpt", seed=99)
    assert after == whole[stop:]


@pytest.mark.parametrize("steps", [2, 8])
def test_so_does_one_that_max_steps_ended(tmp_path, whole, steps):
    # Without `max_epochs`, as Lightning counts an epoch as finished in which `max_steps` ends the fit.
    trainer, before = trained(max_steps=steps, max_epochs=-1)
    trainer.save_checkpoint(tmp_path / "ended.ckpt")
    _, after = trained(tmp_path / "ended.ckpt", seed=99, max_steps=12, max_epochs=-1)
    assert before + after == whole[:12]


@pytest.mark.parametrize("stop", [2, 3])
def test_batches_that_the_trainer_leaves_out_are_of_no_epoch(tmp_path, stop):
    _, whole = trained(limit_train_batches=3)
    assert len(whole) == 9
    trained(tmp_path / "stopped.ckpt", stop, limit_train_batches=3)
    _, after = trained(tmp_path / "stopped.ckpt", seed=99, limit_train_batches=3)
    assert after == whole[stop:]


def test_other_rows_in_the_middle_of_an_epoch_are_refused(tmp_path):
    trained(tmp_path / "stopped.ckpt", 3)
    with pytest.raises(ValueError, match="in the middle of an epoch of 5 batches, and there are 4 now"):
        trained(tmp_path / "stopped.ckpt", rows=ROWS[:8])
    trained(tmp_path / "whole.ckpt", 5)
    _, after = trained(tmp_path / "whole.ckpt", rows=ROWS[:8])  # at an epoch's end they may change
    assert len(after) == 8


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches_are_the_same_in_each_epoch():
    _, found = trained(overfit_batches=2)
    assert found == [[0, 1], [2, 3]] * 3
