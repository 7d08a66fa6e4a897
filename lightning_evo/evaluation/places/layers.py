"""Where members' rows lie after a matrix product, a layer or a loss."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_evo.evaluation.places.elementwise import elementwise
from lightning_evo.evaluation.places.place import LOST, Place, Rule, combined, given, moves, negative, place_of, words

__all__ = ["LAYERS", "layer"]

_Arguments = Sequence[Any]
_Keywords = Mapping[str, Any]


def _moved(x: Any, move: Callable[[int], Place]) -> Place:
    """The place that the rows of one argument have in the result."""
    place = place_of(x)
    return move(place) if type(place) is int else place


# --- products ---


def _product(x: Tensor, y: Tensor) -> Place:
    """The place in ``x @ y``; a product over the rows' dimension loses it."""
    rows, columns = x.ndim > 1, y.ndim > 1
    place = place_of(x)
    if rows and columns and type(place) is int and place < -2 and place == place_of(y):
        return place
    left = _moved(x, lambda p: LOST if p == -1 else p if columns else p + 1)
    if not columns:
        right = _moved(y, lambda p: LOST)
    elif rows:
        right = _moved(y, lambda p: LOST if p == -2 else p)
    else:
        right = _moved(y, lambda p: LOST if p == -2 else p if p == -1 else p + 1)
    return combined([left, right])


