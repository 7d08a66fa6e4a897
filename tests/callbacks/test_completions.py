"""Completions: which members, the file and its resuming, the terminal, and the loggers."""

import importlib
import json
import math
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_evo import Fitness
from lightning_evo.callbacks import Completions
from lightning_evo.callbacks.completions import as_table, chosen, log
from lightning_evo.strategies import strategy_class

pytestmark = pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning")


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request):
    return importlib.import_module(request.param)


def writer(pl, details=True):
    class Writer(pl.LightningModule):
        """Its text is a number of the weights, so that each member writes another one."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

        def fitness_step(self, batch, batch_idx):
            values = batch @ self.weight
            told = [
                {"prompt": f"{x[0]:.0f}", "completion": f"[bold]{y:.6f}", "reward": float(y), "truncated": False}
                for x, y in zip(batch, values, strict=True)
            ]
            return Fitness(values, details=told if details else None)

        def configure_optimizers(self):
            return None

    return Writer()


def fit(pl, folder, callback, generations=5, module=None, ckpt_path=None, **options):
    torch.manual_seed(0)
    settings = {
        "strategy": strategy_class("EvoStrategy", pl.__name__)(
            "openai_es", population=6, sigma=0.1, learning_rate=0.1, seed=0, update="in_place", evaluation="plain"
        ),
        "max_steps": generations, "max_epochs": -1, "callbacks": [callback], "accelerator": "cpu", "devices": 1,
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": folder,
    } | options  # fmt: skip
    trainer = pl.Trainer(**settings)
    data = DataLoader(torch.arange(12.0).view(4, 3), batch_size=4)
    trainer.fit(module or writer(pl), data, ckpt_path=ckpt_path)
    return trainer


def demos(pl):
    return importlib.import_module(f"{pl.__name__}.demos.boring_classes")


def lines(path):
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


# --- which ---


def member(*rewards):
    return [{"reward": reward} for reward in rewards]


def test_best_mean_and_worst_by_the_mean_reward():
    rows = chosen([member(0, 1), member(5, 0), member(1, 1), member(-9, 9)], samples=1)
    assert [(row["is"], row["member"], row["reward"]) for row in rows] == [
        ("best", 1, 5), ("mean", 2, 1), ("worst", 3, -9),
    ]  # fmt: skip
    rows = chosen([member(0, 1), member(5, 0)], samples=5)
    assert [(row["member"], row["is"], row["sample"]) for row in rows] == [
        (1, "best", 0), (1, "best", 1), (0, "mean, worst", 0), (0, "mean, worst", 1),
    ]  # fmt: skip


def test_missing_rewards_do_not_count_and_members_without_any_are_not_shown():
    details = [member(None, 4.0), member(3.0, 3.0), [], member(None, None), member(math.nan, 9.0), member(1.0, 1.0)]
    assert [row["member"] for row in chosen(details, 1)] == [0, 1, 5]


def test_details_without_rewards_are_the_first_members():
    assert chosen([[], [{"text": "a"}, {"text": "b"}], [{"text": "c"}]], 1) == [
        {"member": 1, "is": "first", "sample": 0, "text": "a"}
    ]
    assert chosen([["any object"]], 1) == [{"member": 0, "is": "first", "sample": 0, "detail": "any object"}]
    assert chosen([], 1) == []
    assert chosen([[], []], 1) == []


# --- a run ---


def test_lines_are_those_of_the_generations_that_are_wanted(pl, tmp_path, capsys):
    callback = Completions(every_n_generations=2, samples=3, path=tmp_path / "folder" / "texts.jsonl")
    trainer = fit(pl, tmp_path, callback)
    found = lines(tmp_path / "folder" / "texts.jsonl")
    assert callback.file == tmp_path / "folder" / "texts.jsonl"
    assert sorted({row["step"] for row in found}) == [1, 2, 4]
    for step in (1, 2, 4):
        of_step = [row for row in found if row["step"] == step]
        assert [row["is"] for row in of_step] == ["best"] * 3 + ["mean"] * 3 + ["worst"] * 3
        assert [row["sample"] for row in of_step] == [0, 1, 2] * 3
        assert [row["prompt"] for row in of_step] == ["0", "3", "6"] * 3
        means = [sum(row["reward"] for row in of_step[i : i + 3]) for i in (0, 3, 6)]
        assert means[0] > means[1] > means[2]
        assert all(row["completion"] == f"[bold]{row['reward']:.6f}" for row in of_step)
    printed = capsys.readouterr().out
    assert printed.count("Completions of generation") == 3
    assert "[bold]" in printed
    assert trainer.strategy.evolution.wants_details is None
    assert trainer.strategy.evolution.details == []


def test_the_folder_of_the_run_is_the_default_and_a_new_fit_has_a_file_of_its_own(pl, tmp_path):
    fit(pl, tmp_path, Completions(1), generations=1)
    before = (tmp_path / "completions.jsonl").read_bytes()
    fit(pl, tmp_path, Completions(1), generations=2)
    assert (tmp_path / "completions.jsonl").read_bytes() == before
    assert {row["step"] for row in lines(tmp_path / "completions-v1.jsonl")} == {1, 2}


@pytest.mark.parametrize("torn", [b"", b'{"step": 4, "mem', b'{"step": 4, "member": 2, "is": "best", "sample": 0}'])
def test_a_resumed_fit_goes_on_and_repeats_nothing(pl, tmp_path, torn):
    whole = tmp_path / "whole.jsonl"
    fit(pl, tmp_path, Completions(1, path=whole), generations=5)
    (tmp_path / "parts.jsonl").write_bytes(b"of another run\n")
    callback = Completions(1, path=tmp_path / "parts.jsonl")
    module = writer(pl)
    trainer = fit(pl, tmp_path, callback, generations=2, module=module)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    parts = tmp_path / "parts-v1.jsonl"
    # The run went on to the third generation, and was killed in the fourth.
    with parts.open("ab") as file:
        file.writelines(line for line in whole.read_bytes().splitlines(True) if json.loads(line)["step"] == 3)
        file.write(torn)
    resumed = Completions(1, path=tmp_path / "parts.jsonl")
    fit(pl, tmp_path, resumed, generations=5, ckpt_path=tmp_path / "two.ckpt")
    assert resumed.file == parts
    assert parts.read_bytes() == whole.read_bytes()
    assert (tmp_path / "parts.jsonl").read_bytes() == b"of another run\n"
    assert not (tmp_path / "parts-v2.jsonl").exists()


def test_several_batches_for_a_generation_show_the_last_ones(pl, tmp_path):
    data = DataLoader(torch.arange(24.0).view(8, 3), batch_size=4)
    callback = Completions(1, samples=1, path=tmp_path / "texts.jsonl")
    module = writer(pl)
    trainer = pl.Trainer(
        strategy=strategy_class("EvoStrategy", pl.__name__)(
            "openai_es", population=4, sigma=0.1, learning_rate=0.1, update="in_place", evaluation="plain"
        ),
        max_steps=2, max_epochs=-1, accumulate_grad_batches=2, callbacks=[callback], accelerator="cpu", devices=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    found = lines(tmp_path / "texts.jsonl")
    assert {row["step"] for row in found} == {1, 2}
    assert {row["prompt"] for row in found} == {"12"}


def test_nothing_is_written_by_a_run_for_trying(pl, tmp_path, capsys):
    fit(pl, tmp_path, Completions(1, path=tmp_path / "texts.jsonl"), fast_dev_run=1)
    assert not (tmp_path / "texts.jsonl").exists()
    assert "Completions of generation 1" in capsys.readouterr().out


def test_members_that_tell_nothing_are_warned_of_once(pl, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(pl, tmp_path, Completions(1), generations=3, module=writer(pl, details=False))
    assert sum("nothing to show: no member gave details" in str(warning.message) for warning in caught) == 1
    assert not (tmp_path / "completions.jsonl").exists()


def test_a_strategy_without_members_and_two_callbacks_are_errors(pl, tmp_path):
    with pytest.raises(ValueError, match="SingleDeviceStrategy has none. Use"):
        fit(pl, tmp_path, Completions(), strategy="auto", module=demos(pl).BoringModel())
    with pytest.raises(ValueError, match="several Completions callbacks"):
        fit(pl, tmp_path, Completions(), callbacks=[Completions(), type("Mine", (Completions,), {})()])
    with pytest.raises(ValueError, match="every_n_generations must be a whole number >= 1, got 0"):
        Completions(0)
    with pytest.raises(ValueError, match="samples must be"):
        Completions(samples=0)


# --- hostile values ---


def test_odd_values_stay_json_and_leave_the_terminal_alone(pl, tmp_path, capsys):
    class Odd(type(writer(pl))):
        def fitness_step(self, batch, batch_idx):
            told = {
                "completion": "\x1b[2J\ud800é",
                "reward": 1.0,
                "rewards": {"f": math.nan},
                "object": {
                    1,
                },
            }
            return Fitness(batch @ self.weight, details=[told] * len(batch))  # fmt: skip

    fit(pl, tmp_path, Completions(1, samples=1), generations=1, module=Odd())
    raw = (tmp_path / "completions.jsonl").read_text(encoding="utf-8")
    (row,) = [json.loads(line, parse_constant=pytest.fail) for line in raw.splitlines()]
    assert row["completion"] == "\x1b[2J\ud800é"
    assert "é" in raw
    assert row["rewards"] == {"f": None}
    assert row["object"] == "{1}"
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed
    assert "\\x1b[2J\\ud800é" in printed


# --- tables and loggers ---

ROWS = [
    {"member": 0, "is": "best", "sample": 0, "completion": "a\nb", "rewards": {"f": 1.0, "g": None}, "cut": True},
    {"member": 3, "is": "worst", "sample": 0, "completion": "c", "rewards": {"f": 0.5, "g": 2.0}, "cut": False},
]


def test_a_table_has_the_columns_that_say_something():
    table = as_table("Title", [{**row, "extras": {}, "note": None} for row in ROWS])
    assert [column.header for column in table.columns] == ["member", "is", "completion", "rewards", "cut"]
    assert [[str(cell) for cell in column.cells] for column in table.columns][2:] == [
        ["a\nb", "c"], ["f 1\ng -", "f 0.5\ng 2"], ["yes", ""],
    ]  # fmt: skip


def test_a_logger_with_tables_gets_one():
    class Logger:
        def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
            self.got = key, columns, data, step

    logger = Logger()
    log(logger, ROWS, 7)
    assert logger.got == (
        "completions",
        ["member", "is", "sample", "completion", "rewards", "cut"],
        [[0, "best", 0, "a\nb", '{"f": 1.0, "g": null}', True], [3, "worst", 0, "c", '{"f": 0.5, "g": 2.0}', False]],
        7,
    )


def test_a_logger_with_text_gets_it_where_markdown_leaves_it_alone():
    class Experiment:
        def add_text(self, tag, text_string, global_step=None):
            self.got = tag, text_string, global_step

    logger = type("Logger", (), {"experiment": Experiment()})()
    log(logger, ROWS[:1], 7)
    tag, text, step = logger.experiment.got
    assert (tag, step) == ("completions", 7)
    assert "    completion: a\n    b\n    rewards: f 1\n    g -" in text
    assert all(line.startswith("    ") for line in text.split("\n"))


def test_other_loggers_are_left_alone(pl, tmp_path):
    logger = importlib.import_module(f"{pl.__name__}.loggers").CSVLogger(tmp_path)
    fit(pl, tmp_path, Completions(1), generations=1, logger=logger, log_every_n_steps=1)
    assert lines(next(tmp_path.rglob("completions.jsonl")))[0]["step"] == 1
