"""Members as rows of one batch: random numbers, what is refused by name, and what looks odd and is right."""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_evo import Evolution
from tests.evaluation.models import x
from tests.evaluation.row_models import assert_rows_equal, verdict

# --- random numbers -------------------------------------------------------------------------------------------------


def drawn(change: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A linear layer, random numbers, and another one."""
    return lambda m, b: m[1](change(m[0](b)))


RANDOM: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout": drawn(lambda h: F.dropout(h, 0.3)),
    "dropout_in_place": drawn(lambda h: F.dropout(h * 1, 0.3, inplace=True)),
    "dropout_rows_second": drawn(lambda h: F.dropout(h.transpose(0, 1), 0.3).transpose(0, 1)),
    "dropout_module": drawn(nn.Dropout(0.3)),
    "dropout_of_torch": drawn(lambda h: torch.dropout(h, 0.3, True)),
    "dropout2d": drawn(lambda h: F.dropout2d(h[..., None])[..., 0]),
    "alpha_dropout": drawn(lambda h: F.alpha_dropout(h, 0.3, True)),
    "rand_like": drawn(lambda h: h + torch.rand_like(h)),
    "randn_like": drawn(lambda h: h + torch.randn_like(h)),
    "bernoulli": drawn(lambda h: h * torch.bernoulli(h.sigmoid())),
    "multinomial": drawn(lambda h: h + torch.multinomial(h.mean(1).softmax(1), 2).sum(1)[:, None, None]),
    "gumbel_softmax": drawn(F.gumbel_softmax),
    "categorical": drawn(lambda h: h + torch.distributions.Categorical(logits=h).sample()[..., None]),
    "exponential_in_place": drawn(lambda h: h + (h * 1).exponential_()),
    "uniform_in_place": drawn(lambda h: h + (h * 1).uniform_(-1, 1)),
    "normal_in_place": drawn(lambda h: h + (h * 1).normal_()),
    "random_numbers_for_all": drawn(lambda h: h + torch.randn(1, 6)),
    "generator": drawn(lambda h: h + (h * 1).uniform_(generator=torch.Generator().manual_seed(0))),
    "attention": drawn(lambda h: F.scaled_dot_product_attention(h, h, h, dropout_p=0.3)),
    "dropout_of_a_weight": lambda m, b: F.linear(b, F.dropout(m[0].weight, 0.3)),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_those_of_a_member_alone(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    after = []

    def fitness(batch):
        value = RANDOM[name](model, batch)
        after.append(torch.rand(3).tolist())  # the generator goes on from there
        return value

    for together in (2, 4, 8):
        assert_rows_equal(model, fitness, x(3, 5, 6), population=8, together=together)
    assert len(set(map(tuple, after))) == 1


# --- what is refused, or refuted by the check -----------------------------------------------------------------------


def of_all(y: Tensor) -> Tensor:
    """A number for each row."""
    return y.flatten(1).sum(1)


def layers() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 3)})


class Experts(nn.Module):
    """Each row goes to the expert of its largest input."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(6, 6, 3))

    def forward(self, b: Tensor) -> Tensor:
        chosen, result = b.argmax(1), b.new_zeros(len(b), 3)
        for e in range(6):
            here = (chosen == e).nonzero()[:, 0]
            result.index_add_(0, here, b[here] @ self.experts[e])
        return result


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Any, Tensor], Any], str]] = {
    "mean_of_hidden_rows": (layers, (4, 6), lambda m, b: of_all(m["b"](m["a"](b) - m["a"](b).mean(0))), "linear"),
    "batch_statistics": (layers, (4, 6), lambda m, b: of_all(m["b"](m["a"](b) / m["a"](b).std())), "linear"),
    "a_little_of_the_mean": (
        layers, (4, 6), lambda m, b: of_all(m["b"]((h := m["a"](b)) + 1e-3 * h.mean(0))), "rows influence each other",
    ),
    "flip": (layers, (4, 6), lambda m, b: of_all(m["b"](m["a"](b).flip(0))), r"b\.weight .* flip has mixed"),
    "other_order": (
        layers, (4, 6), lambda m, b: of_all(m["b"](m["a"](b)[torch.arange(len(b)).roll(1)])), "linear is given differs",
    ),
    "sorted": (layers, (4, 6), lambda m, b: of_all(m["b"](m["a"](b)[b[:, 0].argsort()])), r"b\.weight .* __getitem__"),
    "cumsum": (layers, (4, 6), lambda m, b: of_all(m["b"](m["a"](b).cumsum(0))), r"b\.weight .* cumsum has mixed"),
    "contrastive": (
        layers, (4, 6), lambda m, b: (m["a"](b) @ m["a"](b + 1).T).log_softmax(1).diagonal(), "comes from matmul",
    ),
    "softmax_over_rows": (layers, (4, 6), lambda m, b: of_all(m["a"](b)).softmax(0), "comes from softmax"),
    "row_by_row": (layers, (4, 6), lambda m, b: torch.stack([m["a"](r).sum() for r in b]), r"a\.weight .* unbind"),
    "some_rows": (
        layers, (4, 6), lambda m, b: torch.cat([of_all(m["a"](r)) for r in b.split(2)]), r"a\.weight .* split",
    ),
    "rows_twice": (
        layers, (4, 6), lambda m, b: of_all(m["a"](torch.cat([b, 2 * b])))[: len(b)], r"a\.weight .* cat has mixed",
    ),
    "written": (
        layers, (4, 6), lambda m, b: (m["a"].weight.mul_(2), of_all(m["a"](b)))[1], r"a\.weight is written to",
    ),
    "written_data": (
        layers, (4, 6), lambda m, b: (m["a"].weight.data.mul_(2), of_all(m["a"](b)))[1], r"a\.weight is written to",
    ),
    "written_into_a_shared_tensor": (
        layers, (4, 6), lambda m, b: of_all(b * torch.zeros(6).add_(m["a"].bias)), r"add_ writes into a\.bias",
    ),
    "number_of_a_weight": (
        layers, (4, 6), lambda m, b: of_all(b) * m["a"].weight.sum().item(), r"item with a\.weight gives each member",
    ),
    "one_number": (layers, (4, 6), lambda m, b: m["a"](b).mean(), "one number for the whole batch"),
    "of_weights_alone": (
        layers, (4, 6), lambda m, b: torch.zeros(len(b)) + m["a"].weight.sum(), "comes from weights alone",
    ),
    "not_per_sample": (layers, (4, 6), lambda m, b: m["a"](b).sum(0), "comes from sum"),
    "other_number_of_values": (layers, (4, 6), lambda m, b: torch.ones(7), "7 values for 4 rows"),
    "random_numbers_for_rows": (
        layers, (4, 6), lambda m, b: of_all(m["a"](b) + torch.randn(b.shape)), "randn draws random numbers for 16 rows",
    ),
    "python_random": (
        layers, (4, 6), lambda m, b: of_all(m["a"](b)) * torch.tensor([random.random() for _ in b]), "differ",
    ),
    "batch_norm": (lambda: nn.BatchNorm1d(6), (4, 6), lambda m, b: of_all(m(b)), "batch_norm with weight, bias is"),
    "lstm": (lambda: nn.LSTM(6, 5, batch_first=True), (4, 5, 6), lambda m, b: of_all(m(b)[0]), "lstm with weight_ih"),
    "gru": (lambda: nn.GRU(6, 5, batch_first=True), (4, 5, 6), lambda m, b: of_all(m(b)[0]), "gru with weight_ih_l0"),
    "max_norm": (
        lambda: nn.Embedding(10, 6, max_norm=1.0), (4, 6), lambda m, b: of_all(m((b > 0).long())), "leave max_norm out",
    ),
    "large_heads": (
        lambda: nn.MultiheadAttention(256, 2, batch_first=True), (2, 3, 256), lambda m, b: of_all(m(b, b, b)[0]),
        "multi_head_attention_forward with in_proj_weight|in_proj_weight would be made for each member",
    ),
    "large_einsum": (
        lambda: nn.Linear(300, 300), (2, 300), lambda m, b: torch.einsum("bi,oi->bo", b, m.weight).sum(1),
        "weight would be made for each member, and 90,000 elements are too many",
    ),
    "experts": (Experts, (4, 6), lambda m, b: of_all(m(b)), "experts .*__getitem__ has mixed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal(name):
    make, shape, run, message = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    assert re.search(message, verdict(model, lambda b: run(model, b), x(*shape)))


def test_large_dense_weights_are_refused():
    model = nn.Linear(300, 300)
    reason = verdict(model, lambda b: model(b).sum(1), x(2, 300), rank=None)
    assert re.search(
        r"linear is given .*weight would be made for each member, .*: give a rank|weight would be .*: give a rank",
        reason,
    )


def test_no_batch_is_refused():
    model = nn.Linear(6, 6)
    assert verdict(model, lambda b: model(torch.ones(2, 6)).sum(1), 3.0) == (
        "the batch holds no tensor, array or list with an entry per sample that could be repeated"
    )


# --- what looks odd and is right ------------------------------------------------------------------------------------

RIGHT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Any, Tensor], Any]]] = {
    "mean_of_inputs": (layers, (4, 6), lambda m, b: of_all(m["a"](b - b.mean(0)))),  # all members have the same
    "repeat_interleave": (layers, (4, 6), lambda m, b: of_all(m["a"](b.repeat_interleave(3, 0))).view(-1, 3).mean(1)),
    "einsum": (layers, (4, 5, 6), lambda m, b: of_all(torch.einsum("bld,hd->blh", b, m["a"].weight))),
    "weight_turned": (layers, (4, 6), lambda m, b: of_all(b @ m["a"].weight.t() * 2 - b @ m["a"].weight.T)),
    "weight_cast": (layers, (4, 6), lambda m, b: of_all(F.linear(b.double(), m["a"].weight.double()))),
    "weight_scaled": (layers, (4, 6), lambda m, b: of_all(F.linear(b, m["a"].weight * 0.5))),
    "weight_data": (layers, (4, 6), lambda m, b: of_all(b @ m["a"].weight.data)),
    "one_plus_a_weight": (layers, (4, 6), lambda m, b: of_all(b * (1 + m["a"].bias.float()))),
    "mean_of_a_weight": (layers, (4, 6), lambda m, b: of_all(b * m["a"].weight.mean())),
    "rows_of_a_weight": (layers, (4, 6), lambda m, b: of_all(sum(b * w for w in m["a"].weight))),
    "weights_in_a_row": (
        layers, (4, 6), lambda m, b: of_all(F.linear(b, torch.cat([m["a"].weight, m["b"].weight]))),
    ),
    "adapter": (layers, (4, 6), lambda m, b: of_all(F.linear(b, m["a"].weight + m["b"].weight.T @ m["b"].weight))),
    "sign_of_a_weight": (layers, (4, 6), lambda m, b: of_all(m["a"](b)) * (2 if m["a"].weight.norm() > 0.1 else 3)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), (4, 6), lambda m, b: of_all(m(b))),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 6)), (4, 6), lambda m, b: of_all(m(b))),
    "attention": (lambda: nn.MultiheadAttention(6, 2), (5, 4, 6), lambda m, b: of_all(heads(m, b))),
    "encoder": (lambda: nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), (4, 5, 6), lambda m, b: of_all(m(b))),
    "encoder_eval": (
        lambda: nn.TransformerEncoderLayer(6, 2, 12, batch_first=True).eval(), (4, 5, 6), lambda m, b: of_all(m(b)),
    ),
    "lstm_cell": (lambda: nn.LSTMCell(6, 5), (4, 6), lambda m, b: of_all(m(b, m(b))[0])),
    "gru_cell": (lambda: nn.GRUCell(6, 5), (4, 6), lambda m, b: of_all(m(b, m(b)))),
    "learned_queries": (layers, (4, 5, 6), lambda m, b: of_all(queries(m, b))),
    "written_buffer": (layers, (4, 6), lambda m, b: of_all(m["b"](torch.zeros(len(b), 6).add_(m["a"](b))))),
    "double": (layers, (4, 6), lambda m, b: of_all(m["b"](m["a"](b).double().float()))),
    "batch_norm_of_inputs": (layers, (4, 6), lambda m, b: of_all(m["a"](F.batch_norm(b, None, None, training=True)))),
}  # fmt: skip


