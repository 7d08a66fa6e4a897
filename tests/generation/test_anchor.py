"""The pull towards the starting weights: its formula, its place among clipping and decay, and what is kept of it."""

import math

import pytest
import torch
from torch import nn

from lightning_evo import Anchor, Evolution
from lightning_evo.algorithms import get
from lightning_evo.generation import anchor as anchor_module
from lightning_evo.generation import update as update_module
from lightning_evo.generation.anchor import StartingWeights, as_anchor
from lightning_evo.generation.moves import IntoGradients
from lightning_evo.generation.step import Clipping, Step
from lightning_evo.generation.sync import _Sharded, synchronized
from lightning_evo.kernels import Pull
from lightning_evo.kernels.pull import drawn_back
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.rounding import move
from lightning_evo.processes.ranks import Ranks
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.utils.random_state import RandomState

RATE = 0.05


class Net(nn.Module):
    """Tensors of every kind of path: one pass, strided memory, a padding row, and noise of low rank."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 40, padding_idx=2)
        self.linear = nn.Linear(40, 300)
        self.strided = nn.Parameter(torch.randn(30, 40).T)
        self.to(dtype)
        with torch.no_grad():
            self.embedding.weight[2] = 1.25  # a padding row need not be 0

    def forward(self, x):
        return self.linear(self.embedding(x)).mean() + (self.strided * 0.01).sum()


def generation(module, evolution, seed):
    evolution.setup(module)
    x = torch.randint(0, 9, (4,), generator=torch.Generator().manual_seed(seed))
    evolution.evaluate(lambda batch: module(batch), x)
    return evolution.conclude()


def copies(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def distance_of_linear(evolution):
    return evolution.start.distance(next(p for p in evolution.space if p.name == "linear.weight"))


def distance_from(start, module):
    return float((module.linear.weight.detach() - start).norm())


def evolution_of(algorithm="es_at_scale", anchor=None, **options):
    return Evolution(algorithm, population=8, seed=3, anchor=anchor, **{"learning_rate": RATE, **options})


def shrunk(delta, by, amount):
    """The paper's formula."""
    return (1 - amount) * delta if by == "l2" else torch.sign(delta) * (delta.abs() - amount).clamp(min=0)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("by", ["l2", "l1"])
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("es_at_scale", {}), ("eggroll", {"sigma": 0.1}), ("mezo", {"weight_decay": 0.3}), ("sparse_mezo", {}),
        ("lozo", {"momentum": 0.5}),
    ],
)  # fmt: skip
def test_some_steps_are_those_of_the_formula(algorithm, options, by, monkeypatch):
    monkeypatch.setattr(update_module, "_PIECE", 1024)
    options = {"population": 2 if "zo" in algorithm else 8, "learning_rate": RATE, **options}
    module, strength = Net(), 0.8 if by == "l2" else 0.02
    start, expected = copies(module), copies(module)
    evolution = Evolution(algorithm, seed=3, anchor=Anchor(strength, by), **options)
    for seed in range(4):
        update = generation(module, evolution, seed)
        estimates = [update.estimate(parameter) for parameter in update.space]
        update.apply()
        for i, g in enumerate(estimates):
            delta = expected[i] + RATE * g.view_as(start[i]) - start[i]
            expected[i] = start[i] + shrunk(delta, by, RATE * strength)
        for parameter, wanted in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-12)
        distance = sum((a - b).square().sum() for a, b in zip(expected, start, strict=True)).sqrt()
        norm = sum(a.square().sum() for a in start).sqrt()
        assert evolution.drift()["drift"] == pytest.approx(float(distance / norm), rel=1e-12)
    assert evolution.drift()["drift"] > 1e-3
    if "weight_decay" not in options:  # which has no mercy on padding, with or without an anchor
        assert torch.equal(module.embedding.weight[2], start[1][2])


