"""The way that is chosen, proven and replaced: never a wrong fitness, and always a reason to read."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F

from lightning_evo.evaluation import candidates
from lightning_evo.evaluation.choice import Evaluation
from lightning_evo.evaluation.ways.batched import Batched
from lightning_evo.evaluation.ways.in_forward import InForward
from lightning_evo.generation.evolution import Evolution
from lightning_evo.isolation import Isolation
from lightning_evo.spaces.search_space import SearchSpace
from tests.evaluation.models import CPU, NOISE, cnn, evaluate, mlp, population

WAYS = ["in_forward", "batched"]


def choose(evaluation, module, members, fitness, evolve=None):
    """A generation; its fitness, and what the plain loop gives."""
    expected = torch.stack(evaluate(None, module, members, fitness, evolve))
    with Isolation(module, CPU) as isolation:
        values = evaluation(module, SearchSpace(module, evolve), members, fitness, isolation)
    return torch.stack(values), expected


def way_of(evaluation):
    return evaluation.state_dict()["evaluation"]


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bached",), r"Unknown evaluation 'bached'\. Did you mean 'batched'\? Choose one of auto, plain, in_forward"),
        (("batched", 0), "members_per_forward must be 'auto' or a whole number >= 1, got 0"),
        (("batched", True), "got True"),
        (("batched", 2.0), "got 2.0"),
        (("batched", "many"), "got 'many'"),
        (("plain", 4), "members_per_forward has no effect with evaluation='plain'"),
        (("in_forward", "auto"), "members_per_forward has no effect with evaluation='in_forward'"),
    ],
)
def test_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(*arguments)


# --- what auto takes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "shape", "noise", "expected"),
    [
        (mlp, (4, 6), "gaussian", {"batched"}),
        (mlp, (4, 6), "rank_1", {"batched"}),
        (lambda: cnn(0.0), (4, 3, 6, 6), "rank_1", {"batched"}),
        (cnn, (4, 3, 6, 6), "gaussian", {"in_forward", "plain"}),  # whichever is faster
        (lambda: nn.LSTM(6, 8), (4, 6), "gaussian", {"in_forward", "plain"}),
        (lambda: nn.Linear(600, 600), (4, 600), "gaussian", {"batched"}),
        (lambda: nn.Linear(600, 600), (4, 600), "rank_1", {"batched"}),
    ],
)
def test_auto(make, shape, noise, expected):
    module, x, evaluation = make(), torch.randn(shape), Evaluation()
    assert evaluation.state_dict() == {}
    assert evaluation.summary == ""

    def fitness():
        output = module(x)
        return -(output[0] if isinstance(output, tuple) else output).square().mean()

    values, reference = choose(evaluation, module, population(**NOISE[noise]), fitness)
    torch.testing.assert_close(values, reference, rtol=1e-5, atol=1e-6)
    assert way_of(evaluation) in expected
    assert evaluation.summary.startswith(f"evaluation: {way_of(evaluation)}")
    if way_of(evaluation) == "batched":
        assert evaluation.summary == "evaluation: batched, 6 members per forward"


def test_members_per_forward_asks_for_batches():
    module, x = cnn(0.0), torch.randn(4, 3, 6, 6)
    evaluation = Evaluation("auto", 4)
    choose(evaluation, module, population(), lambda: module(x).square().mean())
    assert evaluation.state_dict() == {"evaluation": "batched", "members_per_forward": 4}


@pytest.mark.parametrize("name", ["plain", *WAYS])
def test_a_given_way_is_used(name):
    module, x = mlp(), torch.randn(4, 6)
    evaluation = Evaluation(name)
    values, expected = choose(evaluation, module, population(), lambda: module(x).square().mean())
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert way_of(evaluation) == name


def test_the_first_generation_costs_a_few_calls_more():
    module, x, calls = mlp(), torch.randn(4, 6), itertools.count()

    def fitness():
        next(calls)
        return module(x).square().mean()

    with Isolation(module, CPU) as isolation:
        evaluation, space, members = Evaluation("in_forward"), SearchSpace(module), population()
        evaluation(module, space, members, fitness, isolation)
        assert 6 < next(calls) < 6 + 10
        before = next(calls)
        evaluation(module, space, members, fitness, isolation)
        assert next(calls) == before + 6 + 1


# --- what is found --------------------------------------------------------------------------------------------------


class Cached(nn.Module):
    """Reads its weight by a view of long ago, as well as (``also``) in the ordinary way."""

    def __init__(self, view, also=False):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        self.kept = [view(self.layers[0].weight)]
        self.also = also

    def forward(self, x):
        weight = self.kept[0] if isinstance(self.kept[0], torch.Tensor) else torch.from_numpy(self.kept[0])
        hidden = F.linear(x, weight, self.layers[0].bias)
        if self.also:
            hidden = hidden + self.layers[0](x)
        return self.layers[2](hidden.tanh())


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = torch.jit.script(nn.Linear(8, 6))

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = torch.compile(nn.Linear(8, 6), backend="eager")

    def forward(self, x):
        return self.second(self.first(x).tanh())


def compiled_in_place():
    module = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))
    module[1].compile(backend="eager")
    return module


HIDDEN = {
    "view": (lambda: Cached(lambda w: w.view(-1, 6)), "layers.0.weight"),
    "view_and_the_weight": (lambda: Cached(lambda w: w.view(-1, 6), also=True), "layers.0.weight"),
    "detached": (lambda: Cached(lambda w: w.detach()), "layers.0.weight"),
    "data_and_the_weight": (lambda: Cached(lambda w: w.data, also=True), "layers.0.weight"),
    "numpy": (lambda: Cached(lambda w: w.detach().numpy()), "layers.0.weight"),
    "numpy_and_the_weight": (lambda: Cached(lambda w: w.detach().numpy(), also=True), "layers.0.weight"),
    "script": (Scripted, "second"),
    "compile": (Compiled, "second"),
    "compile_in_place": (compiled_in_place, "1"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is (deprecated|not supported)")
@pytest.mark.parametrize(
    ("name", "noise", "dtype"),
    [
        *itertools.product(["auto", *WAYS], ["gaussian", "rank_1"], [torch.float32]),
        ("auto", "gaussian", torch.bfloat16),  # which is only read differently, in every way and with all noise
    ],
)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_weights_are_run_by_the_plain_loop(hidden, name, noise, dtype):
    make, named = HIDDEN[hidden]
    if dtype == torch.bfloat16:
        if "numpy" in hidden:
            pytest.skip("NumPy has no bfloat16")
        kept = make
        make = lambda: with_default_dtype(dtype, kept)  # noqa: E731
    torch.manual_seed(1)
    module, x = make(), torch.randn(32, 6).to(dtype)
    evaluation, members = Evaluation(name), population(**NOISE[noise])

    def fitness():
        return -(module(x) - x).float().square().mean()

    if name == "auto":
        values, expected = choose(evaluation, module, members, fitness)
        assert named in evaluation.summary
    else:
        with pytest.warns(UserWarning, match=f"evaluation={name!r}.*{named}"):
            values, expected = choose(evaluation, module, members, fitness)
    assert way_of(evaluation) == "plain"
    assert torch.equal(values, expected)


def with_default_dtype(dtype, make):
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize(
    ("name", "noise", "dtype", "seed"),
    [(*case, seed) for seed, case in enumerate(itertools.product(WAYS, NOISE, DTYPES))],
)
def test_no_way_is_refuted_wrongly(name, noise, dtype, seed):
    """Each with a seed of its own, as it is a matter of chance."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 5)
    ).to(dtype)
    x, labels = torch.randn(32, 16).to(dtype), torch.randint(5, (32,))
    evaluation = Evaluation(name)
    choose(
        evaluation, module, population(sigma=1e-3, **NOISE[noise]), lambda: -F.cross_entropy(module(x).float(), labels)
    )
    assert way_of(evaluation) == name
    assert "not possible" not in evaluation.summary


