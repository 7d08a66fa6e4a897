"""Dense perturbations: every element of a tensor gets noise of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from lightning_evo import kernels
from lightning_evo._messages import did_you_mean
from lightning_evo.noise import (
    Distribution,
    Kernel,
    NoiseKey,
    Stream,
    address_of,
    check_offsets,
    draw,
    normal_table,
    row_size,
    rows,
)
from lightning_evo.perturbations._base import Perturbation, noise_dtype
from lightning_evo.rounding import move

__all__ = ["Dense", "standardised"]

_CHUNK = 1 << 20  # elements that are summed at a time, so that they stay in the cache
_AT_ONCE = 1 << 22  # elements that plain tensor operations perturb at a time: they need 40 bytes for each


class Dense(Perturbation):
    """One generation's noise: independent, with mean 0 and variance 1, for every element of every tensor.

    The noise of a tensor is addressed by the flat, row-major offset of its elements, whatever its memory format.

    Args:
        key: Seed and generation.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"uniform"`` (here on [-sqrt 3, sqrt 3)).

    Raises:
        ValueError: If the distribution is unknown.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> perturbation = Dense(NoiseKey(seed=0, generation=0))
        >>> noise = perturbation.noise([0, 1], parameter=0, center=weight)
        >>> noise.shape
        torch.Size([2, 2, 3])
        >>> total = perturbation.weighted_sum([0.5, -2.0], parameter=0, center=weight)
        >>> torch.equal(total, (0.5 * noise[0] + -2.0 * noise[1]).flatten())
        True
    """

    def __init__(self, key: NoiseKey, distribution: Distribution = "gaussian") -> None:
        super().__init__(key)
        known = get_args(Distribution)
        if distribution not in known:
            raise ValueError(
                f"Unknown noise {distribution!r}.{did_you_mean(str(distribution), known)} "
                f"Choose one of {', '.join(known)}."
            )
        self.distribution = distribution

    def noise(self, directions: Sequence[int], parameter: int, center: Tensor) -> Tensor:  # noqa: D102
        return self._flat(directions, parameter, center, 0, center.numel()).view(len(directions), *center.shape)

    def members(  # noqa: D102
        self, direction: int, steps: Sequence[float], parameter: int, center: Tensor
    ) -> list[Tensor]:
        flat = center.detach().reshape(-1)
        return [vector.view(center.shape) for vector in self._members(direction, steps, parameter, flat, 0)]

    def members_of_rows(  # noqa: D102
        self,
        direction: int,
        steps: Sequence[float],
        parameter: int,
        center: Tensor,
        first: int,
        last: int,
        outs: Sequence[Tensor] | None = None,
    ) -> list[Tensor] | None:
        part, width = center.detach()[first:last], center[0].numel()
        vectors = self._members(direction, steps, parameter, part.reshape(-1), first * width, outs)
        return [vector.view(part.shape) for vector in vectors]

    def noise_of_range(  # noqa: D102
        self, direction: int, parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        return self._flat([direction], parameter, center, start, stop)[0]

    def members_of_range(  # noqa: D102
        self, direction: int, steps: Sequence[float], parameter: int, center: Tensor, part: Tensor, start: int
    ) -> list[Tensor]:
        outs = [torch.empty_like(part) for _ in steps]
        head = min(-start % row_size(self.distribution), len(part))  # up to where whole rows begin
        for first, last in ((0, head), (head, len(part))):
            pieces = [out[first:last] for out in outs]
            self._members(direction, steps, parameter, part[first:last], start + first, pieces)
        return outs

    def _members(
        self,
        direction: int,
        steps: Sequence[float],
        parameter: int,
        part: Tensor,
        start: int,
        outs: Sequence[Tensor] | None = None,
    ) -> Sequence[Tensor]:
        """:meth:`members` of the consecutive elements ``part`` of a tensor, from offset ``start`` on."""
        check_offsets(start, start + part.numel())
        if outs is None:
            outs = [torch.empty_like(part) for _ in steps]
        fused = self._fused(start, part.numel())
        if fused:
            self._write_members(direction, steps, parameter, part[:fused], start, [out[:fused] for out in outs])
        if fused < part.numel():
            noise = self._flat([direction], parameter, part, start + fused, start + part.numel())[0]
            center = part[fused:].to(noise.dtype)
            for out, step in zip(outs, steps, strict=True):
                out[fused:] = center + noise * step
        return outs

    def weighted_sum(  # noqa: D102
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        stop = center.numel() if stop is None else stop
        check_offsets(start, stop)
        chosen = [direction for direction, weight in enumerate(weights) if weight]
        if noise_dtype(center) == torch.float32 and kernels.native(normal_table(center.device)):
            size = row_size(self.distribution)
            first, last = start // size, -(-stop // size)  # whole rows, of which the ends may not be wanted
            total = torch.zeros((last - first) * size, dtype=torch.float32)
            self._add_noise(chosen, [weights[d] for d in chosen], parameter, total, first * size)
            return total[start - first * size : stop - first * size]
        total = torch.zeros(stop - start, dtype=noise_dtype(center), device=center.device)
        for begin in range(start, stop, _CHUNK):
            part = total[begin - start : begin - start + _CHUNK]
            fused = self._fused(begin, part.numel())
            if fused:
                self._add_noise(chosen, [weights[d] for d in chosen], parameter, part[:fused], begin)
            if fused < part.numel():
                at_once = max(1, _CHUNK // (part.numel() - fused))
                for i in range(0, len(chosen), at_once):
                    group = chosen[i : i + at_once]
                    noise = self._flat(group, parameter, center, begin + fused, begin + part.numel())
                    for direction, values in zip(group, noise, strict=True):
                        part[fused:] += values * weights[direction]
        return total

    def move(  # noqa: D102
        self, weights: Sequence[float], parameter: int, center: Tensor, coefficient: float, rounding: NoiseKey
    ) -> float | None:
        table = normal_table(center.device)
        library = kernels.native(table, center)
        if library is None:
            return None
        flat = center.view(-1)
        fused = len(flat) // library.UNIT * library.UNIT
        rest = self.weighted_sum(weights, parameter, center, fused)
        squares = float(rest.square().sum())
        if fused:
            chosen = [direction for direction, weight in enumerate(weights) if weight]
            squares += library.update(
                self.distribution,
                address_of(self.key, parameter),
                address_of(replace(rounding, stream=Stream.ROUNDING), parameter),
                table,
                chosen,
                [weights[direction] for direction in chosen],
                coefficient,
                flat[:fused],
            )
        move(flat[fused:], rest * coefficient, rounding, parameter, fused)
        return math.sqrt(squares)

    # --- whole rows, fused with what becomes of them ---

    def _fused(self, start: int, elements: int) -> int:
        """How many leading elements of a range are whole rows that are worth a kernel of their own."""
        size = row_size(self.distribution)
        whole = elements // size * size
        return whole if start % size == 0 and whole >= 2 * size else 0

    def _write_members(
        self,
        direction: int,
        steps: Sequence[float],
        parameter: int,
        center: Tensor,
        start: int,
        outs: Sequence[Tensor],
    ) -> None:
        """``outs[i] = center + steps[i] * eps``, of vectors of whole rows: noise is made once for all members."""
        size, address, table = row_size(self.distribution), address_of(self.key, parameter), normal_table(center.device)
        center, outs = center.view(-1, size), [out.view(-1, size) for out in outs]
        library = kernels.native(table, center)
        if library:
            library.members(self.distribution, address, table, start // size, direction, center, outs, steps)
            return
        words = torch.tensor([start // size, direction, *address], device=center.device)
        scales = torch.tensor(steps, dtype=noise_dtype(center), device=center.device)
        pieces = -(-center.numel() // _AT_ONCE)
        for part, *parts in zip(*(tensor.tensor_split(pieces) for tensor in (center, *outs)), strict=True):
            _write_members(part.numel(), self.distribution, words, table, scales, part, parts)
            words[0] += len(part)

    def _add_noise(
        self, directions: Sequence[int], weights: Sequence[float], parameter: int, total: Tensor, start: int
    ) -> None:
        """``total += sum_d weights[d] eps_d``, of a vector of whole rows."""
        size, address, table = row_size(self.distribution), address_of(self.key, parameter), normal_table(total.device)
        total = total.view(-1, size)
        library = kernels.native(table, total)
        if library:
            library.add_noise(self.distribution, address, table, start // size, directions, weights, total)
            return
        for direction, weight in zip(directions, weights, strict=True):
            words = torch.tensor([start // size, direction, *address], device=total.device)
            coefficient = torch.tensor(weight, dtype=total.dtype, device=total.device)
            _add_noise(total.numel(), self.distribution, words, table, coefficient, total)

    # --- any elements ---

    def _flat(self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int) -> Tensor:
        values = draw(
            self.key,
            directions,
            parameter,
            start,
            stop,
            distribution=self.distribution,
            dtype=noise_dtype(center),
            device=center.device,
        )
        return standardised(self.distribution, values)


def standardised(distribution: str, values: Tensor) -> Tensor:
    """Mean 0 and variance 1."""
    return (values - 0.5) * math.sqrt(12) if distribution == "uniform" else values


def _noise_rows(count: int, distribution: str, words: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    first, member = words[0], words[1]
    numbers = first + torch.arange(count, device=words.device)
    return standardised(distribution, rows(distribution, numbers, member, words[2:], table).to(dtype))


@Kernel
def _write_members(
    distribution: str, words: Tensor, table: Tensor, scales: Tensor, center: Tensor, outs: list[Tensor]
) -> None:
    noise = _noise_rows(len(center), distribution, words, table, scales.dtype)
    wide = center.to(scales.dtype)
    for out, scale in zip(outs, scales.unbind(), strict=True):
        out.copy_(wide + noise * scale)


@Kernel
def _add_noise(distribution: str, words: Tensor, table: Tensor, weight: Tensor, total: Tensor) -> None:
    total += _noise_rows(len(total), distribution, words, table, total.dtype) * weight
