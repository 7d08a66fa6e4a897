"""The proof compares what functions give: it ends, and finds what is wrong, whatever becomes of that in the fitness."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_evo.evaluation import candidates, trial
from lightning_evo.evaluation.comparison import compare
from lightning_evo.evaluation.recording import Call, CallRecorder, Sample
from lightning_evo.evaluation.ways import perturbed, rules
from lightning_evo.evaluation.ways.layouts import OneMember
from lightning_evo.evaluation.ways.perturbed import Perturbed
from lightning_evo.generation.evolution import Evolution
from lightning_evo.spaces.search_space import SearchSpace
from tests.evaluation.models import mlp, population
from tests.evaluation.test_choice import HIDDEN

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*nothing to learn"),
    pytest.mark.filterwarnings("ignore:evaluation='(in_forward|batched)' does not work with this module"),
]
WAYS = ["in_forward", "batched"]


def generations(module, fitness, count=12, members=6, **options):
    """Calls of the fitness in each generation, and the evolution."""
    evolution, calls = Evolution(population=members, seed=0, **options), []
    evolution.setup(module)

    def counted(batch):
        calls[-1] += 1
        return fitness(batch)

    for _ in range(count):
        calls.append(0)
        if evolution.evaluate(counted, torch.ones(2, 6)):  # if not, it was declined
            evolution.conclude()
    return calls, evolution


# --- it ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "forwards"), [("in_forward", 6), ("batched", 1), ("plain", 6)])
@pytest.mark.parametrize("noise", [{}, {"rank": 1}], ids=["dense", "rank 1"])
def test_a_fitness_that_always_ties_is_proven_in_the_first_generation(way, forwards, noise):
    module = mlp()
    calls, evolution = generations(module, lambda batch: module(batch).sum() * 0 + 1, evaluation=way, **noise)
    assert calls[1:] == [forwards] * 11
    assert calls[0] <= forwards + 9
    assert evolution.evaluation.summary.startswith(f"evaluation: {way}")
    assert "not possible" not in evolution.evaluation.summary


@pytest.mark.parametrize("value", [1.0, None])
def test_a_fitness_that_reads_no_weight_is_left_to_the_plain_loop_after_ten_batches(value):
    calls, evolution = generations(mlp(), lambda batch: value, count=13)
    assert calls[10:] == [6] * 3
    assert evolution.evaluation.summary.startswith("evaluation: plain; ")
    assert evolution.evaluation.summary.endswith("; 10 batches gave the check nothing to compare")
    assert max(calls) <= 6 + (15 if value else 9)  # batches can't do numbers of Python's
    assert max(calls[1:]) <= 6 + 9


LETTERS = "abcdefghijklmnopqrstuvwxyz "


class Writer(nn.Module):
    """Writes a text, letter by letter: each is the likeliest one, or hangs on the last digits of a number."""

    def __init__(self, arbitrary):
        super().__init__()
        self.table, self.cell = nn.Embedding(len(LETTERS), 16), nn.GRUCell(16, 16)
        self.head = nn.Linear(16, len(LETTERS))
        self.arbitrary = arbitrary

    def forward(self, length=12):
        token, state, text = torch.tensor([0]), torch.zeros(1, 16), ""
        for _ in range(length):
            state = self.cell(self.table(token), state)
            logits = self.head(state)
            token = (logits.sum(1) * 1e9).long() % len(LETTERS) if self.arbitrary else logits.argmax(1)
            text += LETTERS[token.item()]
        return text


@pytest.mark.parametrize("arbitrary", [False, True], ids=["likeliest", "arbitrary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("noise", [{}, {"rank": 1}], ids=["dense", "rank 1"])
def test_a_text_is_a_fitness(noise, dtype, arbitrary):
    """Of low-rank noise, the arbitrary text of a member is another one than by the plain loop, whose way is right."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = Writer(arbitrary)
        calls, evolution = generations(
            module, lambda batch: float("e" in module()), evaluation="in_forward", sigma=0.1, **noise
        )
    finally:
        torch.set_default_dtype(default)
    assert calls[1:] == [6] * 11
    assert calls[0] <= 6 + 9
    assert evolution.evaluation.summary == "evaluation: in_forward"


