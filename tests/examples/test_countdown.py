"""The example of Countdown: its problems, what the tiny model is taught, and that both configurations run."""

import itertools
from fractions import Fraction
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

pytest.importorskip("transformers")

from examples.countdown.data import CountdownData, problems, question
from examples.countdown.model import CountdownModule, teach, tiny, tokenizer
from examples.countdown.run import main
from lightning_evo.cli.command import EvoCLI
from lightning_evo.rewards.ready import Countdown

FOLDER = Path(__file__).parents[2] / "examples" / "countdown"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of DeepSpeed, which transformers imports if it is there
    pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found .* module\\(s\\) in eval mode:UserWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model without any lesson."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


# --- problems ---


def reachable(values):
    """All that numbers come to, each used once."""
    if len(values) == 1:
        return set(values)
    found = set()
    for i, j in itertools.permutations(range(len(values)), 2):
        rest = [value for k, value in enumerate(values) if k not in (i, j)]
        one, other = values[i], values[j]
        results = {one + other, one - other, one * other} | ({one / other} if other else set())
        for result in results:
            found |= reachable([*rest, result])
    return found


@pytest.mark.parametrize("numbers", [2, 3])
def test_problems_can_be_solved(numbers):
    found = problems(50, numbers=numbers, largest=20)
    assert len({(*sorted(problem["nums"]), problem["target"]) for problem in found}) == 50
    for problem in found:
        assert len(problem["nums"]) == numbers
        assert all(1 <= number <= 20 for number in problem["nums"])
        assert 0 < problem["target"] <= 200
        assert problem["target"] in reachable([Fraction(number) for number in problem["nums"]])
    assert found == problems(50, numbers=numbers, largest=20)
    assert found != problems(50, numbers=numbers, largest=20, seed=1)


def test_there_are_only_so_many_problems():
    with pytest.raises(ValueError, match="fewer than 5 problems with 2 numbers up to 1;"):
        problems(5, numbers=2, largest=1)


def test_held_out_problems_are_others_and_rewarded_by_the_rule():
    data = CountdownData(batch_size=4, train=20, held_out=10)
    rows = [data.train_rows[i] for i in range(20)] + [data.validation_rows[i] for i in range(10)]
    assert len({(*sorted(row["nums"]), row["target"]) for row in rows}) == 30
    (message,) = rows[0]["prompt"]
    assert message["role"] == "user"
    for number in [*rows[0]["nums"], rows[0]["target"]]:
        assert str(number) in message["content"]
    assert question({"nums": [3, 7], "target": 21}, chat=False) == "3 7 = 21 ?"
    assert Countdown()(completions=["<answer>7*3</answer>"], nums=[[3, 7]], target=[21]) == [1.0]


# --- the tiny model ---


def test_the_tokenizer_reads_what_the_model_writes():
    reader = tokenizer()
    text = "3 7 = 21 ?<answer>7*3</answer></s>"
    ids = reader(text)["input_ids"]
    assert reader.convert_ids_to_tokens(ids)[-6:] == ["<answer>", "7", "*", "3", "</answer>", "</s>"]
    assert reader.decode(ids, skip_special_tokens=True) == "3 7 = 21 ?<answer>7*3</answer>"


def test_a_lesson_teaches_how_an_answer_looks(folder):
    torch.manual_seed(0)
    model, reader = tiny(), tokenizer()
    rows = [{"prompt": question(row, chat=False), **row} for row in problems(40, numbers=2, largest=9)]
    losses = [teach(model, reader, rows, steps=steps) for steps in (1, 60)]
    assert losses[1] < 0.5 * losses[0]
    model.save_pretrained(folder / "taught")
    reader.save_pretrained(folder / "taught")
    texts = CountdownModule(str(folder / "taught"), 8, "float32").generate([row["prompt"] for row in rows])
    assert sum(text.startswith("<answer>") and text.endswith("</answer>") for text in texts) >= 30


# --- both configurations ---


def quiet(monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["lightning-evo"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.mark.slow
def test_the_tiny_one_runs(tmp_path, monkeypatch, capsys):
    quiet(monkeypatch, tmp_path)
    pytest.importorskip("matplotlib")
    threads = torch.get_num_threads()
    try:
        main(
            [
                "--trainer.max_steps=2", "--trainer.val_check_interval=1", "--trainer.enable_progress_bar=false",
                "--trainer.strategy.init_args.population=4", "--data.init_args.batch_size=4",
            ],
            folder=tmp_path / "model",
            steps=2,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "Taught a model of 54,096 parameters" in printed
    assert "Completions of generation 1" in printed
    assert "val/reward (held out), generation 2" in printed
    assert list(tmp_path.rglob("completions.jsonl"))


def test_the_configuration_for_a_gpu_describes_a_run(tmp_path, monkeypatch, folder):
    quiet(monkeypatch, tmp_path)
    pytest.importorskip("matplotlib")
    cli = EvoCLI(
        args=[
            "--config", str(FOLDER / "config.yaml"), "--trainer.accelerator=cpu",
            f"--model.init_args.model={folder}",
        ],
        run=False,
        save_config_callback=None,
    )  # fmt: skip
    assert isinstance(cli.model, CountdownModule)
    assert isinstance(cli.datamodule, CountdownData)
    assert isinstance(cli.trainer, pl.Trainer)
    assert {parameter.dtype for parameter in cli.model.parameters()} == {torch.bfloat16}
    assert cli.trainer.strategy.evolution.algorithm.population == 30
    assert len(next(iter(cli.datamodule.train_dataloader()))) == 200
