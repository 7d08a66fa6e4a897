"""Every way of evaluating gives what the plain loop gives, whatever the model and its noise, and leaves no trace."""

import random

import numpy
import pytest
import torch

from lightning_evo.evaluation.ways import batched, perturbed, rules
from lightning_evo.evaluation.ways.batched import Batched
from lightning_evo.evaluation.ways.in_forward import InForward
from lightning_evo.evaluation.ways.layouts import OneMember
from lightning_evo.generation.evolution import Evolution
from lightning_evo.perturbations.dense import Dense
from lightning_evo.perturbations.low_rank import LowRank
from lightning_evo.spaces.search_space import SearchSpace
from tests.evaluation.models import KINDS_OF_NOISE, MODELS, NOISE, direction, evaluate, population

# Rules are of a layer and of a kind of noise: dense, low-rank or sparse. So every model meets these three, and what
# else there is (distributions, pairs, ranks, a size for each weight) meets one model of every kind of layer.
ALL_NOISE = ["mlp", "mlp_bfloat16", "cnn", "conv_transposed", "lstm", "attention", "gpt2", "tied", "embedding"]
ALL_NOISE += ["batch_norm", "matrix_products", "views"]
PAIRS = [(name, noise) for name in MODELS for noise in NOISE if name in ALL_NOISE or noise in KINDS_OF_NOISE]
IN_16_BITS = {name for name, case in MODELS.items() if case.dtype == torch.bfloat16 or case.autocast}


def state(module):
    return [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())]


def random_state():
    return torch.get_rng_state(), str(random.getstate()), str(numpy.random.get_state())


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of a model that uses torch.func itself
@pytest.mark.parametrize(("name", "noise"), PAIRS)
def test_equals_the_plain_loop(name, noise):
    case, options = MODELS[name], NOISE[noise]
    module = case.module()
    fitness, members = case.fitness(module), population(**options)
    before, rng = state(module), torch.get_rng_state()
    expected = torch.stack(evaluate(None, module, members, fitness, case.evolve))
    assert len(set(expected.tolist())) == 6  # the noise acts at all
    ways = {"in_forward": InForward(), "batched": Batched(), "batched_by_4": Batched(4)}
    for way_name, way in ways.items():
        batched = isinstance(way, Batched)
        try:
            actual = torch.stack(evaluate(way, module, members, fitness, case.evolve))
        except Exception:
            if case.batched or not batched:
                raise
        else:
            if not batched and case.exact and "rank" not in options:
                assert torch.equal(actual, expected), way_name
            elif name in IN_16_BITS:
                torch.testing.assert_close(actual, expected, rtol=0, atol=0.1 * float(expected.std()) + 1e-2)
            else:
                tolerance = 1e-12 if case.dtype == torch.float64 else 2e-5
                torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
                updates = [direction(module, members, values, case.evolve) for values in (actual, expected)]
                assert torch.cosine_similarity(*updates, dim=0) > 0.999999, way_name
        assert all(torch.equal(a, b) for a, b in zip(before, state(module), strict=True))
        assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("name", ["cnn", "spectral_norm", "instance_norm", "gpt2"])
@pytest.mark.parametrize("way", [None, InForward(), Batched()], ids=["plain", "in_forward", "batched"])
@pytest.mark.parametrize("noise", ["gaussian", "rank_1"])
def test_nothing_is_left_of_a_fitness_that_raises(name, way, noise):
    case = MODELS[name]
    module = case.module()
    objects, hooks = list(module.parameters()), [list(part._forward_hooks) for part in module.modules()]
    before, generators = state(module), random_state()
    fitness = case.fitness(module)
    calls = []

    def fails():
        value = fitness()
        torch.rand(3), numpy.random.rand(), random.random()
        calls.append(0)
        if isinstance(way, Batched) or len(calls) == 4:
            raise KeyError("no fitness today")
        return value

    with pytest.raises((KeyError, RuntimeError)):  # the latter from vmap, where it can't do the model
        evaluate(way, module, population(**NOISE[noise]), fails)
    assert all(torch.equal(a, b) for a, b in zip(before, state(module), strict=True))
    assert all(a is b for a, b in zip(objects, module.parameters(), strict=True))
    assert random_state()[1:] == generators[1:]
    assert torch.equal(random_state()[0], generators[0])
    assert [list(part._forward_hooks) for part in module.modules()] == hooks
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("way", [InForward(), Batched()], ids=["in_forward", "batched"])
def test_low_rank_noise_of_matrices_is_never_made(way, monkeypatch):
    """Layers call torch with arguments by name, which a rule must know: else it falls back unnoticed."""
    module = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(30, 40, padding_idx=1),
            "linear": torch.nn.Linear(40, 30),
            "without_bias": torch.nn.Linear(40, 30, bias=False),
            "convolution": torch.nn.Conv1d(30, 20, 3, padding=1),
        }
    )
    ids = torch.arange(30).view(3, 10)

    def fitness():
        hidden = module["embedding"](ids)
        return module["convolution"]((module["linear"](hidden) + module["without_bias"](hidden)).mT).square().mean()

    made = []
    noise = LowRank.noise_of_range
    monkeypatch.setattr(LowRank, "noise_of_range", lambda *args: made.append(args[3].dim()) or noise(*args))
    evaluate(way, module, population(rank=2), fitness)
    assert set(made) <= {1}  # biases


