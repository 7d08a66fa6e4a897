"""Where members' rows lie after a function of each element: tensors broadcast, and places count from the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_evo.evaluation.places.place import LOST, NAME, Place, Rule, combined, place_of, words

__all__ = ["ELEMENTWISE", "elementwise", "first", "same_for_all", "unknown"]


def elementwise(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place:
    """The place that all arguments with a known one agree on.

    The others are the same for all members there, or lost, which is blamed only if no place is known. Rows of two or
    more members are never broadcast along their own dimension, so the result has as many.
    """
    place: Place = None
    for argument in args:
        other: Place = getattr(argument, NAME, None)
        if other is None or other == place:
            continue
        if place is None:
            place = other
        elif type(other) is int:
            if type(place) is int:
                return LOST
            place = other
    if kwargs:
        for argument in kwargs.values():
            if getattr(argument, NAME, None) is not None:
                return combined([place, *map(place_of, kwargs.values())])
    return place


def first(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place:
    """The first argument's: the others have no rows, or none that matter."""
    place: Place = getattr(args[0] if args else kwargs.get("input", kwargs.get("self")), NAME, None)
    return place


def same_for_all(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place:
    """Values that don't depend on the arguments'."""
    return None


def unknown(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place | list[Place]:
    """Functions that no table names: a result of exactly an argument's shape lies as the argument does."""
    if isinstance(result, Tensor):
        return _by_shape(args, kwargs, result)
    if isinstance(result, (tuple, list)):
        return [_by_shape(args, kwargs, value) if isinstance(value, Tensor) else LOST for value in result]
    return None


def _by_shape(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> Place:
    known: list[Place] = []
    lost: Place = None
    for argument in (*args, *kwargs.values()):
        for tensor in argument if isinstance(argument, (tuple, list)) else (argument,):
            place = place_of(tensor)
            if type(place) is int:
                known.append(place if tensor.shape == result.shape else LOST)
            elif place is not None:
                lost = place
    if known:
        same = [place for place in known if place is not LOST]
        return combined(same) if same else LOST
    return LOST if lost is None else lost


def _where(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, members: int) -> Place:
    return elementwise(args, kwargs, result, members) if len(args) + len(kwargs) > 1 else LOST


_OPERATORS = words("add sub mul truediv div floordiv mod pow and or xor lshift rshift")

_NAMES = words("""
abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan
atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp
clamp_max clamp_min clip complex conj conj_physical copysign cos cosh cross linalg_cross deg2rad digamma div divide elu
eq erf erfc erfinv exp exp2 expm1 fake_quantize_per_tensor_affine fix float_power floor floor_divide fmax fmin fmod frac
frexp gcd ge gelu greater greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma igammac
isclose isfinite isinf isnan isneginf isposinf isreal lcm ldexp le leaky_relu lerp less less_equal lgamma log log10
log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit logsigmoid log_sigmoid lt
masked_fill maximum minimum mish mul multiply mvlgamma nan_to_num ne neg negative nextafter not_equal polar polygamma
positive pow prelu rad2deg reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin
sinc sinh softplus softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold tril triu true_divide
trunc xlogy copy normal
""")

_ONE = words("""
to type type_as float double half bfloat16 int long short char byte bool cfloat cdouble chalf clone detach contiguous
cpu cuda xpu ipu data real imag requires_grad_ resolve_conj resolve_neg alias view_copy pin_memory share_memory_
dequantize dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout
bernoulli zero fill uniform random exponential cauchy geometric log_normal poisson rand_like randn_like randint_like
isin bucketize
layer_norm rms_norm group_norm batch_norm instance_norm native_layer_norm local_response_norm renorm rename
align_as fill_diagonal lift_fresh __pos__ __neg__ __abs__ __invert__ __copy__ __deepcopy__
""")

_NO_ROWS = words("""
zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided new_tensor
size dim shape ndim numel nelement stride storage_offset dtype device layout item tolist numpy data_ptr element_size
is_contiguous is_floating_point is_complex is_cuda is_cpu is_mps is_meta is_leaf is_sparse is_inference is_nonzero
is_same_size is_signed is_pinned get_device requires_grad grad grad_fn _version _is_view equal allclose dim_order
untyped_storage storage retain_grad backward register_hook has_names itemsize nbytes names __len__ __bool__ __float__
__int__ __index__ __complex__ __hash__ __format__ __repr__ __str__ __contains__ __array__ __dir__ __setstate__
__reduce_ex__ __cuda_array_interface__
""")

ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys([f"__{side}{name}__" for name in _OPERATORS for side in ("", "r", "i")], elementwise),
    **dict.fromkeys([f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge")], elementwise),
    **dict.fromkeys(_NO_ROWS, same_for_all),
    **dict.fromkeys(_ONE, first),
    **dict.fromkeys(_NAMES, elementwise),
    "where": _where,
}
"""Rules by the function's name; what a name ending in ``_`` writes lies as what the name without it gives."""
