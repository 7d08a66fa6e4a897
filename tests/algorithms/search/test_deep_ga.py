"""deep_ga: members from chains of seeds, selection by truncation, and the elite in a module."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_evo import Evolution, algorithms
from lightning_evo.algorithms.search.deep_ga import DeepGAState, elite_chain, rebuilt
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw


def height(x):
    return x.square().sum(-1)


def generations(algorithm, state, count):
    for _ in range(count):
        population = algorithm.ask(state)
        state = algorithm.tell(state, population, -height(population.vectors()))
    return state


def make(**options):
    return algorithms.get("deep_ga")(**{"population": 24, "sigma": 0.1, "parents": 5, "candidates": 3, **options})


def test_the_first_generation_by_hand():
    algorithm, start = make(), torch.linspace(-1, 1, 6, dtype=torch.float64)
    state = algorithm.init(start, seed=5)
    x = algorithm.ask(state).vectors()
    assert torch.equal(x[0], start)
    noise = draw(NoiseKey(5, 0), range(24), 0, 0, 6, dtype=torch.float64)
    torch.testing.assert_close(x[1:], start + 0.1 * noise[1:], rtol=0, atol=1e-15)
    state = algorithm.tell(state, algorithm.ask(state), -height(x))
    assert torch.equal(state.center, start)  # nobody else has been evaluated twice
    best = (-height(x)).argsort(descending=True)[:5].tolist()
    expected = [(0, member) if member else (-1, -1) for member in best]
    assert [tuple(row[0, :2].int().tolist()) for row in state.chains[1:]] == expected
    candidates = [member for member in best[:3] if member]
    following = algorithm.ask(state).vectors()
    torch.testing.assert_close(following[1 : 1 + len(candidates)], x[candidates], rtol=0, atol=1e-15)
    after = algorithm.tell(state, algorithm.ask(state), -height(following))
    winner = min([0, *candidates], key=lambda member: float(height(x[member])))
    assert torch.equal(after.center, rebuilt(start, [(0, winner, 0.1)] if winner else [], 5))


def test_any_elite_is_rebuilt_bit_for_bit_from_its_chain():
    algorithm, start = make(), torch.ones(7, dtype=torch.float64)
    state = algorithm.init(start, seed=2)
    for _ in range(30):
        state = generations(algorithm, state, 1)
        assert torch.equal(rebuilt(start, elite_chain(state), 2), state.center)
        members = algorithm.ask(state).vectors()
        lineage = elite_chain(state)[: len(state.lineage) if state.lineage is not None else 0]
        for chain, member in zip(algorithm.chains(state), members, strict=True):
            torch.testing.assert_close(rebuilt(start, [*lineage, *chain], 2), member, rtol=0, atol=1e-13)
    assert len(elite_chain(state)) > 8
    assert len(state.lineage) > 3  # the generations' common ancestors
    assert state.chains.shape[0] == 6


def test_interrupted_and_resumed():
    algorithm = make()
    state = generations(algorithm, algorithm.init(torch.ones(4, dtype=torch.float64), seed=1), 9)
    resumed = DeepGAState.from_state_dict(state.state_dict())
    one, other = generations(algorithm, state, 6), generations(make(), resumed, 6)
    assert torch.equal(one.center, other.center)
    assert torch.equal(one.chains, other.chains)


def test_a_center_moved_from_outside_begins_anew():
    algorithm = make()
    state = generations(algorithm, algorithm.init(torch.ones(4, dtype=torch.float64), seed=1), 9)
    elsewhere = torch.full((4,), 3.0, dtype=torch.float64)
    moved = replace(state, center=elsewhere)
    members = algorithm.ask(moved).vectors()
    assert torch.equal(members[0], elsewhere)
    assert elite_chain(moved) == ()
    after = generations(algorithm, moved, 5)
    assert torch.equal(rebuilt(elsewhere, elite_chain(after), 1), after.center)
    assert height(after.center) < height(elsewhere)


def test_failed_members_are_no_parents_and_ties_teach_nothing():
    algorithm = make()
    state = algorithm.init(torch.ones(4, dtype=torch.float64), seed=1)
    population = algorithm.ask(state)
    fitness = torch.full((24,), torch.nan)
    fitness[[7, 9]] = torch.tensor([1.0, 2.0])
    state = algorithm.tell(state, population, fitness)
    assert [int(chain[0, 1]) for chain in state.chains[1:]] == [9, 7]
    same = algorithm.tell(state, algorithm.ask(state), torch.ones(24))
    assert torch.equal(same.center, state.center)
    assert torch.equal(same.chains, state.chains)


@pytest.mark.parametrize("evaluation", ["plain", "in_forward", "batched"])
def test_in_a_module_the_elite_is_the_rounding_of_its_chain(evaluation):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    start = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    x = torch.randn(32, 3)
    evolution = Evolution("deep_ga", population=16, parents=4, candidates=2, sigma=0.05, seed=3, evaluation=evaluation)
    evolution.setup(module)
    for _ in range(12):
        evolution.evaluate(lambda batch: -(module(batch) - batch.sum(1, keepdim=True)).square().mean(), x)
        evolution.conclude().apply()
        evolution_center = nn.utils.parameters_to_vector(module.parameters()).detach()
    chain = elite_chain(evolution.state)
    assert chain
    assert torch.equal(rebuilt(start, chain, 3).float(), evolution_center)