class Metric(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.accuracy = torchmetrics.classification.BinaryAccuracy()

    def forward(self, x):
        output = self.net(x)
        self.accuracy(output[:, 0], (x[:, 0] > 0).int())
        return output


IMPOSSIBLE = {
    "item": (mlp, lambda m, x: m(x) * m(x).mean().item()),
    "branch": (mlp, lambda m, x: m(x) if m(x).sum() > 0 else 2 * m(x)),
    "shared_tensor": (mlp, lambda m, x: torch.zeros(4, 2).add_(m(x))),
    "metric": (Metric, lambda m, x: m(x)),
    "lstm": (lambda: nn.LSTM(6, 3), lambda m, x: m(x)[0]),
}


@pytest.mark.parametrize("noise", ["gaussian", "rank_1"])
@pytest.mark.parametrize("name", ["auto", "batched"])
@pytest.mark.parametrize("model", IMPOSSIBLE)
def test_what_vmap_cannot_do_is_said_in_one_line(model, name, noise):
    make, run = IMPOSSIBLE[model]
    module, x = make(), torch.randn(4, 6)
    evaluation, members = Evaluation(name, 4 if name == "auto" else None), population(**NOISE[noise])

    def fitness():
        return run(module, x).square().mean()

    if name == "auto":
        values, expected = choose(evaluation, module, members, fitness)
    else:
        with pytest.warns(UserWarning, match="evaluation='batched' does not work with this module"):
            values, expected = choose(evaluation, module, members, fitness)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert way_of(evaluation) in ("in_forward", "plain")
    assert "; batched is not possible: " in evaluation.summary
    assert len(evaluation.summary.splitlines()) == 1
    assert len(evaluation.summary) < 400


def test_a_batch_that_everyone_declines_proves_nothing():
    module, x = Cached(lambda w: w.detach()), torch.randn(8, 6)
    evaluation, members = Evaluation("in_forward"), population()
    declines = True

    def fitness():
        return None if declines else module(x).square().mean()

    with Isolation(module, CPU) as isolation:
        assert evaluation(module, SearchSpace(module), members, fitness, isolation) == [None] * 6
    declines = False
    with pytest.warns(UserWarning, match=r"layers\.0\.weight"):
        values, expected = choose(evaluation, module, members, fitness)
    assert torch.equal(values, expected)


@pytest.mark.parametrize("factor", [0.0, torch.nan])
@pytest.mark.parametrize("name", WAYS)
def test_a_fitness_that_does_not_depend_on_the_weights_hides_nothing(name, factor):
    module, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)), torch.randn(8, 6)
    evaluation = Evaluation(name)
    choose(evaluation, module, population(), lambda: (module(x) * factor).square().mean())
    assert way_of(evaluation) == name
    assert "not possible" not in evaluation.summary


