"""Checks of options: what passes comes back as Python's own, what doesn't is named with what was expected."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from lightning_evo.utils.options import as_whole, check_callable, flag, number, one_of, whole, whole_or_auto


def says(message, check, *arguments, **options):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        check("option", *arguments, **options)
    assert str(raised.value) == message


# --- whole numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [4, numpy.int64(4), numpy.uint8(4), numpy.array(4), torch.tensor(4), torch.tensor(4, dtype=torch.uint8)],
)
def test_whole_numbers(value):
    assert (as_whole(value), type(as_whole(value))) == (4, int)
    assert (whole("option", value), type(whole("option", value))) == (4, int)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, numpy.True_, torch.tensor(True), 4.0, numpy.float64(4), torch.tensor(4.0), Fraction(4), 4j),
        *("4", b"4", [4], (4,), numpy.array([4]), torch.tensor([4]), torch.tensor(4, device="meta"), int, object()),
        *(math.nan, math.inf),
    ],
)
def test_what_is_no_whole_number(value):
    assert as_whole(value) is None
    with pytest.raises(ValueError, match=r"^option must be a whole number >= 1, got "):
        whole("option", value)
    with pytest.raises(ValueError, match=r"^option must be 'auto' or a whole number >= 1, got "):
        whole_or_auto("option", value)


def test_limits_of_whole_numbers():
    assert whole("option", 0, 0) == 0
    assert whole("option", 8, maximum=8) == 8
    assert whole("option", (1 << 63) - 1) == (1 << 63) - 1
    says("option must be a whole number >= 2 (one is too few), got 1.", whole, 1, 2, why="one is too few")
    says("option must be a whole number <= 8, got 9.", whole, 9, 2, 8, why="one is too few")
    says("option must be a whole number <= 9223372036854775807, got 9223372036854775808.", whole, 1 << 63)
    says("option must be a whole number >= 1, got -1.", whole, torch.tensor(-1).item())


def test_integers_that_python_does_not_print():
    says("option must be a whole number <= 9223372036854775807, got a value of type int.", whole, 10**5000)


def test_auto():
    assert whole_or_auto("option", "auto") == "auto"
    assert whole_or_auto("option", numpy.str_("auto")) == "auto"
    assert whole_or_auto("option", 2) == 2
    says("option must be 'auto' or a whole number >= 1, got 0.", whole_or_auto, 0)
    two = numpy.array(["auto", "auto"])
    says("option must be 'auto' or a whole number >= 1, got array(['auto', 'auto'], dtype='<U4').", whole_or_auto, two)


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        numpy.float64(0.5),
        numpy.float32(0.5),
        numpy.array(0.5),
        torch.tensor(0.5),
        Fraction(1, 2),
        torch.tensor(0.5, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor(0.5)),
    ],
)
def test_numbers(value):
    assert (number("option", value), type(number("option", value))) == (0.5, float)


def test_whole_numbers_stay_whole():
    assert type(number("option", numpy.int64(3))) is int
    assert type(number("option", 1 << 64)) is float  # torch takes no such int


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        numpy.True_,
        "0.5",
        Decimal("0.5"),
        Fraction(10**400),
        1j,
        [0.5],
        numpy.array([0.5]),
        math.nan,
        math.inf,
        -math.inf,
        torch.tensor(math.nan),
        torch.tensor([0.5]),
        torch.tensor(0.5, device="meta"),
        float,
        object(),
    ],
)
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match=r"^option must be a number, got "):
        number("option", value)


@pytest.mark.parametrize(
    ("value", "limits", "wanted"),
    [
        (0, {"above": 0}, "a number > 0"),
        (-0.5, {"minimum": 0}, "a number >= 0"),
        (1, {"below": 1}, "a number < 1"),
        (1.5, {"maximum": 1}, "a number <= 1"),
        (0, {"above": 0, "below": 1}, "a number in (0, 1)"),
        (1, {"minimum": 0, "below": 1}, "a number in [0, 1)"),
        (0, {"above": 0, "maximum": 1}, "a number in (0, 1]"),
        (1.5, {"minimum": 0, "maximum": 1}, "a number in [0, 1]"),
        (2, {"maximum": 1, "wanted": "a share"}, "a share"),
    ],
)
def test_limits_of_numbers(value, limits, wanted):
    says(f"option must be {wanted}, got {value}.", number, value, **limits)


def test_limits_that_are_reached():
    assert number("option", 0, minimum=0, maximum=1) == 0
    assert number("option", 1, minimum=0, maximum=1) == 1


@pytest.mark.parametrize("value", [1e39, -1e39, 10**40, 10**400, numpy.float64(1e300)])
def test_numbers_beyond_float32(value):
    with pytest.raises(ValueError, match=r"^option must be a number that float32 can hold \(at most 3.4e\+38\), got "):
        number("option", value)


def test_the_largest_number():
    largest = torch.finfo(torch.float32).max
    assert number("option", largest) == largest


# --- words, flags and functions -------------------------------------------------------------------------------------


def test_words():
    assert one_of("option", "raw", ["raw", "z_score"]) == "raw"
    assert type(one_of("option", numpy.str_("raw"), ["raw", "z_score"])) is str
    message = "Unknown option 'zscore'. Did you mean 'z_score'? Choose one of raw, z_score."
    says(message, one_of, "zscore", ["raw", "z_score"])


@pytest.mark.parametrize("value", [None, 1, True, [], {}, ["raw"], numpy.array(["raw", "raw"]), b"raw", object(), len])
def test_what_is_no_word(value):
    with pytest.raises(ValueError, match=r"^Unknown option .*\. Choose one of raw, z_score\.$"):
        one_of("option", value, ["raw", "z_score"])


@pytest.mark.parametrize("value", [True, numpy.True_, torch.tensor(True), numpy.array(True)])
def test_flags(value):
    assert flag("option", value) is True


@pytest.mark.parametrize("value", [None, 0, 1, "true", "", [], torch.tensor([True]), torch.tensor(1)])
def test_what_is_no_flag(value):
    with pytest.raises(ValueError, match=r"^option must be True or False, got "):
        flag("option", value)


class Callable:
    def __call__(self, first, second):
        return first


@pytest.mark.parametrize(
    "value", [lambda first, second: 0, lambda *values: 0, lambda a, b, c=0: 0, Callable(), max, torch.mul, print]
)
def test_functions(value):
    check_callable("option", value, "first", "second")


@pytest.mark.parametrize(
    "value", [None, 3, "max", lambda: 0, lambda one: 0, lambda a, b, c: 0, lambda a, *, b: 0, len, int, Callable]
)
def test_what_is_no_such_function(value):
    with pytest.raises(ValueError, match=r"^option must be a function of \(first, second\), got "):
        check_callable("option", value, "first", "second")
