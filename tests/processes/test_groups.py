"""Which members stay together: the same for a run's whole length and any number of processes."""

import pytest

from lightning_evo.algorithms import get
from lightning_evo.processes.groups import Groups
from lightning_evo.processes.ranks import Ranks


def population(members):
    algorithm = get("openai_es")(population=members)
    return algorithm.ask(algorithm.init())


def test_what_the_first_generation_ran_together_stays_together():
    groups, members = Groups(), population(16)
    assert groups.divide(Ranks(groups=2), members).share(members) == range(8)
    assert not groups.keep([0, 8], Ranks(groups=2), members)  # one process has not decided yet
    assert groups.size == 0
    assert groups.keep([8, 6], Ranks(groups=2), members)
    assert groups.size == 6
    assert not groups.keep([2, 2], Ranks(groups=2), members)  # once and for all
    assert groups.size == 6
    assert not Groups().keep([8], Ranks(), members)  # a single process has nobody to agree with


@pytest.mark.parametrize(("asked", "shares"), [(6, [range(12), range(12, 16)]), (0, [range(8), range(8, 16)])])
def test_groups_that_are_asked_for_are_whole_though_shares_are_less_even(asked, shares):
    groups, members, two = Groups(asked), population(16), Ranks(groups=2)
    groups.load(6)
    divided = groups.divide(two, members)
    assert [divided.share(members, group) for group in range(2)] == shares


def test_groups_of_a_run_of_fewer_processes_shrink_unless_they_are_asked_for():
    members, four = population(16), Ranks(groups=4)
    groups = Groups()
    groups.load(8)
    assert groups.shrink(four, members)
    assert groups.size == 4
    assert not groups.shrink(four, members)
    asked = Groups(8)
    assert not asked.shrink(four, members)
    asked.load(2)
    assert asked.size == 8
    groups.forget()
    assert groups.size == 0