@pytest.mark.parametrize("noise", ["gaussian", "rank_1"])
def test_a_choice_that_waited_is_the_one_that_would_have_been_made(noise, monkeypatch):
    """Where the first batch tells nothing; as a run does that was interrupted after it."""
    monkeypatch.setattr("lightning_evo.evaluation.choice.is_slower", lambda way, job: "it is slower")
    monkeypatch.setattr("lightning_evo.evaluation.ways.batched._room", lambda *_: 2)
    module, x, members = mlp(), torch.randn(4, 6), population(**NOISE[noise])
    chosen = []
    for declines in (False, True):
        evaluation = Evaluation()
        if declines:
            with Isolation(module, CPU) as isolation:
                evaluation(module, SearchSpace(module), members, lambda: None, isolation)
            assert evaluation.state_dict() == {}
        choose(evaluation, module, members, lambda: module(x).square().mean())
        chosen.append(evaluation.state_dict())
    assert chosen[0] == chosen[1]
    assert chosen[0]["evaluation"] == ("batched" if noise == "gaussian" else "in_forward")


@pytest.mark.parametrize("factor", [0.0, torch.nan])
def test_a_view_of_a_weight_is_found_whatever_the_fitness(factor):
    module, x = Cached(lambda w: w.detach()), torch.randn(8, 6)
    with pytest.warns(UserWarning, match=r"layers\.0\.weight"):
        choose(Evaluation("in_forward"), module, population(), lambda: (module(x) * factor).square().mean())