def test_auto_runs_a_text_one_by_one():
    torch.manual_seed(0)
    module = Writer(arbitrary=False)
    calls, evolution = generations(module, lambda batch: float("e" in module()), rank=1)
    assert evolution.evaluation.summary.startswith("evaluation: in_forward; batched is not possible: `")
    assert calls[1:] == [6] * 11


class Garbage(nn.Module):
    """Writes its weights into memory that holds something else every time, as that of ``torch.empty`` does."""

    def __init__(self, write):
        super().__init__()
        self.weight, self.write, self.calls = nn.Parameter(torch.randn(4, 4)), write, 0

    def forward(self):
        Garbage.calls += 1
        memory = torch.full((4, 4), float(Garbage.calls))
        return self.write(memory, self.weight).square().sum()


def set_all(memory, weight):
    memory[:] = weight
    return memory


Garbage.calls = 0


@pytest.mark.parametrize(
    "write", [lambda m, w: torch.mul(w, 2, out=m), lambda m, w: m.copy_(w), set_all], ids=["out", "copy_", "setitem"]
)
def test_what_memory_held_before_it_was_written_to_is_not_compared(write):
    module = Garbage(write)
    _, evolution = generations(module, lambda batch: module(), evaluation="in_forward", count=1)
    assert evolution.evaluation.summary == "evaluation: in_forward"


def test_what_is_not_initialised_is_not_compared(monkeypatch):
    """A function that gives other memory every time."""
    module, calls = mlp(), []

    def fitness(batch):
        calls.append(0)
        like = torch.empty_like(module[0].weight).fill_(len(calls))
        return module(batch).sum() + 0 * like.sum()

    _, evolution = generations(module, fitness, evaluation="in_forward", count=1)
    assert evolution.evaluation.summary == "evaluation: in_forward"


# --- forwards within a fitness --------------------------------------------------------------------------------------


@pytest.fixture
def no_room(monkeypatch):
    """Weights are large, and none is kept."""
    for file in (perturbed, rules):
        monkeypatch.setattr(file, "SMALL", 0)
    monkeypatch.setattr(perturbed, "_CACHED", 0)


def many(module, forwards):
    def fitness(batch):
        for _ in range(forwards):
            batch = module(batch).tanh()
        return -batch.square().mean()

    return fitness


def way_of(evolution):
    return evolution.evaluation._choice.way


@pytest.mark.parametrize("noise", [{}, {"antithetic": False}], ids=["pairs", "no pairs"])
@pytest.mark.usefixtures("no_room")
def test_many_forwards_make_no_more_noise_than_the_plain_loop(noise):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))
    calls, evolution = generations(module, many(module, 32), **noise)
    assert calls[1:] == [6] * 11
    assert way_of(evolution).name == "plain"
    assert way_of(evolution).noise_made == evolution.space.numel
    times = 16 if noise == {} else 32  # a pair shares it
    expected = f"evaluation: plain; batched would make each member's noise {times} times, as its weights are read again"
    assert evolution.evaluation.summary.startswith(expected)


@pytest.mark.usefixtures("no_room")
def test_a_way_that_was_asked_for_stays():
    module = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))
    _, evolution = generations(module, many(module, 32), count=2, evaluation="in_forward")
    assert evolution.evaluation.summary == "evaluation: in_forward"
    assert way_of(evolution).noise_made == 32 * evolution.space.numel


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_read_again_are_kept(way, monkeypatch):
    """From the second forward on: then it is known which they are."""
    for file in (perturbed, rules):
        monkeypatch.setattr(file, "SMALL", 0)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))
    _, evolution = generations(module, many(module, 32), count=2, evaluation=way)
    assert way_of(evolution).name == way
    assert way_of(evolution).noise_made <= evolution.space.numel