@pytest.mark.parametrize("way", [None, InForward(), Batched()], ids=["plain", "in_forward", "batched"])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda weight, bias: torch.nn.functional.linear(torch.ones(3, 5), weight, bias),
            "shapes cannot be multiplied",
        ),
        (lambda weight, bias: torch.addmm(bias[:4], torch.ones(3, 8), weight.t()), "size|expand"),
        (lambda weight, bias: torch.addmm(bias[:1], torch.ones(3, 8), weight.t()).sum(), None),  # a bias may broadcast
    ],
)
def test_what_does_not_fit_together_never_reaches_a_kernel(way, call, message):
    module = torch.nn.Linear(8, 6)

    def run():
        return evaluate(way, module, population(rank=1), lambda: call(module.weight, module.bias).mean())

    if message is None:
        expected = torch.stack(evaluate(None, module, population(rank=1), lambda: call(module.weight, module.bias)))
        torch.testing.assert_close(torch.stack(run()), expected)
    else:
        with pytest.raises(RuntimeError, match=message):
            run()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [1, 2, 10, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cross_entropy_of_all_members(reduction, classes, dtype):
    torch.manual_seed(0)
    module, x = torch.nn.Linear(5, classes).to(dtype), torch.randn(7, 5).to(dtype)
    target, weight = torch.randint(classes, (7,)), torch.rand(classes).to(dtype) + 0.1
    target[2] = -1
    probabilities = torch.rand(7, classes).to(dtype)
    cross_entropy = torch.nn.functional.cross_entropy

    def fitness():
        logits = module(x)
        values = [
            cross_entropy(logits, target, weight, ignore_index=-1, reduction=reduction),
            cross_entropy(logits, target, ignore_index=-1, reduction=reduction),
            cross_entropy(logits, target.clamp(min=0), reduction=reduction),
            cross_entropy(logits, target.clamp(min=0), reduction=reduction, label_smoothing=0.1),
            cross_entropy(logits, probabilities, reduction=reduction),
            cross_entropy(logits[0], target[0], reduction=reduction),
        ]
        return torch.stack([value.float().mean() for value in values])

    values = [torch.stack(evaluate(way, module, population(), fitness)) for way in (None, Batched())]
    torch.testing.assert_close(*values, rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "target", [torch.zeros(1, dtype=torch.long), torch.tensor(0), torch.zeros(4, 7).long()], ids=str
)
def test_targets_of_another_shape_are_an_error_for_all_members(target):
    module, x = torch.nn.Linear(5, 3), torch.randn(7, 5)
    with pytest.raises((ValueError, RuntimeError)):
        evaluate(Batched(), module, population(), lambda: torch.nn.functional.cross_entropy(module(x), target))


@pytest.mark.parametrize("ids", [[0, 5000], [-1, 3], [5000, *[0] * 5000], [-1, *[0] * 5000]], ids=len)
@pytest.mark.parametrize("noise", [{}, {"rank": 1}], ids=["dense", "rank 1"])
@pytest.mark.parametrize("way", [InForward, Batched])
def test_numbers_out_of_an_embedding(way, noise, ids, monkeypatch):
    """Few, for which rows are chosen; and more than there are, for which it is made block by block."""
    monkeypatch.setattr(rules, "HUGE", 1 << 14)
    module = torch.nn.Embedding(5000, 16)
    with pytest.raises(IndexError, match="index out of range"):
        evaluate(way(), module, population(**noise), lambda: module(torch.tensor(ids)).sum())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("noise", [{}, {"sigma_scale": "rms"}, {"sparsity": 0.5}, {"antithetic": False}], ids=str)
@pytest.mark.parametrize("way", [InForward, Batched])
def test_only_the_entries_of_an_embedding_that_are_looked_up_are_made(way, noise, dtype, monkeypatch):
    module = torch.nn.Embedding(700, 100, padding_idx=3)
    ids = torch.tensor([[5, 3, 699], [5, 0, 3]], dtype=dtype)
    target, outputs = torch.randn(2, 3, 100), []

    def fitness():
        outputs.append(module(ids))
        return (outputs[-1] * target).mean()

    expected = torch.stack(evaluate(None, module, population(**noise), fitness))
    whole = list(outputs)
    monkeypatch.setattr(Dense, "write_members", lambda *args, **kwargs: pytest.fail("all entries are made"))
    outputs.clear()
    found = torch.stack(evaluate(way(), module, population(**noise), fitness))
    torch.testing.assert_close(found, expected)
    if way is InForward:
        assert all(torch.equal(a, b) for a, b in zip(outputs, whole, strict=True))
        assert torch.equal(outputs[0][0, 1], module.weight[3])


@pytest.mark.parametrize("way", [InForward, Batched])
def test_an_embedding_that_is_looked_up_again_and_again_is_made_once(way, monkeypatch):
    """Rows are chosen as long as they are fewer than all; a decoder that embeds one token after the other has many."""
    module, target = torch.nn.Embedding(700, 100), torch.randn(1000, 100)
    chosen = []
    make = Dense.chosen_rows
    monkeypatch.setattr(Dense, "chosen_rows", lambda *args: chosen.append(args[-1].numel()) or make(*args))

    def fitness():
        rows = [module(torch.tensor([token % 700])) for token in range(1000)]
        return (torch.cat(rows) * target).mean()

    values = [torch.stack(evaluate(w, module, population(2), fitness)) for w in (None, way())]
    torch.testing.assert_close(*values)
    assert 1 <= sum(chosen) / (2 if way is InForward else 1) <= 700 * 100 // 356


def test_small_members_lie_where_tensors_do():
    """Complex numbers are read from even elements only."""
    module = torch.nn.ParameterDict(
        {"bias": torch.nn.Parameter(torch.randn(3)), "z": torch.nn.Parameter(torch.randn(5, 2))}
    )

    def fitness():
        return torch.view_as_complex(module["z"]).abs().mean() + module["bias"].sum()

    for options in ({"antithetic": False}, {}):
        values = [torch.stack(evaluate(w, module, population(**options), fitness)) for w in (None, InForward())]
        assert torch.equal(*values)


def test_lookups_in_the_users_own_vmap():
    module = torch.nn.Embedding(700, 100)
    ids = torch.tensor([[5, 699], [0, 1]])

    def fitness():
        return torch.func.vmap(module)(ids).square().mean()

    values = [torch.stack(evaluate(way, module, population(), fitness)) for way in (None, InForward())]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("way", [InForward, Batched])
def test_one_number_of_an_embedding(way):
    module = torch.nn.Embedding(5, 4)
    values = [evaluate(w, module, population(rank=1), lambda: module(torch.tensor(3)).sum()) for w in (None, way())]
    torch.testing.assert_close(*map(torch.stack, values))


@pytest.mark.parametrize("noise", [{}, {"rank": 1}], ids=["dense", "rank 1"])
@pytest.mark.parametrize("way", ["in_forward", "batched"])
def test_parameters_without_elements(way, noise):
    module = torch.nn.Linear(3, 2, bias=False)
    module.empty = torch.nn.Parameter(torch.zeros(0))
    evolution = Evolution(population=6, evaluation=way, seed=0, **noise)
    evolution.setup(module)
    assert evolution.evaluate(lambda x: module(x).sum() + module.empty.sum(), torch.randn(4, 3))
    assert evolution.evaluation.summary.startswith(f"evaluation: {way}")
    assert "not possible" not in evolution.evaluation.summary


# --- huge matrices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, 0, 3, 4, 10])
@pytest.mark.parametrize("at_once", [1, 7, 28, 35, 76])  # of 77 elements in 11 rows of 7; less than a row is one row
@pytest.mark.parametrize("noise", ["gaussian", "scaled_without_pairs", "sparse", "rank_1"])
def test_huge_matrices_in_blocks_of_rows(padding, at_once, noise, monkeypatch):
    module = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(11, 7, padding_idx=padding), "head": torch.nn.Linear(7, 11)}
    )
    ids = torch.tensor([[10, 0, 3, 3], [4, 9, 1, 2]])
    members = population(**NOISE[noise])
    outputs = []

    def fitness():
        vectors = module["embedding"](ids)
        outputs.append((vectors.clone(), module["head"](vectors), module["head"](vectors[0, 0])))
        return outputs[-1][1].mean()

    evaluate(None, module, members, fitness)
    expected = list(outputs)
    outputs.clear()
    monkeypatch.setattr(rules, "HUGE", at_once)
    evaluate(InForward(), module, members, fitness)
    for (vectors, *heads), (vectors_expected, *heads_expected) in zip(outputs, expected, strict=True):
        if "rank" in NOISE[noise]:
            torch.testing.assert_close(vectors, vectors_expected)
        else:
            assert torch.equal(vectors, vectors_expected)
        for head, head_expected in zip(heads, heads_expected, strict=True):
            torch.testing.assert_close(head, head_expected)
        if padding is not None:
            assert torch.equal(vectors[ids == padding], module["embedding"](ids)[ids == padding])


