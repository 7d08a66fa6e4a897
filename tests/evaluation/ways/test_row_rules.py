"""Each rule for members as rows of one batch gives what one member at a time gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_evo.evaluation.ways import rules
from tests.evaluation.models import tied, weights
from tests.evaluation.row_models import assert_rows_equal, verdict


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def ids(*shape: int, entries: int = 10) -> Tensor:
    return torch.randint(entries, shape, generator=torch.Generator().manual_seed(2))


def called(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch)


def norm_of(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A norm whose weights differ between channels."""

    def make() -> nn.Module:
        norm = getattr(nn, name)(**options)
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        return norm

    return make


@dataclass(frozen=True)
class Case:
    """A module, what its rows give, and the batch of a member."""

    make: Callable[[], nn.Module]
    batch: Tensor
    run: Callable[[Any, Tensor], Tensor] = called
    options: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    # --- linear layers ---
    "linear": Case(lambda: nn.Linear(6, 8), x(3, 6)),
    "linear_3d": Case(lambda: nn.Linear(6, 8), x(3, 5, 6)),
    "linear_4d": Case(lambda: nn.Linear(6, 8), x(3, 5, 2, 6)),
    "linear_one_sample": Case(lambda: nn.Linear(6, 8), x(1, 6)),
    "linear_no_bias": Case(lambda: nn.Linear(6, 8, bias=False), x(3, 5, 6)),
    "linear_rows_second": Case(lambda: nn.Linear(6, 8), x(4, 5, 6), lambda m, b: m(b.transpose(0, 1)).transpose(0, 1)),
    "linear_rows_third": Case(
        lambda: nn.Linear(6, 8), x(4, 5, 2, 6), lambda m, b: m(b.permute(1, 2, 0, 3)).permute(2, 0, 1, 3)
    ),
    "linear_rows_second_bias_only": Case(
        lambda: nn.Linear(6, 8), x(4, 5, 6), lambda m, b: m(b.transpose(0, 1)).transpose(0, 1), {"evolve": "bias"}
    ),
    "linear_not_contiguous": Case(lambda: nn.Linear(6, 8), x(3, 6, 5), lambda m, b: m(b.mT)),
    "linear_bias_only": Case(lambda: nn.Linear(6, 8), x(3, 5, 6), options={"evolve": "bias"}),
    "linear_weight_only": Case(lambda: nn.Linear(6, 8), x(3, 5, 6), options={"evolve": "weight"}),
    "linear_by_names": Case(
        lambda: nn.Linear(6, 8), x(3, 6), lambda m, b: F.linear(input=b, weight=m.weight, bias=m.bias)
    ),
    "linear_bias_by_names": Case(
        lambda: nn.Linear(6, 8), x(3, 6), lambda m, b: F.linear(input=b, weight=m.weight, bias=m.bias),
        {"evolve": "bias"},
    ),
    "linear_of_all_heads": Case(
        lambda: nn.Linear(6, 8), x(3, 4, 6), lambda m, b: m(b.reshape(-1, 6)).unflatten(0, (-1, 4))
    ),
    "linear_of_the_same_for_all": Case(
        lambda: nn.Linear(6, 8), x(3, 8), lambda m, b: b + m(torch.ones(1, 6))
    ),
    "linear_of_positions": Case(
        lambda: nn.Linear(6, 8), x(3, 5, 8), lambda m, b: b + m(torch.linspace(0, 1, 30).view(1, 5, 6))
    ),
    "linear_computed_bias": Case(
        weights(a=(8, 6), b=(8,)), x(3, 6), lambda m, b: F.linear(b, m.a, torch.ones(8)) + m.b
    ),
    "mm": Case(weights(a=(6, 8)), x(3, 6), lambda m, b: torch.mm(b, m.a)),
    "matmul": Case(weights(a=(6, 8)), x(3, 5, 6), lambda m, b: torch.matmul(b, m.a)),
    "at": Case(weights(a=(6, 8)), x(3, 5, 6), lambda m, b: b @ m.a),
    "at_rows_second": Case(weights(a=(6, 8)), x(3, 5, 6), lambda m, b: (b.transpose(0, 1) @ m.a).transpose(0, 1)),
    "method_matmul": Case(weights(a=(6, 8)), x(3, 5, 6), lambda m, b: b.matmul(m.a)),
    "method_mm": Case(weights(a=(6, 8)), x(3, 6), lambda m, b: b.mm(m.a)),
    "addmm": Case(weights(a=(6, 8), b=(8,)), x(3, 6), lambda m, b: torch.addmm(m.b, b, m.a)),
    "addmm_bias_only": Case(
        weights(a=(6, 8), b=(8,)), x(3, 6), lambda m, b: torch.addmm(m.b, b, m.a), {"evolve": "b"}
    ),
    "addmm_weight_only": Case(
        weights(a=(6, 8), b=(8,)), x(3, 6), lambda m, b: torch.addmm(m.b, b, m.a), {"evolve": "a"}
    ),
    "twice": Case(lambda: nn.Linear(6, 6), x(3, 6), lambda m, b: m(m(b).tanh()) - m(b)),
    # --- embeddings ---
    "embedding": Case(lambda: nn.Embedding(10, 6), ids(3, 4)),
    "embedding_1d": Case(lambda: nn.Embedding(10, 6), ids(5)),
    "embedding_padding": Case(lambda: nn.Embedding(10, 6, padding_idx=3), ids(3, 4)),
    "embedding_rows_second": Case(lambda: nn.Embedding(10, 6), ids(3, 4), lambda m, b: m(b.T).transpose(0, 1)),
    "embedding_positions": Case(
        lambda: nn.Embedding(10, 6), x(3, 4, 6), lambda m, b: b + m(torch.arange(4)[None])
    ),
    "embedding_expanded_positions": Case(
        lambda: nn.Embedding(10, 6), x(3, 4, 6), lambda m, b: b + m(torch.arange(4).expand(len(b), -1))
    ),
    "embedding_bag": Case(lambda: nn.EmbeddingBag(10, 6), ids(3, 4)),
    "tied": Case(tied, ids(3, 4), lambda m, b: m["head"](m["embedding"](b).tanh())),
    # --- norms ---
    "layer_norm": Case(norm_of("LayerNorm", normalized_shape=6), x(3, 5, 6)),
    "layer_norm_of_two": Case(norm_of("LayerNorm", normalized_shape=(5, 6)), x(3, 5, 6)),
    "layer_norm_rows_second": Case(
        norm_of("LayerNorm", normalized_shape=6), x(3, 5, 6), lambda m, b: m(b.transpose(0, 1)).transpose(0, 1)
    ),
    "layer_norm_bias_only": Case(norm_of("LayerNorm", normalized_shape=6), x(3, 5, 6), options={"evolve": "bias"}),
    "rms_norm": Case(norm_of("RMSNorm", normalized_shape=6), x(3, 5, 6)),
    "group_norm": Case(norm_of("GroupNorm", num_groups=2, num_channels=6), x(3, 6, 5)),
    "instance_norm": Case(norm_of("InstanceNorm1d", num_features=6, affine=True), x(3, 6, 5)),
    "batch_norm": Case(lambda: norm_of("BatchNorm1d", num_features=6)().eval(), x(3, 6)),
    "batch_norm_2d": Case(lambda: norm_of("BatchNorm2d", num_features=3)().eval(), x(2, 3, 4, 4)),
    # --- convolutions ---
    "conv1d": Case(lambda: nn.Conv1d(3, 8, 3, padding=1), x(2, 3, 7)),
    "conv1d_causal": Case(lambda: nn.Conv1d(3, 8, 3), x(2, 3, 7), lambda m, b: m(F.pad(b, (2, 0)))),
    "conv1d_same": Case(lambda: nn.Conv1d(3, 8, 3, padding="same", dilation=2), x(2, 3, 7)),
    "conv1d_circular": Case(lambda: nn.Conv1d(3, 8, 3, padding=1, padding_mode="circular"), x(2, 3, 7)),
    "conv1d_depthwise": Case(lambda: nn.Conv1d(4, 4, 3, groups=4, padding=2), x(2, 4, 7)),
    "conv2d": Case(lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), x(3, 3, 6, 6)),
    "conv2d_bias_only": Case(lambda: nn.Conv2d(3, 8, 3), x(3, 3, 6, 6), options={"evolve": "bias"}),
    "conv2d_weight_only": Case(lambda: nn.Conv2d(3, 8, 3), x(3, 3, 6, 6), options={"evolve": "weight"}),
    "conv2d_groups": Case(lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2), x(2, 4, 7, 7)),
    "conv2d_channels_last": Case(
        lambda: nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last), x(3, 4, 7, 7),
        lambda m, b: m(b.to(memory_format=torch.channels_last)),
    ),
    "conv3d": Case(lambda: nn.Conv3d(3, 6, 2), x(2, 3, 4, 4, 4)),
    "conv_transpose1d": Case(lambda: nn.ConvTranspose1d(6, 7, 3, stride=2), x(2, 6, 5)),
    "conv_transpose2d": Case(lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1, groups=2), x(2, 6, 4, 4)),
    "conv_transpose3d": Case(lambda: nn.ConvTranspose3d(2, 3, 2), x(2, 2, 3, 3, 3)),
    # --- element by element ---
    "scale": Case(weights(a=(6,)), x(3, 5, 6), lambda m, b: b * m.a),
    "scale_from_the_left": Case(weights(a=(6,)), x(3, 5, 6), lambda m, b: m.a * b),
    "scale_of_channels": Case(weights(a=(5, 1)), x(3, 5, 6), lambda m, b: m.a * b),
    "scale_with_front": Case(weights(a=(1, 5, 1)), x(3, 5, 6), lambda m, b: b / m.a),
    "scale_one_number": Case(weights(a=(1,)), x(3, 5, 6), lambda m, b: b * m.a),
    "scale_scalar": Case(weights(a=()), x(3, 5, 6), lambda m, b: m.a - b),
    "scale_of_a_vector": Case(weights(a=()), x(3), lambda m, b: m.a * b),
    "scale_of_a_vector_one": Case(weights(a=(1,)), x(3), lambda m, b: b * m.a),
    "scale_rows_second": Case(
        weights(a=(6,)), x(3, 5, 6), lambda m, b: (b.transpose(0, 1) * m.a).transpose(0, 1)
    ),
    "scale_rows_last": Case(weights(a=(6, 1)), x(3, 6), lambda m, b: (b.T * m.a).T),
    "scale_more_dimensions": Case(weights(a=(2, 1, 6)), x(3, 6), lambda m, b: (b * m.a).transpose(0, 1)),
    "positions": Case(weights(a=(1, 5, 6)), x(3, 5, 6), lambda m, b: b + m.a),
    "subtracted_from": Case(weights(a=(6,)), x(3, 6), lambda m, b: 1 - (m.a - b) / 2),
    "power": Case(weights(a=(6,)), x(3, 6), lambda m, b: b.abs() ** m.a),
    "in_place": Case(weights(a=(6,), b=(6,)), x(3, 6), lambda m, b: _in_place(m, b * 1)),
    "addcmul": Case(weights(a=(6,), b=(6,)), x(3, 6), lambda m, b: torch.addcmul(m.b, b, m.a, value=2)),
    "where": Case(weights(a=(6,)), x(3, 6), lambda m, b: torch.where(b > 0, b, m.a)),
    "where_shared_mask": Case(
        weights(a=(6,)), x(3, 6), lambda m, b: torch.where(torch.arange(6) > 2, b, m.a)
    ),
    "lerp": Case(weights(a=(6,)), x(3, 6), lambda m, b: torch.lerp(b, b * 2, m.a)),
    "maximum": Case(weights(a=(6,)), x(3, 6), lambda m, b: torch.maximum(m.a, b)),
    "prelu": Case(lambda: nn.PReLU(6), x(3, 6)),
    "prelu_one": Case(lambda: nn.PReLU(), x(3, 6)),
    "class_token": Case(weights(a=(1, 1, 6)), x(3, 5, 6), lambda m, b: torch.cat([m.a.expand(len(b), -1, -1), b], 1)),
    "class_token_repeated": Case(
        weights(a=(1, 1, 6)), x(3, 5, 6), lambda m, b: torch.cat([m.a.repeat(len(b), 1, 1), b], 1)
    ),
    "class_token_vector": Case(
        weights(a=(6,)), x(3, 5, 6), lambda m, b: torch.cat([m.a.expand(len(b), 1, -1), b], 1)
    ),
    "queries": Case(weights(a=(4, 6)), x(3, 5, 6), lambda m, b: m.a.expand(len(b), 4, 6) @ b.mT),
    "expand_as": Case(weights(a=(6,)), x(3, 5, 6), lambda m, b: m.a.expand_as(b) * b),
}  # fmt: skip