def _matmul(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return _product(args[0], given(args, kwargs, 1, "other", "mat2", "vec", "tensor2"))


def _rmatmul(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return _product(args[1], args[0])


def _add_product(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, y = given(args, kwargs, 1, "mat1", "batch1", "mat"), given(args, kwargs, 2, "mat2", "batch2", "vec")
    return combined([place_of(args[0]), _product(x, y)])


def _linear(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    weight, bias = given(args, kwargs, 1, "weight"), given(args, kwargs, 2, "bias")
    if args and place_of(weight) is None and place_of(bias) is None and weight.ndim > 1:
        place = place_of(args[0])
        return place if place != -1 else LOST
    x = _moved(given(args, kwargs, 0, "input"), lambda p: LOST if p == -1 else p if weight.ndim > 1 else p + 1)
    w = _moved(weight, lambda p: LOST if p == -1 or weight.ndim < 2 else -1)
    return combined([x, w, place_of(bias)])


def _bilinear(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, y = given(args, kwargs, 0, "input1"), given(args, kwargs, 1, "input2")
    places = [_moved(z, lambda p: LOST if p == -1 else p) for z in (x, y)]
    return combined(places) if place_of(given(args, kwargs, 2, "weight")) is None else LOST


def _outer(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return combined([_moved(args[0], lambda p: -2), _moved(given(args, kwargs, 1, "vec2", "other"), lambda p: -1)])


def _add_outer(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return combined([place_of(args[0]), _outer(args[1:], kwargs, result, members)])


def _inner(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, y = args[0], given(args, kwargs, 1, "other")
    left = _moved(x, lambda p: LOST if p == -1 else p + 2 - y.ndim)
    return combined([left, _moved(y, lambda p: LOST if p == -1 else p + 1)])


def _chain(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    tensors = args[0] if isinstance(args[0], (list, tuple)) else args
    first = _moved(tensors[0], lambda p: -2 if p == -2 and result.ndim == 2 else LOST)
    return combined([first, *(_moved(x, lambda p: LOST) for x in tensors[1:])])


def _distances(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    """``cdist``: ``[..., n, d]`` and ``[..., m, d]`` give ``[..., n, m]``."""
    x = _moved(given(args, kwargs, 0, "x1"), lambda p: LOST if p == -1 else p)
    y = _moved(given(args, kwargs, 1, "x2"), lambda p: LOST if p == -1 else -1 if p == -2 else p)
    return combined([x, y])


def _einsum(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    equation, tensors = args[0], args[1:]
    if not isinstance(equation, str):
        return LOST
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        tensors = tensors[0]
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        letters = [c for c in sorted(set(inputs)) if c.isalpha() and inputs.count(c) == 1]
        output = ("..." if "..." in inputs else "") + "".join(letters)
    to = _names_of(output, result.ndim)
    places: list[Place] = []
    for term, x in zip(terms, tensors, strict=True):
        place = place_of(x)
        if type(place) is int:
            names = _names_of(term, x.ndim)
            name = names[place]
            place = to.index(name) - len(to) if name in to and names.count(name) == 1 else LOST
        places.append(place)
    return combined(places)


def _names_of(term: str, ndim: int) -> list[str]:
    """A name for each dimension; those of an ellipsis count from the right."""
    left, dots, right = term.partition("...")
    if not dots:
        return list(left)
    rest = ndim - len(left) - len(right)
    return [*left, *(f".{i}" for i in range(-rest, 0)), *right]


def _tensordot(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    x, y = args[0], given(args, kwargs, 1, "b", "other")
    dims: Any = given(args, kwargs, 2, "dims")
    dims = 2 if dims is None else dims
    if isinstance(dims, Tensor):
        return LOST
    if isinstance(dims, int):
        dims = (list(range(-dims, 0)), list(range(dims)))
    gone = [[negative(d, z.ndim) for d in ds] for z, ds in zip((x, y), dims, strict=True)]
    left = _moved(x, lambda p: LOST if p in gone[0] else p + sum(d > p for d in gone[0]) - (y.ndim - len(gone[1])))
    right = _moved(y, lambda p: LOST if p in gone[1] else p + sum(d > p for d in gone[1]))
    return combined([left, right])


# --- lookups and attention ---


def _embedding(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    ids = _moved(given(args, kwargs, 0, "input"), lambda p: p - 1)
    return combined([ids, _moved(given(args, kwargs, 1, "weight"), lambda p: LOST if p == -2 else p)])


def _embedding_bag(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return -2 if place == -2 else LOST


def _attention(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    """``[..., queries, d]``; places among the queries or further left stay, others may only be further left."""
    query = _moved(given(args, kwargs, 0, "query"), lambda p: LOST if p == -1 else p)
    key = _moved(given(args, kwargs, 1, "key"), lambda p: p if p < -2 else LOST)
    value = _moved(given(args, kwargs, 2, "value"), lambda p: LOST if p == -2 else p)
    mask = _moved(given(args, kwargs, 3, "attn_mask"), lambda p: LOST if p == -1 else p)
    return combined([query, key, value, mask])


def _attention_of_heads(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> list[Place]:
    """``F.multi_head_attention_forward``: ``[length, rows, d]``; the attention weights begin with the rows."""
    tensors = [given(args, kwargs, i, name) for i, name in enumerate(("query", "key", "value"))]
    place = combined([_moved(x, lambda p: p if p == -2 else LOST) for x in tensors])
    weights = result[1]
    if type(place) is int and result[0].ndim < 3:
        place = LOST  # no rows, but one sequence
    return [place, -weights.ndim if type(place) is int and weights is not None else place]


def _recurrent(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> list[Place]:
    """``lstm`` and the like: ``[length, rows, d]``, states ``[layers, rows, d]``."""
    x, states = args[0], args[1] if isinstance(args[1], (tuple, list)) else args[1:2]
    batch_first = args[8] if len(args) > 8 else None
    if not isinstance(batch_first, bool) or x.ndim != 3:  # a packed sequence
        return [LOST] * len(result)
    rows = -3 if batch_first else -2
    place = combined(
        [
            _moved(x, lambda p: rows if p == rows else LOST),
            *(_moved(s, lambda p: rows if p == -2 else LOST) for s in states),
        ]
    )
    return [place, *[-2 if type(place) is int else place] * (len(result) - 1)]


def _cell(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    states = args[1] if isinstance(args[1], (tuple, list)) else args[1:2]
    return combined([_moved(x, lambda p: LOST if p == -1 else p) for x in (args[0], *states)])


# --- images ---


def _left_of(count: int) -> Rule:
    """Functions of the last ``count`` dimensions."""

    def left(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
        return place if place < -count and args[0].ndim == _ndim(result) else LOST

    return moves(left)


def _ndim(result: Any) -> int:
    value = result[0] if isinstance(result, tuple) else result
    ndim: int = value.ndim
    return ndim


def _rows_first(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    """Functions that keep dimension 0 and may do what they want in the others."""
    tensors = [*args, *kwargs.values()]
    return combined([LOST if place_of(x) != -x.ndim else -_ndim(result) for x in tensors if place_of(x) is not None])


_SPATIAL = re.compile(r"_?(?:adaptive_|fractional_)?(?:avg|max|lp)_(?:un)?pool(\d)d(?:_with_indices)?")
_CONVOLUTION = re.compile(r"conv(?:_transpose)?(\d)d")


def layer(name: str) -> Rule | None:
    """A rule for convolutions and poolings, whose name has a number of dimensions."""
    if found := _CONVOLUTION.fullmatch(name):
        return _left_of(int(found[1]) + 1)
    if found := _SPATIAL.fullmatch(name):
        return _left_of(int(found[1]))
    return None


# --- losses ---


def _unreduced(rule: Rule) -> Rule:
    """A loss, which has a value for each row only with ``reduction="none"``."""

    def loss(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place | list[Place]:
        named = [argument for argument in (*args, *kwargs.values()) if isinstance(argument, str)]
        return rule(args, kwargs, result, members) if named == ["none"] else LOST

    return loss


def _ctc(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    """``[length, rows, classes]`` and targets ``[rows, length]`` give ``[rows]``."""
    scores = _moved(given(args, kwargs, 0, "log_probs"), lambda p: -1 if p == -2 else LOST)
    truth = [given(args, kwargs, i, name) for i, name in enumerate(("targets", "input_lengths", "target_lengths"), 1)]
    return combined([scores, *(LOST if place_of(x) != -x.ndim else -1 for x in truth if place_of(x) is not None)])


def _classes(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    """``cross_entropy``: ``[rows, classes, ...]`` and ``[rows, ...]`` give ``[rows, ...]``."""
    x, target = given(args, kwargs, 0, "input"), given(args, kwargs, 1, "target")

    def without_classes(place: int, ndim: int) -> Place:
        if ndim == 1 or place == 1 - ndim:
            return LOST
        return place + 1 if place == -ndim else place

    scores = _moved(x, lambda p: without_classes(p, x.ndim))
    truth = _moved(target, lambda p: without_classes(p, x.ndim) if target.shape == x.shape else p)
    weight = given(args, kwargs, 2, "weight")
    return combined([scores, truth, None if place_of(weight) is None else LOST])


_LOSSES = words("""mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits
kl_div poisson_nll_loss gaussian_nll_loss soft_margin_loss hinge_embedding_loss margin_ranking_loss""")
_ROW_LOSSES = words("""multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss cosine_embedding_loss""")

LAYERS: dict[str, Rule] = {
    **dict.fromkeys(["matmul", "__matmul__", "bmm", "mm", "mv", "linalg_matmul"], _matmul),
    **dict.fromkeys(["addmm", "baddbmm", "addmv"], _add_product),
    **dict.fromkeys(["outer", "ger"], _outer),
    **dict.fromkeys(["interpolate", "upsample", "upsample_nearest", "upsample_bilinear"], _rows_first),
    **dict.fromkeys(
        ["grid_sample", "grid_sampler", "affine_grid", "fold", "F.unfold", "im2col", "col2im"], _rows_first
    ),
    **dict.fromkeys(["pixel_shuffle", "pixel_unshuffle", "channel_shuffle"], _left_of(3)),
    **dict.fromkeys(["lstm", "gru", "rnn_tanh", "rnn_relu"], _recurrent),
    **dict.fromkeys(["lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"], _cell),
    **dict.fromkeys(["cross_entropy", "nll_loss", "nll_loss2d", "nll_loss_nd"], _unreduced(_classes)),
    **dict.fromkeys(_LOSSES, _unreduced(elementwise)),
    **dict.fromkeys(_ROW_LOSSES, _unreduced(_rows_first)),
    **dict.fromkeys(["chain_matmul", "linalg_multi_dot"], _chain),
    "inner": _inner,
    "addr": _add_outer,
    "ctc_loss": _unreduced(_ctc),
    "__rmatmul__": _rmatmul,
    "linear": _linear,
    "bilinear": _bilinear,
    "cdist": _distances,
    "einsum": _einsum,
    "tensordot": _tensordot,
    "embedding": _embedding,
    "embedding_bag": moves(_embedding_bag),
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _attention_of_heads,
    "multinomial": _left_of(1),
}
"""Rules by the function's name."""