# --- many members in one forward ------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 64, "auto"])
def test_groups_of_any_size(size, antithetic):
    case = MODELS["mlp"]
    module, members = case.module(), population(10, antithetic=antithetic)
    forwards = []
    module.register_forward_hook(lambda *_: forwards.append(0))
    expected = torch.stack(evaluate(None, module, members, case.fitness(module)))
    forwards.clear()
    actual = torch.stack(evaluate(Batched(size), module, members, case.fitness(module)))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    if size != "auto":
        at_once = size if not antithetic else max(2, size // 2 * 2)
        assert len(forwards) == -(-10 // at_once)


@pytest.mark.parametrize("antithetic", [True, False])
def test_running_out_of_memory_halves_the_groups(antithetic, monkeypatch):
    case = MODELS["mlp"]
    module, members = case.module(), population(12, antithetic=antithetic)
    expected = torch.stack(evaluate(None, module, members, case.fitness(module)))
    forward, sizes = Batched._forward, []

    def limited(self, job, members):
        sizes.append(len(members))
        if len(members) > 3:
            raise torch.OutOfMemoryError("none left")
        return forward(self, job, members)

    monkeypatch.setattr(Batched, "_forward", limited)
    way = Batched(12)
    with pytest.warns(UserWarning, match="members in one forward need more memory than there is") as warned:
        actual = torch.stack(evaluate(way, module, members, case.fitness(module)))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert sizes == [12, 6, *([2] * 6 if antithetic else [3] * 4)]
    assert way.members_per_forward == sizes[-1]
    assert f"Going on with {sizes[-1]}." in str(warned[-1].message)
    again = Batched(2)
    monkeypatch.setattr(Batched, "_forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none left")))
    if antithetic:
        with pytest.raises(torch.OutOfMemoryError):  # a pair is the least
            evaluate(again, module, members, case.fitness(module))


