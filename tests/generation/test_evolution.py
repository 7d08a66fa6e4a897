"""One generation after another, without Lightning: what is learnt, from which samples, and what a restart continues."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

from lightning_evo import algorithms
from lightning_evo.generation.evolution import Evolution
from lightning_evo.generation.step import Clipping, Step
from lightning_evo.processes.ranks import Ranks
from lightning_evo.utils.random_state import RandomState

CPU = torch.device("cpu")
EVALUATIONS = ["auto", "plain", "in_forward", "batched"]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def data(n=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator).to(dtype)
    return x, x.sum(1, keepdim=True)


def evolution(module, algorithm="openai_es", **options):
    evolution = Evolution(algorithm, **{"population": 8, "seed": 3, **options})
    evolution.setup(module)
    return evolution


def minus_mean_squared_error(module):
    return lambda batch: -(module(batch[0]) - batch[1]).square().mean()


def one_generation(subject, fitness, batch):
    assert subject.evaluate(fitness, batch)
    return subject.conclude()


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same_bits(first, second):
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True))


# --- what a generation learns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", algorithms.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_evolves_as_the_algorithm_alone_does(name, dtype):
    """A module of one vector against ask and tell on that vector, bit for bit."""
    options = {"learning_rate": 0.1, "sigma": 0.05, "weight_decay": 0.01, "samples_per_generation": 1}
    factory = algorithms.get(name)
    algorithm = factory(**{option: value for option, value in options.items() if option in factory.options})
    start = torch.linspace(-1, 1, 12, dtype=dtype)
    state = algorithm.init(start, seed=3)
    module = nn.ParameterList([nn.Parameter(start.clone())])
    subject = Evolution(algorithm, seed=3, evaluation="plain")
    subject.setup(module)
    for _ in range(3):
        population = algorithm.ask(state)
        fitness = torch.stack([-member.cos().sum() for member in population.vectors()])
        state = algorithm.tell(state, population, fitness)
        update = one_generation(subject, lambda batch: -module[0].cos().sum(), torch.zeros(1))
        update.apply()
        if algorithm.owns_center and dtype == torch.float32:  # the module's is kept in float64
            torch.testing.assert_close(module[0].detach(), state.center, rtol=1e-5, atol=1e-5)
            continue
        assert torch.equal(update.fitness, fitness.double())
        assert torch.equal(module[0].detach(), state.center)
        assert subject.state.generation == state.generation
    assert not torch.equal(state.center, start)


def test_learns():
    module, batch = network(), data(64)
    subject, fitness = evolution(module, population=32), minus_mean_squared_error(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    first = one_generation(subject, fitness, batch).fitness.mean()
    for _ in range(150):
        optimizer.zero_grad()
        update = one_generation(subject, fitness, batch)
        update.add_to_gradients()
        optimizer.step()
    assert update.fitness.mean() > first / 10


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_gradients_are_minus_the_estimate_and_add_up(weight_decay):
    module, batch = network(torch.float64), data(dtype=torch.float64)
    subject = evolution(module, weight_decay=weight_decay)
    update = one_generation(subject, minus_mean_squared_error(module), batch)
    estimates = [update.estimate(parameter) for parameter in subject.space]
    assert len(set(update.weights)) == 4
    for parameter, estimate in zip(subject.space, estimates, strict=True):
        noise = update.population.perturbation.noise(range(4), parameter.index, parameter.tensor)
        expected = sum(weight * eps for weight, eps in zip(update.weights, noise, strict=True))
        torch.testing.assert_close(estimate, expected - weight_decay * parameter.tensor.detach())
    norm = update.add_to_gradients()
    assert norm == pytest.approx(math.sqrt(sum(float(estimate.square().sum()) for estimate in estimates)), rel=1e-12)
    assert all(torch.equal(p.grad, -estimate) for p, estimate in zip(module.parameters(), estimates, strict=True))
    assert update.add_to_gradients(scale=1024.0) == norm  # a loss scaler's factor; the norm is that of the estimate
    for parameter, estimate in zip(module.parameters(), estimates, strict=True):
        torch.testing.assert_close(parameter.grad, -1025 * estimate, rtol=1e-13, atol=0)


def test_gradients_have_the_weights_dtype():
    module = network(torch.bfloat16)
    update = one_generation(evolution(module), minus_mean_squared_error(module), data(dtype=torch.bfloat16))
    update.add_to_gradients()
    for parameter in update.space:
        assert torch.equal(parameter.tensor.grad, (-update.estimate(parameter)).bfloat16())


@pytest.mark.parametrize(
    "clipping", [None, Clipping(0.1), Clipping(1e9), Clipping(0.02, "value"), Clipping(9.0, "value")]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_in_place_equals_gradients_clipped_by_torch_and_sgd(clipping, weight_decay):
    batch = data(dtype=torch.float64)
    modules, norms = [network(torch.float64), network(torch.float64)], []
    rates = [0.1, 0.01, 0.001, 1.0]
    for in_place, module in zip((True, False), modules, strict=True):
        update = one_generation(evolution(module, weight_decay=weight_decay), minus_mean_squared_error(module), batch)
        groups = [{"params": [p], "lr": rate} for p, rate in zip(module.parameters(), rates, strict=True)]
        if in_place:
            norms.append(float(update.apply(update.step([torch.optim.SGD(groups)], clipping))))
            continue
        norms.append(float(update.add_to_gradients()))
        if clipping:
            clip = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}[clipping.by]
            clip(module.parameters(), clipping.limit)
        torch.optim.SGD(groups).step()
    assert norms[0] == pytest.approx(norms[1], rel=1e-14)
    assert norms[0] > 0.1  # so that the first and the third are clipped at all
    for a, b, start in zip(*(module.parameters() for module in modules), weights(network(torch.float64)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)
        assert not torch.equal(a, start)


def test_statistics_are_those_of_the_members_that_did_not_fail():
    module = network()
    subject = evolution(module, population=4, antithetic=False, evaluation="plain")
    values = iter([1.0, math.nan, 3.0, math.inf])
    subject.evaluate(lambda batch: torch.tensor(next(values)), None)
    expected = {"failed_members": 2.0, "fitness_mean": 2.0, "fitness_std": 1.0, "fitness_best": 3.0}
    assert subject.statistics() == expected
    with pytest.warns(UserWarning, match="2 of 4"):
        subject.conclude()
    subject.evaluate(lambda batch: torch.tensor(math.nan), None)
    statistics = subject.statistics()
    assert statistics.pop("failed_members") == 4.0
    assert all(map(math.isnan, statistics.values()))


# --- updates are not lost, the center is not damaged ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_updates_below_the_spacing_of_the_weights_act_on_average(dtype):
    """The same updates, from a fitness that does not look at the weights, to float32 weights and to short ones."""
    n, generations, spacing = 10_000, 200, torch.finfo(dtype).eps  # of numbers between 1 and 2
    start = torch.full((n,), 1.5)
    modules = {d: nn.ParameterList([nn.Parameter(start.clone().to(d))]) for d in (torch.float32, dtype)}
    plainly_rounded = start.to(dtype)
    for module_dtype, module in modules.items():
        subject = evolution(module, "mezo", population=2, sigma=1.0, evaluation="plain")
        for _ in range(generations):
            values = itertools.cycle([1.0, -1.0])
            update = one_generation(subject, lambda batch, values=values: torch.tensor(next(values)), None)
            assert update.weights == (1.0,)  # the update is the noise
            if module_dtype == dtype:
                step = update.estimate(subject.space[0]) * (spacing / 16)
                plainly_rounded = (plainly_rounded.float() + step).to(dtype)
            update.apply(Step(rates=(spacing / 16,)))
    assert torch.equal(plainly_rounded, start.to(dtype))  # not one update survives
    exact, rounded = ((module[0].detach().double() - 1.5) for module in modules.values())
    slope = (exact @ rounded) / (exact @ exact)  # 1 if updates act in full
    error = (rounded - exact).norm() / math.sqrt(n) / exact.norm()  # of the slope: independent errors of the n weights
    assert error < 0.05
    assert abs(slope - 1) < 4.9 * error  # chance fails once in a million
    assert abs((rounded - exact).mean()) < 4.9 * (rounded - exact).std() / math.sqrt(n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_to_learn_changes_nothing_in_200_generations(dtype):
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3, affine=False)).to(dtype)
    with torch.no_grad():
        module[0].weight[0] = torch.tensor([-0.0, torch.finfo(dtype).smallest_normal / 4, -torch.finfo(dtype).max])
    before = [tensor.clone() for tensor in module.state_dict().values()]
    subject, x = evolution(module, population=2), torch.ones(2, 3, dtype=dtype)

    def constant(batch):
        module(batch)  # BatchNorm counts
        return torch.tensor(0.5)

    with pytest.warns(UserWarning, match="same fitness"):
        one_generation(subject, constant, x).apply(Step(rates=(0.1,)))
    for _ in range(199):
        update = one_generation(subject, constant, x)
        assert not update
        assert update.apply(Step(rates=(0.1,))) == 0
    assert subject.state.generation == 200
    assert same_bits(before, module.state_dict().values())


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_an_evaluation_that_fails_leaves_everything_as_it_was(evaluation):
    module, batch = network(), data()
    subject = evolution(module, evaluation=evaluation)
    before, state = [tensor.clone() for tensor in module.state_dict().values()], torch.get_rng_state()
    calls = itertools.count()

    def fitness(batch):
        module(batch[0]), torch.rand(1)
        if next(calls) >= 2:
            raise RuntimeError("no fitness today")
        return torch.tensor(0.0)

    with pytest.raises(RuntimeError, match="no fitness today"):
        subject.evaluate(fitness, batch)
    assert same_bits(before, module.state_dict().values())
    assert torch.equal(torch.get_rng_state(), state)
    assert not subject.has_fitness
    # A second try is as good as a first one.
    update = one_generation(subject, minus_mean_squared_error(module), batch)
    again = network()
    expected = one_generation(
        evolution(again, evaluation=subject.evaluation.name), minus_mean_squared_error(again), batch
    )
    assert update.weights == expected.weights


# --- several batches and samples ------------------------------------------------------------------------------------


def test_accumulated_batches_are_one_large_batch():
    module, (x, y) = network(torch.float64).eval(), data(32, torch.float64)
    whole = one_generation(evolution(module), minus_mean_squared_error(module), (x, y))
    subject = evolution(module)
    for part in zip(x.split(8), y.split(8), strict=True):
        assert subject.evaluate(minus_mean_squared_error(module), part)
    parts = subject.conclude()
    torch.testing.assert_close(parts.fitness, whole.fitness, rtol=1e-14, atol=0)
    assert parts.weights == pytest.approx(whole.weights, rel=1e-9)
    assert len(set(whole.weights)) == 4


def recorded(seen):
    """A fitness that notes which samples it is given."""

    def fitness(batch):
        seen.append(batch["x"].tolist())
        return batch["x"].double().mean() * len(seen)

    return fitness


def test_samples_per_generation_over_several_batches():
    seen, module = [], network()
    subject = evolution(module, samples_per_generation=20, evaluation="plain")
    counted = [
        subject.evaluate(recorded(seen), {"x": torch.arange(start, start + 8), "id": list(range(8))})
        for start in (0, 8, 16, 24)
    ]
    assert counted == [True, True, True, False]
    first, second, third = seen[:8], seen[8:16], seen[16:]
    assert first == [list(range(8))] * 8
    assert second == [list(range(8, 16))] * 8
    assert third == [third[0]] * 8  # the same for all members
    assert len(set(third[0])) == 4
    assert set(third[0]) < set(range(16, 24))
    # Samples, not batches, weigh the same: 8, 8 and 4 of them.
    means = (
        torch.tensor([[sum(samples) / len(samples) * (i + 1) for i, samples in enumerate(seen)]]).double().view(3, 8)
    )
    expected = (means * torch.tensor([8.0, 8.0, 4.0])[:, None]).sum(0) / 20
    torch.testing.assert_close(subject.conclude().fitness, expected, rtol=1e-6, atol=0)


def test_samples_per_generation_are_uniform_without_replacement():
    seen, module = [], nn.ParameterList([nn.Parameter(torch.zeros(1))])
    subject = evolution(module, population=2, samples_per_generation=3, evaluation="plain")
    generations, total, chosen = 600, 10, 3
    for _ in range(generations):
        one_generation(subject, recorded(seen), {"x": torch.arange(total)})
    assert seen[::2] == seen[1::2]
    assert all(len(set(samples)) == chosen for samples in seen)
    counts = torch.bincount(torch.tensor(seen[::2]).flatten(), minlength=total)
    p = chosen / total
    # Counts of draws without replacement: this is chi-square with total - 1 degrees of freedom; once in a million.
    statistic = ((counts - generations * p) ** 2).sum() / (generations * p * (1 - p)) * (total - 1) / total
    assert stats.chi2.sf(float(statistic), total - 1) > 1e-6
    assert len({tuple(samples) for samples in seen}) > 100  # of the 120 there are


def test_small_batches_are_seen_whole():
    seen, module = [], network()
    subject = evolution(module, samples_per_generation=5000, evaluation="plain")
    one_generation(subject, recorded(seen), {"x": torch.arange(6)})
    assert seen == [list(range(6))] * 8


def test_batches_that_every_member_declines_do_not_count():
    module = network()
    subject = evolution(module, evaluation="plain")
    assert not subject.evaluate(lambda batch: None, None)
    assert not subject.has_fitness
    values = iter([1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert subject.evaluate(lambda batch: None if (value := next(values)) is None else torch.tensor(value), None)
    with pytest.warns(UserWarning, match="1 of 8 members"):
        update = subject.conclude()
    assert update.fitness.isnan().tolist() == [False, False, True, *[False] * 5]


# --- warnings -------------------------------------------------------------------------------------------------------


def generation_of(subject, values):
    """With a fitness that looks at no weight: of an evolution that calls it once for every member."""
    values = iter(values)
    return one_generation(subject, lambda batch: torch.tensor(float(next(values))), None)


def test_ties_are_said_once():
    subject = evolution(network(), population=4, evaluation="plain")
    with pytest.warns(UserWarning, match="Generation 0: members .* have the same fitness.*larger sigma"):
        assert not generation_of(subject, [2.0] * 4)
    assert not generation_of(subject, [2.0] * 4)


def test_failures_are_said_once():
    subject = evolution(network(), population=6, evaluation="plain")
    with pytest.warns(UserWarning, match="Generation 0: the fitness of 2 of 6 members is NaN or infinite; NaN is left"):
        assert generation_of(subject, [math.nan, 1.0, math.inf, 2.0, 3.0, 1.0])
    assert generation_of(subject, [math.nan, 1.0, math.inf, 2.0, 3.0, 1.0])


def test_a_generation_of_failures_is_always_said_and_changes_nothing():
    module = network()
    subject, before = evolution(module, population=4, weight_decay=0.1, evaluation="plain"), weights(module)
    for generation in range(2):
        with pytest.warns(UserWarning, match=f"Generation {generation}: the fitness of every member is NaN or infin"):
            assert not generation_of(subject, [math.nan, math.inf, -math.inf, math.nan])
    assert same_bits(before, weights(module))
    assert subject.state.generation == 2


# --- sigma, learning rate, setup ------------------------------------------------------------------------------------


def test_sigma_can_be_read_and_set():
    schedule = algorithms.Schedule("linear", 0.1, 0.05, 2)
    subject = evolution(network(), population=4, sigma=schedule, learning_rate=schedule, evaluation="plain")
    assert subject.sigma == 0.1
    generation_of(subject, range(4))
    assert subject.sigma == pytest.approx(0.075)
    subject.sigma = 0.4
    assert subject.population.sigma == 0.4
    generation_of(subject, range(4))
    assert subject.sigma == 0.4
    with pytest.raises(ValueError, match="sigma must be a number > 0, got -1"):
        subject.sigma = -1


def test_setup_continues_with_the_same_module_and_starts_anew_with_another():
    module = network()
    subject = evolution(module, population=4, evaluation="plain")
    generation_of(subject, range(4))
    subject.setup(module)
    assert subject.state.generation == 1
    subject.setup(module, [module[3].bias])
    assert [parameter.name for parameter in subject.space] == ["3.bias"]
    assert subject.state.generation == 1
    subject.evaluate(lambda batch: torch.tensor(1.0), None)
    subject.setup(network())
    assert subject.state.generation == 0
    assert not subject.has_fitness


def test_without_a_seed_torchs_own_counts():
    noises = []
    for seed in (11, 11, 12):
        torch.manual_seed(seed)
        subject = Evolution(population=4)
        subject.setup(network_without_seed())
        noises.append(subject.population.perturbation.noise([0], 0, torch.zeros(5)))
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])


def network_without_seed():
    return nn.Linear(2, 2)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def saved_and_loaded(saved, path):
    torch.save(saved, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("mid_generation", [False, True])
@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("before_setup", [True, False])
def test_a_resumed_run_is_the_uninterrupted_one(mid_generation, seed, before_setup, tmp_path):
    x, y = data()
    parts = list(zip(x.split(16), y.split(16), strict=True))
    module = network()
    subject = evolution(module, seed=seed)

    def fitness_of(module):  # with a random number, which a checkpoint must continue, too
        return lambda batch: minus_mean_squared_error(module)(batch) + torch.rand(()) * 0.01

    def finish(subject, module):
        for part in parts[1:] if mid_generation else parts:
            subject.evaluate(fitness_of(module), part)
        subject.conclude().apply(Step(rates=(0.1,)))
        torch.rand(3)
        one_generation(subject, fitness_of(module), (x, y)).apply(Step(rates=(0.1,)))

    for _ in range(2):
        one_generation(subject, fitness_of(module), (x, y)).apply(Step(rates=(0.1,)))
    subject.sigma = 0.03
    if mid_generation:
        subject.evaluate(fitness_of(module), parts[0])
    saved = saved_and_loaded(subject.state_dict(RandomState(CPU)), tmp_path / "evolution.pt")
    twin = copy.deepcopy(module)
    finish(subject, module)

    torch.manual_seed(99)
    resumed = Evolution(population=8, seed=seed)
    if before_setup:
        resumed.load_state_dict(saved, CPU)
        resumed.setup(twin)
    else:
        resumed.setup(twin)
        resumed.load_state_dict(saved, CPU)
    finish(resumed, twin)
    assert same_bits(weights(module), weights(twin))
    assert resumed.state == subject.state
    like = torch.zeros(100)
    noises = [s.population.perturbation.noise([1], 2, like) for s in (subject, resumed)]
    assert torch.equal(*noises)


def test_a_state_dict_is_a_snapshot():
    """Neither do later batches write to it, nor does a run that was resumed from it."""
    subject = evolution(network(), population=4)
    values = itertools.count()

    def evaluate(subject):
        subject.evaluate(lambda batch: torch.tensor(float(next(values))), None)

    evaluate(subject)
    saved = subject.state_dict(RandomState(CPU))
    expected = saved["fitness_sums"].clone()
    evaluate(subject)
    assert torch.equal(saved["fitness_sums"], expected)
    subject.load_state_dict(saved, CPU)
    evaluate(subject)
    assert torch.equal(saved["fitness_sums"], expected)


def test_a_state_dict_holds_plain_values_only():
    subject = evolution(network(), seed=2**64 + 5)
    saved = subject.state_dict(RandomState(CPU))
    assert saved["state"]["seed"] == 5
    flat = [*saved.values(), *saved["random_state"].values(), *saved["state"].values()]
    assert {type(value) for value in flat} <= {int, float, str, torch.Tensor, dict}
    assert "sigma" not in saved["state"]
    subject.sigma = 0.5
    assert subject.state_dict(RandomState(CPU))["state"]["sigma"] == 0.5


def test_checkpoints_of_another_run():
    saved = evolution(network(), population=4).state_dict(RandomState(CPU))
    with pytest.raises(ValueError, match="written by the algorithm 'openai_es', but this run uses 'mezo'"):
        evolution(network(), "mezo").load_state_dict(saved, CPU)
    evolution(network(), population=8).load_state_dict(saved, CPU)  # between generations the population may change
    subject = evolution(network(), population=4)
    subject.evaluate(lambda batch: torch.tensor(1.0), None)
    saved = subject.state_dict(RandomState(CPU))
    with pytest.raises(ValueError, match="middle of a generation of 4 members; this run has population=8"):
        evolution(network(), population=8).load_state_dict(saved, CPU)
    other = evolution(network(), population=4, seed=7)
    with pytest.warns(UserWarning, match="Resuming with seed=7; the checkpoint's run used 3"):
        other.load_state_dict(saved, CPU)
    assert other.state.seed == 7
    assert other.has_fitness


# --- errors ---------------------------------------------------------------------------------------------------------


def test_too_early():
    subject = Evolution(population=4, evaluation="plain")
    assert not subject.is_set_up
    with pytest.raises(RuntimeError, match="no module yet; call `setup` first"):
        subject.evaluate(lambda batch: torch.tensor(1.0), None)
    subject.setup(network())
    assert subject.is_set_up
    with pytest.raises(RuntimeError, match="call `evaluate` first"):
        subject.conclude()
    generation_of(subject, range(4))
    with pytest.raises(RuntimeError, match="call `evaluate` first"):
        subject.conclude()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"algorithm": "openaies"}, ValueError, r"Unknown algorithm 'openaies'\. Did you mean 'openai_es'\?"),
        ({"algorithm": algorithms.get("mezo")(), "sigma": 0.1}, ValueError, "algorithm object instead: sigma"),
        (
            {"algorithm": algorithms.get("mezo")},
            TypeError,
            "the recipe 'mezo'; call it to make an algorithm",
        ),
        ({"algorithm": 3}, TypeError, "must be a name .* got int"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number or None, got 1.5"),
        ({"seed": True}, TypeError, "seed must be a whole number or None, got True"),
        ({"popluation": 3}, TypeError, "Did you mean 'population'"),
    ],
)
def test_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        Evolution(**arguments)


def test_options_of_none_go_with_an_algorithm_object():
    algorithm = algorithms.get("mezo")(sigma=0.5)
    assert Evolution(algorithm, population=None, sigma=None).algorithm is algorithm
    assert replace(algorithm, sigma=0.1).sigma == 0.1


@pytest.mark.parametrize(
    ("processes", "size", "shares"),
    [
        (3, 4, [8, 8, 4]),  # where pairs would be divided into 8, 6 and 6
        (2, 10, [10, 10]),
        (2, 8, [10, 10]),  # not 16 and 4
        (4, 20, [6, 6, 6, 2]),  # a run of one process that goes on with four: smaller groups
    ],
)
def test_groups_of_an_earlier_run_stay_whole_where_that_costs_nothing(processes, size, shares):
    module = torch.nn.Linear(3, 2)
    found = []
    for rank in range(processes):
        evolution = Evolution(population=20, seed=0)
        evolution.setup(module)
        evolution.ranks = Ranks(processes, rank=rank, gather_from_all=lambda values: [values] * processes)
        evolution.load_evaluation({"evaluation": "batched", "members_per_forward": size})
        for _ in range(2):  # already on the first batch
            spied = evolution._evaluate_members
            evolution._evaluate_members = lambda *given, spied=spied: found.append(len(given[2])) or spied(*given)
            evolution.evaluate(lambda x: -module(x).square().sum(), torch.ones(4, 3))
            evolution._evaluate_members = spied
    assert found[::2] == found[1::2] == shares
