"""What torch functions do with perturbed parameters, where there is a faster way than to make the member's weight.

A rule takes the members (:class:`~lightning_evo.evaluation.ways.members.Members`), then the function's arguments. It
may return ``NotImplemented``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evo.evaluation.ways import low_rank, vmap
from lightning_evo.evaluation.ways.members import Members
from lightning_evo.spaces.search_space import EvolvingParameter

__all__ = ["BATCHED", "HUGE", "KEYWORDS", "RULES", "SMALL"]

HUGE = 1 << 22
"""Elements of a matrix above which a linear layer or an embedding is computed block by block of rows."""

SMALL = 1 << 16
"""Elements of a tensor up to which scratch memory is not worth it."""

_FEW = 64  # classes
_UNUSED_PER_ROW = 256  # values of noise drawn for a chosen row and not used: it may begin and end within a row of noise

Rule: TypeAlias = "Callable[Concatenate[Members, ...], Any]"

# --- layers: products with low-rank noise, stacks of weights, huge matrices in blocks ---


def _linear(mode: Members, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, transposed: bool = False) -> Any:
    """``x W^T + bias``, with ``transposed`` ``x W + bias``."""
    parameter = mode.find(weight)
    if parameter is None:
        return NotImplemented
    if mode.factors(parameter):
        return low_rank.linear(mode, x, weight, bias, parameter, transposed=transposed)
    if mode.layout.shares_forward:
        return _stacked_linear(mode, x, weight, bias, parameter, transposed)
    if weight.numel() <= HUGE or transposed or torch.is_grad_enabled():
        return NotImplemented
    inputs, bias = mode.replace_all(x), mode.replace(bias)
    output: Any = None
    for rows, first, last in _blocks_of_rows(mode, parameter):
        block = functional.linear(inputs, rows[0], None if bias is None else bias[first:last])
        if output is None:
            output = block.new_empty(*block.shape[:-1], len(weight))
        output[..., first:last] = block
    return output


def _stacked_linear(
    mode: Members, x: Tensor, weight: Tensor, bias: Tensor | None, parameter: EvolvingParameter, transposed: bool
) -> Any:
    """All members' layers in one product; ``vmap`` would add the biases in a pass of their own."""
    if torch.is_autocast_enabled(x.device.type) or x.dim() < 2 or mode.find(x) is not None:
        return NotImplemented
    inputs, biases = mode.layout.split(x), None if bias is None else mode.stacked(bias)
    large = weight.numel() > SMALL and weight.is_contiguous() and not torch.is_grad_enabled()
    in_scratch = large and not mode.keeps(parameter) and not (transposed and weight.numel() > HUGE)
    weights = None if in_scratch else mode.stacked(weight)
    with mode.layout.outside():
        flat = inputs.flatten(1, -2).expand(mode.layout.members, -1, -1)  # [members, rows, inputs]
        if weights is None:
            result = _large_product(mode, flat, parameter, biases, transposed)
        else:
            result = _product(flat, weights if transposed else weights.mT, biases)
    return mode.layout.join(result.reshape(len(result), *inputs.shape[1:-1], result.shape[2]))


