"""Words of messages: short, on one line, and nothing that a value does can prevent them."""

import numpy
import pytest
import torch

from lightning_evo.utils.messages import did_you_mean, first_line, first_sentence, preview, shown


def test_the_closest_word():
    assert did_you_mean("zscore", ["raw", "z_score"]) == " Did you mean 'z_score'?"
    assert did_you_mean("xyz", ["raw", "z_score"]) == ""
    assert did_you_mean("", []) == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n\n  one  \ntwo"), "one  "),
        (ValueError(), ""),
        (ValueError("  \n "), ""),
        (KeyError("name"), "'name'"),
        ("one\r\ntwo", "one"),
        (ValueError("x" * 1000), "x" * 200),
    ],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("One. Two.", "One"),
        ("a version 2.5 of it. And more", "a version 2.5 of it"),
        ("calls `f()`! No", "calls `f()`"),
        ("no stop", "no stop"),
        ("first line\nsecond", "first line"),
        ("word " * 100, ("word " * 32).rstrip() + "…"),
        (ValueError(), ""),
        ("x" * 500, "x" * 160 + "…"),
    ],
)
def test_the_first_sentence_of_an_error(error, sentence):
    assert first_sentence(error) == sentence


def test_previews():
    assert preview([]) == ""
    assert preview(["a", "b"], 2) == "a, b"
    assert preview([str(i) for i in range(25)], 3) == "0, 1, 2, … (22 more)"


class Rude:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("many", "'many'"),
        ("x" * 200, "'" + "x" * 79 + "…"),
        (numpy.eye(2), "array([[1., 0.], [0., 1.]])"),
        (torch.tensor(4), "tensor(4)"),
        (Rude(), "a value of type Rude"),
        pytest.param(10**5000, "a value of type int", id="an int that Python does not print"),
    ],
)
def test_values_as_messages_show_them(value, text):
    assert shown(value) == text