def test_another_choice_of_parameters_is_proven_anew():
    """The head may evolve in the forward; with the hidden layer unfrozen it is found out."""
    module, x = Cached(lambda w: w.detach()), torch.randn(8, 6)
    evaluation, members = Evaluation("in_forward"), population()

    def fitness():
        return module(x).square().mean()

    values, expected = choose(evaluation, module, members, fitness, r"layers\.2")
    assert torch.equal(values, expected)
    assert way_of(evaluation) == "in_forward"
    with pytest.warns(UserWarning, match=r"layers\.0\.weight"):
        values, expected = choose(evaluation, module, members, fitness)
    assert torch.equal(values, expected)
    evaluation.forget()
    assert evaluation.state_dict() == {}


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "plain", *WAYS])
@pytest.mark.parametrize("noise", ["gaussian", "rank_1"])
def test_a_choice_is_taken_over(name, noise):
    module, x, members = mlp(), torch.randn(4, 6), population(**NOISE[noise])

    def fitness():
        return module(x).square().mean()

    first = Evaluation(name)
    values, _ = choose(first, module, members, fitness)
    for second in (Evaluation("auto"), Evaluation(name)):
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        again, _ = choose(second, module, members, fitness)
        assert second.state_dict() == first.state_dict()
        assert torch.equal(again, values)
    explicit = Evaluation("plain")
    explicit.load_state_dict(first.state_dict())
    assert torch.equal(*choose(explicit, module, members, fitness))
    untouched = Evaluation(name)
    untouched.load_state_dict({})
    choose(untouched, module, members, fitness)
    assert untouched.state_dict() == first.state_dict()


def test_members_per_forward_is_taken_over_unless_it_is_given():
    state = {"evaluation": "batched", "members_per_forward": 2}
    module, x = mlp(), torch.randn(4, 6)
    for evaluation, size in ((Evaluation(), 2), (Evaluation("batched"), 2), (Evaluation("batched", 4), 4)):
        evaluation.load_state_dict(state)
        choose(evaluation, module, population(), lambda: module(x).square().mean())
        assert evaluation.state_dict() == {"evaluation": "batched", "members_per_forward": size}


def test_the_faster_way_is_taken_only_if_it_gives_the_same_bits(monkeypatch):
    """Else a run would depend on how fast it happened to be."""
    in_forward, now = InForward.run, [0.0]

    def slow(self, *arguments):
        now[0] += 1.0
        return in_forward(self, *arguments)

    monkeypatch.setattr(InForward, "run", slow)
    monkeypatch.setattr(candidates, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    module, x = cnn(0.0), torch.randn(4, 3, 6, 6)
    same, other = Evaluation(), Evaluation()
    choose(same, module, population(), lambda: module(x).square().mean())
    assert way_of(same) == "plain"
    monkeypatch.setattr(Batched, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("not today")))
    choose(other, module, population(rank=1), lambda: module(x).square().mean())
    assert now[0] >= 2.0  # slower here, too
    assert way_of(other) == "in_forward"


@pytest.mark.parametrize("seed", range(4))
def test_batched_with_other_dropout_masks_is_refused(seed):
    """A transformer's attention gives tensors that are not contiguous, for which batched members draw other masks."""
    torch.manual_seed(seed)
    layer = torch.nn.TransformerEncoderLayer(64, 2, 128, batch_first=True)
    x = torch.randn(16, 16, 64)
    fitness = []
    for name in ("plain", "auto"):
        evolution = Evolution(population=6, sigma=0.02, seed=0, evaluation=name)
        evolution.setup(layer)
        evolution.evaluate(lambda x: -layer(x).mean(1).square().mean(), x)
        fitness.append(evolution.conclude().fitness)
    assert (
        "batched is not possible: the center itself comes out differently, first in layer_norm"
        in evolution.evaluation.summary
    )
    torch.testing.assert_close(fitness[1], fitness[0], rtol=0, atol=1e-6 * float(fitness[0].std()) + 1e-6)
