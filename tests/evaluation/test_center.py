"""A forward that writes to its weights: the center stays, members don't see each other, and the plain loop runs it."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_evo.algorithms import get
from lightning_evo.evaluation import trial
from lightning_evo.evaluation.center import Center, CenterMoved
from lightning_evo.generation.evolution import Evolution
from lightning_evo.spaces.search_space import SearchSpace
from tests.evaluation.models import NOISE


class Writer(nn.Module):
    """Writes to its first layer's weight in every forward, as soon as it ``writes``."""

    def __init__(self, write):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)
        self.table = nn.Embedding(10, 6)
        self.kept = self.first.weight.detach().view(-1)
        self.write, self.writes = write, True

    def forward(self, x):
        if self.writes:
            with torch.no_grad():
                self.write(self)
        return self.second((self.first(x) + self.table.weight.sum()).tanh())


def replace_data(m):
    m.first.weight.data = m.first.weight.data.clamp(-0.3, 0.3)


def replace_data_in_place(m):
    m.first.weight.data = m.first.weight.data.clamp_(-0.3, 0.3)


def normalise(m):
    m.first.weight /= m.first.weight.norm(dim=1, keepdim=True)


def set_row(m):
    m.first.weight[0] = 0.25


WRITES = {
    "clamp": ("first.weight", lambda m: m.first.weight.clamp_(-0.3, 0.3)),
    "clamp_without_effect": ("first.weight", lambda m: m.first.weight.clamp_(-1000, 1000)),
    "clamp_data": ("first.weight", lambda m: m.first.weight.data.clamp_(-0.3, 0.3)),
    "clamp_data_without_effect": ("first.weight", lambda m: m.first.weight.data.clamp_(-1000, 1000)),
    "replace_data": ("first.weight", replace_data),
    "replace_data_in_place": ("first.weight", replace_data_in_place),
    "normalise": ("first.weight", normalise),
    "set_row": ("first.weight", set_row),
    "out": ("first.weight", lambda m: torch.mul(m.first.weight, 0.5, out=m.first.weight)),
    "relu": ("second.bias", lambda m: F.relu(m.second.bias, inplace=True)),
    "list": ("second.bias", lambda m: torch._foreach_mul_([m.second.bias, m.first.bias], 0.5)),
    "init": ("second.bias", lambda m: nn.init.zeros_(m.second.bias)),
    "max_norm": ("table.weight", lambda m: F.embedding(torch.arange(5), m.table.weight, max_norm=0.5)),
    "detached": ("first.weight", lambda m: m.first.weight.detach().mul_(0.5)),
    "view": ("first.weight", lambda m: m.first.weight.view(-1).mul_(0.5)),
    "kept_view": ("first.weight", lambda m: m.kept.mul_(0.5)),
    "numpy": ("first.weight", lambda m: m.first.weight.detach().numpy().__imul__(0.5)),
    "numpy_of_a_view": ("first.weight", lambda m: m.kept.numpy().__imul__(0.5)),
}
# What is not found where it begins later: a view that was not there before is written to.
LATER = {name: write for name, write in WRITES.items() if name not in ("detached", "view", "numpy", "numpy_of_a_view")}


def subject(write, evaluation, noise="gaussian"):
    torch.manual_seed(0)
    module = Writer(write)
    options = {"members_per_forward": 2} if evaluation == "batched" else {}
    evolution = Evolution(
        get("openai_es")(population=6, sigma=0.1, **NOISE[noise]), evaluation=evaluation, seed=0, **options
    )
    evolution.setup(module)
    return evolution, module


def bits(module):
    return [(p.data_ptr(), p.detach().clone().view(torch.int32)) for p in module.parameters()]


def same(before, module):
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(before, bits(module), strict=True))


def fitness_by_plain_loop(write, noise, x):
    evolution, module = subject(write, "plain", noise)
    before = bits(module)
    evolution.evaluate(lambda x: -(module(x) - x).square().mean(), x)
    assert same(before, module)
    return evolution.conclude().fitness


@pytest.mark.parametrize("noise", ["gaussian", "rank_1"])
@pytest.mark.parametrize("evaluation", ["in_forward", "batched", "auto"])
@pytest.mark.parametrize("kind", WRITES)
def test_a_writer_is_run_by_the_plain_loop(kind, evaluation, noise):
    name, write = WRITES[kind]
    x = torch.randn(8, 6)
    evolution, module = subject(write, evaluation, noise)
    before = bits(module)

    def evaluate():
        return evolution.evaluate(lambda x: -(module(x) - x).square().mean(), x)

    if evaluation == "auto":
        evaluate()
    else:
        with pytest.warns(UserWarning, match=f"evaluation={evaluation!r} does not work with this module"):
            evaluate()
    assert same(before, module)
    assert evolution.evaluation.state_dict() == {"evaluation": "plain"}
    assert name in evolution.evaluation.summary
    if not kind.endswith("view"):  # which is found in that memory is read through it
        assert re.search(rf"in_forward (is|are) not possible: {re.escape(name)}", evolution.evaluation.summary)
        assert "is written to by the members' code" in evolution.evaluation.summary
    assert torch.equal(evolution.conclude().fitness, fitness_by_plain_loop(write, noise, x))


