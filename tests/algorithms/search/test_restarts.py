"""What ends a run, and what the next one begins with."""

import math
import threading
import warnings
from dataclasses import replace

import pytest
import torch

from lightning_evo import Evolution
from lightning_evo.algorithms import CMAEvolutionStrategy, SepCMAEvolutionStrategy
from lightning_evo.generation.update import ToCenter
from lightning_evo.processes.ranks import Ranks
from lightning_evo.utils.random_state import RandomState
from tests.processes.together import together


def sphere(x):
    return -x.square().sum(-1)


def start(dimension=4, value=1.0):
    return torch.full((dimension,), value, dtype=torch.float64)


def runs(algorithm, generations, function=sphere, center=None):
    """States before and after each generation."""
    state = algorithm.init(start() if center is None else center, seed=1)
    for _ in range(generations):
        population = algorithm.ask(state)
        following = algorithm.tell(state, population, function(population.vectors()))
        yield state, following
        state = following


def stopped_by(name, generations=400, function=sphere, center=None, kind=CMAEvolutionStrategy, **options):
    """Checks that a criterion, alone, ends a search, and gives the state in which it did."""
    off = {"tolx": 0, "tolfacupx": 0, "tolupsigma": 0, "tolconditioncov": 0, "maxiter": 0, "noeffectaxis": False,
           "noeffectcoord": False, "sigma": 0.5}  # fmt: skip
    algorithm = kind(**{**off, **options})
    with pytest.warns(UserWarning, match=f"has ended its search in generation .* by the criterion '{name}'") as said:
        states = [after for _, after in runs(algorithm, generations, function, center)]
    assert len(said) == 1  # once, although it goes on
    assert states[-1].stopped == name
    assert states[-1].generation == generations
    return next(state for state in states if state.stopped)


def test_tolx():
    state = stopped_by("tolx", tolx=1e-6)
    assert state.sigma * state.covariance.diagonal().max().sqrt() < 1e-6


def test_tolfacupx():
    state = stopped_by("tolfacupx", function=lambda x: x.sum(1), generations=100, tolfacupx=50)
    assert state.sigma * state.covariance.diagonal().max().sqrt() > 25


def test_tolconditioncov():
    scales = torch.logspace(0, 6, 4, dtype=torch.float64)
    state = stopped_by("tolconditioncov", function=lambda x: -(x.square() @ scales), tolconditioncov=1e3)
    assert state.lengths[-1] ** 2 > 1e3 * state.lengths[0] ** 2


def test_tolupsigma():
    """Sigma grows and the longest axis does not keep up."""
    algorithm = CMAEvolutionStrategy(sigma=0.5, tolupsigma=2.0, tolfacupx=0)
    with pytest.warns(UserWarning, match="'tolupsigma'"):
        assert [after for _, after in runs(algorithm, 30, lambda x: x.sum(1))][-1].stopped == "tolupsigma"


@pytest.mark.parametrize("kind", [CMAEvolutionStrategy, SepCMAEvolutionStrategy])
def test_noeffectcoord(kind):
    stopped_by("noeffectcoord", function=lambda x: -(x - 1e6).square().sum(1), center=start(value=1e6), kind=kind,
               noeffectcoord=True)  # fmt: skip


def test_noeffectaxis():
    stopped_by(
        "noeffectaxis", function=lambda x: -(x - 1e6).square().sum(1), center=start(value=1e6), noeffectaxis=True
    )


def test_maxiter():
    assert stopped_by("maxiter", 20, maxiter=7).generation == 7
    n, members = 1, 4  # of one dimension the default is 100 + 150 4^2 / 2
    assert (
        stopped_by("maxiter", 1310, center=start(1), maxiter=None).generation == 100 + 150 * (n + 3) ** 2 / members**0.5
    )


def test_generations_count_from_the_searchs_first_one():
    """A run that continues other training begins with a later generation."""
    algorithm = CMAEvolutionStrategy(sigma=0.5, restarts="ipop", maxiter=5)
    state = replace(algorithm.init(start(), seed=1), generation=1000)
    for _ in range(6):
        population = algorithm.ask(state)
        state = algorithm.tell(state, population, sphere(population.vectors()))
    assert (state.run, state.run_began, state.generation) == (1, 1005, 1006)


