"""Where rows lie after views, moves, reads and reductions of random tensors, by an oracle that knows no rule."""

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_evo.evaluation.places import Lost, place_of, set_place
from tests.evaluation.places.oracle import MEMBERS, ROWS, check, rows


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


def a_read(rng, x, bare=False):
    """``x[...]`` of all kinds."""
    parts, dim = [], 0
    arrays = rng.random() < 0.5
    several = rng.choice([1, 3])
    while dim < x.ndim and rng.random() < 0.85:
        kind = rng.choice(["int", "all", "all", "slice", "new", "rest", "tensor", "list", "mask"])
        if kind == "rest" and ... not in [p for p in parts if not isinstance(p, (Tensor, list))]:
            parts.append(...)
            skipped = rng.randint(0, x.ndim - dim)
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
    return index if bare else lambda x: x[index]


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


def written(rng):
    """A function that writes its second argument into some entries of the first, and both; one holds rows."""
    while True:
        shape, place = random_shape(rng)
        target = rows(shape, place)
        index = rng.choice([a_read, a_read, a_slice])(rng, target, bare=True)
        try:
            part = target[index]
        except (RuntimeError, IndexError):
            continue
        value = torch.randn(part.shape, dtype=target.dtype)
        if rng.random() < 0.5:
            return index, target, value
        fitting = [q for q in range(-part.ndim, 0) if part.shape[q] % MEMBERS == 0 and part.shape[q]]
        if fitting:
            set_place(target, None)
            set_place(value, rng.choice(fitting))
            return index, target, value


def a_slice(rng, x, bare):
    dim = rng.randrange(x.ndim)
    return (*[slice(None)] * dim, rng.choice([0, slice(0, 2), slice(1, None), torch.arange(x.shape[dim])]))


def test_writes():
    rng, known = random.Random(0), [0, 0]
    torch.manual_seed(0)
    for _ in range(400):
        index, target, value = written(rng)

        def write(target, value, index=index):
            target[index] = value
            return target

        [place] = check(write, [target, value], MEMBERS, claims=False)
        known[place_of(target) is None] += type(place) is int
    assert known[0] >= 100
    assert known[1] >= 20
