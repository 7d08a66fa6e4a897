"""In-place updates: piece by piece, or in one pass of a kernel, they are what the formula says."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_evo import algorithms
from lightning_evo.algorithms import Directions, Term
from lightning_evo.generation import update
from lightning_evo.generation.laying import laid_over
from lightning_evo.generation.step import Clipping
from lightning_evo.generation.update import AlongDirections
from lightning_evo.kernels import Backend, Native, backend
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.rounding import move
from lightning_evo.perturbations import Dense, LowRank
from lightning_evo.spaces.search_space import SearchSpace

WEIGHTS = (0.5, 0.0, -1.25, 2.0)


def an_update(module, weight_decay=0.0, weights=WEIGHTS, **options):
    """What a generation of which the weights are known has taught."""
    algorithm = algorithms.get("openai_es")(population=8, **options)
    state = algorithm.init(torch.zeros(1), seed=3)
    space = SearchSpace(module)
    population = laid_over(algorithm.ask(state), space)
    lesson = Directions((Term(population.perturbation, weights),), weight_decay, learning_rate=0.1)
    return AlongDirections(population, space, torch.zeros(8), lesson)


def module_of(dtype):
    """Tensors of all memory formats; some end within a row of noise, some within a piece."""
    torch.manual_seed(0)

    def randn(*shape):
        return torch.randn(shape).to(dtype)

    tensors = [
        randn(70, 90),
        randn(8, 24, 5, 5).contiguous(memory_format=torch.channels_last),
        randn(90, 70).T,
        randn(40, 80)[3:, ::2],
        randn(8192)[::2],
        randn(),
        randn(0, 3),
        randn(1, 4096),
    ]
    assert sum(not tensor.is_contiguous() for tensor in tensors) == 4
    return nn.ParameterList([nn.Parameter(tensor) for tensor in tensors])


@pytest.fixture(params=[1024, 1 << 20], ids=["small pieces", "one piece"])
def piece(request, monkeypatch):
    monkeypatch.setattr(update, "_PIECE", request.param)
    monkeypatch.setattr(backend, "CHUNK", request.param)


def expected_step(an_update, parameter):
    """By the definition, from noise that is held whole: ``g`` of one parameter, flat."""
    center = parameter.tensor.detach().reshape(-1)
    noise = an_update.population.perturbation.noise(range(len(WEIGHTS)), parameter.index, parameter.tensor.detach())
    if parameter.padding_row is not None:
        noise[:, parameter.padding_row] = 0
    total = torch.zeros(center.numel(), dtype=noise.dtype)
    for weight, eps in zip(
        an_update.weights,
        noise.reshape(len(WEIGHTS), -1) if center.numel() else torch.zeros(len(WEIGHTS), 0),
        strict=True,
    ):
        if weight:
            total += eps * weight
    if an_update.lesson.weight_decay:
        total -= center.to(total.dtype) * an_update.lesson.weight_decay
    return total


def expected_weights(an_update, learning_rate, clipping=None):
    steps = [expected_step(an_update, parameter) for parameter in an_update.space]
    norm = math.sqrt(sum(float(step.double().square().sum()) for step in steps))
    if clipping and clipping.by == "value":
        steps = [step.clamp(-clipping.limit, clipping.limit) for step in steps]
    expected = []
    key = NoiseKey(an_update.population.seed, an_update.population.generation)
    for parameter, step in zip(an_update.space, steps, strict=True):
        center = parameter.tensor.detach().flatten().clone()
        move(center, step * learning_rate, key, parameter.index)
        expected.append(center.view(parameter.tensor.shape))
    return expected, norm


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


@pytest.mark.usefixtures("either_way", "piece")
@pytest.mark.parametrize("clipping", [None, Clipping(0.7, "value")])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise", ["gaussian", "rademacher", "uniform"])
def test_pieces_of_tensors_of_all_memory_formats_move_by_the_formula(noise, dtype, weight_decay, clipping):
    module = module_of(dtype)
    strides = [parameter.stride() for parameter in module]
    subject = an_update(module, weight_decay, noise=noise)
    expected, norm = expected_weights(subject, 0.1, clipping)
    assert subject.apply(subject.step(clipping=clipping)) == pytest.approx(norm, rel=1e-5)
    assert [parameter.stride() for parameter in module] == strides
    for parameter, values in zip(module, expected, strict=True):
        assert same_bits(parameter.detach(), values)


@pytest.mark.usefixtures("either_way", "piece")
def test_clipping_by_norm_shortens_the_whole_step():
    before = [parameter.detach().clone() for parameter in module_of(torch.float64)]
    steps = []
    for clipping in (None, Clipping(0.5), Clipping(1e6)):
        module = module_of(torch.float64)
        subject = an_update(module, 0.3)
        norm = float(subject.apply(subject.step(clipping=clipping)))
        steps.append(torch.cat([(p.detach() - b).flatten() for p, b in zip(module, before, strict=True)]))
        assert float(steps[-1].norm()) == pytest.approx(0.1 * (0.5 if clipping == Clipping(0.5) else norm), rel=1e-5)
    torch.testing.assert_close(steps[1], steps[0] * (0.5 / norm), rtol=1e-5, atol=1e-12)
    assert torch.equal(steps[2], steps[0])


@pytest.mark.usefixtures("either_way", "piece")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_only_a_device_knows_moves_the_weights_as_a_number_does(dtype, monkeypatch):
    """On a GPU the coefficient of clipping by norm stays there: the same bits, though the number is never read."""
    monkeypatch.setattr(Native, "update", Backend.update)  # on a CPU it would be a number
    moved = []
    for kept in (False, True):
        module = module_of(dtype)
        subject = an_update(module)
        clipping = Clipping(0.7)
        optimizer = torch.optim.SGD(list(module), lr=0.3, weight_decay=0.37)
        step = subject.step([optimizer], clipping)
        assert 0 < step.clipping.coefficient < 1
        assert isinstance(step.clipping.coefficient, float)
        if kept:
            coefficient = torch.tensor(step.clipping.coefficient, dtype=torch.float64)
            step = replace(step, clipping=replace(step.clipping, coefficient=coefficient))
        norm = subject.apply(step)
        moved.append((norm, [parameter.detach().clone() for parameter in module]))
    assert torch.equal(moved[0][0], moved[1][0])
    assert all(map(same_bits, moved[0][1], moved[1][1]))


@pytest.mark.usefixtures("either_way", "piece")
@pytest.mark.parametrize("padding_row", [0, 7, 49])
def test_the_padding_row_stays(padding_row):
    """Also where a piece's border goes through it."""
    module = nn.Sequential(nn.Embedding(50, 100, padding_idx=padding_row))
    before = module[0].weight.detach().clone()
    subject = an_update(module)
    (parameter,) = subject.space
    assert parameter.padding_row == padding_row
    (expected,), norm = expected_weights(subject, 0.1)
    assert subject.apply() == pytest.approx(norm, rel=1e-5)
    assert same_bits(module[0].weight.detach(), expected)
    unmoved = (module[0].weight.detach() == before).all(1)
    assert unmoved.nonzero().tolist() == [[padding_row]]


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_real(leaf)}
        for leaf in tree_leaves(result):
            if _is_real(leaf) and leaf.untyped_storage().data_ptr() not in known:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


