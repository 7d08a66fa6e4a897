"""Prompts as text and as messages, batches as rows, and padding on the left."""

import pytest
import torch

from lightning_evo.rewards.prompts import check_prompt, columns_of, padded, rows_of, text_of, tokens_of
from tests.rewards.models import LETTERS, tokenizer

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yes"}


def letters(*tokens):
    return [LETTERS.index(token) for token in tokens]


def test_text_stays_as_it_is():
    assert text_of("<user>hi", tokenizer()) == "<user>hi"


def test_messages_by_the_template():
    assert text_of([USER], tokenizer()) == "<user>hi <assistant>"
    assert text_of([USER, ASSISTANT, USER], tokenizer()) == "<user>hi <assistant>yes <user>hi <assistant>"
    assert text_of([USER], tokenizer(), shout=True) == "<user>hi?<assistant>"


def test_an_answer_that_is_begun_is_gone_on_with():
    assert text_of([USER, ASSISTANT], tokenizer()) == "<user>hi <assistant>yes"


def test_messages_need_a_template():
    with pytest.raises(ValueError, match="no chat template. Use a model that was tuned to instructions"):
        text_of([USER], tokenizer(chat_template=None))


class Adding:
    """A tokenizer that begins texts with a token, as Llama's does."""

    chat_template = "x"

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


def test_special_tokens_come_once():
    """The template has written those of messages."""
    assert tokens_of(["a", [USER]], ["a", "b"], Adding()) == [[1, 97], [98]]


def test_tokens():
    found = tokens_of(["ab", [USER]], ["ab", "<user>hi <assistant>"], tokenizer())
    assert found == [letters("a", "b"), letters("<user>", "h", "i", " ", "<assistant>")]
    with pytest.raises(ValueError, match="The prompt '' has no tokens"):
        tokens_of([""], [""], tokenizer())


def test_padding_is_on_the_left():
    ids, mask = padded([[5, 6, 7], [8], [9, 9]], pad=2)
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8], [2, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert ids.dtype == mask.dtype == torch.int64


def test_batches_of_both_kinds_are_rows():
    rows = [{"prompt": "a", "n": 1.5, "tags": ["x"]}, {"prompt": "b", "n": 2.5, "tags": ["y"]}]
    assert rows_of(rows) == rows
    assert rows_of({"prompt": ["a", "b"], "n": torch.tensor([1.5, 2.5]), "tags": [["x"], ["y"]]}) == rows
    assert rows_of(tuple(rows))[0] is not rows[0]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (["a", "b"], TypeError, r"a list with one dictionary for each sample, got \['a', 'b'\]. Use PromptData"),
        (torch.zeros(3), TypeError, "a list with one dictionary for each sample, got tensor"),
        ([], ValueError, "A batch of prompts is empty"),
        ([{"prompt": "a"}, {"question": "b"}], ValueError, 'Row 1 of a batch has no "prompt", only question'),
        ([{"prompt": 3}], TypeError, "The prompt of row 0 of a batch is 3. Give a text, or a list of messages"),
        ({"prompt": ["a", "b"], "n": [1]}, ValueError, "one entry for each sample, got prompt: 2, n: 1"),
        ({"prompt": "a"}, ValueError, "one entry for each sample, got prompt: str"),
    ],
)
def test_other_batches_are_refused(batch, error, message):
    with pytest.raises(error, match=message):
        rows_of(batch)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ValueError, "The prompt of row 3 has no messages"),
        (["hi"], TypeError, "The prompt of row 3 has a message without text as its \"role\": 'hi'"),
        ([{"role": "user", "content": [{"type": "image"}]}], TypeError, 'a message without text as its "content"'),
        (None, TypeError, "The prompt of row 3 is None"),
    ],
)
def test_other_prompts_are_refused(prompt, error, message):
    with pytest.raises(error, match=message):
        check_prompt(prompt, "row 3")


def test_columns_for_functions():
    rows = [{"prompt": "a", "answer": 1, "completion": "?"}, {"prompt": "b", "answer": None, "hint": "h"}]
    assert columns_of(rows) == {"answer": [1, None], "hint": [None, "h"]}
