"""Ready-made rewards: tables of cases by hand, hostile texts, and that they can be sent to a worker."""

import pickle
import re
import threading
from decimal import Decimal
from fractions import Fraction

import pytest

from lightning_evo.rewards.ready import (
    Countdown,
    ExactMatch,
    LengthPenalty,
    NumberMatch,
    PatternMatch,
    ValidJSON,
    number_in,
    value_of,
)

ALL = {
    "exact_match": ExactMatch(),
    "pattern_match": PatternMatch(r"\d+"),
    "number_match": NumberMatch(),
    "length_penalty": LengthPenalty(10),
    "countdown": Countdown(),
    "valid_json": ValidJSON(),
}
COLUMNS = {"answer": ["5"], "nums": [[2, 3]], "target": [5]}
LONG = 100_000


def conversational(text):
    return [{"role": "assistant", "content": text}]


def one(reward, text, **columns):
    """The reward of one completion, which is the same for a text and a conversation."""
    columns = {name: [value] for name, value in columns.items()}
    (value,) = reward(prompts=["?"], completions=[text], **columns)
    assert reward(prompts=[conversational("?")], completions=[conversational(text)], **columns) == [value]
    return value


def in_seconds(seconds, call):
    """What a call gives, if it ends in time; in a thread, as Python can't interrupt the search of an expression."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"not done in {seconds} seconds"
    return found[0]


# --- what all have in common ---


@pytest.mark.parametrize("name", ALL)
def test_names_are_those_that_trl_logs_and_a_copy_gives_the_same(name):
    reward = ALL[name]
    assert reward.__name__ == name
    copied = pickle.loads(pickle.dumps(reward))
    assert copied == reward
    texts = ["5", "<answer>2 + 3</answer>"]
    columns = {key: value * 2 for key, value in COLUMNS.items()}
    assert copied(completions=texts, **columns) == reward(completions=texts, **columns)
    assert repr(reward) == repr(eval(repr(reward)))


@pytest.mark.parametrize("name", ALL)
def test_one_reward_for_each_completion_and_what_is_not_asked_for_is_ignored(name):
    extra = {"prompts": ["a", "b"], "completion_ids": [[1], [2, 3]], "trainer_state": None, "log_metric": print}
    columns = {key: value * 2 for key, value in COLUMNS.items()}
    assert len(ALL[name](completions=["x", "y"], **extra, **columns)) == 2
    assert ALL[name](completions=[], prompts=[], **{key: [] for key in COLUMNS}) == []


@pytest.mark.parametrize("name", ["exact_match", "number_match", "countdown"])
def test_a_column_that_is_not_there_is_named(name):
    with pytest.raises(KeyError, match=f"{name} reads the column '.*', and the data has none. It has: level"):
        ALL[name](completions=["5"], level=[1])


@pytest.mark.parametrize("completion", [5, None, [], [{"role": "assistant"}], [{"role": "assistant", "content": None}]])
def test_a_completion_that_is_no_text(completion):
    with pytest.raises(TypeError, match="must be a text, or a list of messages"):
        ExactMatch()(completions=[completion], answer=["5"])


def test_the_last_message_counts():
    completion = [{"role": "assistant", "content": "4"}, {"role": "tool", "content": "?"}, *conversational("5")]
    assert ExactMatch()(completions=[completion], answer=["5"]) == [1.0]


# --- exact match ---


@pytest.mark.parametrize(
    ("options", "text", "answer", "expected"),
    [
        ({}, "Paris", "Paris", 1),
        ({}, " Paris\n", "Paris", 1),
        ({}, "paris", "Paris", 0),
        ({}, "Paris.", "Paris", 0),
        ({}, "5", 5, 1),
        ({"strip": False}, " Paris", "Paris", 0),
        ({"casefold": True}, "STRASSE", "straße", 1),
        ({}, "anything", None, None),
        ({}, "", "", 1),
    ],
)
def test_exact_match(options, text, answer, expected):
    assert one(ExactMatch(**options), text, answer=answer) == expected
    assert one(ExactMatch("capital", **options), text, capital=answer) == expected


# --- regular expressions ---


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({"pattern": "b+"}, "abbc", 1),
        ({"pattern": "b+", "whole": True}, "abbc", 0),
        ({"pattern": "ab+c", "whole": True}, "abbc", 1),
        ({"pattern": "ab+c", "whole": True}, "abbc\n", 0),  # `$` would take it
        ({"pattern": "B"}, "abc", 0),
        ({"pattern": "B", "flags": re.IGNORECASE}, "abc", 1),
        ({"pattern": "a.c"}, "a\nc", 0),
        ({"pattern": "a.c", "flags": re.DOTALL}, "a\nc", 1),
    ],
)
def test_pattern_match(options, text, expected):
    assert one(PatternMatch(**options), text) == expected


def test_a_pattern_that_is_none():
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression: missing \)"):
        PatternMatch("(")


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### 18", 18, 18),
        ("####18", 18, 18),
        ("#### 5 and then\n#### 18", 18, 18),
        ("#### -18", -18, -18),
        ("#### $18.", 18, 18),
        ("#### -$18", -18, -18),
        ("#### $-18", -18, -18),
        ("#### 1,234,567.50", "1234567.5", "1234567.5"),
        ("#### .5", "0.5", "0.5"),
        ("#### 18 (or 20)", 18, 20),
        ("### 18", None, 18),
        ("#### eighteen", None, None),
        ("12 apples", None, 12),
        ("12 of 15, that is", None, 15),
        ("It costs $3.50.", None, "3.5"),
        ("3-5", None, 5),
        ("3 - 5", None, 5),
        ("3 = -5", None, -5),
        ("3--5", None, -5),
        ("(-5)", None, -5),
        ("x-5", None, 5),
        ("version 1.2.3", None, 3),
        ("1e5", None, 5),
        ("no number", None, None),
        ("$", None, None),
        (",.-", None, None),
        ("", None, None),
        ("١٢ and ５", None, None),  # digits, but not ASCII's
        ("#### ５", None, None),
    ],
)
def test_number_in(text, strict, flexible):
    assert number_in(text, "strict") == (None if strict is None else Decimal(strict))
    assert number_in(text) == (None if flexible is None else Decimal(flexible))


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("so 18", 18, 1),
        ("so 18", 18.0, 1),
        ("so 18.00", "18", 1),
        ("so 0.0000001", 1e-7, 1),
        ("so 18", "She has 16 - 3 = 13.\n#### 18", 1),
        ("so 13", "She has 16 - 3 = 13.\n#### 18", 0),
        ("so 1,000", "$1,000", 1),
        ("none", 18, 0),
        ("so 18", None, None),
        ("so 0.1", 0.1, 1),
        ("so 9007199254740993", 9007199254740992, 0),  # equal as floats
    ],
)
def test_number_match(text, answer, expected):
    assert one(NumberMatch(), text, answer=answer) == expected


def test_strict_wants_the_mark():
    assert one(NumberMatch(parser="strict"), "It is 18", answer=18) == 0
    assert one(NumberMatch(parser="strict"), "#### 18", answer=18) == 1
    with pytest.raises(ValueError, match="Unknown parser 'exact'"):
        NumberMatch(parser="exact")


@pytest.mark.parametrize("answer", ["eighteen", "", [18], True, float("nan")])
def test_an_answer_without_a_number(answer):
    with pytest.raises(ValueError, match="number_match found no number in the answer"):
        NumberMatch()(completions=["18"], answer=[answer])


# --- length ---


@pytest.mark.parametrize(
    ("options", "text", "columns", "expected"),
    [
        ({"target": 3}, "abcde", {}, -2),
        ({"target": 3}, "a", {}, -2),
        ({"target": 3, "shorter_is_fine": True}, "a", {}, 0),
        ({"target": 3, "shorter_is_fine": True, "scale": 0.5}, "abcd", {}, -0.5),
        ({"target": "answer"}, "abcde", {"answer": "abc"}, -2),
        ({"target": "answer"}, "abcde", {"answer": 4}, -1),
        ({"target": "answer"}, "abcde", {"answer": None}, None),
        ({"target": 2, "unit": "words"}, " one  two\nthree ", {}, -1),
        ({"target": "answer", "unit": "words"}, "one two", {"answer": "one"}, -1),
        ({"target": 2, "unit": "tokens"}, "whatever", {"completion_ids": [5, 6, 7]}, -1),
        ({"target": 2}, "é😀", {}, 0),
    ],
)
def test_length_penalty(options, text, columns, expected):
    assert one(LengthPenalty(**options), text, **columns) == expected


def test_length_penalty_says_what_it_lacks():
    with pytest.raises(ValueError, match="was given no `completion_ids`"):
        LengthPenalty(2, unit="tokens")(completions=["a"])
    with pytest.raises(ValueError, match="column 'answer' has texts, whose tokens are not known"):
        LengthPenalty("answer", unit="tokens")(completions=["a"], completion_ids=[[1]], answer=["a"])
    with pytest.raises(ValueError, match="Unknown unit 'chars'"):
        LengthPenalty(2, unit="chars")
    with pytest.raises(ValueError, match="target must be"):
        LengthPenalty(-1)
    with pytest.raises(ValueError, match="scale must be"):
        LengthPenalty(1, scale=float("nan"))


# --- Countdown ---


@pytest.mark.parametrize(
    ("answer", "expected"),  # with the numbers 2, 5, 6 and the target 20
    [
        ("(6 - 2) * 5", 1),
        ("5*(6-2)", 1),
        ("-(2 - 6) * 5", 1),
        ("(6\n-\t2) * 5", 1),
        (" ( 6 - 2 ) * 5 ", 1),
        ("5 / (2 / 6) + 5", 0.1),  # 20, with 5 twice
        ("4 * 5", 0.1),  # not the numbers
        ("20", 0.1),
        ("(6 - 2) * 5 + 0", 0.1),
        ("(6 - 2) * 5 = 20", 0.1),
        ("6 * 2 + 5", 0.1),  # 17
        ("(6 - 2) × 5", 0.1),
        ("6 - 2) * 5", 0.1),
        ("5 (6 - 2)", 0.1),
        ("6 / (2 - 2) * 5", 0.1),
        ("", 0.1),
        ("__import__('os')", 0.1),
    ],
)
def test_countdown(answer, expected):
    text = f"<think>Let me see.</think>\n<answer>{answer}</answer>"
    assert one(Countdown(), text, nums=[2, 5, 6], target=20) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 3", 0),
        ("<answer>2 + 3", 0),
        ("</answer>2 + 3<answer>", 0),
        ("<answer>1 + 1</answer> no: <answer>2 + 3</answer>", 1),
        ("<answer>2 + 3</answer> or <answer>1 + 1</answer>", 0.1),
        ("<answer>what <answer>2 + 3</answer>", 1),
        ("<answer>2 + 3</answer><answer>", 1),
    ],
)
def test_the_last_answer_of_countdown_counts(text, expected):
    assert one(Countdown(), text, nums=[3, 2], target=5) == expected


@pytest.mark.parametrize(
    ("equation", "numbers", "target", "expected"),
    [
        ("2 ** 3", [2, 3], 8, 0.1),
        ("7 // 2", [7, 2], 3, 0.1),
        ("1.5", [1, 5], 1.5, 0.1),
        ("1 / 3 * 3", [1, 3, 3], 1, 1),
        ("1 / 99999", [1, 99999], 0, 0.1),  # 1.00001e-5 away
        ("1 / 100001", [1, 100001], 0, 1),
        ("07 + 1", [7, 1], 8, 0.1),  # no number in Python
        ("1_0 + 1", [10, 1], 11, 0.1),
        ("٣ + ٢", [3, 2], 5, 0.1),
    ],
)
def test_the_loopholes_of_countdown_are_closed(equation, numbers, target, expected):
    assert one(Countdown(), f"<answer>{equation}</answer>", nums=numbers, target=target) == expected


def test_the_names_of_countdowns_columns_and_its_reward_for_the_format():
    reward = Countdown("numbers", "goal", format_reward=0)
    assert one(reward, "<answer>1 + 2</answer>", numbers=[1, 2], goal=3) == 1
    assert one(reward, "<answer>3</answer>", numbers=[1, 2], goal=3) == 0
    with pytest.raises(ValueError, match="format_reward"):
        Countdown(format_reward=float("inf"))


def test_value_of_is_exact():
    assert value_of("1/3 + 1/6") == Fraction(1, 2)
    assert value_of("10000000000000001 - 10000000000000000") == 1
    assert value_of("- - 2") == 2


# --- JSON ---


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({}, '{"a": [1, 2.5, null, true]}', 1),
        ({}, ' \n"text" ', 1),
        ({}, "5", 1),
        ({}, "{'a': 1}", 0),
        ({}, '{"a": 1,}', 0),
        ({}, '{"a": 1} and more', 0),
        ({}, "NaN", 0),
        ({}, "[-Infinity]", 0),
        ({}, "", 0),
        ({}, '```json\n{"a": 1}\n```', 0),
        ({"fenced": True}, 'Here:\n```json\n{"a": 1}\n```\nGood?', 1),
        ({"fenced": True}, '```\r\n{"a": 1}\r\n```', 1),
        ({"fenced": True}, '```json\n{"a": 1}', 0),
        ({"fenced": True}, "```python\nx = 1\n```", 0),
        ({"fenced": True}, '```json\n{"a":\u2028 1}\n```', 0),
        ({"fenced": True}, '```json\n{"a": "\u2028"}\n```', 1),
        ({"fenced": True}, '{"a": 1}', 0),
        ({"keys": ["a"]}, '{"a": null}', 1),
        ({"keys": ["a", "b"]}, '{"a": 1}', 0),
        ({"keys": ["a"]}, '["a"]', 0),
        ({"keys": ["a"]}, '{"x": {"a": 1}}', 0),
        ({"keys": ("a",), "fenced": True}, '```json\n{"a": 1}\n```', 1),
    ],
)
def test_valid_json(options, text, expected):
    assert one(ValidJSON(**options), text) == expected


def test_keys_are_several():
    with pytest.raises(TypeError, match=r"such as \['city'\], got the text 'city'"):
        ValidJSON(keys="city")


# --- hostile texts ---


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("9" * LONG, id="digits"),
        pytest.param("9," * LONG, id="thousands"),
        pytest.param("-" * LONG, id="signs"),
        pytest.param("$" * LONG, id="dollars"),
        pytest.param("." * LONG, id="dots"),
        pytest.param("[" * LONG, id="brackets"),
        pytest.param("[" * LONG + "]" * LONG, id="closed brackets"),
        pytest.param('{"a":' * LONG, id="objects"),
        pytest.param("#" * LONG, id="marks"),
        pytest.param("#### " * LONG, id="marks and spaces"),
        pytest.param("####" + " " * LONG, id="mark and spaces"),
        pytest.param("```json\n" * LONG, id="fences"),
        pytest.param("<answer>" * LONG, id="openings"),
        pytest.param("</answer>" * LONG, id="closings"),
        pytest.param(f"<answer>{'9' * LONG}</answer>", id="answer of digits"),
        pytest.param(f"<answer>{'(' * LONG}2+3{')' * LONG}</answer>", id="answer in parentheses"),
        pytest.param(f"<answer>{'(' * 400}2+3{')' * 400}</answer>", id="answer in 400 parentheses"),
        pytest.param(f"<answer>{'-' * 981}2+3</answer>", id="answer with 981 signs"),
        pytest.param("<answer>" + "*".join("9" * 500) + "</answer>", id="a product of 500"),
        pytest.param("<answer>9**9**9**9</answer>", id="powers"),
        pytest.param("<answer>9<<9999999999</answer>", id="shifts"),
        pytest.param("<answer>1/0</answer>", id="division by zero"),
        pytest.param("<answer>\0 2+3</answer>", id="null"),
        pytest.param("\ud800", id="half of a character"),
        pytest.param("٣" * LONG, id="digits of another script"),
    ],
)
def test_hostile_texts_take_no_time_and_get_no_more_than_the_format(name, text):
    reward = ALL[name]
    (value,) = in_seconds(20, lambda: reward(completions=[text], completion_ids=[[]], **COLUMNS))
    if name == "pattern_match" or text[:1] == "9":
        return  # `\d+` does find digits, and a number of 100,000 digits is JSON
    assert value <= 0.1
