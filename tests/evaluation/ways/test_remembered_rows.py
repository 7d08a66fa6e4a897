"""Forwards in which rows are not followed give what followed ones give, and are used only where that is known."""

import threading
from functools import partial

import pytest
import torch
from torch import nn

from lightning_evo import Evolution
from lightning_evo.evaluation.ways.remembered_rows import RememberedRows
from lightning_evo.evaluation.ways.routes import Routes
from tests.evaluation.row_models import DECODERS, MODELS, Encoder, generated, log_probability, tokens

pytestmark = [pytest.mark.filterwarnings("ignore:.*generation flags")]
GENERATIONS = 8  # followed in 0, 1, 2 and 4


@pytest.fixture
def remembered(monkeypatch):
    """The generations in which a forward was not followed to its end."""
    found, release = [], RememberedRows._release

    def noting(self, *exit):
        release(self, *exit)
        if exit[1] is None and self._refusal is None:
            found.append(self.population.generation)

    monkeypatch.setattr(RememberedRows, "_release", noting)
    return found


def way_of(evolution):
    return evolution.evaluation._choice.way


def run(model, fitness, batch, way="rows", count=GENERATIONS, **options):
    """Each generation's fitness; the batch may be a function of the generation."""
    options = {"population": 8, "sigma": 0.05, "rank": 1, "seed": 0, "members_per_forward": 4, **options}
    options["members_per_forward"] = None if way == "plain" else options["members_per_forward"]
    evolution = Evolution("eggroll", evaluation=way, **options)
    evolution.setup(model)
    found = []
    for generation in range(count):
        evolution.evaluate(fitness, batch(generation) if callable(batch) else batch)
        found.append(evolution.conclude().fitness)
    return torch.stack(found), evolution


