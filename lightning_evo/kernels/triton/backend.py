"""The GPU's backend: kernels in Triton, each one pass over what it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_evo.kernels.backend import Backend, Moved, Span, Values
from lightning_evo.kernels.normal import SLICES, normal_table
from lightning_evo.kernels.pull import Pull
from lightning_evo.kernels.triton.low_rank import low_rank_kernel
from lightning_evo.kernels.triton.members import chosen_rows_kernel, draw_kernel, members_kernel
from lightning_evo.kernels.triton.tables import Table, aligned, blocks_for, fields, float_bits, launch, upload
from lightning_evo.kernels.triton.update import move_kernel, squares_kernel, sum_kernel, update_kernel
from lightning_evo.kernels.values import row_size

__all__ = ["Triton"]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_MAXIMAL_RANK = 8  # of the product of low rank; above it matrix products are as fast
_TILE = 16, 256  # rows and outputs of a program of that product
_SQUARES = 1024  # that are added at a time
_COEFFICIENT = 13  # the field of a tensor that moves: after those of its noise, its address, and those of its rounding


class Triton(Backend):
    """For contiguous tensors of 32 and 16 bits; others take only their noise from it. It never waits for the device."""

    def draw(  # noqa: D102
        self, values: Values, directions: Sequence[int], start: int, stop: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        if dtype != torch.float32:
            return super().draw(values, directions, start, stop, dtype, device)
        out = torch.empty(len(directions), stop - start, dtype=dtype, device=device)
        device = out.device  # with its index: tables are kept by their device, and "cuda" is not always the same
        if out.numel():
            row = fields(values.address, start, stop - start)
            fits = aligned(row, out.data_ptr(), out.stride(0))
            row += [_first(out, row), out.stride(0)]
            table = Table([row], blocks_for(dtype, row[6]), device, [len(directions), *directions])
            kinds: dict[str, Any] = {"DISTRIBUTION": values.distribution, "ALIGNED": fits}
            table.launch(draw_kernel, _coefficients(device), times=len(directions), **kinds)
        return out

    def rows(  # noqa: D102
        self, values: Values, directions: Sequence[int], first: int, last: int, device: torch.device
    ) -> Tensor:
        size = row_size(values.distribution)
        return self.draw(values, directions, first * size, last * size, torch.float32, device)

    def members(self, spans: Sequence[Span], directions: Sequence[int], steps: Sequence[float]) -> None:  # noqa: D102
        groups: dict[Any, list[list[int]]] = {}
        for span in spans:
            (distribution, address), start, center, out = span
            if center.dtype not in _DTYPES or not center.is_contiguous():
                super().members([span], directions, steps)
                continue
            row = fields(address, start, len(center))
            fits = aligned(row, center.data_ptr(), out.data_ptr(), out.stride(0))
            row += [_first(center, row), _first(out, row), out.stride(0)]
            groups.setdefault((distribution, center.dtype, fits, center.device), []).append(row)
        numbers = [len(directions), *directions, *float_bits(steps)]
        for (distribution, dtype, fits, device), rows in groups.items():
            table = Table(rows, blocks_for(dtype), device, numbers)
            kinds: dict[str, Any] = {"DISTRIBUTION": distribution, "DTYPE": _DTYPES[dtype], "ALIGNED": fits}
            each = len(steps) // len(directions)
            table.launch(members_kernel, _coefficients(device), times=len(directions), EACH=each, **kinds)

    def chosen_rows(  # noqa: D102
        self,
        values: Values,
        directions: Sequence[int],
        steps: Sequence[float],
        center: Tensor,
        chosen: Tensor,
        out: Tensor,
    ) -> None:
        if center.dtype not in _DTYPES or not out.numel():
            super().chosen_rows(values, directions, steps, center, chosen, out)
            return
        center, chosen, width = center.contiguous(), chosen.contiguous(), math.prod(center.shape[1:])
        fits = width % 128 == 0 and center.data_ptr() % 16 == out.data_ptr() % 16 == 0
        blocks = blocks_for(center.dtype, width if fits else width + 127)
        pieces = -(-(width if fits else width + 127) // (8 * blocks))
        row = [*fields(values.address, 0, width), center.data_ptr(), out.data_ptr(), width, len(chosen), pieces]
        numbers = [len(directions), *directions, *float_bits(steps)]
        table, uploaded = upload([row], numbers, center.device)
        kinds: dict[str, Any] = {"DISTRIBUTION": values.distribution, "DTYPE": _DTYPES[center.dtype], "ALIGNED": fits}
        launch(
            *(chosen_rows_kernel, len(chosen) * pieces * len(directions), center.device),
            *(chosen, table, uploaded, _coefficients(center.device)),
            **{"EACH": len(steps) // len(directions), "BLOCKS": blocks, **kinds},
        )

    def weighted_sum(  # noqa: D102
        self, values: Values, directions: Sequence[int], weights: Sequence[float], start: int, stop: int, like: Tensor
    ) -> Tensor:
        if like.dtype not in _DTYPES:
            return super().weighted_sum(values, directions, weights, start, stop, like)
        total = torch.empty(stop - start, dtype=torch.float32, device=like.device)
        row = fields(values.address, start, stop - start)
        fits = aligned(row, total.data_ptr())
        row.append(_first(total, row))
        numbers = [len(directions), *directions, *float_bits(weights)]
        table = Table([row], blocks_for(total.dtype, row[6]), like.device, numbers)
        kinds: dict[str, Any] = {"DISTRIBUTION": values.distribution, "ALIGNED": fits}
        table.launch(sum_kernel, _coefficients(like.device), **kinds)
        return total

    def move(self, address: tuple[int, ...], start: int, center: Tensor, step: Tensor) -> None:  # noqa: D102
        if center.dtype in _DTYPES and center.is_contiguous() and step.is_contiguous():
            _move(address, start, center, step, None)
        else:
            super().move(address, start, center, step)

    def pull(  # noqa: D102
        self, address: tuple[int, ...], start: int, center: Tensor, step: Tensor, pull: Pull
    ) -> Tensor:
        if pull.anchor.device != center.device:
            pull = replace(pull, anchor=pull.anchor.to(center.device, non_blocking=True))
        if center.dtype in _DTYPES and step.is_contiguous() and _reachable(center, pull):
            return _move(address, start, center, step, pull)
        return super().pull(address, start, center, step, pull)

    def update(self, tensors: Sequence[Moved], directions: Sequence[int], weights: Sequence[float]) -> Tensor:  # noqa: D102
        groups: dict[Any, list[int]] = {}
        rows: dict[int, list[int]] = {}
        norms: dict[int, Tensor] = {}
        # Coefficients that only the device knows follow.
        known = [0.0 if isinstance(one.coefficient, Tensor) else one.coefficient for one in tensors]
        numbers_of = zip(known, (one.pull for one in tensors), strict=True)
        floats = float_bits([number for coefficient, pull in numbers_of for number in (coefficient, *_numbers(pull))])
        for i, moved in enumerate(tensors):
            (distribution, address), rounding, center, _, pull = moved
            if center.dtype not in _DTYPES or not _reachable(center, pull):
                [norms[i]] = super().update([moved], directions, weights)
                continue
            row = fields(address, 0, len(center))
            anchor = 0 if pull is None else pull.anchor.data_ptr()
            fits = aligned(row, center.data_ptr(), anchor)
            row += [center.data_ptr(), *rounding, floats[4 * i], anchor, *floats[4 * i + 1 : 4 * i + 4]]
            rows[i] = row
            groups.setdefault((distribution, center.dtype, fits, center.device, pull is not None), []).append(i)
        numbers = [len(directions), *directions, *float_bits(weights)]
        for (distribution, dtype, fits, device, drawn_back), mine in groups.items():
            table = Table([rows[i] for i in mine], blocks_for(dtype), device, numbers)
            given = {place: tensors[i].coefficient for place, i in enumerate(mine)}
            table.put(_COEFFICIENT, {place: each for place, each in given.items() if isinstance(each, Tensor)})
            squares = torch.empty(1 + drawn_back, len(table), dtype=torch.float32, device=device)
            kinds: dict[str, Any] = {
                "DISTRIBUTION": distribution,
                "DTYPE": _DTYPES[dtype],
                "PULL": drawn_back,
                "ALIGNED": fits,
            }
            table.launch(update_kernel, _coefficients(device), squares, **kinds)
            found = _norms(squares, table, len(mine))
            norms.update(zip(mine, found[0], strict=True))
            for i, distance in zip(mine, found[-1], strict=True) if drawn_back else ():
                tensors[i].pull.distance = distance  # type: ignore[union-attr]
        if not norms:
            return torch.zeros(0, dtype=torch.float64)
        return torch.stack([norms[i].to(tensors[0].center.device) for i in range(len(tensors))])

    def low_rank(self, b: Tensor, a: Tensor) -> Callable[[Tensor | None, Tensor], Tensor]:  # noqa: D102
        reference = super().low_rank(b, a)
        (members, rank, outputs), width = a.shape, b.shape[2]
        if rank > _MAXIMAL_RANK or a.dtype != torch.float32 or b.dtype != torch.float32:
            return reference
        a, thin = a.contiguous(), {torch.float32: b.contiguous()}

        def product(bias: Tensor | None, x: Tensor) -> Tensor:
            (several, rows, inputs), dtype = x.shape, x.dtype
            if dtype not in _DTYPES or inputs != width:
                return reference(bias, x)
            if bias is not None and (bias.shape[1] != outputs or bias.dtype != dtype):
                return reference(bias, x)
            right = thin.get(dtype)
            if right is None:
                right = thin[dtype] = thin[torch.float32].to(dtype)
            if several == 1:  # one product for all members
                hidden = (x[0] @ right.view(members * rank, width).T).view(rows, members, rank).transpose(0, 1)
            else:
                hidden = x @ right.mT
            hidden = hidden.float().contiguous()
            out = x.new_empty(members, rows, outputs)
            add = out if bias is None else bias.contiguous()
            stored = (t if dtype == torch.float32 else t.view(torch.int16) for t in (add, out))
            programs = members * -(-rows // _TILE[0]) * -(-outputs // _TILE[1])
            sizes = rows, outputs, 0 if len(add) == 1 else outputs
            kinds: dict[str, Any] = {"DTYPE": _DTYPES[dtype], "RANK": rank, "BIAS": bias is not None}
            tile = {"ROWS": _TILE[0], "OUTPUTS": _TILE[1]}
            launch(low_rank_kernel, programs, x.device, hidden, a, *stored, *sizes, **kinds, **tile)
            return out

        return product


def _move(address: tuple[int, ...], start: int, center: Tensor, step: Tensor, pull: Pull | None) -> Tensor:
    """``center += step``, drawn back if anything does; gives the norm of the way from there, float64 ``[]``."""
    row = fields((0, 0, 0, 0), start // 128 * 128, len(center))
    anchor = 0 if pull is None else pull.anchor.data_ptr()
    fits = aligned(row, center.data_ptr(), step.data_ptr(), anchor)
    row += [center.data_ptr(), *address, 0, anchor, *float_bits(_numbers(pull)), step.data_ptr()]
    table = Table([row], blocks_for(center.dtype, len(center)), center.device)
    squares = torch.empty(1, len(table), dtype=torch.float32, device=center.device)
    kinds: dict[str, Any] = {"DTYPE": _DTYPES[center.dtype], "PULL": pull is not None, "ALIGNED": fits}
    table.launch(move_kernel, squares, **kinds)
    return squares if pull is None else _norms(squares, table, 1)[0, 0]


def _norms(squares: Tensor, table: Table, tensors: int) -> Tensor:
    """From the squares of parts, float32 ``[kinds, parts]``: float64 ``[kinds, tensors]``."""
    kinds, device = len(squares), squares.device
    sums = torch.empty(kinds, tensors, dtype=torch.float64, device=device)
    launch(squares_kernel, kinds * tensors, device, squares, table.bounds, sums, KINDS=kinds, PARTS=_SQUARES)
    return sums.sqrt_()


def _reachable(center: Tensor, pull: Pull | None) -> bool:
    """Whether a kernel can write to a center, and read what draws it back."""
    if not center.is_contiguous():
        return False
    return pull is None or (pull.anchor.device == center.device and pull.anchor.is_contiguous())


def _numbers(pull: Pull | None) -> tuple[float, float, float]:
    """Decay, keep and threshold."""
    return (0.0, 0.0, 0.0) if pull is None else (pull.decay, pull.keep, pull.threshold)


def _first(tensor: Tensor, row: Sequence[int]) -> int:
    """The address where the tensor's rounding row would begin."""
    return tensor.data_ptr() - row[5] * tensor.element_size()


def _coefficients(device: torch.device) -> Tensor:
    """Of the polynomials that give normal values: float32 ``[4 * 32]``."""
    return normal_table(device)[SLICES:]