def _product(x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """``x [members, rows, inputs]`` times ``weights [members, inputs, outputs]`` plus ``biases [members, outputs]``."""
    return x @ weights if biases is None else torch.baddbmm(biases[:, None], x, weights)


def _large_product(
    mode: Members, x: Tensor, parameter: EvolvingParameter, biases: Tensor | None, transposed: bool
) -> Tensor:
    """:func:`_product` with weights in scratch memory, huge ones in blocks (not transposed)."""
    size, outputs = parameter.tensor.numel(), len(parameter.tensor)
    if size <= HUGE:
        weights = mode.rows(parameter, 0, outputs)
        return _product(x, weights if transposed else weights.mT, biases)
    result = x.new_empty(*x.shape[:2], outputs)
    for rows, first, last in _blocks_of_rows(mode, parameter):
        result[:, :, first:last] = _product(x, rows.mT, None if biases is None else biases[:, first:last])
    return result


def _embedding(
    mode: Members,
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
    entries = _shared(mode, ids)
    if entries is None:
        return NotImplemented
    output = _embedding_of_rows(mode, entries, parameter)
    return _embedding_in_blocks(mode, entries, parameter) if output is None else output


def _shared(mode: Members, ids: Tensor) -> Tensor | None:
    """The entries that are looked up, if they are the same for all members and of no ``vmap`` of the user's."""
    if mode.find(ids) is not None:
        return None
    entries = mode.layout.split(ids)
    return entries[0] if len(entries) == 1 and not vmap.is_wrapped(entries) else None


def _noise_of_rows(ids: Tensor, weight: Tensor) -> int:
    """Elements of noise that a lookup makes."""
    return ids.numel() * (math.prod(weight.shape[1:]) + _UNUSED_PER_ROW)


def _embedding_of_rows(mode: Members, ids: Tensor, parameter: EvolvingParameter) -> Tensor | None:
    """Only the rows that are looked up, as long as those and the forward's earlier ones cost less than all."""
    weight, before = parameter.tensor, mode.looked_up.get(parameter.index, 0)
    if type(ids) is not Tensor or ids.dtype not in (torch.int64, torch.int32) or ids.device != weight.device:
        return None
    cost = before + _noise_of_rows(ids, weight)
    if not ids.numel() or weight.numel() <= SMALL or cost > weight.numel():
        return None
    if not ids.is_cuda:  # where an index is checked when it is used, without waiting
        _check_ids(ids, weight)
    with mode.layout.outside():
        output = mode.chosen_rows(parameter, ids.long())
    mode.looked_up[parameter.index] = cost
    return mode.layout.join(output)


def _embedding_in_blocks(mode: Members, ids: Tensor, parameter: EvolvingParameter) -> Any:
    """The members' rows one block after the other, where the weights of all are large."""
    weight = parameter.tensor.detach()
    large = weight.numel() > (SMALL if mode.layout.shares_forward else HUGE) and weight.is_contiguous()
    if not large or torch.is_grad_enabled():
        return NotImplemented
    _check_ids(ids, weight)
    with mode.layout.outside():
        output = weight.new_empty(mode.layout.members, *ids.shape, *weight.shape[1:])
        for rows, first, _ in _blocks_of_rows(mode, parameter):
            _put_rows(output, rows, ids, first, waits=not ids.is_cuda)
    return mode.layout.join(output)


def _put_rows(output: Tensor, rows: Tensor, ids: Tensor, first: int, *, waits: bool) -> None:
    """Write the entries ``first <= entry < first + len(rows)`` of a table where they are looked up.

    Args:
        output: ``[members, *ids.shape, width]``.
        rows: ``[members, entries, width]``.
        ids: ``[...]``, int64: any.
        first: Number of the first entry.
        waits: Whether to write only what is there. To know where that is, a GPU would be waited for.
    """
    here = (ids >= first) & (ids < first + rows.shape[1])
    if waits:
        output[:, here] = rows[:, ids[here] - first]
        return
    chosen = rows[:, (ids - first).clamp(0, rows.shape[1] - 1)]
    torch.where(here[..., None], chosen, output, out=output)


def _check_ids(ids: Tensor, weight: Tensor) -> None:
    """Raise an IndexError, as an embedding does, where block by block a number out of range would be passed over."""
    if ids.is_cuda:  # where an embedding says so by itself, later, so that nobody waits
        functional.embedding(ids, weight[:, :1])
        return
    if ids.numel() and not bool(((ids >= 0) & (ids < len(weight))).all()):
        raise IndexError(f"index out of range: the embedding has {len(weight)} entries.")


def _blocks_of_rows(mode: Members, parameter: EvolvingParameter) -> Iterator[tuple[Tensor, int, int]]:
    """A huge matrix's rows ``[members, rows, ...]``, some at a time, with their numbers."""
    center = parameter.tensor.detach()
    at_once = max(1, HUGE // 4 // center[0].numel())
    for first in range(0, len(center), at_once):
        last = min(first + at_once, len(center))
        yield mode.rows(parameter, first, last), first, last


def _addmm(mode: Members, bias: Tensor, x: Tensor, weight: Tensor) -> Any:
    return _linear(mode, x, weight, bias, transposed=True) if bias.dim() == 1 else NotImplemented


def _matmul(mode: Members, x: Tensor, weight: Tensor) -> Any:
    return _linear(mode, x, weight, transposed=True) if weight.dim() == 2 and x.dim() >= 2 else NotImplemented


def _convolution(function: Callable[..., Tensor]) -> Rule:
    def rule(
        mode: Members,
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
)  # a call with any other keyword argument follows no rule


# --- batched: what vmap can't do, or does slowly ---


def _batch_norm(
    mode: Members,
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
    mode: Members,
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
    mode: Members,
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
    few = logits.dim() == 2 and logits.shape[1] <= _FEW and not logits.is_cuda
    usual = target.dtype == torch.int64 and target.shape == logits.shape[:1] and not label_smoothing
    usual = usual and size_average is None and reduce is None
    if not few or not usual or torch.is_autocast_enabled(logits.device.type) or mode.find(target) is not None:
        return NotImplemented
    values = mode.layout.split(logits)
    if len(values) < mode.layout.members:
        return NotImplemented
    with mode.layout.outside():
        log_probabilities = values.movedim(-1, 0).contiguous().log_softmax(0)  # [classes, members, samples]
    shared = weight is None and reduction == "mean" and not vmap.is_wrapped(target)
    if not shared or torch.is_grad_enabled():
        batched = mode.layout.join(log_probabilities.movedim(0, -1))
        return functional.nll_loss(batched, target, weight, ignore_index=ignore_index, reduction=reduction)
    with mode.layout.outside():
        counts = target != ignore_index
        index = target.where(counts, 0).expand(1, *log_probabilities.shape[1:])
        chosen = log_probabilities.gather(0, index)[0].where(counts, 0)
        loss = -chosen.sum(1) / counts.sum()
    return mode.layout.join(loss)


BATCHED: dict[Callable[..., Any], Rule] = {
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
    functional.cross_entropy: _cross_entropy,
}