def test_tolfun_and_tolfunhist():
    plateau = lambda x: sphere(x) / 1e9  # noqa: E731
    assert stopped_by("tolfun", function=plateau, generations=60, tolfun=1e-9).generation > 5
    assert stopped_by("tolfunhist", function=plateau, generations=60, tolfunhist=1e-9).generation >= 10


def test_tolflatfitness():
    """It needs more than two generations in which the best three quarters tie."""
    state = stopped_by("tolflatfitness", 20, lambda x: torch.zeros(len(x)), tolflatfitness=2)
    assert state.generation == 3
    stopped_by("tolflatfitness", 20, lambda x: torch.arange(len(x)).clamp(max=1), tolflatfitness=2)


def test_tolstagnation():
    noise = torch.Generator().manual_seed(0)
    state = stopped_by("tolstagnation", 60, lambda x: torch.rand(len(x), generator=noise), tolstagnation=20)
    assert state.generation >= 20
    assert len(state.history) == 20


def test_criteria_that_noise_trips_are_off_by_default():
    algorithm = CMAEvolutionStrategy(sigma=0.5)
    states = [after for _, after in runs(algorithm, 40, lambda x: (x.sum(1) > 0).double())]
    assert states[-1].stopped == ""
    assert states[-1].history is None


def test_ftarget_ends_without_a_warning_and_without_a_restart():
    algorithm = CMAEvolutionStrategy(sigma=0.5, ftarget=-1e-3, restarts="ipop")
    states = [after for _, after in runs(algorithm, 80)]
    assert states[-1].stopped == "ftarget"
    assert states[-1].run == 0
    assert states[-1].best_fitness > -1e-3
    assert sphere(states[-1].best) == pytest.approx(states[-1].best_fitness)


