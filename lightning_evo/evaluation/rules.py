"""Functions' own ways with perturbed parameters, where there is a better one than to make the member's weight.

A rule takes the mode (:class:`~lightning_evo.evaluation.perturbed.Perturbed`), then the function's arguments. It may
return ``NotImplemented``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evo.evaluation import _functorch, low_rank
from lightning_evo.search_space import EvolvingParameter

if TYPE_CHECKING:
    from lightning_evo.evaluation.perturbed import Perturbed

__all__ = ["BATCHED", "HUGE", "KEYWORDS", "RULES"]

HUGE = 1 << 22
"""Elements of a matrix above which a linear layer or an embedding is computed block by block of rows."""

_FEW = 64  # classes

Rule = Callable[..., Any]

# --- layers: products with low-rank noise, stacks of weights, huge matrices in blocks ---


def _linear(mode: Perturbed, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    parameter = mode.find(weight)
    if parameter is None:
        return NotImplemented
    if mode.factors(parameter):
        return low_rank.linear(mode, x, weight, bias, parameter)
    if mode.level is not None:
        return _stacked_linear(mode, x, weight, bias)
    if weight.numel() <= HUGE or torch.is_grad_enabled():
        return NotImplemented
    inputs, bias = mode.replace_all(x), mode.replace(bias)
    output: Any = NotImplemented
    for rows, first, last in _blocks_of_rows(mode, parameter):
        block = functional.linear(inputs, rows, None if bias is None else bias[first:last])
        if output is NotImplemented:
            output = block.new_empty(*block.shape[:-1], len(weight))
        output[..., first:last] = block
    return output


def _stacked_linear(mode: Perturbed, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    """All members' layers in one product; ``vmap`` would add the biases in a pass of their own."""
    assert mode.level is not None
    if torch.is_autocast_enabled(x.device.type) or x.dim() < 2 or mode.find(x) is not None:
        return NotImplemented
    inputs = _functorch.batch_first(x, mode.level)
    weights = mode.stacked(weight)
    biases = None if bias is None else mode.stacked(bias)
    with _functorch.outside():
        if inputs is None:  # the same for all members: one layer of all their outputs
            result = functional.linear(x, weights.flatten(0, 1), None if biases is None else biases.flatten())
            result = result.view(*x.shape[:-1], *weights.shape[:2]).movedim(-2, 0)
        else:
            flat = inputs.flatten(1, -2)
            result = flat @ weights.mT if biases is None else torch.baddbmm(biases[:, None], flat, weights.mT)
            result = result.view(*inputs.shape[:-1], result.shape[-1])
    return _functorch.wrap(result, mode.level)


def _embedding(
    mode: Perturbed,
    ids: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    parameter = mode.find(weight)
    if parameter is None or max_norm is not None:
        return NotImplemented
    if mode.factors(parameter):
        return low_rank.embedding(mode, ids, weight, parameter)
    if mode.level is not None or weight.numel() <= HUGE or torch.is_grad_enabled():
        return NotImplemented
    output = None
    for rows, first, last in _blocks_of_rows(mode, parameter):
        if output is None:
            output = rows.new_empty(*ids.shape, *weight.shape[1:])
        here = (ids >= first) & (ids < last)
        output[here] = rows[ids[here] - first]
    return NotImplemented if output is None else output


def _blocks_of_rows(mode: Perturbed, parameter: EvolvingParameter) -> Iterator[tuple[Tensor, int, int]]:
    """A huge matrix's rows, some at a time, with their numbers; nothing if the perturbation can't."""
    center = parameter.tensor.detach()
    at_once = max(1, HUGE // 4 // center[0].numel())
    for first in range(0, len(center), at_once):
        last = min(first + at_once, len(center))
        rows = mode.rows(parameter, first, last)
        if rows is None:
            return
        yield rows, first, last


def _addmm(mode: Perturbed, bias: Tensor, x: Tensor, weight: Tensor) -> Any:
    parameter = mode.find(weight)
    if parameter is None or bias.dim() != 1 or not mode.factors(parameter):
        return NotImplemented
    return low_rank.linear(mode, x, weight, bias, parameter, transposed=True)


def _matmul(mode: Perturbed, x: Tensor, weight: Tensor) -> Any:
    parameter = mode.find(weight)
    if parameter is None or weight.dim() != 2 or x.dim() < 2 or not mode.factors(parameter):
        return NotImplemented
    return low_rank.linear(mode, x, weight, None, parameter, transposed=True)


def _convolution(function: Callable[..., Tensor]) -> Rule:
    def rule(
        mode: Perturbed,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        parameter = mode.find(weight)
        if parameter is None or groups != 1 or x.dim() != weight.dim() or not mode.factors(parameter):
            return NotImplemented
        return low_rank.convolution(mode, function, x, weight, bias, parameter, (stride, padding, dilation))

    return rule


RULES: dict[Callable[..., Any], Rule] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    torch.addmm: _addmm,
    torch.mm: _matmul,
    torch.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    functional.conv1d: _convolution(functional.conv1d),
    functional.conv2d: _convolution(functional.conv2d),
    functional.conv3d: _convolution(functional.conv3d),
}
KEYWORDS = frozenset(
    ("weight", "bias", "stride", "padding", "dilation", "groups")
    + ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
)  # other arguments are given by position, or a call follows no rule


# --- batched: what vmap can't do, or does slowly ---


def _batch_norm(
    mode: Perturbed,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """While training, members' statistics are forgotten, and ``vmap`` can't write them into a shared buffer."""
    if not training or running_mean is None:
        return NotImplemented
    return functional.batch_norm(x, None, None, weight, bias, training, *args, **kwargs)


def _instance_norm(
    mode: Perturbed,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not use_input_stats or running_mean is None:
        return NotImplemented
    return functional.instance_norm(x, None, None, weight, bias, use_input_stats, *args, **kwargs)


def _cross_entropy(
    mode: Perturbed,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Over few classes a CPU's softmax is five times faster if they are the first dimension."""
    assert mode.level is not None
    few = logits.dim() == 2 and logits.shape[1] <= _FEW and not logits.is_cuda
    if not few or target.is_floating_point() or label_smoothing or size_average is not None or reduce is not None:
        return NotImplemented
    if torch.is_autocast_enabled(logits.device.type):
        return NotImplemented
    values = _functorch.batch_first(logits, mode.level)
    if values is None:
        return NotImplemented
    with _functorch.outside():
        log_probabilities = values.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1)
    batched = _functorch.wrap(log_probabilities, mode.level)
    return functional.nll_loss(batched, target, weight, ignore_index=ignore_index, reduction=reduction)


BATCHED: dict[Callable[..., Any], Rule] = {
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
    functional.cross_entropy: _cross_entropy,
}