@pytest.mark.usefixtures("no_room")
def test_noise_of_a_large_model_is_counted_in_full(monkeypatch):
    """Though the plain loop of the check perturbs one layer of each kind."""
    monkeypatch.setattr(trial, "LARGEST_COPY", 100)
    module = nn.Sequential(*(nn.Linear(6, 6) for _ in range(10)))
    _, evolution = generations(module, many(module, 4), count=1, antithetic=False)
    assert "batched would make each member's noise 4 times" in evolution.evaluation.summary


def test_without_memory_for_the_copy_noise_is_repeated(no_room, monkeypatch):
    monkeypatch.setattr(candidates, "free_memory", lambda device: 1000)
    module = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))
    _, evolution = generations(module, many(module, 32), count=1)
    assert "make each member's noise" not in evolution.evaluation.summary


@pytest.mark.usefixtures("no_room")
def test_low_rank_noise_is_cheap_however_often_weights_are_read():
    module = nn.Sequential(nn.Linear(6, 12, bias=False), nn.Tanh(), nn.Linear(12, 6, bias=False))
    _, evolution = generations(module, many(module, 32), rank=1, count=2)
    assert evolution.evaluation.summary == "evaluation: batched, 6 members per forward"
    assert way_of(evolution).noise_made == 0


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize(("forwards", "times"), [(1, 1), (2, 2), (5, 5)])
def test_elements_of_noise_are_counted(forwards, times):
    module = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 6))
    with torch.no_grad(), Perturbed(SearchSpace(module), population(), [2], OneMember()) as member:
        many(module, forwards)(torch.ones(2, 6))
    assert member.noise_made == times * sum(p.numel() for p in module.parameters())


# --- it finds what is wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hidden", [name for name in HIDDEN if name not in ("script", "compile", "compile_in_place")])
def test_a_hidden_read_is_found_though_the_fitness_ties(hidden, way):
    torch.manual_seed(1)
    make, named = HIDDEN[hidden]
    module = make()
    calls, evolution = generations(module, lambda batch: module(batch).sum() * 0, evaluation=way)
    assert evolution.evaluation.summary.startswith("evaluation: plain; ")
    assert named in evolution.evaluation.summary
    assert calls[1:] == [6] * 11


def test_a_hidden_read_behind_a_text_is_found():
    """The weights of the head are read by NumPy, too, before a letter is chosen."""

    class Hidden(Writer):
        def __init__(self):
            super().__init__(arbitrary=False)
            self.kept = [self.head.weight.detach().numpy()]

        def forward(self):
            state = self.cell(self.table(torch.tensor([0])), torch.zeros(1, 16))
            hidden = torch.from_numpy(state.numpy() @ self.kept[0].T)
            return LETTERS[(self.head(state) * 0 + hidden).argmax(1).item()]

    torch.manual_seed(0)
    module = Hidden()
    _, evolution = generations(module, lambda batch: float(module() == "e"), evaluation="in_forward", count=1)
    assert "in_forward is not possible: what argmax is given differs" in evolution.evaluation.summary
    assert "head.weight" in evolution.evaluation.summary


@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
def test_one_wrong_member_of_several_is_found_though_the_fitness_ties(wrong, name, monkeypatch):
    module = mlp()
    right = Perturbed.tensor

    def tensor(self, parameter):
        values = right(self, parameter)
        return parameter.tensor.detach() if parameter.name == name and list(self.members) == [wrong] else values

    monkeypatch.setattr(Perturbed, "tensor", tensor)
    _, evolution = generations(module, lambda batch: module(batch).sum() * 0, evaluation="in_forward", count=1)
    expected = (
        f"in_forward is not possible: linear gives something else than in the plain loop where {name[:2]}weight, "
    )
    assert expected in evolution.evaluation.summary
    assert name in evolution.evaluation.summary


def test_a_pair_that_shares_the_wrong_tensors_is_found_though_the_fitness_ties(monkeypatch):
    """Small tensors are made for both members, when the first one runs."""
    module = mlp()
    make = Perturbed._make_small

    def make_small(self):
        make(self)
        self._step_index = 0

    monkeypatch.setattr(Perturbed, "_make_small", make_small)
    _, evolution = generations(module, lambda batch: module(batch).sum() * 0, evaluation="in_forward", count=1)
    assert "in_forward is not possible: linear gives something else" in evolution.evaluation.summary