@pytest.mark.parametrize("kind", [CMAEvolutionStrategy, SepCMAEvolutionStrategy])
def test_ipop_doubles_the_population_and_begins_where_the_first_run_began(kind):
    algorithm = kind(sigma=0.5, restarts="ipop", maxiter=5)
    before, after = zip(*runs(algorithm, 22), strict=True)
    for g, state in enumerate(before):
        members, began = 8 * 2 ** (g // 5), g // 5 * 5
        assert algorithm.current_population(state) == len(algorithm.ask(state)) == members
        assert (state.run, state.run_began) == (g // 5, began)
        if g == began:
            assert torch.equal(state.center, start())
            assert algorithm.current_sigma(state) == 0.5
            assert algorithm.steps(state).std() == pytest.approx(1.0, abs=0.35)  # nothing of the last run's shape
    best = max(float(sphere(algorithm.ask(state).vectors()).max()) for state in before)
    assert after[-1].best_fitness == pytest.approx(best)
    assert after[-1].large_evaluations == 5 * (8 + 16 + 32 + 64)


def test_bipop_gives_small_runs_what_large_ones_have_spent():
    algorithm = CMAEvolutionStrategy(sigma=0.5, restarts="bipop", maxiter=20)
    found, last = [], None
    for state, _ in runs(algorithm, 400):
        if state.run != last:
            last = state.run
            found.append(state)
    assert [algorithm.current_population(state) for state in found[:2]] == [8, 16]
    for state in found[2:]:
        members, largest = algorithm.current_population(state), 8 * 2**state.large_runs
        if state.run_maxiter:  # a small run
            assert state.small_evaluations < state.large_evaluations
            assert 8 <= members <= largest
            assert 0.01 * 0.5 <= state.sigma < 0.5
            assert state.run_maxiter == max(1, int(0.5 * state.large_evaluations / members))
        else:
            assert state.small_evaluations >= state.large_evaluations
            assert members == largest
            assert state.sigma == 0.5
    assert {bool(state.run_maxiter) for state in found[2:]} == {True, False}


def test_ipop_finds_what_one_run_does_not():
    def rastrigin(x):
        return -(10 * x.shape[-1] + (x.square() - 10 * (2 * math.pi * x).cos()).sum(-1))

    center = start(3, 2.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = [after for _, after in runs(CMAEvolutionStrategy(sigma=1.0), 150, rastrigin, center)][-1]
    algorithm = CMAEvolutionStrategy(sigma=1.0, restarts="ipop", tolfun=1e-9, tolx=1e-6)
    many = [after for _, after in runs(algorithm, 600, rastrigin, center)][-1]
    assert rastrigin(one.center) < -0.5
    assert many.best_fitness > -1e-6


def test_a_resumed_search_restarts_as_the_uninterrupted_one():
    algorithm = CMAEvolutionStrategy(sigma=0.5, restarts="bipop", maxiter=6, tolstagnation=4)
    states = [after for _, after in runs(algorithm, 40)]
    resumed = algorithm.State.from_state_dict(states[9].state_dict())
    for _ in range(30):
        population = algorithm.ask(resumed)
        resumed = algorithm.tell(resumed, population, sphere(population.vectors()))
    for name, value in vars(states[-1]).items():
        other = getattr(resumed, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restarts": "ipopp"}, "Unknown restarts 'ipopp'"),
        ({"tolx": -1.0}, "tolx must be a number >= 0, got -1.0"),
        ({"maxiter": 1.5}, "maxiter must be a whole number >= 0, got 1.5"),
        ({"ftarget": "best"}, "ftarget must be a number, got 'best'"),
    ],
)
def test_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        CMAEvolutionStrategy(sigma=0.1, **options)


# --- in a module ----------------------------------------------------------------------------------------------------


def evolved(generations, ranks=None):
    module = torch.nn.Linear(3, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    subject = Evolution("cma_es", sigma=0.3, seed=2, evaluation="plain", restarts="ipop", maxiter=3)
    if ranks is not None:
        subject.ranks = ranks
    sizes, found = [], {}
    for g in range(generations):
        subject.setup(module)
        subject.evaluate(lambda batch: -sum(p.square().sum() for p in module.parameters()), None)
        if g == 4:  # in the midst of a generation, of the second run
            found = {"module": {k: v.clone() for k, v in module.state_dict().items()},
                     "evolution": subject.state_dict(RandomState(torch.device("cpu")))}  # fmt: skip
        update = subject.conclude()
        assert isinstance(update, ToCenter)
        sizes.append(len(update.fitness))
        update.apply()
    return sizes, torch.cat([p.detach().flatten() for p in module.parameters()]), found


def test_a_population_that_changes_is_evaluated_saved_and_resumed():
    sizes, weights, saved = evolved(8)
    assert sizes == [8, 8, 8, 16, 16, 16, 32, 32]
    subject = Evolution("cma_es", sigma=0.3, seed=2, evaluation="plain", restarts="ipop", maxiter=3)
    subject.load_state_dict(saved["evolution"], torch.device("cpu"))
    assert subject.has_fitness
    module = torch.nn.Linear(3, 1)
    module.load_state_dict(saved["module"])
    subject.setup(module)
    subject.conclude().apply()
    for _ in range(3):
        subject.setup(module)
        subject.evaluate(lambda batch: -sum(p.square().sum() for p in module.parameters()), None)
        subject.conclude().apply()
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in module.parameters()]), weights)


def test_the_first_process_learns_for_all(monkeypatch):
    """Whatever the others make of the same fitness: here another step size."""
    learn, process = CMAEvolutionStrategy.learn, threading.local()
    alone = evolved(5)[1]

    def run(rank, gather_from_all):
        process.rank = rank
        sizes, weights, _ = evolved(5, Ranks(groups=3, rank=rank, gather_from_all=gather_from_all))
        return sizes, weights

    def other(self, state, population, fitness, numel):
        following, lesson = learn(self, state, population, fitness, numel)
        return replace(following, sigma=following.sigma * (1 + process.rank)), lesson

    monkeypatch.setattr(CMAEvolutionStrategy, "learn", other)
    for sizes, weights in together(run, 3):
        assert sizes == [8, 8, 8, 16, 16]
        torch.testing.assert_close(weights, alone)
