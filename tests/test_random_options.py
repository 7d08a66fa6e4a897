"""Random options: a strategy works, or says which of them is wrong and why.

Each set is of one to three options with ordinary and hostile values. What is built must run a generation of a small
model, and leave finite weights.
"""

import random
import re
import traceback
import warnings
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from inspect import signature

import numpy
import pytest
import torch
from torch import nn

from lightning_evo import Anchor, EvoDDPStrategy, EvolutionStrategy, EvoStrategy, Schedule, algorithms
from lightning_evo.utils.messages import shown

SETS, SEED = 4000, 20261126
RUN_UP_TO = 512  # members; more are legal, but only built


class Rude:
    """Answers no question."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __eq__(self, other):
        raise RuntimeError("no ==")

    def __bool__(self):
        raise RuntimeError("no bool")

    __hash__ = None


NUMBERS = [
    *(0, 1, 2, 3, 4, 6, 8, 16, 100, -1, -4, 7, 1 << 31, 1 << 32, (1 << 32) + 2, 1 << 63, 1 << 64, 10**400, -(1 << 64)),
    *(0.0, -0.0, 0.5, 0.1, 0.9, 1.0, 2.0, 4.0, 1e-3, 1e-300, 1e30, 1e300, -0.1, -1e300),
    *(float("nan"), float("inf"), -float("inf"), Fraction(1, 4), Decimal("0.5"), 1j),
    *(numpy.int64(4), numpy.uint8(6), numpy.float32(0.25), numpy.float64(0.5), numpy.array(8), numpy.float16("nan")),
    *(torch.tensor(4), torch.tensor(0.5), torch.tensor(float("inf")), torch.tensor(2, dtype=torch.uint8)),
    *(torch.tensor(1.0, device="meta"), nn.Parameter(torch.tensor(0.5))),
]
OTHERS = [
    *(None, True, False, numpy.True_, torch.tensor(False), "", "4", "0.1", "auto", "none", "None", "true", "nan"),
    *("[1]", "x" * 100_000, numpy.str_("raw"), b"raw", [], (), {}, set(), [1], ["4"], (2, 2), (1, 1), [2, 0]),
    *({"sigma": 0.1}, range(4), numpy.array([4, 4]), numpy.zeros(0), torch.zeros(3), torch.tensor([4]), iter([])),
    *(Rude(), type, int, len, print, lambda: 0, lambda *values: None, lambda *values: float("nan")),
    *(lambda fitness, _: fitness, lambda name, parameter: "weight" in str(name)),
    *(timedelta(minutes=1), timedelta.max, timedelta(0)),
    *(Schedule("linear", 0.1, 0.01, 10), Schedule("cosine", 0.1, 0.0, 1 << 60), Schedule("exponential", 1, 1e-30, 3)),
]
FITTING = {  # values that an option may take, so that other options of a set are reached
    "algorithm": [*algorithms.available(), EvolutionStrategy(population=8, sigma=0.1, learning_rate=0.1)],
    "population": [2, 4, 6, 7, 8, 64, 300, 512],
    "sigma": [0.1, 1e-3, 1, Schedule("exponential", 0.1, 0.001, 20)],
    "learning_rate": [0.1, 0, 1e-6, Schedule("linear", 0.1, 0.0, 20)],
    "noise": ["gaussian", "rademacher", "uniform", "gausian"],
    "shaping": ["centered_ranks", "linear_ranks", "z_score", "raw", "top_k", "zscore"],
    "top_k": [1, 2, 3, 4],
    "antithetic": [True, False],
    "scaling": ["none", "sigma", "gradient", "sigmoid"],
    "weight_decay": [0.0, 0.01],
    "samples_per_generation": [1, 3, 100],
    "rank": [1, 2],
    "noise_reuse": [1, 2, 3],
    "basis_reuse": [1, 2, 4, 6],
    "sparsity": [0.5, 0.99],
    "sigma_scale": ["none", "rms", "rsm"],
    "momentum": [0.0, 0.9],
    "restarts": ["ipop", "bipop", "ipopp"],
    "evolve": ["weight", "bias$", "^0", "(", ["weight", "bias"], "zzz", "a{99999999999}", ["weight", None]],
    "update": ["optimizer", "in_place", "inplace"],
    "evaluation": ["auto", "plain", "in_forward", "batched", "rows", "vmap"],
    "members_per_forward": ["auto", 1, 2, 1000],
    "seed": [0, 1, -1, 1 << 100],
    "anchor": [0.5, 1e-3, 1e9, Anchor(0.1, "l1"), Anchor(2.0, device="cpu")],
    "journal": [True, False],
    "member_timeout": [1, 60.0, 1e9],
    "minimum_evaluated": [0, 0.5, 1],
    "shard": ["population", "data", (2, 2), [1, 4], "date"],
    "update_sync": ["auto", "replicated", "sharded", "replicate"],
    "checksum_every": [0, 1, 100],
    "start_method": ["popen", "spawn", "fork", "forkserver", "thread"],
    "process_group_backend": ["gloo", "nccl", "cpu:gloo,cuda:nccl", "gloo,nccl", "cpu:gloo,cpu:gloo", "undefined"],
    "timeout": [timedelta(minutes=2), timedelta(microseconds=1), 30],
    "popluation": [8],  # unknown names are refused by name, too
    "find_unused_parameters": [True],
}
SET_BY_THE_TRAINER = {"accelerator", "checkpoint_io", "precision_plugin", "parallel_devices", "cluster_environment"}


def options_of(strategy):
    own = {*signature(strategy).parameters} - {"options", "algorithm_options"} - SET_BY_THE_TRAINER
    if strategy is EvoDDPStrategy:  # all options of the other, too, by **options
        own |= options_of(EvoStrategy)
    return own | {"member_timeout", "minimum_evaluated", "popluation", "find_unused_parameters"}


def draw(dice):
    strategy = dice.choice([EvoStrategy, EvoDDPStrategy])
    names = dice.sample(sorted(options_of(strategy)), dice.randint(1, 3))
    if dice.random() < 0.4 and "algorithm" not in names:
        names[-1] = "algorithm"
    return strategy, {name: dice.choice(dice.choice([NUMBERS, OTHERS, FITTING[name], FITTING[name]])) for name in names}


def step_is_huge(algorithm):
    """Whether weights may move further than their type can hold: that is legal, and does what was asked for."""
    names = ["sigma"] if algorithm.owns_center else ["learning_rate", "weight_decay"]
    sizes = [getattr(algorithm, name) for name in names]
    return any(not isinstance(size, Schedule) and size > 1e3 for size in sizes)


def run_a_generation(evolution):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    evolution.setup(model)
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    evolution.evaluate(lambda batch: -(model(batch[0]) - batch[1]).square().mean(), (x, y))
    evolution.conclude().apply()
    if not step_is_huge(evolution.algorithm):
        assert all(parameter.isfinite().all() for parameter in model.parameters()), "weights are not finite"


def problem(strategy, options):
    """What is wrong with what a set does; ``None`` if nothing is."""
    try:
        evolution = strategy(**options).evolution
    except (ValueError, TypeError) as error:
        return None if names_an_option(error, options) else "the error names no option"
    if (evolution.algorithm.population or 0) <= RUN_UP_TO:  # none where the dimension says it: 11
        try:
            run_a_generation(evolution)
        except (ValueError, TypeError, TimeoutError) as error:  # member_timeout=1e-300 is kept, and says so
            return None if names_an_option(error, options) else "the error of a generation names no option"
    return None


def names_an_option(error, options):
    return any(re.search(rf"\b{name}\b", str(error)) for name in options)


def test_random_options():
    dice = random.Random(SEED)
    for number in range(SETS):
        strategy, options = draw(dice)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = problem(strategy, options)
            except Exception:
                found = traceback.format_exc()
        if found:
            given = ", ".join(f"{name}={shown(value)}" for name, value in options.items())
            pytest.fail(f"seed {SEED}, set {number}: {strategy.__name__}({given})\n{found}")
