"""Algorithms that keep a center of their own, in a module: the weights are its rounding."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch import nn

from lightning_evo import Evolution, algorithms
from lightning_evo.algorithms import Directions, NewCenter, Population, Term
from lightning_evo.generation.step import Clipping, Step
from lightning_evo.generation.update import ToCenter
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.perturbations import Dense, Vectors
from lightning_evo.spaces import search_space
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.utils.random_state import RandomState

CPU = torch.device("cpu")


class Network(nn.Module):
    """Tensors of several shapes, one tied, one with a padding row, one frozen."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 3, padding_idx=2)
        self.first, self.frozen = nn.Linear(3, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 5)
        self.frozen.requires_grad_(False)
        self.to(dtype)

    def forward(self, ids):
        hidden = torch.tanh(self.frozen(torch.tanh(self.first(self.embedding(ids)))))
        return nn.functional.linear(hidden @ self.first.weight, self.embedding.weight) + self.last(hidden)

    def fitness(self, ids):
        return -nn.functional.cross_entropy(self(ids).float(), ids)


IDS = torch.tensor([0, 1, 2, 3, 4, 4, 1])


def evolution(module, evaluation="plain", seed=7, **options):
    made = Evolution("csa_es", population=8, sigma=0.1, seed=seed, evaluation=evaluation, **options)
    made.setup(module)
    return made


def generation(subject, module):
    subject.setup(module)
    assert subject.evaluate(module.fitness, IDS)
    update = subject.conclude()
    update.apply()
    return update


