"""Places of rows: what tensors that broadcast, or that are written, hold; and functions that no table names."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_evo.evaluation.places import Lost, follow, place_of, set_place
from tests.evaluation.places.oracle import MEMBERS, ROWS, Followed, check, rows

R, H, L, D = ROWS, 2, ROWS, 4  # the sequence is as long as the batch


@pytest.mark.parametrize(
    ("name", "function"),
    {
        "add": lambda x, y: [x + y, y + x, torch.add(x, y, alpha=2), x.add(other=y), x.clone().add_(y)],
        "operators": lambda x, y: [1 - x, 2**x, x // 2, -x, abs(x), x > y, ~(x > 0), x % 3, (x > 0) & (y > 0)],
        "in place": lambda x, y: [x.clone().mul_(2), x.clone().clamp_(min=0), torch.relu_(x.clone())],
        "where": lambda x, y: [torch.where(x > 0, x, y), x.where(x > 0, 0.0), torch.where(y > 0, 1.0, x)],
        "fill": lambda x, y: [x.masked_fill(y > 0, 0), x.masked_fill(x > 0, 1), x.clone().masked_fill_(x > 0, 1)],
        "kind": lambda x, y: [x.float(), x.to(torch.float32), x.type_as(y), x.detach(), x.data, x.contiguous(), x.real],
        "activation": lambda x, y: [functional.gelu(x), functional.silu(input=x), torch.tanh(x), nn.ReLU()(x)],
        "norm": lambda x, y: [functional.layer_norm(x, x.shape[-1:]), nn.LayerNorm(5, dtype=x.dtype)(x)],
        "dropout": lambda x, y: [functional.dropout(x, 0.0), nn.Dropout(0.0)(x), functional.dropout(x, 0.5, False)],
        "several": lambda x, y: [torch.addcmul(x, x, y), torch.lerp(x, x, 0.5), torch.clamp(x, y, y + 1)],
        "triangle": lambda x, y: [x.tril(), x.triu(1)],
        "power": lambda x, y: [x**2, torch.pow(2, x), x.pow(2.0), x.rsqrt(), 1 / x],
    }.items(),
)
def test_elementwise_functions_keep_the_place(name, function):
    for place, shape in [(-3, (1, 5)), (-3, (ROWS, 4, 1)), (-2, (1, 5)), (-2, (7, 2, 1, 5)), (-1, (1,))]:
        size = (ROWS, 4, 5) if place == -3 else (2, ROWS, 5) if place == -2 else (3, 5)
        size = size if place != -1 else (4, 5, ROWS)
        if name == "norm" and place == -1:
            continue
        x, y = rows(size, place), torch.randn(shape, dtype=torch.float64)
        if shape[0] == ROWS:
            set_place(y, place)
        if len(shape) > 3 and name in ("add", "fill", "in place"):
            continue
        assert set(check(function, [x, y], MEMBERS, claims=False)) == {place}


def test_places_that_conflict_are_lost_and_lost_ones_give_way():
    x, y, z = rows((ROWS, ROWS), -2), rows((ROWS, ROWS), -1), torch.randn(ROWS, ROWS)
    with Followed(MEMBERS):
        assert place_of(x + y) == "add"
        assert isinstance(place_of(x + y), Lost)
        assert place_of(x[:, None] + x) == "add"
        assert place_of(x.sum(0) + x) == -2
        assert place_of(x.sum(0) * 2 + z) == "sum"
        assert place_of(z + z) is None
        assert place_of(torch.zeros_like(x)) is None
        assert place_of(x.new_zeros(3)) is None
        assert place_of(torch.add(z, z, out=x)) is None
        assert place_of(torch.add(y, z, out=torch.empty_like(y))) == -1


def test_names_that_torch_does_not_know_are_judged_by_the_shape():
    def custom(x, y):
        pass

    x = rows((ROWS, 4), -2)
    same, other = torch.zeros(ROWS, 4), torch.zeros(ROWS, 5)
    follow(custom, (x, 3), {}, [same, other, 5, None], MEMBERS)
    assert place_of(same) == -2
    assert place_of(other) == "custom"
    set_place(x, -1)
    follow(custom, (rows((ROWS, 4), -2), x), {}, same, MEMBERS)
    assert place_of(same) == "custom"


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def written_index_copy(x):
    cache = zeros(R, H, 10, D)
    cache.index_copy_(2, torch.arange(L), x)
    return cache


def written_part(x):
    cache = zeros(R, H, 10, D)
    cache[:, :, 2 : 2 + L] = x
    return cache, cache[:, :, :5]


def written_positions(x):
    cache = zeros(R, H, 10, D)
    cache[:, :, torch.arange(L)] = x
    cache[..., 9, :] += 1
    return cache


def written_layer(x):
    caches = zeros(2, R, H, L, D)
    caches[0] = x
    return caches, caches[1]


def written_view(x):
    cache = zeros(2, R, H, 10, D)
    cache[1, :, :, :L].copy_(x)
    return cache


def written_copy(x):
    cache = zeros(R, H, L, D)
    cache.copy_(x)
    return cache, cache.add_(1)


def written_out(x):
    cache = zeros(R, H, L, D)
    torch.mul(x, 2, out=cache)
    return cache


def written_mask(x):
    flags = zeros(R, L)
    flags[x[:, 0, :, 0] > 0] = 1
    return flags[:, None, :, None]


def written_kept(x):
    x = x + 1
    x[x > 0] = 0
    x[:, :, 0] = 5.0
    x[:, 1] = x[:, 0].clone()
    x.scatter_(2, zeros(R, H, L, D).long(), 1.0)
    return x


def written_added(x):
    cache = zeros(R, H, 10, D)
    cache.index_add_(2, torch.arange(L), x)
    return cache + zeros(R, H, 10, D).scatter_add_(2, zeros(R, H, L, D).long(), x)


def written_data(x):
    cache = zeros(1)
    cache.data = x
    return cache


def dynamic(x):
    cache = torch.cat([x, x], dim=-2)
    return torch.cat([cache, x * 2], dim=-2)


WRITES = [
    written_index_copy,
    written_part,
    written_positions,
    written_copy,
    written_out,
    written_mask,
    written_kept,
    written_added,
    written_data,
    dynamic,
    written_view,
    written_layer,
]


@pytest.mark.parametrize("function", WRITES, ids=lambda function: function.__name__)
def test_what_is_written_holds_rows(function):
    torch.manual_seed(0)
    places = check(function, [rows((R, H, L, D), -4)], MEMBERS)
    assert set(places) == {-4}


def test_writes_that_lose_the_place():
    x = rows((R, L), -2)
    with torch.no_grad(), Followed(MEMBERS):
        table = zeros(R, L)
        table[torch.arange(R).flip(0)] = x
        assert place_of(table) == "__setitem__"
        table = zeros(L, R)
        table.index_copy_(0, torch.arange(R), x)
        assert place_of(table) == "index_copy_"
        table = zeros(R * L)
        table.view(R, L).copy_(x)
        assert isinstance(place_of(table), Lost)
        y = x + 0
        y[:, 0] = x[:, 0]
        assert place_of(y) == -2
        y[0] = x[:, 0]
        assert place_of(y) == -2
        y.squeeze_()
        assert place_of(y) == "squeeze_"


def test_every_function_that_torch_lets_one_override_has_a_rule():
    for functions in torch.overrides.get_overridable_functions().values():
        for function in functions:
            follow(function, (), {}, None, MEMBERS)


def test_places():
    x = torch.zeros(4, 2)
    assert place_of(x) is None
    set_place(x, -2)
    set_place(x, None)
    assert not x.__dict__
    for place in (0, -3):
        with pytest.raises(ValueError, match=r"a dimension in \[-2, -1\]"):
            set_place(x, place)
