"""The reference: every member sees center plus or minus sigma times its noise, and nothing is left of it."""

import copy

import pytest
import torch
from torch import nn

from lightning_evo.algorithms import EvolutionStrategy
from lightning_evo.evaluation.job import Job
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.isolation import Isolation
from lightning_evo.spaces.search_space import SearchSpace

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 1)).to(dtype)


def population(antithetic=True, noise="gaussian", **options):
    algorithm = EvolutionStrategy(population=6, sigma=0.1, learning_rate=1.0, antithetic=antithetic, noise=noise)
    return algorithm.ask(algorithm.init(seed=3))


def evaluate(module, members, fitness, evolve=None):
    with Isolation(module, CPU) as isolation:
        job = Job(SearchSpace(module, evolve), members, fitness, isolation, range(len(members)))
        return Plain().run(job)


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def same_bits(a, b):
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("antithetic", [True, False])
def test_members_are_center_plus_and_minus_sigma_times_noise(dtype, antithetic):
    module, members = network(dtype), population(antithetic)
    centers, seen = weights(module), []
    evaluate(module, members, lambda: seen.append(weights(module)) or torch.tensor(0.0))
    assert len(seen) == 6
    reference = population(antithetic).perturbation
    for member, values in enumerate(seen):
        direction, sign = (member // 2, (1, -1)[member % 2]) if antithetic else (member, 1)
        for index, (value, center) in enumerate(zip(values, centers, strict=True)):
            noise = reference.noise([direction], index, center)[0].double()
            expected = center.double() + sign * 0.1 * noise
            # One rounding of the product and one of the sum, in float32 or float64, then one to the weight's dtype.
            spacing = max(torch.finfo(dtype).eps, torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 4)
            torch.testing.assert_close(value.double(), expected, rtol=spacing, atol=spacing / 4)
            assert not torch.equal(value, center)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("antithetic", [True, False])
def test_fitness_equals_that_of_perturbed_copies(dtype, antithetic):
    module, members = network(dtype), population(antithetic)
    data = torch.randn(16, 5, dtype=dtype)

    def fitness_of(model):
        dropped = nn.functional.dropout(model(data), 0.5)  # random, but the same for every member
        return -dropped.square().mean()

    state = torch.get_rng_state()
    with torch.no_grad():
        expected = []
        for member in range(6):
            twin = copy.deepcopy(module)
            direction, sign = (member // 2, (1, -1)[member % 2]) if antithetic else (member, 1)
            for index, parameter in enumerate(twin.parameters()):
                parameter += members.perturbation.noise([direction], index, parameter)[0] * (sign * 0.1)
            torch.set_rng_state(state)
            expected.append(fitness_of(twin))
    torch.set_rng_state(state)
    assert torch.equal(torch.stack(evaluate(module, members, lambda: fitness_of(module))), torch.stack(expected))
    assert expected[0] != expected[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_center_comes_back_bit_for_bit(dtype, fails):
    module = network(dtype)
    with torch.no_grad():
        special = [-0.0, 0.0, torch.finfo(dtype).tiny, -torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 2]
        module[0].weight.view(-1)[: len(special)] = torch.tensor(special, dtype=dtype)
    objects, before = list(module.parameters()), weights(module)
    calls = []

    def fitness():
        calls.append(0)
        if fails and len(calls) == 4:
            raise RuntimeError("no fitness today")
        return torch.tensor(1.0)

    if fails:
        with pytest.raises(RuntimeError, match="no fitness today"):
            evaluate(module, population(), fitness)
    else:
        evaluate(module, population(), fitness)
    assert all(same_bits(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(a is b for a, b in zip(objects, module.parameters(), strict=True))


def test_parameters_outside_the_search_space_are_not_perturbed():
    module, seen = network(), []
    evaluate(module, population(), lambda: seen.append(weights(module)) or torch.tensor(0.0), evolve="3.weight")
    changed = [[not torch.equal(a, b) for a, b in zip(values, module.parameters(), strict=True)] for values in seen]
    assert changed == [[False, False, False, False, True, False]] * 6


def test_tied_weights_are_perturbed_once():
    module = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    module["b"].weight = module["a"].weight
    members, center, seen = population(), module["a"].weight.detach().clone(), []
    evaluate(module, members, lambda: seen.append(module["b"].weight.detach().clone()) or torch.tensor(0.0))
    noise = members.perturbation.noise([0], 0, center)[0]
    assert torch.equal(seen[0], center + noise * 0.1)


def test_memory_formats_and_views():
    """Noise is addressed row-major, whatever the strides."""
    module = nn.Conv2d(4, 6, 3)
    channels_last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    assert not channels_last.weight.is_contiguous()
    seen = []
    for model in (module, channels_last):
        evaluate(model, population(), lambda model=model: seen.append(weights(model)) or torch.tensor(0.0))
        assert torch.equal(model.weight, module.weight)
    assert channels_last.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen[:6], seen[6:], strict=True))


def test_declined_batches_are_passed_on_as_none():
    answers = iter([torch.tensor(1.0), None, None, torch.tensor(2.0), None, torch.tensor(3.0)])
    values = evaluate(network(), population(), lambda: next(answers))
    assert [None if value is None else value.item() for value in values] == [1.0, None, None, 2.0, None, 3.0]


def test_no_graph_is_built():
    module = network()
    values = evaluate(module, population(), lambda: module(torch.ones(2, 5)).mean())
    assert not any(value.requires_grad for value in values)


def test_an_enclosing_autocast_does_not_keep_old_weights():
    """autocast casts a weight once and keeps the result until its context ends, whatever becomes of the weight."""
    module = nn.Linear(5, 1, bias=False)
    x = torch.randn(16, 5)
    with torch.autocast("cpu", torch.bfloat16):
        before = module(x)
        fitness = evaluate(module, population(), lambda: module(x).float().sum())
        assert torch.equal(module(x), before)
    assert len({float(value) for value in fitness}) == 6


def test_members_do_not_depend_on_the_default_dtype():
    """Lightning sets it while it runs with a precision of "64-true", "bf16-true" or "16-true"."""
    center, members = torch.zeros(36), population()
    expected = members.perturbation.noise([0, 1], 0, center)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(members.perturbation.noise([0, 1], 0, center), expected)
    finally:
        torch.set_default_dtype(torch.float32)