def test_members_that_are_mixed_up_in_a_forward_are_found_though_the_fitness_ties(monkeypatch):
    module = mlp()
    make = Perturbed._make_small

    def make_small(self):
        make(self)
        if self.layout.shares_forward:
            self._small = {index: members.flip(0) for index, members in self._small.items()}

    monkeypatch.setattr(Perturbed, "_make_small", make_small)
    _, evolution = generations(module, lambda batch: module(batch).sum() * 0, evaluation="batched", count=1)
    assert "batched is not possible: linear gives something else" in evolution.evaluation.summary


# --- records --------------------------------------------------------------------------------------------------------


def record(module, run):
    recorder = CallRecorder(SearchSpace(module))
    with torch.no_grad():
        value = recorder.run(lambda: run(module))
    recorder.finish([float(value)])
    return recorder


def moved(module, step):
    other = mlp()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(step * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return other


def test_what_is_recorded():
    module = mlp()

    def run(m):
        y = m(torch.ones(3, 6))
        return y.sum() if y.argmax(1).sum() >= 0 and float(y[0, 0]) < 1e9 else 0.0

    calls = record(module, run).calls
    assert [call.function for call in calls] == ["linear"] * 3 + ["argmax", "__float__", "fitness"]
    assert [call.parameters for call in calls] == [(0, 1), (2, 3), (4,), (), (), ()]
    output = calls[2].outputs[0]
    assert output.shape == (3, 2)
    with torch.no_grad():
        assert torch.equal(output.of(0), module(torch.ones(3, 6)).flatten().double())


@pytest.mark.parametrize(("step", "differs"), [(0.0, False), (1e-7, False), (1e-2, True)])
def test_two_records_are_compared_to_rounding(step, differs):
    torch.manual_seed(0)
    module, center = mlp(), mlp()
    run = lambda m: m(torch.ones(3, 6)).sum()  # noqa: E731
    records = [record(m, run).calls for m in (module, moved(module, step), center)]
    found = compare(*records, share=0.01, rounding=100)
    assert (found.difference is not None) == differs
    if differs:
        assert found.in_output
        assert found.difference.function == "linear"
        assert found.difference.parameters == (0, 1)
    else:
        assert found.compared == 3 + 1  # and the fitness


def test_after_another_choice_nothing_is_compared():
    torch.manual_seed(0)
    module, center = mlp(), mlp()

    def run(m, rounded):
        first = m(torch.ones(3, 6))
        chosen = (first.double().sum() * 0 + 2 + rounded).long()
        return m(F.one_hot(chosen, 6).float()).sum()

    one, two, other = (
        record(module, lambda m: run(m, 1e-12)),
        record(module, lambda m: run(m, -1e-12)),
        record(center, lambda m: m(torch.ones(3, 6)).sum()),
    )
    assert compare(one.calls, two.calls, other.calls, share=0.01, rounding=100).difference is None
    hidden = record(module, lambda m: m(torch.ones(3, 6)).sum() + m(torch.full((3, 6), 2.0)).sum())
    plain = record(module, lambda m: m(torch.ones(3, 6)).sum() + m(torch.full((3, 6), 3.0)).sum())
    found = compare(plain.calls, hidden.calls, other.calls, share=0.01, rounding=100)
    assert found.difference is not None
    assert not found.in_output


@pytest.mark.parametrize(("rows", "differs"), [(1, False), (64, True)])
def test_where_members_are_rows_each_row_is_compared(rows, differs):
    """One row in 64 is off by 5 % of what the perturbation changed: 0.6 % of all rows' change, of which 1 % may be."""
    expected = torch.randn(1, 64 * 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, center = expected.clone(), expected - 1
    found[0, 20:24] += 0.05

    def calls(values):
        sample = Sample((64, 4), values, floating=True, rows=rows)
        return [Call("linear", (0,), (), (sample,), 1e-7)]

    comparison = compare(calls(expected), calls(found), calls(center), share=0.01, rounding=100)
    assert (comparison.difference is not None) is differs
