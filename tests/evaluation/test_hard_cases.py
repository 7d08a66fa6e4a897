"""Modules that are unusual, but real, and once came out wrong."""

import pytest
import torch
from torch import nn

from lightning_evo import Evolution, SearchSpace, algorithms
from lightning_evo.algorithms import Directions, Term
from lightning_evo.evaluation import check, trial
from lightning_evo.evaluation.job import Job
from lightning_evo.evaluation.ways.batched import Batched
from lightning_evo.evaluation.ways.in_forward import InForward
from lightning_evo.evaluation.ways.layouts import OneMember
from lightning_evo.evaluation.ways.plain import Plain
from lightning_evo.generation.update import AlongDirections
from lightning_evo.isolation import Isolation
from lightning_evo.kernels import Native
from lightning_evo.perturbations import Part
from tests.conftest import has_kernels

CPU = torch.device("cpu")


def population_of(name="openai_es", **options):
    algorithm = algorithms.get(name)(**{"population": 4, "sigma": 0.1, **options})
    return algorithm.ask(algorithm.init(seed=0))


def test_a_buffer_that_shares_a_weights_memory_is_the_members():
    model = nn.Linear(3, 2)
    model.register_buffer("view", model.weight.detach(), persistent=False)
    x, space, population = torch.randn(5, 3), SearchSpace(model), population_of()
    with Isolation(model, CPU) as isolation:
        found = Plain().run(Job(space, population, lambda: model(x).square().mean(), isolation, range(4)))
    for number, value in enumerate(found):
        direction, step = population.address(number)
        parts = [Part(p.index, p.tensor.detach()) for p in space]
        [weight], [bias] = population.perturbation.members([direction], [step], parts)
        torch.testing.assert_close(value, nn.functional.linear(x, weight, bias).square().mean())


def test_a_batch_made_in_inference_mode_is_a_batch():
    model = nn.Linear(3, 1)
    with torch.inference_mode():
        batch = torch.randn(8, 3)
    evolution = Evolution("openai_es", population=4, seed=0)
    evolution.setup(model)
    assert evolution.evaluate(lambda x: -model(x).square().mean(), batch)
    assert evolution.conclude().fitness.isfinite().all()


def test_the_check_copies_one_expert_of_many_that_no_batch_used(monkeypatch):
    monkeypatch.setattr(trial, "LARGEST_COPY", 1000)
    copied = []
    by_loop = Plain.run

    def counting(self, job):
        copied.append(job.space.numel)
        return by_loop(self, job)

    monkeypatch.setattr(Plain, "run", counting)
    model = nn.ModuleList(nn.Linear(20, 20) for _ in range(30))
    x = torch.randn(4, 20)
    with Isolation(model, CPU) as isolation:
        job = Job(SearchSpace(model), population_of(), lambda: model[3](x).square().mean(), isolation, range(4))
        verdict = check.judge(InForward(), job)
    assert verdict.mismatch is None
    assert max(copied) <= 2 * 420


def test_a_weight_read_by_its_address_sends_the_model_to_the_plain_loop():
    model = nn.Linear(3, 1)
    evolution = Evolution("openai_es", population=4, seed=0, evaluation="in_forward")
    evolution.setup(model)
    x = torch.randn(8, 3)

    def fitness(batch):
        assert model.weight.data_ptr()
        return -model(batch).square().mean()

    with pytest.warns(UserWarning, match="read directly, by its address"):
        evolution.evaluate(fitness, x)
    assert evolution.evaluation.summary.startswith("evaluation: plain")


def test_autograd_inside_the_fitness_keeps_the_weights_that_it_saved():
    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 1))
    x = torch.randn(4, 300)

    def fitness():
        with torch.enable_grad():
            inputs = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(inputs).sum(), inputs)
        return -slope.square().mean()

    space, population = SearchSpace(model), population_of(sigma=0.02)
    with Isolation(model, CPU) as isolation:
        job = Job(space, population, fitness, isolation, range(4))
        assert [float(v) for v in InForward().run(job)] == [float(v) for v in Plain().run(job)]


def test_small_tensors_of_a_pair_have_a_budget(monkeypatch):
    from lightning_evo.evaluation.ways import perturbed

    monkeypatch.setattr(perturbed, "_CACHED", 1000)
    model = nn.ParameterList(nn.Parameter(torch.randn(20, 20)) for _ in range(10))
    shared = {}
    with perturbed.Perturbed(SearchSpace(model), population_of(), [0], OneMember(), shared=shared):
        _, made = shared["small"]
    assert len(made) == 2  # of 400 elements each; the third would be too much


@pytest.mark.parametrize("way", [InForward(), Batched()], ids=lambda way: way.name)
def test_small_tensors_and_the_update_take_one_call_of_a_kernel(way, monkeypatch):
    """One call for each tensor would take longer than the noise."""
    if not has_kernels():
        pytest.skip("needs the noise kernels")
    calls = []
    for name in ("members", "update"):
        function = getattr(Native, name)

        def counted(*arguments, function=function, name=name):
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(Native, name, counted)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(10)), nn.LayerNorm(8))
    space, population = SearchSpace(model), population_of()
    with torch.no_grad(), Isolation(model, CPU) as isolation:
        way.run(Job(space, population, lambda: model(torch.ones(1, 8)).sum(), isolation, range(4)))
    assert calls == ["members"] * (len(population) // 2)  # with its pair
    weights = (1.0,) * population.directions
    lesson = Directions((Term(population.perturbation, weights),), learning_rate=0.1)
    AlongDirections(population, space, torch.zeros(len(population)), lesson).apply()
    assert calls[-1] == "update"
    assert calls.count("update") == 1
