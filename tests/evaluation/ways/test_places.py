"""Where rows lie, by an oracle that knows no rule: which entries of a result change with a member's rows."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_evo.evaluation.ways.places import Lost, follow, place_of, set_place


class Followed(TorchFunctionMode):
    """Follows the rows of members through all calls."""

    def __init__(self, members):
        super().__init__()
        self.members = members

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        follow(function, args, kwargs or {}, result, self.members)
        return result


def rows(shape, place, dtype=torch.float64):
    x = torch.randn(shape, dtype=dtype)
    set_place(x, place)
    return x


def others(x, member, members):
    """A copy of ``x`` in which the rows of one member have other values."""
    y, place = x.clone(), place_of(x)
    size = x.shape[place] // members
    part = y.narrow(place, member * size, size)
    part.copy_(torch.randn(part.shape) + 5 if y.is_floating_point() else (part + 1) % 3)
    return y


def flat(result):
    if isinstance(result, Tensor):
        return [result]
    return [value for part in result for value in flat(part)] if isinstance(result, (tuple, list)) else []


def fits(place, changed, members):
    """Whether all entries that change with a member's rows are that member's, for each member."""
    ndim = changed[0].ndim
    if not -ndim <= place < 0 or changed[0].shape[place] % members:
        return False
    size = changed[0].shape[place] // members
    for member, entries in enumerate(changed):
        rest = entries.clone()
        rest.narrow(place, member * size, size).fill_(False)
        if rest.any():
            return False
    return True


def check(function, inputs, members, claims=True):
    """Compares the places of a function's results with the entries that change with each member's rows.

    Args:
        function: It gives the same for the same tensors.
        inputs: The tensors; some have a place.
        members: How many there are.
        claims: Whether a result must have a place if one fits it.

    Returns:
        The places of the results.
    """
    with torch.no_grad(), Followed(members):
        results = flat(function(*[clone(x) for x in inputs]))
    twins = []
    for member in range(members):
        twin = [others(x, member, members) if place_of(x) is not None else x.clone() for x in inputs]
        twins.append(flat(function(*twin)))
    for number, result in enumerate(results):
        changed = [(twin[number] != result) & ~(twin[number].isnan() & result.isnan()) for twin in twins]
        place = place_of(result)
        if type(place) is int:
            assert fits(place, changed, members), (place, result.shape)
        elif place is None:
            assert not any(entries.any() for entries in changed)
        elif claims and all(entries.any() for entries in changed):
            assert not any(fits(q, changed, members) for q in range(-result.ndim, 0)), (place, result.shape)
    return [place_of(result) for result in results]


def clone(x):
    y = x.clone()
    set_place(y, place_of(x))
    return y


MEMBERS = 3
ROWS = 6  # two of each member


def random_shape(rng, least=1, most=4):
    """A shape and where the rows lie in it; other dimensions are at times as long."""
    shape = [rng.choice([1, 2, 3, ROWS, 2 * ROWS]) for _ in range(rng.randint(least, most))]
    place = -rng.randint(1, len(shape))
    shape[place] = ROWS * rng.choice([1, 1, 1, 2])
    return shape, place


def dim_of(rng, ndim):
    return rng.randrange(-ndim, ndim)


def factors(rng, size):
    """A random shape of as many elements."""
    shape = []
    while size > 1:
        d = rng.choice([n for n in range(2, size + 1) if size % n == 0])
        shape.append(d)
        size //= d
    for _ in range(rng.randint(0, 2)):
        shape.insert(rng.randint(0, len(shape)), 1)
    return shape or [1]


def a_view(rng, x):
    shape = factors(rng, x.numel())
    return lambda x: x.reshape(shape)


def a_flatten(rng, x):
    first, last = sorted([rng.randrange(x.ndim), rng.randrange(x.ndim)])
    return lambda x: x.flatten(first, last)


def an_unflatten(rng, x):
    dim = rng.randrange(x.ndim)
    shape = factors(rng, x.shape[dim])
    return lambda x: x.unflatten(dim, shape)


def a_permutation(rng, x):
    dims = rng.sample(range(x.ndim), x.ndim)
    dims = [d - rng.choice([0, x.ndim]) for d in dims]
    return rng.choice([lambda x: x.permute(dims), lambda x: x.permute(*dims), lambda x: torch.permute(x, dims=dims)])


def a_transposition(rng, x):
    a, b = dim_of(rng, x.ndim), dim_of(rng, x.ndim)
    name = rng.choice(["transpose", "swapaxes", "swapdims"])
    return rng.choice([lambda x: getattr(x, name)(a, b), lambda x: getattr(torch, name)(x, a, b)])


def a_movedim(rng, x):
    count = rng.randint(1, x.ndim)
    a, b = rng.sample(range(x.ndim), count), rng.sample(range(x.ndim), count)
    a, b = (a[0], b[0]) if count == 1 and rng.random() < 0.5 else (a, b)
    return lambda x: torch.movedim(x, a, b)


def a_matrix_view(rng, x):
    if x.ndim < 2:
        return lambda x: x.t()
    return rng.choice([lambda x: x.mT, lambda x: x.adjoint(), lambda x: x.mH])


def a_reversal(rng, x):
    return (lambda x: x.T) if x.ndim == 2 else (lambda x: x.permute(*range(x.ndim - 1, -1, -1)))


def a_squeeze(rng, x):
    dim = dim_of(rng, x.ndim)
    dims = tuple(rng.sample(range(x.ndim), rng.randint(1, x.ndim)))
    return rng.choice([lambda x: x.squeeze(), lambda x: x.squeeze(dim), lambda x: x.squeeze(dims)])


def an_unsqueeze(rng, x):
    dim = dim_of(rng, x.ndim + 1)
    return rng.choice([lambda x: x.unsqueeze(dim), lambda x: x.clone().unsqueeze_(dim), lambda x: x[..., None]])


def an_expansion(rng, x):
    shape = [rng.choice([2, ROWS]), *(rng.choice([1, ROWS]) if s == 1 else s for s in x.shape)]
    kept = [shape[0], *(-1 for _ in x.shape)]
    other = torch.zeros(shape)
    return rng.choice(
        [
            lambda x: x.expand(shape),
            lambda x: x.expand(*kept),
            lambda x: x.expand_as(other),
            lambda x: torch.broadcast_to(x, shape),
            lambda x: torch.broadcast_tensors(other, x),
        ]
    )


def a_split(rng, x):
    dim = dim_of(rng, x.ndim)
    size, ends = rng.choice([1, 2, 3, 100]), x.shape[dim] // 2
    return rng.choice(
        [
            lambda x: x.split(size, dim),
            lambda x: x.chunk(min(size, 3), dim=dim),
            lambda x: torch.tensor_split(x, 2, dim),
            lambda x: x.split([ends, x.shape[dim] - ends], dim),
            lambda x: x.unbind(dim),
            lambda x: list(x),
            lambda x: list(iter(x)),
            lambda x: x.select(dim, 0),
            lambda x: x.narrow(dim, 0, max(1, ends)),
        ]
    )


def a_repeat(rng, x):
    sizes = [rng.choice([1, 1, 2]) for _ in range(x.ndim + rng.choice([0, 1]))]
    few = [rng.choice([1, 2])]
    dim = dim_of(rng, x.ndim)
    return rng.choice(
        [
            lambda x: x.repeat(sizes),
            lambda x: x.repeat(*sizes),
            lambda x: x.tile(few),
            lambda x: x.repeat_interleave(2, dim),
            lambda x: x.repeat_interleave(2),
            lambda x: torch.repeat_interleave(x, torch.arange(1, x.shape[dim] + 1), dim=dim),
        ]
    )


def another_order(rng, x):
    dims = rng.sample(range(x.ndim), rng.randint(1, x.ndim))
    shifts = [1 for _ in dims]
    return rng.choice([lambda x: x.flip(dims), lambda x: x.roll(shifts, dims), lambda x: x.roll(1)])


def a_pad(rng, x):
    pad = [rng.choice([0, 0, 1]) for _ in range(2 * rng.randint(1, x.ndim))]
    return lambda x: functional.pad(x, pad)


def a_diagonal(rng, x):
    a, b = rng.sample(range(x.ndim), 2) if x.ndim > 1 else (0, 1)
    dim = dim_of(rng, x.ndim)
    return rng.choice([lambda x: x.diagonal(0, a, b), lambda x: x.unfold(dim, 1, 1)])


def a_cat(rng, x):
    dim = dim_of(rng, x.ndim)
    other = torch.randn(x.shape)
    return rng.choice(
        [
            lambda x: torch.cat([x, other], dim),
            lambda x: torch.cat((x, x), dim=dim),
            lambda x: torch.stack([other, x], dim),
            lambda x: torch.hstack([x, other]),
            lambda x: torch.vstack([x, other]),
            lambda x: torch.dstack([x, x]),
            lambda x: torch.column_stack([x, x]),
            lambda x: [torch.atleast_1d(x), torch.atleast_2d(x), torch.atleast_3d(x)],
        ]
    )


def a_read(rng, x):
    """``x[...]`` of all kinds."""
    parts, dim = [], 0
    arrays = rng.random() < 0.5
    several = rng.choice([1, 3])
    while dim < x.ndim and rng.random() < 0.85:
        kind = rng.choice(["int", "all", "all", "slice", "new", "rest", "tensor", "list", "mask"])
        if kind == "rest" and ... not in [p for p in parts if not isinstance(p, (Tensor, list))]:
            parts.append(...)
            skipped = rng.randint(0, x.ndim - dim)
            parts.extend([slice(None)] * 0)
            left = x.ndim - dim - skipped
            parts.extend(slice(None) if rng.random() < 0.5 else 0 for _ in range(left))
            break
        if kind == "new":
            parts.append(None)
            continue
        size = x.shape[dim]
        if kind == "int":
            parts.append(rng.choice([0, -1, torch.tensor(0)]))
        elif kind == "slice":
            parts.append(rng.choice([slice(0, 1), slice(None, None, 2), slice(0, size), slice(1, None)]))
        elif kind == "tensor" and arrays:
            shape = rng.choice([(several,), (several,), (2, several)])
            parts.append(torch.randint(0, size, shape))
        elif kind == "list" and arrays:
            parts.append([0] * several)
        elif kind == "mask" and arrays and several == 1:
            parts.append(torch.arange(size) == 0)
        else:
            parts.append(slice(None))
        dim += 1
    index = tuple(parts)
    return lambda x: x[index]


MOVES = [
    a_view,
    a_flatten,
    an_unflatten,
    a_permutation,
    a_transposition,
    a_movedim,
    a_matrix_view,
    a_reversal,
    a_squeeze,
    an_unsqueeze,
    an_expansion,
    a_split,
    a_repeat,
    another_order,
    a_pad,
    a_diagonal,
    a_cat,
    a_read,
]


def cases(make, count, seed=0):
    """Random functions of random tensors that torch takes."""
    rng = random.Random(f"{make.__name__} {seed}")
    torch.manual_seed(seed)
    while count:
        shape, place = random_shape(rng)
        x = rows(shape, place)
        try:
            function = make(rng, x)
            function(x.clone())
        except (RuntimeError, IndexError, ValueError):
            continue
        count -= 1
        yield function, x


@pytest.mark.parametrize("make", MOVES, ids=lambda make: make.__name__)
def test_moves(make):
    known = 0
    for function, x in cases(make, 60):
        # A part of the rows, or a diagonal, may look like whole members by chance.
        claims = make not in (a_read, a_split, a_diagonal)
        known += any(type(p) is int for p in check(function, [x], MEMBERS, claims))
    assert known >= (5 if make is another_order else 20)


def a_reduction(rng, x):
    name = rng.choice(
        ["sum", "mean", "prod", "amax", "amin", "argmax", "argmin", "any", "all", "std", "var", "nansum", "logsumexp"]
        + ["max", "min", "median", "nanmedian", "mode", "norm", "count_nonzero", "quantile", "kthvalue", "aminmax"]
    )
    dim, keep = dim_of(rng, x.ndim), rng.random() < 0.5
    dims = rng.sample(range(x.ndim), rng.randint(1, x.ndim)) if name in ("sum", "mean", "amax", "var", "norm") else dim
    options = {} if name == "count_nonzero" else {"keepdim": keep}
    first = {"quantile": (rng.choice([0.5, torch.tensor([0.2, 0.7], dtype=x.dtype)]),), "kthvalue": (1,), "norm": (2,)}
    if name == "aminmax" or rng.random() < 0.3:
        return lambda x: getattr(torch, name)(x, *first.get(name, ()), dim=dims, **options)
    return lambda x: getattr(x, name)(*first.get(name, ()), dims, **options)


def a_function_along(rng, x):
    dim = dim_of(rng, x.ndim)
    return rng.choice(
        [
            lambda x: x.softmax(dim),
            lambda x: functional.log_softmax(x, dim=dim),
            lambda x: functional.softmax(x, dim, dtype=torch.float32),
            lambda x: functional.normalize(x, dim=dim),
            lambda x: functional.normalize(x, 2, dim),
            lambda x: x.cumsum(dim),
            lambda x: torch.sort(x, dim),
            lambda x: torch.sort(x, dim=dim, descending=True, stable=True),
            lambda x: x.argsort(dim),
            lambda x: x.topk(1, dim),
            lambda x: torch.diff(x, dim=dim),
            lambda x: functional.glu(x, dim),
            lambda x: torch.fft.fft(x, dim=dim).real,
            lambda x: functional.cosine_similarity(x, x.flip(dim), dim),
        ]
    )


def a_reduction_of_all(rng, x):
    name = rng.choice(["sum", "mean", "max", "argmax", "any", "norm", "std", "median"])
    return lambda x: [getattr(x, name)(), getattr(torch, name)(x), x.var(True), x.flatten().cumsum(0)]


@pytest.mark.parametrize("make", [a_reduction, a_function_along], ids=lambda make: make.__name__)
def test_reductions_and_functions_along_a_dimension(make):
    known = 0
    for function, x in cases(make, 200):
        # `any`, for example, may change with no row at all.
        known += any(type(p) is int for p in check(function, [x], MEMBERS, claims=False))
    assert known >= 70


def test_over_the_rows_the_place_is_lost():
    for function, x in cases(a_reduction_of_all, 20):
        assert all(isinstance(p, Lost) for p in check(function, [x], MEMBERS)[:-1])
    x = rows((ROWS, ROWS), -2)
    for function in [lambda x: x.sum(0), lambda x: x.softmax(-2), lambda x: x.cumsum(0), lambda x: x.max(0)]:
        assert {place.__class__ for place in check(function, [x], MEMBERS)} == {Lost}
        assert set(check(lambda x, f=function: f(x.mT), [x], MEMBERS)) <= {-1}


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


R, B, H, L, D = ROWS, ROWS // MEMBERS, 2, ROWS, 4  # the sequence is as long as the batch

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
