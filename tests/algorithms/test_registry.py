"""The registry, and the battery that every algorithm in it must pass the moment it is registered."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from lightning_evo import algorithms
from lightning_evo.algorithms import available, get, register

DIMENSION = 8

SETTINGS = {  # per algorithm: options for all functions, and the learning rate for each
    "deep_ga": ({"population": 40, "sigma": 0.05, "parents": 5}, {}),
    "openai_es": ({}, {"sphere": 0.2, "ill_conditioned": 0.008, "rosenbrock": 0.001}),
    "mezo": ({"population": 16}, {"sphere": 0.1, "ill_conditioned": 0.002, "rosenbrock": 0.0005}),
    "ars": ({}, {"sphere": 0.1, "ill_conditioned": 0.1, "rosenbrock": 0.02}),
    "ea4llm": ({"sigma": 0.03}, {"sphere": 0.1, "ill_conditioned": 0.1, "rosenbrock": 0.03}),
    "es_at_scale": ({"sigma": 0.03}, {"sphere": 0.1, "ill_conditioned": 0.1, "rosenbrock": 0.03}),
    "eggroll": ({"sigma": 0.03}, {"sphere": 0.1, "ill_conditioned": 0.1, "rosenbrock": 0.03}),
    "fzoo": ({"sigma": 0.03, "population": 30}, {"sphere": 0.1, "ill_conditioned": 0.1, "rosenbrock": 0.03}),
    "lozo": ({"population": 16}, {"sphere": 0.1, "ill_conditioned": 0.002, "rosenbrock": 0.0005}),
    # 5 % of 8 weights are none: to reach these functions' optimum all of them must move.
    "sparse_mezo": (
        {"population": 16, "sparsity": 0.05},
        {"sphere": 0.1, "ill_conditioned": 0.002, "rosenbrock": 0.0005},
    ),
}


def sphere(x):
    return -x.square().sum(-1)


def ill_conditioned(x):
    return -(torch.logspace(0, 2, DIMENSION).to(x) * x.square()).sum(-1)


def rosenbrock(x):
    return -(100 * (x[..., 1:] - x[..., :-1] ** 2).square() + (1 - x[..., :-1]).square()).sum(-1)


def algorithm(name, function="sphere"):
    options, learning_rates = SETTINGS.get(name, ({}, {}))  # a newcomer without settings must do with its own defaults
    if function in learning_rates:
        options = {**options, "learning_rate": learning_rates[function]}
    return get(name)(**options)


def start(dtype=torch.float64, value=1.0):
    return torch.full((DIMENSION,), value, dtype=dtype)


def assert_same(a, b):
    """Equal states, bit for bit."""
    assert type(a) is type(b)
    for (name, x), y in zip(vars(a).items(), vars(b).values(), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize(("function", "value"), [(sphere, 1.0), (ill_conditioned, 1.0), (rosenbrock, -1.0)])
def test_improves(name, function, value):
    subject = algorithm(name, function.__name__)
    state = subject.init(start(value=value), seed=1)
    for _ in range(150):
        population = subject.ask(state)
        state = subject.tell(state, population, function(population.vectors()))
    # All reach 1/250 or less here, over several seeds.
    assert function(state.center) > function(start(value=value)) / 50


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype_and_starts_at_the_center(name, dtype):
    subject = algorithm(name)
    center = start(dtype)
    state = subject.init(center, seed=1)
    assert torch.equal(state.center, center)
    for _ in range(3):
        population = subject.ask(state)
        assert population.vectors().dtype == dtype
        assert population.vectors().shape == (len(population), DIMENSION)
        state = subject.tell(state, population, sphere(population.vectors()))
    assert state.center.dtype == dtype
    assert state.center.shape == (DIMENSION,)
    assert not torch.equal(state.center, center)
    assert torch.equal(center, start(dtype))  # the caller's vector is not ours to write to


@pytest.mark.parametrize("name", available())
def test_the_seed_and_nothing_else_decides(name):
    def run(seed):
        subject = algorithm(name)
        state = subject.init(start(), seed=seed)
        for _ in range(3):
            population = subject.ask(state)
            torch.rand(7)  # the global generator is of no account
            state = subject.tell(state, population, sphere(population.vectors()))
        return state

    assert_same(run(1), run(1))
    assert not torch.equal(run(1).center, run(2).center)


@pytest.mark.parametrize("name", available())
def test_ask_and_tell_leave_the_state_as_it_is(name):
    subject = algorithm(name)
    state = subject.init(start(), seed=1)
    for _ in range(3):
        before = copy.deepcopy(state)
        first, second = subject.ask(state), subject.ask(state)
        assert torch.equal(first.vectors(), second.vectors())
        fitness = sphere(first.vectors())
        given = fitness.clone()
        following = subject.tell(state, first, fitness)
        assert_same(following, subject.tell(state, second, fitness))
        assert_same(state, before)
        assert torch.equal(fitness, given)
        assert not torch.equal(subject.ask(following).vectors() - following.center, first.vectors() - state.center)
        state = following


@pytest.mark.parametrize("name", available())
def test_a_run_continues_from_a_copy_of_its_state(name):
    subject = algorithm(name)
    states = [subject.init(start(), seed=1)]
    for _ in range(4):
        population = subject.ask(states[-1])
        states.append(subject.tell(states[-1], population, sphere(population.vectors())))
    resumed = copy.deepcopy(states[2])
    for _ in range(2):
        population = subject.ask(resumed)
        resumed = algorithm(name).tell(resumed, population, sphere(population.vectors()))
    assert_same(resumed, states[4])


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("failure", [math.inf, -math.inf])
def test_an_infinite_member_ranks_worst(name, failure):
    subject = algorithm(name)
    state = subject.init(start(), seed=1)
    population = subject.ask(state)
    fitness = sphere(population.vectors())
    fitness[1] = failure
    worst = fitness.clone()
    worst[1] = torch.nextafter(fitness[fitness.isfinite()].min(), torch.tensor(-math.inf, dtype=fitness.dtype))
    assert_same(subject.tell(state, population, fitness), subject.tell(state, population, worst))


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -3.25])
def test_nothing_to_learn_leaves_the_center_bit_for_bit(name, value):
    """All failed, or all equal: only the generation is counted."""
    subject = algorithm(name)
    center = torch.tensor([1.0, -0.0, 0.0, 1e-30, -1e30])
    state = subject.init(center, seed=1)
    for _ in range(3):
        population = subject.ask(state)
        following = subject.tell(state, population, torch.full((len(population),), value))
        assert torch.equal(following.center.view(torch.int32), center.view(torch.int32))
        assert not torch.equal(subject.ask(following).vectors(), population.vectors())
        state = following


@pytest.mark.parametrize("name", available())
def test_one_failure_among_equals_does_not_break_the_center(name):
    """The failed member is worse by the smallest number there is, the square of which is zero."""
    subject = algorithm(name)
    state = subject.init(start(), seed=1)
    population = subject.ask(state)
    fitness = torch.zeros(len(population), dtype=torch.float64)
    fitness[0] = math.nan
    assert subject.tell(state, population, fitness).center.isfinite().all()


@pytest.mark.parametrize("name", available())
def test_sigma_can_be_set_for_a_run(name):
    subject = algorithm(name)
    narrow, wide = (
        subject.ask(subject.init(start(), sigma=sigma, seed=1)).vectors() - start() for sigma in (0.25, 0.5)
    )
    torch.testing.assert_close(wide, narrow * 2, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(narrow, torch.zeros(()).to(narrow))


@pytest.mark.parametrize("name", available())
def test_says_where_it_comes_from(name):
    factory = get(name)
    assert factory.name == name
    assert factory().name == name
    assert factory.summary.endswith(".")
    assert "arXiv:" in factory.paper or "doi" in factory.paper
    for option, value in factory.defaults.items():
        assert getattr(factory(), option) == value


# --- the registry ---------------------------------------------------------------------------------------------------


def test_the_published_recipes_are_there():
    assert {"openai_es", "ea4llm", "es_at_scale", "mezo", "ars"} <= set(available())
    assert available() == sorted(available())


@pytest.mark.parametrize(("name", "hint"), [("open_es", " Did you mean 'openai_es'?"), ("zzz", ""), (3, ""), ([], "")])
def test_unknown_names(name, hint):
    with pytest.raises(ValueError, match="Unknown algorithm") as error:
        get(name)
    assert str(error.value) == f"Unknown algorithm {name!r}.{hint} Choose one of {', '.join(available())}."


def test_register(monkeypatch):
    monkeypatch.setattr(algorithms, "_REGISTRY", dict(algorithms._REGISTRY))
    mine = replace(get("mezo"), name="mine", defaults={**get("mezo").defaults, "sigma": 0.5})
    register(mine)
    assert get("mine") is mine
    assert "mine" in available()
    assert mine().sigma == 0.5
    with pytest.raises(ValueError, match="named 'mine' exists already; pass override=True"):
        register(mine)
    other = replace(mine, summary="Another.")
    register(other, override=True)
    assert get("mine") is other
