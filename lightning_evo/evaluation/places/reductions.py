"""Where members' rows lie after a sum over some dimensions, or a function along one: ``mean``, ``softmax``, ``topk``.

Over the rows' own dimension the place is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_evo.evaluation.places.elementwise import elementwise
from lightning_evo.evaluation.places.place import LOST, Place, Rule, given, moves, negative

__all__ = ["REDUCTIONS"]

_Arguments = Sequence[Any]
_Keywords = Mapping[str, Any]


def _along(position: int, *default: int) -> Rule:
    """Over the dimensions that argument ``position`` names, which are gone or kept; all of them by default."""

    def along(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
        dims: Any = given(args, kwargs, position, "dim", "axis")
        if dims is None:
            dims = default
        elif type(dims) is int:
            dims = (dims,)
        if not isinstance(dims, (tuple, list)) or not dims:
            return LOST
        ndim, right = args[0].ndim, 0
        for dim in dims:
            dim = dim if dim < 0 else dim - ndim
            if dim == place:
                return LOST
            right += dim > place
        value = result[0] if isinstance(result, tuple) else result
        return place if value.ndim == ndim else place + right

    return moves(along)


def _quantile(place: int, args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    dim: Any = given(args, kwargs, 2, "dim")
    if dim is None:
        return LOST
    dim = negative(dim, args[0].ndim)
    return LOST if dim == place else place + (dim > place and not given(args, kwargs, 3, "keepdim"))


def _extreme(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place | list[Place]:
    """``max`` and ``min``: of two tensors, or over a dimension."""
    other = given(args, kwargs, 1, "other")
    return (
        elementwise(args, kwargs, result, members)
        if isinstance(other, Tensor)
        else _OVER(args, kwargs, result, members)
    )


def _cosine(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    dim = given(args, kwargs, 2, "dim")
    place = elementwise(args[:2], kwargs, result, members)
    ndim = max(x.ndim for x in (given(args, kwargs, 0, "x1"), given(args, kwargs, 1, "x2")))
    dim = negative(1 if dim is None else dim, ndim)
    return place if type(place) is not int else LOST if place == dim else place + (dim > place)


def _distance(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    place = elementwise(args, kwargs, result, members)
    x = given(args, kwargs, 0, "x1", "anchor")
    return place if type(place) is not int else LOST if place == -1 else place + (result.ndim < x.ndim)


def _never(args: _Arguments, kwargs: _Keywords, result: Any, members: int) -> Place:
    return LOST


_OVER, _LAST = _along(1), _along(1, -1)

REDUCTIONS: dict[str, Rule] = {
    **dict.fromkeys(["sum", "mean", "prod", "std", "var", "std_mean", "var_mean", "amax", "amin", "aminmax"], _OVER),
    **dict.fromkeys(["argmax", "argmin", "any", "all", "nansum", "nanmean", "median", "nanmedian"], _OVER),
    **dict.fromkeys(["logsumexp", "count_nonzero", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"], _OVER),
    **dict.fromkeys(["softmax", "log_softmax", "softmin", "special_softmax", "special_log_softmax"], _OVER),
    **dict.fromkeys(["special_logsumexp", "_softmax", "_log_softmax", "_safe_softmax"], _OVER),
    **dict.fromkeys(["mode", "sort", "argsort", "glu"], _LAST),
    **dict.fromkeys(["norm", "linalg_norm", "linalg_vector_norm"], _along(2)),
    **dict.fromkeys(["topk", "kthvalue", "diff", "trapezoid", "trapz", "cumulative_trapezoid"], _along(2, -1)),
    **dict.fromkeys([f"fft_{name}" for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")], _along(2, -1)),
    **dict.fromkeys([f"fft_{name}" for name in ("fft2", "ifft2", "rfft2", "irfft2")], _along(2, -2, -1)),
    **dict.fromkeys([f"fft_{name}" for name in ("fftn", "ifftn", "rfftn", "irfftn")], _along(2)),
    **dict.fromkeys(["quantile", "nanquantile"], moves(_quantile)),
    **dict.fromkeys(["max", "min"], _extreme),
    **dict.fromkeys(["pairwise_distance", "triplet_margin_loss"], _distance),
    **dict.fromkeys(["unique", "unique_consecutive", "_unique2", "nonzero", "argwhere", "masked_select"], _never),
    **dict.fromkeys(["nonzero_static", "bincount", "histc", "histogram", "cov", "corrcoef", "dist", "dot"], _never),
    **dict.fromkeys(
        ["vdot", "as_strided", "squeeze_", "resize_", "resize_as_", "set_", "as_strided_", "trace", "addbmm"], _never
    ),
    **dict.fromkeys(["combinations", "cartesian_prod", "diag", "diagflat", "kron", "sum_to_size"], _never),
    "normalize": _along(2, 1),
    "gumbel_softmax": _along(4, -1),
    "msort": _along(9, 0),
    "linalg_matrix_norm": _along(2, -2, -1),
    "cosine_similarity": _cosine,
}
"""Rules by the function's name."""