@pytest.mark.parametrize("evaluation", ["plain", "in_forward", "batched", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_way_of_evaluating_gives_the_same_search(evaluation, dtype):
    """One after the other bit for bit; together but for rounding."""
    found, expected = Network(dtype), Network(dtype)
    subject, plain = evolution(found, evaluation), evolution(expected)
    for _ in range(3):
        a, b = generation(subject, found), generation(plain, expected)
        if evaluation == "in_forward":
            assert torch.equal(a.fitness, b.fitness)
        torch.testing.assert_close(a.fitness, b.fitness, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)
        if dtype != torch.bfloat16:  # where a last bit can swap two members
            torch.testing.assert_close(subject.state.center, plain.state.center, rtol=1e-6, atol=1e-6)
    name = subject.evaluation.summary.split(";")[0]
    assert evaluation == "auto" or name.startswith(f"evaluation: {evaluation}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_the_centers_rounding_and_the_padding_row_stays(dtype):
    module = Network(dtype)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    subject = evolution(module)
    for _ in range(4):
        update = generation(subject, module)
    assert isinstance(update, ToCenter)
    center = subject.state.center
    assert center.dtype == torch.float64
    assert center.numel() == subject.space.numel == 15 + 12 + 4 + 20 + 5
    start = 0
    for parameter in subject.space:
        part = center[start : start + parameter.tensor.numel()].view(parameter.shape).to(dtype)
        start += parameter.tensor.numel()
        if parameter.padding_row is not None:
            assert torch.equal(parameter.tensor[2], before["embedding.weight"][2])
            part[2] = parameter.tensor.detach()[2]
        assert torch.equal(parameter.tensor.detach(), part)
        assert not torch.equal(parameter.tensor.detach(), before[parameter.name])
    for name in ("frozen.weight", "frozen.bias"):
        assert torch.equal(module.state_dict()[name], before[name])


def test_learns():
    module = Network()
    subject = evolution(module)
    first = generation(subject, module).fitness.max()
    for _ in range(120):
        update = generation(subject, module)
    assert update.fitness.max() > first / 5


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_search_is_the_uninterrupted_one(stop, tmp_path):
    whole, part = Network(torch.bfloat16), Network(torch.bfloat16)
    subject = evolution(whole)
    for g in range(6):
        if g == stop:
            torch.save(
                {"module": whole.state_dict(), "evolution": subject.state_dict(RandomState(CPU))}, tmp_path / "c"
            )
        generation(subject, whole)
    saved = torch.load(tmp_path / "c", weights_only=True)
    part.load_state_dict(saved["module"])
    resumed = evolution(part)
    resumed.load_state_dict(saved["evolution"], CPU)
    for _ in range(stop, 6):
        generation(resumed, part)
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(subject.state.center, resumed.state.center)
    assert torch.equal(subject.state.path, resumed.state.path)
    assert subject.state.sigma == resumed.state.sigma


def test_weights_that_others_move_are_followed_with_one_warning(recwarn):
    module = Network()
    subject = evolution(module)
    generation(subject, module)
    assert not recwarn.list
    for _ in range(2):
        with torch.no_grad():
            module.first.bias.fill_(0.25)
        generation(subject, module)
    messages = [str(warning.message) for warning in recwarn.list]
    assert len([message for message in messages if "the search goes on from where they are" in message]) == 1
    with torch.no_grad():
        module.first.bias.fill_(0.25)
    subject.setup(module)
    assert torch.equal(subject.state.center, subject.space.vector())


def test_the_dimension_can_not_change_during_a_search():
    module = Network()
    subject = evolution(module)
    generation(subject, module)
    module.last.requires_grad_(False)
    with pytest.raises(ValueError, match="csa_es has begun to search among 56 elements, and others evolve now: 31"):
        subject.setup(module)
    module.last.requires_grad_(True)
    subject.setup(module)


def test_other_parameters_of_the_same_size_are_another_search():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].requires_grad_(False)
    subject = evolution(module)
    module[1].requires_grad_(True)
    module[0].requires_grad_(False)
    with pytest.raises(ValueError, match="search among 12 elements, and others evolve now: 12 elements of 1.weight, 1"):
        subject.setup(module)
    other = nn.Sequential(nn.Linear(2, 2))
    subject.setup(other)  # another module begins anew
    assert subject.state.center.numel() == 6


def test_the_update_does_not_write_into_the_state():
    module = Network(torch.float64)
    subject = evolution(module)
    assert subject.evaluate(module.fitness, IDS)
    update = subject.conclude()
    before = update.lesson.center.clone()
    update.apply()
    subject.setup(module)
    assert torch.equal(update.lesson.center, before)
    assert torch.equal(subject.state.center, before)


@pytest.mark.parametrize("name", ["csa_es", "openai_es"])
def test_a_sigma_that_is_set_in_the_midst_of_a_generation_counts_from_the_next_on(name):
    module = nn.Sequential(nn.Linear(3, 1))

    def fitness(batch):
        return module[0].weight.sum()

    found = []
    for stop in (False, True):
        torch.nn.init.zeros_(module[0].weight)
        subject = Evolution(name, population=4, sigma=0.5, seed=1)
        subject.setup(module)
        subject.evaluate(fitness, None)
        subject.sigma = 1e-3
        if stop:
            saved = subject.state_dict(RandomState(CPU))
            subject = Evolution(name, population=4, sigma=0.5, seed=1)
            subject.load_state_dict(saved, CPU)
            subject.setup(module)
        subject.evaluate(fitness, None)
        assert subject.population.sigma == 0.5
        found.append(subject.conclude().fitness)
        assert subject.sigma == 1e-3
    assert torch.equal(*found)


class Wanderer(algorithms.Algorithm):
    """Somebody's own search, no dataclass: one step of the sampled vectors, whatever their fitness."""

    name, population, samples_per_generation = "wanderer", 4, None

    def current_sigma(self, state):
        return 1.0

    def ask(self, state):
        vectors = Vectors(torch.eye(4, state.center.numel(), dtype=torch.float64))
        return Population(vectors, 1.0, 4, False, state.center, state.seed, state.generation)

    def learn(self, state, population, fitness, numel):
        return replace(state, generation=state.generation + 1), NewCenter(state.center + 1.0)


def test_a_search_of_ones_own_leaves_its_center_to_the_engine(recwarn):
    module = nn.Sequential(nn.Linear(3, 1, dtype=torch.bfloat16))
    subject = Evolution(Wanderer(), seed=0)
    subject.setup(module)
    start = subject.state.center
    for _ in range(3):
        subject.setup(module)
        subject.evaluate(lambda batch: module[0].weight.sum(), None)
        subject.conclude().apply()
    assert torch.equal(subject.state.center, start + 1.0 + 1.0 + 1.0)
    assert not recwarn.list
    state = Wanderer().init(start)
    assert torch.equal(Wanderer().tell(state, Wanderer().ask(state), torch.arange(4.0)).center, start + 1)


class Tables(algorithms.Algorithm):
    """Directions from a table of its own and from noise, as terms of one update."""

    name, population, owns_center, updates = "tables", 2, False, ("in_place",)

    def current_sigma(self, state):
        return 0.1

    def ask(self, state):
        return Population(Dense(NoiseKey(state.seed, state.generation)), 0.1, 1, True, None, state.seed)

    def learn(self, state, population, fitness, numel):
        terms = Term(Dense(NoiseKey(1, 1)), (1.0,)), Term(Vectors(torch.ones(1, numel)), (2.0,))
        return replace(state, generation=state.generation + 1), Directions(terms)


def test_all_terms_are_laid_over_the_parameters():
    """Vectors are cut, and padding rows stay, also of noise that is not the population's."""
    module = nn.Sequential(nn.Embedding(4, 3, padding_idx=1), nn.Linear(3, 2))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    subject = Evolution(Tables(), seed=0)
    subject.setup(module)
    subject.evaluate(lambda batch: module(torch.tensor([0, 2])).sum(), None)
    subject.conclude().apply()
    for index, (old, new) in enumerate(zip(before, module.parameters(), strict=True)):
        expected = Dense(NoiseKey(1, 1)).noise([0], index, old)[0] + 2.0
        if index == 0:
            expected[1] = 0
        torch.testing.assert_close(new.detach(), old + expected)


def test_many_tensors_cost_no_square(monkeypatch):
    """Where each parameter begins is computed once for a space."""
    module = nn.ModuleList([nn.Linear(2, 2) for _ in range(50)])
    space = SearchSpace(module)
    made = []
    monkeypatch.setattr(search_space, "accumulate", lambda sizes: made.append(sizes) or accumulate(sizes))
    for parameter in space:
        space.part_of(space.vector(), parameter)
    assert len(made) == 1
    some = space.subset(list(space)[3:])
    assert some.offsets[some[0].index] == 0


def test_a_generation_that_ties_moves_nothing():
    module = Network()
    before = [parameter.clone() for parameter in module.parameters()]
    subject = evolution(module)
    subject.evaluate(lambda batch: torch.tensor(1.0), IDS)
    with pytest.warns(UserWarning, match="nothing to learn"):
        update = subject.conclude()
    assert not update
    assert update.numbers.numel() == 0
    assert update.apply() == 0
    for a, b in zip(before, module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_way_to_the_center_is_measured_and_no_step_counts():
    module = nn.Sequential(nn.Linear(3, 1))
    space = SearchSpace(module)
    population = algorithms.get("csa_es")(population=4).ask(algorithms.get("csa_es")(population=4).init(torch.zeros(4)))
    update = ToCenter(population, space, torch.zeros(4), NewCenter(space.vector() + 3.0))
    assert update.step([torch.optim.SGD(module.parameters(), lr=0.5)], Clipping(0.1)) == Step(())
    assert update.apply() == pytest.approx(6.0, rel=1e-6)  # 3 along each of 4 axes


def test_vectors_are_cut_by_offsets():
    table = torch.arange(30.0).view(2, 15)
    space = SearchSpace(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), evolve=["0.weight", "1"])
    laid = Vectors(table).over(space.offsets)
    for parameter, start in zip(space, (0, 6, 10), strict=True):
        size = parameter.tensor.numel()
        noise = laid.noise([1, 0], parameter.index, parameter.tensor)
        assert torch.equal(noise, table[[1, 0], start : start + size].view(2, *parameter.shape))
        assert torch.equal(
            laid.weighted_sum([2.0, -1.0], parameter.index, parameter.tensor, 1, size),
            2 * table[0, start + 1 : start + size] - table[1, start + 1 : start + size],
        )
    assert replace(space[0], name="x").index == 0
