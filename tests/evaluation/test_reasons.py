"""Why a way can't be used is said in one sentence: where, what, and a change that helps."""

import copy
import itertools
import re
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_evo.evaluation import candidates
from lightning_evo.evaluation.reasons import faster_plain, reason_of
from lightning_evo.generation.evolution import Evolution

pytestmark = [
    pytest.mark.filterwarnings("ignore:evaluation='batched' does not work with this module"),
    pytest.mark.filterwarnings("ignore:.*nothing to learn"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage"),
]

NUMBER = r"makes a Python number of a member's tensor .*: keep it a tensor"
DECIDES = r"decides by members' values .*: choose with torch\.where, or .*"
RANDOM = r"draws random numbers by members' own values, .*: draw them by shapes .*"
SHAPE = r"gives a tensor whose size depends on members' values .*: keep all elements and choose with torch\.where, .*"
WRITES = r"writes members' values into a tensor that all members share: make a new tensor .*"
LEAVES = r"takes a member's tensor out of PyTorch .*: compute it with PyTorch's functions"
GRADIENTS = r"takes gradients or uses torch\.func, .*: leave that out of fitness_step"


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * 3

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


class TripledForAll(Tripled):
    generate_vmap_rule = True


def branches(y):
    if y.mean() > 0:
        return y * 2
    return y


def written(y, start, write):
    write(start, y)
    return start + 0 * y


def put(start, y):
    start[0] = y[0]


def put_by_mask(y):
    z = y.clone()
    z[y > 0] = 0
    return z


def set_data(y):
    z = torch.zeros(4, 3)
    z.data = y
    return z


def with_gradient(y):
    with torch.enable_grad():
        return torch.autograd.grad(y.requires_grad_().square().sum(), y)[0]


def scripted(y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice to compile
        function = torch.jit.script(branches)
    return function(y)


# What a fitness does with the outputs y [4, 3] of a layer; the sentence; the same as the sentence would have it.
CASES = {
    "item": (lambda y: y.mean().item(), NUMBER, lambda y: y.mean()),
    "float": (lambda y: float(y.mean()), NUMBER, lambda y: y.mean().double()),
    "int as index": (lambda y: y[:, int(y.mean().abs()) % 3], NUMBER, lambda y: y[:, 0]),
    "format": (lambda y: y * len(f"{y.mean():.3f}"), NUMBER, lambda y: y),
    "tensor of tensors": (
        lambda y: torch.tensor([y.mean(), y.sum()]), NUMBER, lambda y: torch.stack([y.mean(), y.sum()])
    ),
    "if": (branches, DECIDES, lambda y: torch.where(y.mean() > 0, y * 2, y)),
    "max": (lambda y: max(y.mean(), y.sum()), DECIDES, lambda y: torch.maximum(y.mean(), y.sum())),
    "in": (lambda y: y * (y.mean() in [1, 2]), DECIDES, lambda y: y * (y.mean() == 1)),
    "allclose": (lambda y: y * torch.allclose(y, y + 1), DECIDES, lambda y: y * torch.isclose(y, y + 1).all()),
    "equal": (lambda y: y * torch.equal(y, y + 1), DECIDES, lambda y: y * (y == y + 1).all()),
    "multinomial": (
        lambda y: torch.multinomial(y.softmax(1), 1), RANDOM, lambda y: F.gumbel_softmax(y, hard=True).argmax(1)
    ),
    "bernoulli": (lambda y: torch.bernoulli(y.sigmoid()), RANDOM, lambda y: torch.rand_like(y) < y.sigmoid()),
    "normal": (lambda y: torch.normal(y, 1.0), RANDOM, lambda y: y + torch.randn_like(y)),
    "poisson": (lambda y: torch.poisson(y.exp()), RANDOM, lambda y: y.exp() * torch.rand_like(y)),
    "sample": (
        lambda y: torch.distributions.Normal(y, 1.0).sample(), RANDOM,
        lambda y: torch.distributions.Normal(y, 1.0).rsample(),
    ),
    "categorical": (lambda y: torch.distributions.Categorical(logits=y).sample(), RANDOM, None),
    "nonzero": (lambda y: y.nonzero(), SHAPE, lambda y: y != 0),
    "mask": (lambda y: y[y > 0], SHAPE, lambda y: torch.where(y > 0, y, 0)),
    "write by mask": (put_by_mask, SHAPE, lambda y: y * (y <= 0)),
    "masked_select": (lambda y: y.masked_select(y > 0), SHAPE, lambda y: y * (y > 0)),
    "unique": (lambda y: y.unique(), SHAPE, lambda y: y),
    "where of one": (lambda y: torch.where(y > 0)[0], SHAPE, lambda y: torch.where(y > 0, 1, 0)),
    "one_hot": (
        lambda y: F.one_hot(y.argmax(1)), r"leaves it to the values how many classes one_hot has: pass num_classes",
        lambda y: F.one_hot(y.argmax(1), 3),
    ),
    "+=": (
        lambda y: written(y, torch.zeros(4, 3), torch.Tensor.__iadd__), WRITES,
        lambda y: written(y, torch.zeros_like(y), torch.Tensor.__iadd__),
    ),
    "an element": (
        lambda y: written(y, torch.zeros(4, 3), put), WRITES, lambda y: written(y, torch.zeros_like(y), put)
    ),
    "copy_": (lambda y: written(y, torch.zeros(4, 3), torch.Tensor.copy_), WRITES, lambda y: torch.zeros(4, 3) + y),
    "scatter_": (
        lambda y: torch.zeros(4, 3).scatter_(1, torch.zeros(4, 1, dtype=torch.int64), y), WRITES,
        lambda y: torch.zeros(4, 3).scatter(1, torch.zeros(4, 1, dtype=torch.int64), y),
    ),
    ".data": (set_data, r"sets \.data of a tensor to a member's: use the member's tensor itself", lambda y: y),
    "out=": (
        lambda y: torch.add(y, 1, out=torch.zeros(4, 3)),
        r"writes members' values into a tensor given as out=: take what the function returns",
        lambda y: torch.add(y, 1),
    ),
    "numpy": (lambda y: torch.tensor(y.numpy().mean()), LEAVES, lambda y: y.mean()),
    "numpy's function": (lambda y: torch.tensor(numpy.tanh(numpy.asarray(y))), LEAVES, lambda y: torch.tanh(y)),
    "tolist": (lambda y: torch.tensor(y.tolist()), LEAVES, lambda y: y),
    "deepcopy": (copy.deepcopy, LEAVES, lambda y: y.clone()),
    "sparse": (lambda y: y.to_sparse().to_dense(), r"makes a sparse tensor of a member's: keep it dense", lambda y: y),
    "autograd.Function": (
        Doubled.apply, r"calls a torch\.autograd\.Function without setup_context: define setup_context, and .*",
        TripledForAll.apply,
    ),
    "autograd.Function without a rule": (
        Tripled.apply, r"calls Tripled, a torch\.autograd\.Function .*: set its generate_vmap_rule = True",
        TripledForAll.apply,
    ),
    "autograd": (with_gradient, GRADIENTS, None),
    "script": (scripted, r"runs scripted code \(torch\.jit\), .*: call the Python function", None),
    "nested": (
        lambda y: torch.nested.nested_tensor([y[0], y[1]]).to_padded_tensor(0),
        r"makes a nested tensor of members' tensors: pad them to one length", lambda y: y[:2],
    ),
    "pad_sequence": (
        lambda y: nn.utils.rnn.pack_sequence([y[:3], y[:2]]).data,
        r"calls pad_sequence, which PyTorch can't run for several members at once: write it with other functions", None,
    ),
}  # fmt: skip
REMEDIED = [name for name, (_, _, other) in CASES.items() if other is not None]


def summary(function, **options):
    torch.manual_seed(0)
    layer, options = nn.Linear(5, 3), {"evaluation": "batched", **options}
    evolution = Evolution("openai_es", population=4, seed=0, **options)
    evolution.setup(layer)

    def fitness(x):
        y = layer(x)
        return torch.as_tensor(function(y)).double().mean() + 0 * y.double().sum()

    evolution.evaluate(fitness, torch.randn(4, 5))
    return evolution.evaluation.summary


@pytest.mark.parametrize("name", CASES)
def test_what_members_of_one_forward_can_not_do(name):
    function, sentence, _ = CASES[name]
    file = re.escape(Path(__file__).name)
    found = summary(function)
    expected = rf"evaluation: in_forward; batched is not possible: `.+` \(\S*{file}:\d+(, called at .*)?\) {sentence}"
    assert re.fullmatch(expected, found), found
    assert not re.search(r"vmap:|functorch|github|https?:|Error|[Pp]lease", found), found


@pytest.mark.parametrize("name", REMEDIED)
def test_what_the_sentence_says_helps(name):
    assert summary(CASES[name][2]) == "evaluation: batched, 4 members per forward"


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(layer):
    module = layer(5, 3)
    evolution = Evolution("openai_es", population=4, seed=0, evaluation="batched")
    evolution.setup(module)
    evolution.evaluate(lambda x: module(x)[0].mean(), torch.randn(4, 2, 5))
    assert re.search(
        r"`.*` \(.*:\d+\) runs a recurrent layer \((lstm|gru|rnn_tanh)\), which PyTorch can't for several members",
        evolution.evaluation.summary,
    )


def test_a_library_is_named_with_the_line_that_calls_it(monkeypatch, tmp_path):
    package = tmp_path / "site-packages" / "measures"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def mean_of(values):\n    return float(values.mean())\n")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    import measures

    found = summary(lambda y: measures.mean_of(y))
    assert "`return float(values.mean())` (measures/__init__.py:2, called at " in found
    assert f"{Path(__file__).name}:" in found


# Words of other versions and devices, which are not met here.
@pytest.mark.parametrize(
    ("error", "does"),
    [
        (
            RuntimeError(
                "vmap: It looks like you're either (1) calling .item() on a Tensor or (2) attempting to use a Tensor "
                "in some data-dependent control flow or (3) encountering this error in PyTorch internals. For (1): we"
            ),
            "makes a Python number",
        ),
        (
            RuntimeError(
                "vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow. We don't "
                "support that yet, please shout over at https://github.com/pytorch/functorch/issues/257 ."
            ),
            "decides by members' values",
        ),
        (RuntimeError("vmap: called random operation while in randomness error mode."), "draws random numbers"),
        (RuntimeError("vmap: We do not support calling out variants of random operations"), "draws random numbers"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "needs more memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "needs more memory"),
        (RuntimeError("NYI: Tensor.contiguous(...) inside of vmap for memory_format other than"), "asks for a memory"),
        (
            RuntimeError("vmap: aten::foo_(self, *extra_args) is not possible because there exists a Tensor `other` in "
            "extra_args that has more elements than `self`."),
            "writes members' values into a tensor that all members share",
        ),
        (
            RuntimeError("Batching rule not implemented for aten::segment_reduce. We could not generate a fallback."),
            "calls segment_reduce, which PyTorch can't run",
        ),
        (
            RuntimeError("aten::gemm requires special handling, and does not yet have a batching rule. Feel free to"),
            "calls gemm, which PyTorch can't run",
        ),
        (
            RuntimeError("Either your tensor may have escaped from inside a function being vmapped and this is a user"),
            "uses a tensor that another member's forward left behind",
        ),
    ],
)  # fmt: skip
def test_words_of_other_versions(error, does):
    assert reason_of(error).startswith(f"the code {does}")


def test_compiled_code_is_known_by_the_exception():
    kind = type("Unsupported", (RuntimeError,), {"__module__": "torch._dynamo.exc"})
    assert reason_of(kind("call_function")).startswith("the code runs compiled code (torch.compile)")


def test_an_exception_of_another_kind_keeps_its_first_sentence():
    def only_one(y):
        if y.dim() and not y.is_contiguous():
            return y
        raise LookupError("No table for this. Please file a report at once.")

    try:
        only_one(torch.zeros(2))
    except LookupError as error:
        reason = reason_of(error)
    assert re.fullmatch(r"`raise LookupError\(.*` \(\S+:\d+\) raises LookupError: No table for this", reason)
    assert reason_of(KeyError()) == "KeyError: without a message"
    long = reason_of(ValueError("word " * 100))
    assert len(long) < 200
    assert long.endswith("word…")


def test_why_plain_is_taken_where_it_is_faster(monkeypatch):
    ticks = itertools.chain.from_iterable((start, start + took) for start in itertools.count() for took in [0.5, 0.25])
    clock = type("Clock", (), {"perf_counter": lambda: next(ticks)})
    monkeypatch.setattr(candidates, "time", clock)
    found = summary(lambda y: y.mean(), evaluation="in_forward")
    assert found == "evaluation: in_forward"  # as asked for, without a trial
    found = summary(lambda y: y.mean().item(), evaluation="auto")
    assert found.startswith("evaluation: plain; batched is not possible: `")
    assert found.endswith(f"; {faster_plain('in_forward', 0.5, 0.25)}")
    assert faster_plain("in_forward", 0.5, 0.25) == (
        "plain was faster than in_forward for the first members (250 against 500 ms each), with the same bits"
    )