def _is_real(leaf):
    return isinstance(leaf, torch.Tensor)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("clipping", [None, Clipping(0.5), Clipping(0.7, "value")])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_no_temporary_is_larger_than_a_few_megabytes(weight_decay, clipping):
    module = nn.ParameterList([nn.Parameter(torch.zeros(2400, 2000, dtype=torch.bfloat16))])  # 19 MB in float32
    subject = an_update(module, weight_decay, weights=(1.0,))
    with Largest() as largest:
        subject.apply(subject.step(clipping=clipping))
    assert largest.bytes <= 8 << 20
    assert module[0].count_nonzero() > 4_700_000
    with Largest() as largest:  # the measure measures
        subject.estimate(subject.space[0])
    assert largest.bytes >= 19_200_000


@pytest.mark.usefixtures("either_way")
def test_learning_rates_of_groups():
    module = nn.ParameterList([nn.Parameter(torch.zeros(3000)), nn.Parameter(torch.zeros(3000))])
    subject = an_update(module)
    estimates = [subject.estimate(parameter) for parameter in subject.space]
    optimizer = torch.optim.SGD([{"params": [module[0]], "lr": 0.5}, {"params": [module[1]], "lr": 0.0}])
    subject.apply(subject.step([optimizer]))
    assert torch.equal(module[0].detach(), estimates[0] * 0.5)
    assert not module[1].detach().any()


@pytest.mark.usefixtures("either_way")
def test_a_module_of_empty_tensors_has_nothing_to_move():
    module = nn.ParameterList([nn.Parameter(torch.zeros(0, 3))])
    assert an_update(module).apply() == 0
    subject = an_update(module)
    assert subject.apply(subject.step(clipping=Clipping(1.0))) == 0


@pytest.mark.usefixtures("either_way", "piece")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_further_terms_are_added(dtype):
    """Momentum, say: past noise with weights of its own, of any kind."""
    module, once = module_of(dtype), module_of(dtype)
    subject = an_update(module)
    terms = [
        *subject.lesson.terms,
        Term(Dense(NoiseKey(3, 7), "uniform"), (0.0, 2.0)),
        Term(LowRank(NoiseKey(3, 8)), (1.0,)),
    ]
    subject = replace(subject, lesson=replace(subject.lesson, terms=tuple(terms)))
    expected = []
    for parameter in SearchSpace(once):
        center = parameter.tensor.detach().contiguous()
        total = sum(p.weighted_sum(w, parameter.index, center) for p, w in terms)
        flat = center.flatten().clone()
        move(flat, total * 0.1, NoiseKey(3, 0), parameter.index)
        expected.append(flat.view(parameter.tensor.shape))
    subject.apply()
    for parameter, values in zip(module, expected, strict=True):
        assert same_bits(parameter.detach(), values)
    assert not replace(subject.lesson, terms=(Term(Dense(NoiseKey(3, 0)), (0.0,)), *terms[1:]))  # nothing was learnt
