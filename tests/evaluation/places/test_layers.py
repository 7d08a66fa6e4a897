"""Where rows lie after layers, products, losses and idioms of models, by an oracle that knows no rule."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_evo.evaluation.places import Lost
from tests.evaluation.places.oracle import MEMBERS, ROWS, check, rows

R, H, L, D = ROWS, 2, ROWS, 4  # the sequence is as long as the batch

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, SQUARE = torch.randn(5, D, generator=GENERATOR).double(), torch.randn(D, D, generator=GENERATOR).double()
IMAGES = [torch.randn(shape, generator=GENERATOR).double() for shape in [(3, 2, 3), (3, 2, 3, 3), (2, 3, 3, 3)]]

LAYERS = {
    "linear": (lambda x: functional.linear(x, WEIGHT, WEIGHT[:, 0]), (R, L, D), -3, -3),
    "linear of a flat batch": (lambda x: nn.Linear(D, 5).double()(x.view(-1, D)).sum(-1) * 0, (R, L, D), -3, -1),
    "matmul": (lambda x: x @ WEIGHT.T, (L, R, D), -2, -2),
    "matmul of a vector": (lambda x: x @ WEIGHT[0], (R, L, D), -3, -2),
    "vector and matrices": (lambda x: torch.matmul(WEIGHT[0], x), (R, D, L), -3, -2),
    "reversed matmul": (lambda x: WEIGHT @ x, (D, R), -1, -1),
    "bmm": (lambda x: torch.bmm(x, x.mT), (R * H, L, D), -3, -3),
    "baddbmm": (lambda x: torch.baddbmm(torch.zeros(L, L).double(), x, x.mT), (R * H, L, D), -3, -3),
    "addmm": (lambda x: torch.addmm(WEIGHT[:, 0], x, WEIGHT.T), (R, D), -2, -2),
    "outer": (lambda x: torch.outer(WEIGHT[0], x), (R,), -1, -1),
    "inner": (lambda x: torch.inner(x, WEIGHT), (R, L, D), -3, -3),
    "tensordot": (lambda x: torch.tensordot(x, SQUARE, dims=([1], [0])), (R, D, L), -3, -3),
    "tensordot of the right": (lambda x: torch.tensordot(SQUARE, x, 1), (D, R, 3), -2, -2),
    "multi_dot": (lambda x: torch.linalg.multi_dot([x, SQUARE, WEIGHT.T]), (R, D), -2, -2),
    "cdist": (lambda x: torch.cdist(WEIGHT, x), (R, L, D), -3, -3),
    "cdist of rows": (lambda x: torch.cdist(WEIGHT, x), (R, D), -2, -1),
    "einsum": (lambda x: torch.einsum("bqhd,bkhd->bhqk", x, x), (R, L, H, D), -4, -4),
    "einsum with an ellipsis": (lambda x: torch.einsum("...d, od -> o...", x, WEIGHT), (R, L, D), -3, -2),
    "einsum without an arrow": (lambda x: torch.einsum("bd,ad", [x, SQUARE]), (R, D), -2, -1),
    "einsum over rows": (lambda x: torch.einsum("bld,bm->lmd", x, x[:, 0]), (R, L, D), -3, "einsum"),
    "attention": (lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True), (R, H, L, D), -4, -4),
    "attention with a mask": (
        lambda x: functional.scaled_dot_product_attention(x, x, x, attn_mask=x[:, :1, :, :1] > 0),
        (R, H, L, D),
        -4,
        -4,
    ),
    "layer norm": (lambda x: functional.layer_norm(x, (D,)), (R, L, D), -3, -3),
    "rms norm": (lambda x: functional.rms_norm(x, (D,)), (R, L, D), -3, -3),
    "group norm": (lambda x: nn.GroupNorm(2, 4).double()(x), (R, 4, 3), -3, -3),
    "conv1d": (lambda x: functional.conv1d(x, IMAGES[0]), (R, 2, 5), -3, -3),
    "conv2d": (lambda x: functional.conv2d(x, IMAGES[1], padding="same"), (R, 2, 5, 6), -4, -4),
    "conv transposed": (lambda x: functional.conv_transpose2d(x, IMAGES[2]), (R, 2, 5, 6), -4, -4),
    "conv without rows": (lambda x: functional.conv1d(x.T, torch.ones(1, 2, R).double()), (R, 2), -2, "conv1d"),
    "max pool": (lambda x: functional.max_pool2d(x, 2), (R, 2, 4, 4), -4, -4),
    "max pool with indices": (lambda x: functional.max_pool2d(x, 2, return_indices=True), (R, 2, 4, 4), -4, -4),
    "mean pool": (lambda x: functional.avg_pool1d(x, 2), (R, 2, 4), -3, -3),
    "adaptive pool": (lambda x: nn.AdaptiveAvgPool2d(1)(x), (R, 2, 4, 4), -4, -4),
    "adaptive max pool": (lambda x: nn.AdaptiveMaxPool1d(1)(x), (R, 2, 4), -3, -3),
    "interpolate": (lambda x: functional.interpolate(x, scale_factor=2), (R, 2, 4, 4), -4, -4),
    "pixel shuffle": (lambda x: functional.pixel_shuffle(x, 2), (R, 4, 3, 3), -4, -4),
    "grid sample": (
        lambda x: functional.grid_sample(
            x, functional.affine_grid(x[:, 0, :2], [R, 1, 2, 2], False), align_corners=False
        ),
        (R, 2, 3, 3),
        -4,
        -4,
    ),
    "unfold of images": (lambda x: functional.unfold(x, 2), (R, 2, 4, 4), -4, -3),
    "one hot": (lambda x: functional.one_hot((x > 0).long(), 2), (R, L), -2, -3),
    "embedding": (lambda x: functional.embedding((x > 0).long(), WEIGHT), (R, L), -2, -3),
    "embedding bag": (lambda x: functional.embedding_bag((x > 0).long(), WEIGHT), (R, L), -2, -2),
    "mse": (lambda x: functional.mse_loss(x, torch.zeros_like(x), reduction="none"), (R, L), -2, -2),
    "mse of all": (lambda x: functional.mse_loss(x, torch.zeros_like(x)), (R, L), -2, "mse_loss"),
    "cross entropy": (
        lambda x: functional.cross_entropy(x, x[..., 0].long() * 0, reduction="none"),
        (R, D),
        -2,
        -1,
    ),
    "cross entropy of sequences": (
        lambda x: functional.cross_entropy(x.mT, (x[..., 0] > 0).long(), reduction="none"),
        (R, L, D),
        -3,
        -2,
    ),
    "binary cross entropy": (
        lambda x: functional.binary_cross_entropy_with_logits(x, (x > 0).double(), reduction="none"),
        (R, L),
        -2,
        -2,
    ),
    "cosine": (lambda x: functional.cosine_similarity(x[:, None], WEIGHT[:, :], dim=-1), (R, D), -2, -2),
    "complex": (lambda x: torch.view_as_real(torch.view_as_complex(x) * 2), (R, L, 2), -3, -3),
    "meshgrid": (lambda x: torch.meshgrid(x, torch.arange(3.0).double(), indexing="ij")[0], (R,), -1, -2),
    "meshgrid xy": (lambda x: torch.meshgrid(x, torch.arange(3.0).double(), indexing="xy")[0], (R,), -1, -1),
    "ViT": (lambda x: x.reshape(R, L, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0), (R, L, 24), -3, -4),
    "ViT's stack": (lambda x: x.reshape(R, L, 3, 2, 4).permute(2, 0, 3, 1, 4)[0], (R, L, 24), -3, -4),
    "rope": (lambda x: torch.cat((-x[..., D // 2 :], x[..., : D // 2]), dim=-1), (R, H, L, D), -4, -4),
    "repeat_kv": (
        lambda x: x[:, :, None].expand(R, H, 3, L, D).reshape(R, H * 3, L, D),
        (R, H, L, D),
        -4,
        -4,
    ),
    "heads": (
        lambda x: x.view(R, L, H, 2).transpose(1, 2).reshape(R * H, L, 2).view(R, H, L, 2).transpose(1, 2).flatten(2),
        (R, L, D),
        -3,
        -3,
    ),
    "time first": (lambda x: (x.transpose(0, 1) + 1).transpose(0, 1), (R, L, D), -3, -3),
    "beams": (lambda x: x.repeat_interleave(4, dim=0), (R, L), -2, -2),
    "beams in a dimension": (lambda x: x[:, None].expand(R, 4, L).reshape(R * 4, L), (R, L), -2, -2),
    "last": (lambda x: x[torch.arange(R), torch.arange(R) % 3], (R, L, D), -3, -2),
    "last by value": (lambda x: x[torch.arange(R), (x[:, :3, 0].argmax(-1))], (R, L, D), -3, -2),
    "mask of rows": (lambda x: x[torch.arange(R)[:, None, None], torch.arange(L)], (R, L, 2), -3, -4),
    "beams by name": (
        lambda x: torch.take_along_dim(input=x, indices=torch.zeros(R, 1, D).long(), dim=1),
        (R, L, D),
        -3,
        -3,
    ),
    "order of beams": (lambda x: x.index_select(0, torch.arange(R)), (R, L, D), -3, -3),
    "gather": (lambda x: x.gather(1, (x > 0).long()), (R, L), -2, -2),
    "gather the last": (lambda x: x.gather(1, (x[:, :1] > 0).long()), (R, L), -2, -2),
    "take_along_dim": (lambda x: x.take_along_dim(x.argmax(-1, keepdim=True), -1), (R, L, D), -3, -3),
    "table": (lambda x: torch.arange(10.0)[(x > 0).long()], (R, L), -2, -2),
    "table of rows": (lambda x: WEIGHT[(x > 0).long()], (R, L), -2, -3),
    "isin": (lambda x: torch.isin((x > 0).long(), torch.tensor([1])), (R, L), -2, -2),
    "scatter": (lambda x: x.scatter(1, (x > 0).long(), x * 2), (R, L), -2, -2),
    "scatter into zeros": (lambda x: torch.zeros(R, L).double().scatter(1, (x > 0).long(), x), (R, L), -2, -2),
    "mask": (lambda x: x[x > 0].sum() * 0, (R, L), -2, "__getitem__"),
    "nonzero": (lambda x: torch.nonzero(x > 0).sum(0) * 0, (R, L), -2, "nonzero"),
    "deep copy": (lambda x: x.clone().detach().requires_grad_().data, (R, L), -2, -2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    function, shape, place, expected = LAYERS[name]
    torch.manual_seed(0)
    for found in check(function, [rows(shape, place)], MEMBERS, claims=False):
        assert found == expected
        assert isinstance(found, int if isinstance(expected, int) else Lost)


@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent_layers_and_attention(batch_first):
    torch.manual_seed(0)
    place = -3 if batch_first else -2
    x = rows((R, L, D) if batch_first else (L, R, D), place)
    for layer in [nn.LSTM, nn.GRU, nn.RNN]:
        module = layer(D, 3, num_layers=2, batch_first=batch_first).double()
        assert check(module, [x], MEMBERS)[:2] == [place, -2]
    attention = nn.MultiheadAttention(D, 2, batch_first=batch_first).double()
    assert check(lambda x: attention(x, x, x), [x], MEMBERS) == [place, -3]
    encoder = nn.TransformerEncoderLayer(D, 2, 8, 0.0, batch_first=batch_first).double()
    assert check(encoder, [x], MEMBERS) == [place]
    cell = nn.LSTMCell(D, 3).double()
    assert check(lambda x: cell(x[0] if not batch_first else x[:, 0]), [x], MEMBERS) == [-2, -2]