@pytest.mark.usefixtures("either_way")
def test_groups_decay_clipping_and_a_direction_downwards():
    """Clip the estimate, add it, take the decay off the weights as they were, then draw back by |rate| strength."""
    module = nn.ParameterDict({name: nn.Parameter(torch.randn(3000, dtype=torch.float64)) for name in "abcd"})
    groups = [
        {"params": [module["a"]], "lr": 0.1, "weight_decay": 0.0},
        {"params": [module["b"]], "lr": 0.2, "weight_decay": 0.5},
        {"params": [module["c"]], "lr": 0.3, "weight_decay": 0.1, "maximize": True},
        {"params": [module["d"]], "lr": 0.0, "weight_decay": 0.1},
    ]
    optimizer, strength = torch.optim.SGD(groups), 2.0
    evolution = evolution_of(anchor=strength)
    start = {name: value.detach().clone() for name, value in module.items()}
    for number, clipping in enumerate([None, Clipping(0.5), Clipping(0.001, "value")]):
        before = {name: value.detach().clone() for name, value in module.items()}
        evolution.setup(module)
        evolution.evaluate(lambda batch: sum((value * batch).sum() for value in module.values()), torch.ones(3000))
        update = evolution.conclude()
        g = {parameter.name: update.estimate(parameter) for parameter in update.space}
        whole = math.sqrt(sum(float(value.square().sum()) for value in g.values()))
        assert whole > 0.5
        update.apply(update.step([optimizer], clipping))
        for group, name in zip(groups, "abcd", strict=True):
            if clipping is not None:
                norm, value = clipping.by == "norm", clipping.limit
                g[name] = g[name] * (value / (whole + 1e-6)) if norm else g[name].clamp(-value, value)
            rate = -group["lr"] if group.get("maximize") else group["lr"]
            stepped = before[name] + rate * g[name] - abs(rate) * group["weight_decay"] * before[name]
            expected = start[name] + (1 - abs(rate) * strength) * (stepped - start[name])
            torch.testing.assert_close(module[name].detach(), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(module["d"].detach(), start["d"]), number  # without a rate not a bit changes
    distance = math.sqrt(sum(float((module[name].detach() - start[name]).square().sum()) for name in "abcd"))
    norm = math.sqrt(sum(float(value.square().sum()) for value in start.values()))
    assert evolution.drift()["drift"] == pytest.approx(distance / norm, rel=1e-12)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_strong_l1_leaves_most_weights_exactly_where_they_began(dtype):
    module = Net(dtype)
    start = copies(module)
    evolution = evolution_of(anchor=Anchor(0.5, "l1"))
    for seed in range(3):
        generation(module, evolution, seed).apply()
        moved = torch.cat([(p != s).flatten() for p, s in zip(module.parameters(), start, strict=True)])
        assert 0 < float(moved.float().mean()) < 0.6
        for parameter, before in zip(module.parameters(), start, strict=True):
            same = parameter.detach() == before
            assert torch.equal(parameter.detach()[same].signbit(), before[same].signbit())


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("by", ["l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_where_the_formula_says_on_average(dtype, by):
    """100,000 equal weights, each rounded with a random number of its own: the mean is within 5 standard errors."""
    count, amount = 100_000, 0.01 if by == "l2" else 2.0**-9
    center, anchor = torch.full((count,), 1.5, dtype=dtype), torch.full((count,), 1.0, dtype=dtype)
    step = torch.full((count,), 2.0**-12)
    expected = 1.0 + shrunk(torch.tensor(0.5 + 2.0**-12, dtype=torch.float64), by, amount)
    move(center, step, NoiseKey(1, 2), 0, pull=Pull(anchor, by, amount))
    spacing = torch.finfo(dtype).eps
    assert len(center.unique()) == 2
    assert abs(float(center.double().mean()) - float(expected)) < 5 * spacing / 2 / math.sqrt(count)


def test_weights_of_32_bits_near_the_start_lose_nothing():
    """Half a unit in the last place of theta would be lost in theta + step, but not in theta - theta_0 + step."""
    anchor = torch.tensor([1.0])
    center = torch.tensor([1.0 + 2.0**-23])
    away = drawn_back(center, anchor, torch.tensor([2.0**-25]), Pull(anchor, "l2", 0.5))
    assert float(away) == (2.0**-23 + 2.0**-25) / 2


@pytest.mark.usefixtures("either_way")
def test_nothing_to_learn_leaves_every_bit_and_the_drift():
    module = Net(torch.float32)
    evolution = evolution_of(anchor=1.0)
    generation(module, evolution, 0).apply()
    before, drift = copies(module), evolution.drift()
    evolution.setup(module)
    evolution.evaluate(lambda batch: 1.0, torch.zeros(1))
    with pytest.warns(UserWarning, match="same fitness"):
        update = evolution.conclude()
    assert not update
    assert all(torch.equal(p.detach(), b) for p, b in zip(module.parameters(), before, strict=True))
    assert evolution.drift() == drift
    assert drift["drift"] > 0


def test_a_copy_elsewhere_is_read_piece_by_piece(monkeypatch):
    """What is kept on another device goes to the weights' one in pieces; "meta" stands for it until it is asked for."""
    monkeypatch.setattr(update_module, "_PIECE", 1024)
    module = Net(torch.float32)
    evolution = evolution_of(anchor=Anchor(1.0, device="cpu"))
    generation(module, evolution, 0).apply()
    assert {values.device.type for values in evolution.start._weights.values()} == {"cpu"}
    twin = Net(torch.float32)
    other = evolution_of(anchor=1.0)
    generation(twin, other, 0).apply()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


def test_noise_that_processes_make_together_is_drawn_back_alike():
    module, twin = Net(torch.bfloat16), Net(torch.bfloat16)
    for net, ranks in ((module, None), (twin, Ranks(2, 1, 0, gather_from_all=lambda values: [values, values]))):
        evolution = evolution_of(anchor=1.0)
        update = generation(net, evolution, 0)
        if ranks is not None:  # tensors this small are made by each process: what is left is the path in pieces
            update = synchronized(update, "sharded", ranks)
            assert isinstance(update.lesson.terms[0].perturbation, _Sharded)
        update.apply()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


def test_what_begins_to_evolve_later_begins_where_it_is_then():
    module = Net()
    evolution = evolution_of(anchor=4.0)
    module.linear.requires_grad_(False)
    generation(module, evolution, 0).apply()
    module.linear.requires_grad_(True)
    start = copies(module.linear)
    generation(module, evolution, 1).apply()
    module.embedding.requires_grad_(False)
    generation(module, evolution, 2).apply()
    evolution.setup(module)
    assert float(distance_of_linear(evolution)) == pytest.approx(distance_from(start[0], module), rel=1e-12)
    assert set(evolution.start.state_dict()["start"]) == {name for name, _ in module.named_parameters()}


def test_weights_that_are_converted_or_exchanged_keep_a_start_of_their_kind():
    module = Net(torch.float32)
    evolution = evolution_of(anchor=4.0)
    generation(module, evolution, 0).apply()
    start = evolution.start._weights["linear.weight"].clone()
    module.bfloat16()
    evolution.setup(module)
    assert torch.equal(evolution.start._weights["linear.weight"], start.bfloat16())
    assert evolution.drift()["drift"] < 1
    module.linear.weight = nn.Parameter(torch.ones(2 * len(module.linear.weight), module.linear.weight.shape[1]))
    evolution.setup(module)
    assert torch.equal(evolution.start._weights["linear.weight"], module.linear.weight.detach().flatten())


def test_another_module_has_another_start():
    evolution = evolution_of(anchor=4.0)
    generation(Net(), evolution, 0).apply()
    other = Net()
    with torch.no_grad():
        other.linear.bias += 1
    evolution.setup(other)
    assert evolution.drift()["drift"] == 0


def saved_run(anchor=4.0):
    module = Net(torch.float32)
    evolution = evolution_of(anchor=anchor)
    for seed in range(3):
        generation(module, evolution, seed).apply()
    return module, evolution, evolution.state_dict(RandomState(torch.device("cpu")))


def resumed(module, saved, weights, anchor=4.0):
    evolution = evolution_of(anchor=anchor)
    evolution.before_restoring(module, saved)
    module.load_state_dict(weights)
    evolution.setup(module)
    evolution.load_state_dict(saved, torch.device("cpu"))
    evolution.setup(module)
    return evolution


@pytest.mark.parametrize("built_in", [torch.float32, torch.float64])
def test_resumed_is_uninterrupted(built_in):
    """Also where the module is converted to its precision after its checkpoint was loaded, as Lightning does."""
    module, evolution, saved = saved_run()
    assert isinstance(saved["anchor"]["start"]["linear.bias"], int)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    again = Net(torch.float32).to(built_in)
    other = evolution_of(anchor=4.0)
    other.before_restoring(again, saved)
    again.load_state_dict(weights)
    again.to(torch.float32)
    other.setup(again)
    other.load_state_dict(saved, torch.device("cpu"))
    other.setup(again)
    assert other.drift()["drift"] == pytest.approx(float(evolution.drift()["drift"]), rel=1e-5)
    for seed in (3, 4):
        generation(module, evolution, seed).apply()
        generation(again, other, seed).apply()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    assert other.drift() == evolution.drift()


def test_other_starting_weights_are_refused():
    module, _, saved = saved_run()
    other = Net(torch.float32)
    with torch.no_grad():
        other.linear.bias[7] += 1e-3
    with pytest.raises(ValueError, match=r"was anchored to: linear\.bias\..*seed_everything.*load_from_checkpoint"):
        resumed(other, saved, module.state_dict())
    # A checkpoint that had been restored before the strategy could copy anything.
    late = evolution_of(anchor=4.0)
    late.setup(module)
    with pytest.raises(ValueError, match="starting weights are not those"):
        late.load_state_dict(saved, torch.device("cpu"))
    # What is loaded before the module is known is compared when it is.
    before = evolution_of(anchor=4.0)
    before.load_state_dict(saved, torch.device("cpu"))
    with pytest.raises(ValueError, match="starting weights are not those"):
        before.setup(module)


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (4.0, 2.0, r"anchor=2 \(l2\); the checkpoint's run had 4 \(l2\)"),
        (4.0, Anchor(4.0, "l1"), r"anchor=4 \(l1\); the checkpoint's run had 4 \(l2\)"),
        (4.0, None, r"anchor=None; the checkpoint's run had 4 \(l2\)"),
        (None, 4.0, r"anchor=4 \(l2\); the checkpoint's run had None"),
    ],
)
def test_another_anchor_is_announced(there, here, message):
    module, _, saved = saved_run(there)
    built = Net(torch.float32)
    start = copies(built)
    with pytest.warns(UserWarning, match=message):
        evolution = resumed(built, saved, module.state_dict(), here)
    if here is not None:  # it is that of the script, not of the checkpoint
        assert float(distance_of_linear(evolution)) == pytest.approx(distance_from(start[2], module), rel=1e-5)


def test_what_anchors_to_nothing_is_refused():
    with pytest.raises(ValueError, match="anchor has no effect on 'csa_es'"):
        Evolution("csa_es", anchor=1.0)
    module = Net()
    update = generation(module, evolution_of(anchor=1.0), 0)
    with pytest.raises(ValueError, match="update='in_place'"):
        IntoGradients().learn(update)
    assert all(parameter.grad is None for parameter in module.parameters())
    strong = generation(module, evolution_of(anchor=25.0), 0)
    with pytest.raises(ValueError, match=r"anchor=25 with a learning rate of 0\.05 .* by 125% .* must be below 1"):
        strong.step()
    l1 = generation(module, evolution_of(anchor=Anchor(25.0, "l1")), 0)
    l1.step()  # a threshold may be as large as it likes
    start = StartingWeights(Anchor(10.0))
    start.check(Step((0.05,)), SearchSpace(module))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0}, "Anchor's strength must be a number > 0, got 0"),
        ({"strength": -1.0}, "strength must be"),
        ({"strength": math.nan}, "strength must be"),
        ({"strength": "10"}, "strength must be"),
        ({"strength": 1, "by": "l3"}, "Unknown kind of anchor 'l3'.*l2, l1"),
        ({"strength": 1, "device": "gpu9"}, "device must be one of torch's"),
    ],
)
def test_impossible_anchors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Anchor(**arguments)