def _in_place(m: Any, b: Tensor) -> Tensor:
    b += m.a
    b.mul_(m.b)
    b -= m.b
    return b.add_(m.a, alpha=2)


NOISE: dict[str, dict[str, Any]] = {
    "rank_1": {},
    "rank_4_without_pairs": {"rank": 4, "antithetic": False},
    "rank_2_scaled": {"rank": 2, "sigma_scale": "rms"},
    "dense": {"rank": None},
    "sparse": {"rank": None, "sparsity": 0.5},
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", CASES)
def test_a_rule(name, noise):
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make()
    assert_rows_equal(model, lambda b: case.run(model, b), case.batch, **NOISE[noise], **case.options)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.batch.dim() > 1])
def test_the_check_finds_no_difference(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make()
    assert verdict(model, lambda b: case.run(model, b).flatten(1).sum(1), case.batch, **case.options) == ""


@pytest.mark.parametrize("name", ["linear", "mm", "embedding", "tied", "layer_norm", "rms_norm", "conv2d", "scale"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(name, dtype):
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make().to(dtype)
    batch = case.batch.to(dtype) if case.batch.is_floating_point() else case.batch
    rounding = 2 * torch.finfo(dtype).eps
    assert_rows_equal(model, lambda b: case.run(model, b), batch, rounding=rounding)


@pytest.mark.parametrize("name", ["linear", "mm", "addmm", "embedding", "tied", "layer_norm", "conv2d", "scale"])
def test_autocast(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make()

    def fitness(batch):
        with torch.autocast("cpu", torch.bfloat16):
            return case.run(model, batch)

    assert_rows_equal(model, fitness, case.batch, rounding=2 * torch.finfo(torch.bfloat16).eps)


def test_looked_up_entries_are_the_same_where_a_mask_would_wait():
    table, entries = x(2, 10, 4), ids(3, 5)
    outputs = []
    for waits in (True, False):
        output = torch.full((2, 3, 5, 4), torch.nan)
        for first in (0, 3, 6, 9):
            rules._put_rows(output, table[:, first : first + 3], entries, first, waits=waits)
        outputs.append(output)
    assert torch.equal(outputs[0], table[:, entries])
    assert torch.equal(outputs[1], outputs[0])