@pytest.mark.parametrize("way", [InForward(), Batched(4)], ids=["in_forward", "batched"])
def test_values_per_sample_and_declined_batches(way):
    module, members = MODELS["mlp"].module(), population(6)
    x = torch.randn(5, 6)
    expected, actual = (evaluate(w, module, members, lambda: module(x).sum(1)) for w in (None, way))
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), rtol=0, atol=1e-5)
    assert torch.stack(actual).shape == (6, 5)
    assert evaluate(way, module, members, lambda: None) == [None] * 6
    constant = evaluate(way, module, members, lambda: torch.tensor(2.0))
    assert [float(value) for value in constant] == [2.0] * 6


@pytest.mark.parametrize("noise", ["gaussian", "rank_1"])
def test_dropout_masks_are_those_of_the_plain_loop(noise):
    module = torch.nn.Sequential(torch.nn.Linear(6, 50), torch.nn.Dropout(0.5))
    members, x = population(6, **NOISE[noise]), torch.ones(4, 6)
    dropped = [
        torch.stack(evaluate(way, module, members, lambda: (module(x) == 0).double().flatten()))
        for way in (None, InForward(), Batched())
    ]
    assert torch.equal(dropped[0], dropped[1])
    assert torch.equal(dropped[0], dropped[2])
    assert torch.equal(dropped[0][0], dropped[0][5])
    assert 0.3 < dropped[0].mean() < 0.7


def test_the_size_of_groups_follows_memory(monkeypatch):
    case = MODELS["mlp"]
    module = case.module()
    sizes = []
    for memory in (0, 6_000, 12_000, 1 << 30):
        monkeypatch.setattr(batched, "free_memory", lambda device, memory=memory: memory)
        way = Batched()
        evaluate(way, module, population(10), case.fitness(module))
        sizes.append(way.members_per_forward)
    assert sizes[0] == 1
    assert sizes[-1] == 10
    assert sizes == sorted(sizes)
    assert sizes[2] in (4, 8)


@pytest.mark.parametrize(("samples", "members", "expected"), [(1 << 11, 256, 128), (1 << 15, 16, 8), (1 << 18, 4, 1)])
def test_the_size_of_groups_on_a_cpu_is_limited_by_the_largest_tensor(samples, members, expected):
    module = torch.nn.Linear(4, 64)  # 256 bytes of activation for each sample, against 64 MB
    way, x = Batched(), torch.ones(samples, 4)
    evaluate(way, module, population(members), lambda: module(x).sum())
    assert way.members_per_forward == expected


def test_one_member_at_a_time_without_vmap():
    module = MODELS["mlp"].module()
    with pytest.raises(ValueError, match="one of 1 members, not of 2"):
        perturbed.Perturbed(SearchSpace(module), population(), [0, 1], OneMember())