def assert_equal(make, fitness_of, batch, **options):
    """As the plain loop, with equal weights: nothing is learnt in between."""
    model = make()
    expected, _ = run(model, fitness_of(model), batch, "plain", **options)
    found, evolution = run(model, fitness_of(model), batch, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    return evolution


class Sequence(nn.Module):
    """``[rows, length]`` to ``[rows]``; with ``turned`` its second layer sees ``[length, rows, width]``."""

    def __init__(self, turned=False, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.first = nn.Embedding(20, width), nn.Linear(width, width)
        self.second, self.turned = nn.Linear(width, 1), turned

    def forward(self, ids):
        x = self.first(self.table(ids)).tanh()
        return self.second(x.transpose(0, 1))[..., 0].mean(0) if self.turned else self.second(x)[..., 0].mean(1)


def ids(samples, length, seed=0):
    return torch.randint(20, (samples, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities(name, remembered):
    pytest.importorskip("transformers")
    assert_equal(MODELS[name], log_probability, tokens(3, 10))
    assert {3, 5, 6, 7} <= set(remembered)


@pytest.mark.parametrize("name", DECODERS)
def test_texts(name, remembered):
    pytest.importorskip("transformers")
    evolution = assert_equal(DECODERS[name], generated, tokens(3, 8), count=4)
    assert remembered.count(3) == 2  # groups
    assert way_of(evolution)._routes.reason == ""


def test_convolutions(remembered):
    assert_equal(Encoder, lambda model: lambda x: model(x).log_softmax(1)[:, 2], torch.randn(3, 3, 8, 8))
    assert {3, 5, 6, 7} <= set(remembered)


@pytest.mark.parametrize("turned", [False, True])
def test_the_same_bits_as_where_rows_are_followed(turned, remembered, monkeypatch):
    model, batch = Sequence(turned).double(), ids(3, 10)
    found, _ = run(model, model, batch)
    assert set(remembered) == {0, 1, 2, 3, 4, 5, 6, 7}  # of two groups the first is followed in 0, 1, 2 and 4
    monkeypatch.setattr("lightning_evo.evaluation.ways.rows._TRIES", 0)
    remembered.clear()
    expected, _ = run(model, model, batch)
    assert not remembered
    assert torch.equal(found, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_a_sequence_as_long_as_the_batch_is_followed_first(turned, remembered):
    """With 4 members and 3 samples there are 12 rows: in generation 3 rows and tokens can't be told apart by size."""
    lengths = [10, 10, 10, 12, 10, 24, 12, 12]
    assert_equal(lambda: Sequence(turned), lambda model: model, lambda generation: ids(3, lengths[generation]))
    assert {generation: remembered.count(generation) for generation in (3, 5, 6, 7)} == {3: 1, 5: 1, 6: 2, 7: 2}


def test_a_last_batch_of_fewer_samples(remembered):
    assert_equal(Sequence, lambda model: model, lambda generation: ids(2 if generation % 2 else 3, 7))
    assert {3, 5, 6, 7} <= set(remembered)


def test_members_that_draw_are_followed(remembered):
    model = nn.Sequential(Sequence())
    assert_equal(lambda: model, lambda model: lambda x: nn.functional.dropout(model(x), 0.5), ids(3, 7))
    assert not remembered


def assert_equal_by_generation(fitness, count):
    """As the plain loop, for a ``fitness(model, x, generation)``."""
    model, found = Sequence(), {}
    for way in ("plain", "rows"):
        evolution = Evolution("eggroll", evaluation=way, population=8, sigma=0.05, rank=1, seed=0)
        evolution.setup(model)
        found[way] = []
        for generation in range(count):
            evolution.evaluate(partial(fitness, model, generation=generation), ids(3, 7))
            found[way].append(evolution.conclude().fitness)
    torch.testing.assert_close(torch.stack(found["rows"]), torch.stack(found["plain"]), rtol=1e-4, atol=1e-5)


def test_numbers_that_are_drawn_in_a_later_generation_are_noticed(remembered):
    """All members must have the same, and a forward that is not followed would draw for all rows."""

    def fitness(model, x, generation):
        return nn.functional.dropout(model(x), 0.5) if generation == 3 else model(x)

    assert_equal_by_generation(fitness, 6)
    assert 3 not in remembered


def test_what_is_made_of_weights(remembered):
    def fitness_of(model):
        return lambda x: (model.table(x) @ (1 + model.first.weight).t()).mean((1, 2))

    assert_equal(Sequence, fitness_of, ids(3, 7))
    assert {3, 5, 6, 7} <= set(remembered)


def test_a_path_that_reads_other_weights_is_followed_first(remembered):
    def fitness(model, x, generation):
        return model(x) if generation != 3 else model.table(x).mean((1, 2))

    assert_equal_by_generation(fitness, 5)
    assert 3 not in remembered


def test_rows_that_come_to_lie_differently_are_noticed_where_they_are_followed(remembered):
    """As many tokens as rows from the start, turned from generation 3 on: sizes tell nothing, generation 4 does."""
    model = Sequence()
    evolution = Evolution("eggroll", evaluation="rows", population=4, sigma=0.05, rank=1, seed=0)
    evolution.setup(model)
    for generation in range(7):
        model.turned = generation > 3
        evolution.evaluate(model, ids(3, 12))
        evolution.conclude()
    assert way_of(evolution)._routes.reason == "rows lie differently in calls that look the same"
    assert max(remembered) == 3


def test_an_exception_leaves_ordinary_parameters(remembered):
    model, fails = Sequence(), False

    def fitness(x):
        if fails and any(type(parameter) is not nn.Parameter for parameter in model.parameters()):
            raise ValueError("no reward today")
        return model(x)

    evolution = Evolution("eggroll", evaluation="rows", population=8, sigma=0.05, rank=1, seed=0)
    evolution.setup(model)
    for generation in range(5):
        fails = generation == 3
        evolution.evaluate(fitness, ids(3, 7))
        assert evolution.conclude().fitness.isfinite().all()  # the plain loop has run them once more
        assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


def test_parameters_of_a_class_of_their_own_are_followed(remembered):
    class Own(nn.Parameter):
        pass

    model = Sequence()
    model.first.weight = Own(model.first.weight.data)
    model2, _ = run(model, model, ids(3, 7), count=4)
    assert type(model.first.weight) is Own
    assert not remembered


def test_another_forward_is_refuted(monkeypatch, remembered):
    """Members' rows exchanged where they are not followed: the first comparison finds it."""
    linear = RememberedRows._layer_called

    def exchanged(self, function, args, kwargs):
        result = linear(self, function, args, kwargs)
        return result.flip(0) if isinstance(result, torch.Tensor) and result.dim() == 3 else result

    monkeypatch.setattr(RememberedRows, "_layer_called", exchanged)
    model = Sequence()
    _, evolution = run(model, model, ids(3, 10), count=5)
    assert not way_of(evolution)._proven
    assert set(remembered) == {0, 1}  # three tries: two groups, and one more


def test_a_second_parameter_of_the_same_memory_is_asked_too(remembered):
    """Tied by memory, and read by its second name only later: in a generation in which no forward is followed."""
    model, tied = Sequence(), None

    def batch(generation):
        nonlocal tied
        tied = generation in (5, 6)
        return ids(3, 7)

    model.head = nn.Linear(6, 6, bias=False)
    model.head.weight = nn.Parameter(model.first.weight.data)

    def fitness(x):
        values = model(x)
        return values + model.head(model.table(x)).tanh().mean((1, 2)) if tied else values

    assert_equal(lambda: model, lambda model: fitness, batch)
    assert {3, 7} <= set(remembered)


@pytest.mark.filterwarnings("ignore:evaluation='rows' does not work:UserWarning")  # from generation 3 on
def test_a_layer_that_is_also_given_what_all_members_share_is_followed(remembered):
    """Later the batch has as many rows as there are prototypes, and sizes can't tell which is which."""
    model = Sequence()
    prototypes = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))

    def fitness(x):
        return (model.first(model.table(x).mean(1)).tanh() @ model.first(prototypes).tanh().t()).amax(1)

    assert_equal(lambda: model, lambda model: fitness, lambda generation: ids(3 if generation in (3, 5) else 4, 7))
    assert not remembered


def test_frozen_attention_gives_the_same_bits(remembered, monkeypatch):
    """Where rows are followed torch does not take its fused kernel, which rounds in another way."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.Sequential(nn.Embedding(20, 32), layer, nn.Linear(32, 1)).eval()
    layer.requires_grad_(False)

    def fitness(x):
        return model(x)[..., 0].mean(1)

    found, _ = run(model, fitness, ids(3, 10))
    assert {3, 5, 6, 7} <= set(remembered)
    assert torch.backends.mha.get_fastpath_enabled()
    monkeypatch.setattr("lightning_evo.evaluation.ways.rows._TRIES", 0)
    assert torch.equal(found, run(model, fitness, ids(3, 10))[0])


def test_dropout_of_nothing_need_not_be_followed(remembered):
    model = Sequence()
    assert_equal(lambda: model, lambda model: lambda x: nn.functional.dropout(model(x), 0.0), ids(3, 7))
    assert {3, 5, 6, 7} <= set(remembered)


def test_another_thread_sees_the_center(remembered):
    model, seen = Sequence(), []

    def look():
        with torch.no_grad():
            seen.append(nn.functional.linear(torch.ones(6), model.first.weight))

    def fitness(x):
        if type(model.first.weight) is not nn.Parameter:  # rows are not followed
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        return model(x)

    run(model, fitness, ids(3, 7), count=4)
    assert 3 in remembered
    assert seen
    look()
    assert all(type(each) is torch.Tensor and torch.equal(each, seen[-1]) for each in seen)


def test_a_model_that_reads_other_weights_each_time_is_followed_for_good(remembered):
    """As one that drops layers by numbers of its own: remembered forwards would run in vain, and then again."""
    model = nn.ModuleList(nn.Linear(6, 6) for _ in range(20))
    x, number = torch.randn(3, 6), 0

    def fitness(x):
        chosen = model[number] if number > 2 else model[0]
        return chosen(x).mean(1)

    evolution = Evolution("eggroll", evaluation="rows", population=8, sigma=0.05, rank=1, seed=0)
    evolution.setup(model)
    for number in range(16):  # noqa: B007
        evolution.evaluate(fitness, x)
        evolution.conclude()
    assert way_of(evolution)._routes.reason == "a layer is given what it was not given before"
    assert max(remembered) < 3


def test_an_exception_in_the_comparison_costs_no_values(monkeypatch):
    """What a judge gave in the followed forward counts, though it fails when it is asked once more."""
    asked = []

    def failing(self, *exit):
        release(self, *exit)
        asked.append(self.population.generation)
        raise ConnectionError("the judge is away")

    release = RememberedRows._release
    monkeypatch.setattr(RememberedRows, "_release", failing)
    model = Sequence()
    found, _ = run(model, model, ids(3, 7), count=3)
    expected, _ = run(model, model, ids(3, 7), "plain", count=3)
    assert len(asked) == 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_input_is_known_for_its_number_of_rows_only():
    """Of a shape that had its rows in front, ``[12, 4]``, it is not said that 6 rows lie there."""
    routes, x = Routes(), torch.zeros(12, 4)
    routes.put_in_front(0, x, 12)
    assert routes.in_front(0, x, 12)
    assert not routes.in_front(0, x, 6)
    assert not routes.in_front(1, x, 12)
    assert not routes.in_front(0, x[:6], 12)
