"""How often a generation waits for the device: once, for the fitness. Counted on a CPU, by :mod:`.waits`."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_evo import Evolution
from lightning_evo.generation.moves import InPlace, IntoGradients
from lightning_evo.isolation import contents
from lightning_evo.utils.tensors import uploaded
from tests.generation.waits import Waits

FITNESS = ("cpu", "generation/scores.results_of")
GENERATION = 3  # 0, 1, 2, 4, 8, … compare what members left; they and every 16th follow rows


class Model(nn.Module):
    """Embedding, attention, norms and a counter, as language models have them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 20)
        self.register_buffer("seen", torch.zeros(()))
        self.last = torch.zeros(4)

    def forward(self, x):
        self.seen += 1
        hidden = self.norm(self.block(self.embedding(x)))
        self.last = hidden.detach()[0, 0, :4].clone() if type(hidden) is torch.Tensor else self.last
        return self.head(hidden)


def fitness_of(model):
    def fitness(batch):
        logits = model(batch)
        return -nn.functional.cross_entropy(logits.transpose(1, 2), batch, reduction="none").mean(1)

    return fitness


def waits_of_a_generation(way, moves=None, batches=1, **options):
    torch.manual_seed(0)
    model = Model().eval()
    batch = torch.randint(20, (3, 5))
    evolution = Evolution("openai_es", population=4, sigma=0.01, seed=0, evaluation=way, **options)
    evolution.setup(model)
    moves = moves or InPlace(lambda: [torch.optim.SGD(model.parameters(), lr=0.01)])
    fitness = fitness_of(model)
    for _ in range(GENERATION):
        evolution.evaluate(fitness, batch)
        moves.learn(evolution.conclude())
    evolution.drift()  # the starting weights' norm is measured once
    starting = [] if evolution.start is None else evolution.start._weights.values()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with Waits([*model.parameters(), *model.buffers(), batch, model.last, *starting]) as waits:
        evolution.setup(model)
        for _ in range(batches):
            evolution.evaluate(fitness, batch)
        evolution.statistics()
        moves.learn(evolution.conclude())
        evolution.drift()
    if isinstance(moves, InPlace):
        assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert evolution.evaluation.summary.startswith(f"evaluation: {way}"), evolution.evaluation.summary
    return waits.found


@pytest.fixture(autouse=True)
def _reference(monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "torch")  # of which every step is seen
    monkeypatch.setattr(contents, "_is_waited_for", lambda tensor: True)


NOISE = {
    "dense": {},
    "low rank": {"rank": 1},
    "sparse": {"sparsity": 0.5},
    "weight decay": {"weight_decay": 0.1},
    "rms": {"sigma_scale": "rms"},
    "anchor": {"anchor": 2.0},
}


@pytest.mark.parametrize("way", ["plain", "in_forward", "batched", "rows"])
@pytest.mark.parametrize("noise", NOISE)
def test_a_generation_waits_once(way, noise):
    scales = [("tolist", "perturbations/scaled.look_at")] if noise == "rms" else []  # before members are made
    assert waits_of_a_generation(way, **NOISE[noise]) == [*scales, FITNESS]


def test_each_batch_waits_once():
    assert waits_of_a_generation("in_forward", batches=3) == [FITNESS] * 3


def test_gradients_wait_once():
    assert waits_of_a_generation("in_forward", IntoGradients()) == [FITNESS]


def test_clipping_by_norm_waits_for_no_number_that_stays_on_the_device(monkeypatch):
    """On a CPU it is a number, as nobody waits: the one wait more that is counted."""
    moves = InPlace(lambda: [])

    def learn(update):
        moves.clip(None, 0.01)
        return InPlace.learn(moves, update)

    monkeypatch.setattr(moves, "learn", learn)
    waits = waits_of_a_generation("in_forward", moves)
    assert waits == [FITNESS, ("_local_scalar_dense", "generation/update._clip_coefficient")]


def test_a_search_with_a_center_of_its_own_waits_once():
    torch.manual_seed(0)
    model = Model().eval()
    evolution = Evolution("csa_es", population=4, sigma=0.01, seed=0, evaluation="in_forward")
    evolution.setup(model)
    batch = torch.randint(20, (3, 5))
    for _ in range(GENERATION):
        evolution.evaluate(fitness_of(model), batch)
        evolution.conclude().apply()
    with Waits([*model.parameters(), *model.buffers(), batch]) as waits:
        evolution.evaluate(fitness_of(model), batch)
        evolution.conclude().apply()
    # A search draws and learns on the CPU.
    assert [wait for wait in waits.found if not wait[1].startswith("algorithms/")] == [FITNESS]


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("_local_scalar_dense", lambda x: float(x.sum())),
        ("_local_scalar_dense", lambda x: bool((x > 0).any())),
        ("equal", lambda x: torch.equal(x, x + 1)),
        ("nonzero", lambda x: x.nonzero()),
        ("a mask as index", lambda x: x[x > 0]),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("cpu", lambda x: (x * 2).cpu()),
        ("tolist", lambda x: x[1:].tolist()),
        ("numpy", lambda x: x.numpy()),
        ("new_tensor", lambda x: x.new_tensor([1.0])),
    ],
)
def test_the_count_counts(what, call, monkeypatch):
    monkeypatch.setattr("tests.generation.waits.PACKAGE", Path(__file__).parent)
    x = torch.randn(5)
    with Waits([x]) as waits:
        call(torch.ones(5))
        assert not waits.found
        call(x)
        call(x.cpu())
    assert [found for found, _ in waits.found] == [what, "cpu"]


def test_numbers_go_to_a_device_without_waiting(monkeypatch):
    monkeypatch.setattr("tests.generation.waits.PACKAGE", Path(__file__).parent)
    with Waits([]) as waits:
        torch.tensor([1.0], device=torch.device("cpu"))
        assert [found for found, _ in waits.found] == ["torch.tensor"]
        assert uploaded([0.5, 2.0], torch.float64, torch.device("cpu")).tolist() == [0.5, 2.0]
        assert len(waits.found) == 1