@pytest.mark.filterwarnings("ignore:evaluation='(batched|in_forward)' does not work with this module")
@pytest.mark.parametrize("noise", ["gaussian", "rank_1"])
@pytest.mark.parametrize("evaluation", ["in_forward", "batched"])
@pytest.mark.parametrize("kind", LATER)
def test_a_write_that_begins_later(kind, evaluation, noise):
    _, write = LATER[kind]
    x = torch.randn(8, 6)
    evolution, module = subject(write, evaluation, noise)
    module.writes = False

    def evaluate():
        return evolution.evaluate(lambda x: -(module(x) - x).square().mean(), x)

    evaluate()
    evolution.conclude()
    assert evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
    before, module.writes = bits(module), True
    if kind == "kept_view":  # the center is hit: there is no copy of it
        with pytest.raises(CenterMoved, match=r"first\.weight is written to .* moved the center.*evaluation='plain'"):
            evaluate()
        return
    evaluate()
    assert same(before, module)
    assert evolution.evaluation.state_dict() == {"evaluation": "plain"}
    found = evolution.conclude().fitness
    reference, module = subject(write, "plain", noise)
    reference.start_at(1)
    reference.evaluate(lambda x: -(module(x) - x).square().mean(), x)
    assert torch.equal(found, reference.conclude().fitness)


def clamp_and_go_on(m):
    try:
        m.first.weight.clamp_(-0.3, 0.3)
    except RuntimeError:
        m.first.weight.clone().clamp_(-0.3, 0.3)


def load(m):
    m.first.load_state_dict({"weight": torch.zeros(8, 6), "bias": torch.zeros(8)})


@pytest.mark.filterwarnings("ignore:evaluation='(batched|in_forward)' does not work with this module")
@pytest.mark.parametrize("evaluation", ["in_forward", "batched"])
@pytest.mark.parametrize(
    ("write", "inference"),
    [
        pytest.param(clamp_and_go_on, False, id="the refusal is caught"),
        pytest.param(load, False, id="the refusal becomes another error"),
        pytest.param(lambda m: m.first.weight.clamp_(-0.3, 0.3), True, id="inference mode counts no writes"),
        pytest.param(lambda m: m.second.bias.__iadd__(1), True, id="an operator in inference mode"),
    ],
)
def test_a_write_that_hides(write, inference, evaluation):
    x = torch.randn(8, 6)
    evolution, module = subject(write, evaluation)
    module.writes = False

    def evaluate(evolution, module):
        with torch.inference_mode(inference):
            evolution.evaluate(lambda x: -(module(x) - x).square().mean(), x)
        return evolution.conclude().fitness

    evaluate(evolution, module)
    assert evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
    before, module.writes = bits(module), True
    found = evaluate(evolution, module)
    assert same(before, module)
    assert evolution.evaluation.state_dict() == {"evaluation": "plain"}
    reference, module = subject(write, "plain")
    reference.start_at(1)
    assert torch.equal(found, evaluate(reference, module))


@pytest.mark.parametrize("evaluation", ["in_forward", "batched"])
def test_reads_are_no_writes(evaluation):
    def read(m):
        m.first.weight.detach().clone().mul_(2)
        m.kept_shape = m.first.weight.view(-1).shape
        (m.first.weight * 2).clamp_(-1, 1)
        torch.zeros(8, 6).copy_(m.first.weight.detach()[0, 0] * 0 + m.first.bias[0])
        m.first.weight.requires_grad_(True)

    if evaluation == "batched":
        read = lambda m: (m.first.weight * 2).clamp_(-1, 1)  # noqa: E731
    evolution, module = subject(read, evaluation)
    evolution.evaluate(lambda x: -(module(x) - x).square().mean(), torch.randn(8, 6))
    assert evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
    assert "not possible" not in evolution.evaluation.summary


@pytest.mark.parametrize("raises", [False, True])
def test_a_model_too_large_for_a_copy_is_stopped(monkeypatch, raises):
    """Of like layers one is copied by the check. A write to another one can't be taken back."""
    monkeypatch.setattr(trial, "LARGEST_COPY", 100)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    evolution = Evolution(population=4, seed=0, evaluation="in_forward")
    evolution.setup(model)

    def fitness(x):
        for layer in model:
            layer.weight.detach().mul_(0.5)
        if raises:
            raise ValueError("no reward today")
        return -model(x).square().mean()

    with pytest.raises(CenterMoved, match=r"0\.weight, 1\.weight, 2\.weight, 3\.weight is written to"):
        evolution.evaluate(fitness, torch.randn(8, 6))


def test_a_write_to_a_large_model_that_a_call_shows_is_found_before_it_happens(monkeypatch):
    monkeypatch.setattr(trial, "LARGEST_COPY", 100)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    evolution, before = Evolution(population=4, seed=0, evaluation="in_forward"), bits(model)
    evolution.setup(model)

    def fitness(x):
        for layer in model:
            layer.weight.mul_(0.5)
        return -model(x).square().mean()

    with pytest.warns(UserWarning, match=r"in_forward is not possible: 0\.weight is written to"):
        evolution.evaluate(fitness, torch.randn(8, 6))
    assert same(before, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_copy_tells_what_changed_and_puts_it_back(dtype):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(dtype)
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([torch.nan, -0.0, torch.inf], dtype=dtype)
    center = Center(SearchSpace(model))
    assert center.changed() == []
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    before = [p.detach().clone().view(integers) for p in model.parameters()]
    with torch.no_grad():
        model[0].weight[0, 1] = torch.nan
        model[1].bias.data = torch.zeros(3, dtype=dtype)
    assert [p.name for p in center.changed()] == ["0.weight", "1.bias"]
    center.restore()
    assert all(torch.equal(a, p.view(integers)) for a, p in zip(before, model.parameters(), strict=True))
