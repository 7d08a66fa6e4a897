"""Runs that differ in their seeds are one band, and labels say what tells the others apart."""

from pathlib import Path

import pytest

from lightning_evo.curves.groups import Group, grouped
from lightning_evo.curves.runs import FITNESS, Run


def run(settings, name="version_0", values=(0.5,), evolves=True):
    curves = {"val_acc": list(enumerate(values, 1)), **({FITNESS: [(1, 0.0)]} if evolves else {})}
    return Run(Path("logs") / name, curves, settings)


def labels(*runs):
    return [(group.label, len(group.runs)) for group in grouped(runs)]


def test_only_what_differs_is_named():
    both = {"lr": 0.1, "strategy.algorithm": "eggroll", "hidden": 64}
    assert labels(
        run({**both, "strategy.sigma": 0.02, "strategy.population": 32}),
        run({**both, "strategy.sigma": 0.1, "strategy.population": 64}),
    ) == [("sigma=0.02, population=32", 1), ("sigma=0.1, population=64", 1)]


@pytest.mark.parametrize("seed", ["seed", "seed_everything", "strategy.seed", "strategy/seed"])
def test_seeds_of_the_same_settings_are_one_group(seed):
    runs = [run({"lr": lr, seed: number}) for lr in (0.1, 0.2) for number in range(3)]
    assert labels(*runs) == [("lr=0.1", 3), ("lr=0.2", 3)]
    assert labels(*runs[:3]) == [("version_0", 3)]


def test_where_a_run_was_logged_does_not_tell_it_apart():
    places = ("trainer.logger.save_dir", "trainer.callbacks", "trainer.default_root_dir", "ckpt_path", "version")
    assert labels(*(run({"lr": 0.1, **dict.fromkeys(places, number)}) for number in range(2))) == [("version_0", 2)]


def test_a_setting_that_two_files_name_is_shown_once():
    assert labels(
        run({"strategy.sigma": 0.1, "trainer.strategy.sigma": 0.1}),
        run({"strategy.sigma": 0.2, "trainer.strategy.sigma": 0.2}),
    ) == [("sigma=0.1", 1), ("sigma=0.2", 1)]


def test_two_settings_of_one_last_name_are_shown_in_full():
    assert labels(run({"model.size": 1, "data.size": 2}), run({"model.size": 2, "data.size": 1})) == [
        ("model.size=1, data.size=2", 1),
        ("model.size=2, data.size=1", 1),
    ]


def test_backpropagation_beside_evolution():
    """What only one kind has is no difference between the kinds."""
    evolution = {"lr": 0.1, "strategy.algorithm": "mezo", "strategy.population": 2}
    assert labels(run(evolution), run({"lr": 0.1}, evolves=False)) == [("mezo", 1), ("backpropagation", 1)]
    assert labels(
        run({**evolution, "strategy.sigma": 0.1}),
        run({**evolution, "strategy.sigma": 0.2, "strategy.algorithm": "lozo"}),
        run({"lr": 0.3}, evolves=False),
    ) == [("mezo, lr=0.1, sigma=0.1", 1), ("lozo, lr=0.1, sigma=0.2", 1), ("backpropagation, lr=0.3", 1)]
    assert labels(run({"lr": 0.1}), run({"lr": 0.1}, evolves=False)) == [("evolution", 1), ("backpropagation", 1)]


def test_runs_without_settings_have_their_folders_names():
    assert labels(run({}, "a"), run({}, "b")) == [("a", 1), ("b", 1)]
    assert labels(run({}, "a"), run({"lr": 0.1}, "b")) == [("a", 1), ("lr=0.1", 1)]


def test_algorithms_are_named_without_a_key():
    assert labels(run({"strategy.algorithm": "mezo", "lr": 1}), run({"strategy.algorithm": "lozo", "lr": 2})) == [
        ("mezo, lr=1", 1),
        ("lozo, lr=2", 1),
    ]
    both = ("algorithm", "strategy.algorithm")
    assert labels(run(dict.fromkeys(both, "mezo")), run(dict.fromkeys(both, "lozo"))) == [("mezo", 1), ("lozo", 1)]


def test_values_are_short():
    assert labels(run({"lr": 1e-5, "note": "x" * 99}), run({"lr": 0.25, "note": None})) == [
        (f"lr=1e-05, note={'x' * 29}…", 1),
        ("lr=0.25, note=None", 1),
    ]


def test_the_band_is_median_and_spread_where_all_have_values():
    group = Group("", [run({}, values=values) for values in ([0.0, 0.2, 0.4], [0.1, 0.1, 0.1, 0.9], [0.5, 0.0, 0.6])])
    band = group.band("val_acc")
    assert band.steps == [1, 2, 3]
    assert band.median == [0.1, 0.1, 0.4]
    assert band.lowest == [0.0, 0.0, 0.1]
    assert band.highest == [0.5, 0.2, 0.6]
    assert Group("", [run({})]).band("val_acc") is None
    assert group.band("nothing") is None


def test_between_its_steps_a_curve_is_a_straight_line():
    one, other = ({"val_acc": [(0, 0.0), (4, 1.0)]}, {"val_acc": [(1, 0.5), (3, 0.5), (9, 0.5)]})
    band = Group("", [Run(Path(), curves, {}) for curves in (one, other)]).band("val_acc")
    assert (band.steps, band.lowest, band.highest) == ([1, 3, 4], [0.25, 0.5, 0.5], [0.5, 0.75, 1.0])


def test_runs_of_which_none_saw_the_others_steps_have_no_band():
    curves = [{"val_acc": [(0, 0.0)]}, {"val_acc": [(5, 0.0)]}]
    assert Group("", [Run(Path(), one, {}) for one in curves]).band("val_acc") is None
