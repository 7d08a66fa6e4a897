"""Layers whose weight's noise is a product of two thin matrices, without ever making it.

With noise ``A B^T`` (sigma included), ``x (W + A B^T)^T = x W^T + (x B) A^T`` (Sarkar et al. 2025, arXiv:2511.16652):
one matrix product that all members share, and two thin ones for each. A dense bias of the member's joins the second of
them as one more column. Tensors named ``x`` may have a batch dimension of members or be the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evo.evaluation.ways import vmap
from lightning_evo.evaluation.ways.members import Members
from lightning_evo.kernels import REFERENCE, backend_for
from lightning_evo.spaces.search_space import EvolvingParameter

__all__ = ["Product", "convolution", "embedding", "linear"]


class Product:
    """A linear layer's weights for some members, as they are multiplied: made once in a forward.

    Args:
        mode: The members.
        weight: The center, ``[outputs, inputs]``; with ``transposed`` ``[inputs, outputs]``.
        parameter: The weight.
        transposed: Whether ``weight`` is ``[inputs, outputs]``.

    Attributes:
        matrix: The center, ``[inputs, outputs]``.
    """

    __slots__ = ("_change", "_reference", "matrix")

    def __init__(self, mode: Members, weight: Tensor, parameter: EvolvingParameter, transposed: bool) -> None:
        row_factors, column_factors = _factors(mode, parameter)
        thin_in, thin_out = (row_factors, column_factors) if transposed else (column_factors, row_factors)
        b, a = _laid_out(thin_in.mT), _laid_out(thin_out.mT)  # [members, rank, inputs], [members, rank, outputs]
        self.matrix = weight.detach() if transposed else weight.detach().t()
        self._change, self._reference = backend_for(b, a).low_rank(b, a), REFERENCE.low_rank(b, a)

    def change(self, bias: Tensor | None, x: Tensor) -> Tensor:
        """What differs between members: ``bias + (x B) A^T``, ``[members, rows, outputs]``.

        Args:
            bias: ``[members or 1, outputs]`` or ``None``.
            x: ``[members or 1, rows, inputs]``.
        """
        ordinary = type(x) is Tensor and not vmap.is_wrapped(x) and not torch.is_grad_enabled()
        ordinary = ordinary and (bias is None or not vmap.is_wrapped(bias))
        return self._change(bias, x) if ordinary else self._reference(bias, x)  # torch must see the others

    def of_rows(self, x: Tensor, bias: Tensor | None, members: int) -> Tensor:
        """The layer's output ``[members * rows, ..., outputs]``, where members are rows.

        Args:
            x: ``[members * rows, ..., inputs]``.
            bias: ``[members or 1, outputs]`` or ``None``.
            members: How many there are.
        """
        shape, matrix = x.shape, self.matrix
        autocast = torch.is_autocast_enabled(x.device.type)
        if autocast:
            x, matrix, bias = _as_autocast(x, matrix, bias)
        flat = x.reshape(-1, shape[-1])
        with _without_autocast(x) if autocast else nullcontext():
            result = self.change(bias, flat.view(members, -1, shape[-1]))
            result.view(-1, result.shape[2]).addmm_(flat, matrix)  # the center's product, of all members at once
        return result.view(*shape[:-1], result.shape[2])


def linear(
    mode: Members,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameter: EvolvingParameter,
    *,
    transposed: bool = False,
) -> Tensor:
    """``x W^T + bias``, with ``transposed`` ``x W + bias``, for each member.

    Args:
        mode: The members.
        x: ``[..., inputs]``.
        weight: The center, ``[outputs, inputs]``; with ``transposed`` ``[inputs, outputs]``.
        bias: ``[outputs]``, evolving or not, or ``None``.
        parameter: The weight.
        transposed: Whether ``weight`` is ``[inputs, outputs]``.
    """
    product = mode.products.get((parameter.index, transposed))
    if product is None:
        product = Product(mode, weight, parameter, transposed)
        if parameter.index >= 0:  # not a tensor that is made of parameters, which is gone after a few calls
            mode.products[parameter.index, transposed] = product
    matrix = product.matrix
    x = x if (evolving := mode.find(x)) is None else mode.tensor(evolving)
    flat, values = mode.layout.flat(x), None if bias is None else _split(mode, bias)
    with mode.layout.outside():
        autocast = torch.is_autocast_enabled(x.device.type)
        if autocast:
            flat, matrix, values = _as_autocast(flat, matrix, values)
        with _without_autocast(x) if autocast else nullcontext():
            result = product.change(values, flat)
            if flat.shape[0] == result.shape[0]:  # the center's product, of all members at once
                result.view(-1, result.shape[2]).addmm_(flat.reshape(-1, flat.shape[2]), matrix)
            else:
                result += flat @ matrix
    return mode.layout.shaped(result, x)


def embedding(mode: Members, ids: Tensor, weight: Tensor, parameter: EvolvingParameter) -> Tensor:
    """Rows of the members' embeddings.

    Args:
        mode: The members.
        ids: ``[...]``, int64.
        weight: The center, ``[entries, width]``.
        parameter: The weight.
    """
    row_factors, column_factors = _factors(mode, parameter)
    numbers = _split(mode, ids)
    with mode.layout.outside():
        flat = numbers.reshape(len(numbers), -1)
        shared = functional.embedding(flat, weight.detach())  # [members or 1, ids, width]
        index = flat[:, :, None].expand(len(row_factors), -1, row_factors.shape[2])
        with _without_autocast(weight):
            hidden = row_factors.gather(1, index).to(shared.dtype)
            result = _add_product(shared, hidden, column_factors.to(shared.dtype).mT)
        result = result.view(len(result), *numbers.shape[1:], result.shape[-1])
    return mode.layout.join(result)


def convolution(
    mode: Members,
    function: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameter: EvolvingParameter,
    geometry: tuple[Any, Any, Any],
) -> Tensor:
    """A convolution without groups.

    Args:
        mode: The members.
        function: ``conv1d``, ``conv2d`` or ``conv3d``.
        x: ``[samples, inputs, *space]``.
        weight: The center, ``[outputs, inputs, *kernel]``.
        bias: ``[outputs]``, evolving or not, or ``None``.
        parameter: The weight.
        geometry: Stride, padding and dilation.
    """
    row_factors, column_factors = _factors(mode, parameter)
    inputs, members = _split(mode, x), len(row_factors)
    values = None if bias is None else _split(mode, bias)  # [members or 1, outputs]
    shared_bias = values[0] if values is not None and len(values) == 1 and mode.find(bias) is None else None
    with mode.layout.outside():
        shared = function(inputs.flatten(0, 1), weight.detach(), shared_bias, *geometry)
        shared = shared.view(*inputs.shape[:2], *shared.shape[1:])
        dtype = shared.dtype
        with _without_autocast(x):
            filters = column_factors.mT.reshape(members, -1, *weight.shape[1:]).to(dtype)  # [members, rank, …]
            inputs = inputs.to(dtype).expand(members, *inputs.shape[1:])
            hidden = torch.stack([function(inputs[i], filters[i], None, *geometry) for i in range(members)])
            hidden = hidden.flatten(3)  # [members, samples, rank, positions]
            change = row_factors.to(dtype)[:, None] @ hidden
            if values is not None and shared_bias is None:
                change += values.to(dtype)[:, None, :, None]
        result = shared + change.view(*change.shape[:3], *shared.shape[3:])
    return mode.layout.join(result)


def _factors(mode: Members, parameter: EvolvingParameter) -> tuple[Tensor, Tensor]:
    factors = mode.factors(parameter)
    assert factors is not None
    return factors


def _split(mode: Members, x: Tensor) -> Tensor:
    """``x``, evolving or not, with a dimension of members in front, of size 1 if it is the same for all."""
    return mode.layout.split(x) if mode.find(x) is None else mode.stacked(x)


def _laid_out(x: Tensor) -> Tensor:
    """Contiguous, with the strides of a new tensor: products may round by those of a dimension of size 1."""
    return x.contiguous().view(-1).view(x.shape)


def _without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _as_autocast(*tensors: Tensor | None) -> list[Any]:
    """Tensors as an enclosing autocast would give them to a matrix product."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _add_product(shared: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``shared + left @ right``, of ``[members or 1, rows, outputs]``; in place where ``shared`` has the members."""
    if len(shared) != len(left):
        return torch.baddbmm(shared.expand(len(left), *shared.shape[1:]), left, right)
    if shared.dtype == torch.float32 and not shared.is_cuda and left.shape[2] <= 4:
        for k in range(left.shape[2]):  # a product with so few columns is ten times slower on a CPU
            shared.addcmul_(left[:, :, k : k + 1], right[:, k : k + 1])
        return shared
    return shared.baddbmm_(left, right)