def heads(m: nn.Module, b: Tensor) -> Tensor:
    y = b.transpose(0, 1)
    return m(y, y, y)[0].transpose(0, 1)


def queries(m: Any, b: Tensor) -> Tensor:
    q = m["a"](m["a"].weight)[None].expand(len(b), -1, -1)
    return F.scaled_dot_product_attention(q, b, m["a"](b))


@pytest.mark.parametrize("name", RIGHT)
def test_what_looks_odd(name):
    make, shape, run = RIGHT[name]
    torch.manual_seed(0)
    model = make()
    assert verdict(model, lambda b: run(model, b), x(*shape)) == ""
    assert_rows_equal(model, lambda b: run(model, b), x(*shape), rounding=1e-5)


# --- what a forward leaves behind, and sizes that agree by chance ---------------------------------------------------


class Gated(nn.Module):
    """A layer times ``1 + gain``, and a running mean of inputs, which another layer reads."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, width), nn.Linear(width, 4), nn.Linear(6, width)
        self.gain = nn.Parameter(torch.randn(width) / 10)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, batch: Tensor) -> Tensor:
        h = (self.a(batch) + self.c(self.mean)) * (1 + self.gain)
        self.mean.lerp_(batch.mean(0), 0.1)
        return self.b(h.tanh()).sum(1)


@pytest.mark.parametrize("samples", [7, 8])  # with a pair 8 samples are 16 rows, as many as the layer has outputs
def test_a_buffer_that_rows_are_written_into_holds_none_afterwards(samples: int) -> None:
    torch.manual_seed(0)
    model = Gated()
    evolution = Evolution("eggroll", population=8, sigma=0.1, rank=1, seed=0, evaluation="rows")
    evolution.setup(model)
    for _ in range(2):
        evolution.evaluate(model, torch.randn(samples, 6))
    assert evolution.evaluation.summary == "evaluation: rows, 8 members per forward"
    assert not vars(model.mean)


def test_names_of_what_is_made_of_weights_do_not_grow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(12)])

    def fitness(batch: Tensor) -> float:
        h = torch.ones(3, 6)
        for layer in model:
            h = h + layer(h) * layer(h)  # made of weights alone, with the names of what three tensors are made of
        return sum(map(sum, h.tolist()))

    evolution = Evolution("eggroll", population=8, sigma=0.1, rank=1, seed=0, evaluation="rows")
    evolution.setup(model)
    with pytest.warns(UserWarning, match="gives each member a value of its own"):
        evolution.evaluate(fitness, torch.randn(4, 6))
    assert len(evolution.evaluation.summary) < 1000
