"""Options that are code are told apart in a journal."""

import functools

import pytest

from lightning_evo import EvoStrategy, algorithms
from lightning_evo.journal.code import name_of_code


def made(factor):
    def shaping(fitness, per_direction):
        return fitness * factor

    return shaping


class Shaping:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, fitness, per_direction):
        return fitness * self.factor

    def again(self, fitness, per_direction):
        return fitness * self.factor


def scaled(fitness, per_direction, factor=1.0):
    return fitness * factor


PAIRS = [  # made twice alike, and once differently
    (lambda: lambda fitness, n: fitness + 1, lambda: lambda fitness, n: fitness - 1),
    (lambda: lambda fitness, n: fitness + 1, lambda: lambda fitness, n: fitness + 2),
    (lambda: lambda fitness, n: fitness.mean(), lambda: lambda fitness, n: fitness.sum()),
    (lambda: lambda fitness, n, by=1: fitness / by, lambda: lambda fitness, n, by=2: fitness / by),
    (lambda: lambda fitness, n: [f + 1 for f in fitness], lambda: lambda fitness, n: [f + 2 for f in fitness]),
    (lambda: made(1.0), lambda: made(2.0)),
    (lambda: functools.partial(scaled, factor=1.0), lambda: functools.partial(scaled, factor=2.0)),
    (lambda: functools.partial(scaled, factor=1.0), lambda: functools.partial(made, factor=1.0)),
    (lambda: Shaping(1.0), lambda: Shaping(2.0)),
    (lambda: Shaping(1.0).again, lambda: Shaping(2.0).again),
    (lambda: made(scaled), lambda: made(made)),
]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=map(str, range(len(PAIRS))))
def test_what_differs_has_another_name(one, other):
    assert name_of_code(one()) == name_of_code(one())
    assert name_of_code(one()) != name_of_code(other())


def test_names():
    assert name_of_code(scaled) == f"{__name__}.scaled"
    assert name_of_code(Shaping) == f"{__name__}.Shaping"
    assert name_of_code(functools.partial(scaled, factor=2)) == f"functools.partial({__name__}.scaled, factor=2)"
    assert name_of_code(object()) == "builtins.object"
    assert name_of_code(len) == "builtins.len"


def test_a_function_that_refers_to_itself_has_an_end():
    def make():
        def shaping(fitness, n):
            return shaping if n else fitness

        return shaping

    assert name_of_code(make()) == name_of_code(make())


def test_of_an_object_only_plain_attributes_count():
    """What it holds on to may be large, or a module that learns."""
    one, other = Shaping(1.0), Shaping(1.0)
    other.module, other.itself = [1.0] * 10, other
    assert name_of_code(one) == name_of_code(other)


def test_two_lambdas_in_the_description_of_an_algorithm():
    from lightning_evo.journal import describe_algorithm

    def described(shaping):
        return describe_algorithm(algorithms.get("openai_es")(shaping=shaping))["shaping"]

    assert described(lambda fitness, n: fitness) == described(lambda fitness, n: fitness)
    assert described(lambda fitness, n: fitness) != described(lambda fitness, n: -fitness)
    assert EvoStrategy(shaping=made(2.0)).evolution.algorithm.shaping