@pytest.mark.parametrize("given", ["l2", True, 0, [1.0], math.inf])
def test_impossible_shorthands(given):
    with pytest.raises(ValueError, match=r"anchor must be an Anchor, or its strength, a number > 0, got"):
        as_anchor(given)


def test_starting_weights_of_zeros_have_a_distance():
    module = nn.Linear(3, 1)
    nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
    start, space = StartingWeights(Anchor(1.0)), SearchSpace(module)
    start.hold(space, module)
    nn.init.constant_(module.bias, 2.0)
    assert start.drift(space) == 2.0


def test_the_distance_of_a_large_tensor_is_measured_in_pieces(monkeypatch):
    monkeypatch.setattr(anchor_module, "_PIECE", 7)
    module = nn.Linear(10, 10).bfloat16()
    start, space = StartingWeights(Anchor(1.0)), SearchSpace(module)
    start.hold(space, module)
    before = module.weight.detach().double().clone()
    with torch.no_grad():
        module.weight += 0.5
    moved = float((module.weight.detach().double() - before).norm())
    assert float(start.distance(space[0])) == pytest.approx(moved, rel=1e-12)


def test_algorithms_of_the_family_take_one():
    evolution = Evolution(get("openai_es")(population=4), anchor=Anchor(1.0))
    assert str(evolution.start.anchor) == "1 (l2)"
