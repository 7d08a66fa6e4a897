"""Dense perturbations: every element of a tensor gets noise of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from lightning_evo import kernels
from lightning_evo.noise.normal import normal_table
from lightning_evo.noise.philox import NoiseKey, Stream, address_of, check_offsets
from lightning_evo.noise.values import Distribution, Kernel, draw, draw_rows, row_size, rows
from lightning_evo.perturbations._base import Perturbation, around, noise_dtype
from lightning_evo.spaces.memory import empty_copies
from lightning_evo.utils.options import one_of

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
        self.distribution: Distribution = one_of("noise", distribution, get_args(Distribution))

    def noise(self, directions: Sequence[int], parameter: int, center: Tensor) -> Tensor:  # noqa: D102
        return self._flat(directions, parameter, center, 0, center.numel()).view(len(directions), *center.shape)

    def members(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor
    ) -> Tensor:
        flat = center.detach().reshape(-1)
        [out] = empty_copies([flat], len(steps))
        return self._members(directions, steps, parameter, flat, 0, out).view(len(steps), *center.shape)

    def members_of_several(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], parameters: Sequence[int], centers: Sequence[Tensor]
    ) -> list[Tensor]:
        made: list[Tensor | None] = [None] * len(centers)
        for library, table, mine in self._kernels_for(centers):
            flat = [centers[i].detach().view(-1) for i in mine]
            check_offsets(0, max(center.numel() for center in flat))
            outs = empty_copies(flat, len(steps))
            addresses = [address_of(self.key, parameters[i]) for i in mine]
            library.members(self.distribution, addresses, table, 0, directions, flat, outs, steps)
            for i, out in zip(mine, outs, strict=True):
                made[i] = out.view(len(steps), *centers[i].shape)
        return [
            self.members(directions, steps, parameter, center) if members is None else members
            for members, parameter, center in zip(made, parameters, centers, strict=True)
        ]

    def members_of_rows(  # noqa: D102
        self,
        directions: Sequence[int],
        steps: Sequence[float],
        parameter: int,
        center: Tensor,
        first: int,
        last: int,
        out: Tensor | None = None,
    ) -> Tensor | None:
        part = center.detach()[first:last]
        start = first * math.prod(center.shape[1:])
        members = self._members(directions, steps, parameter, part.reshape(-1), start, out)
        return members.view(len(steps), *part.shape)

    def members_of_chosen_rows(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor | None:
        check_offsets(0, center.numel())
        center, table, chosen = center.detach(), normal_table(center.device), chosen.contiguous()
        out = center.new_empty(len(steps), *chosen.shape, *center.shape[1:])
        library = kernels.library_for(table, center)
        if library is not None:
            address = address_of(self.key, parameter)
            library.chosen_rows(self.distribution, address, table, directions, center, chosen, out, steps)
            return out
        if kernels.library_for(table):
            return None  # the kernels make all of the noise faster than tensor operations make a part
        flat, rows = chosen.view(-1), out.view(len(steps), -1, *center.shape[1:])
        at_once = max(1, _AT_ONCE // max(1, rows[:, :1].numel()))
        for first in range(0, len(flat), at_once):
            part = flat[first : first + at_once]
            noise = self._noise_of_chosen_rows(directions, parameter, center, part)
            members = around(center.index_select(0, part), noise.view(len(directions), -1, *center.shape[1:]), steps)
            rows[:, first : first + at_once] = members
        return out

    def noise_of_range(  # noqa: D102
        self, direction: int, parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        return self._flat([direction], parameter, center, start, stop)[0]

    def members_of_range(  # noqa: D102
        self,
        directions: Sequence[int],
        steps: Sequence[float],
        parameter: int,
        center: Tensor,
        part: Tensor,
        start: int,
    ) -> Tensor:
        return self._members(directions, steps, parameter, part, start)

    def _members(
        self,
        directions: Sequence[int],
        steps: Sequence[float],
        parameter: int,
        part: Tensor,
        start: int,
        out: Tensor | None = None,
    ) -> Tensor:
        """:meth:`members` of the consecutive elements ``part`` of a tensor, from offset ``start`` on."""
        elements, table = part.numel(), normal_table(part.device)
        check_offsets(start, start + elements)
        if out is None:
            out = part.new_empty(len(steps), elements)
        library = kernels.library_for(table, part)
        if library is not None:
            address = address_of(self.key, parameter)
            library.members(self.distribution, [address], table, start, directions, [part], [out], steps)
            return out
        head = min(-start % row_size(self.distribution), elements)  # up to where whole rows begin
        body = self._write_members(directions, steps, parameter, part[head:], start + head, out[:, head:])
        for first, last in ((0, head), (head + body, elements)):
            if first < last:
                noise = self._flat(directions, parameter, part, start + first, start + last)
                out[:, first:last] = around(part[first:last], noise, steps)
        return out

    def weighted_sum(  # noqa: D102
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        stop = center.numel() if stop is None else stop
        check_offsets(start, stop)
        chosen = [direction for direction, weight in enumerate(weights) if weight]
        if noise_dtype(center) == torch.float32 and kernels.library_for(normal_table(center.device)):
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
        self,
        weights: Sequence[float],
        parameters: Sequence[int],
        centers: Sequence[Tensor],
        coefficients: Sequence[float],
        rounding: NoiseKey,
    ) -> list[float | None]:
        norms: list[float | None] = [None] * len(centers)
        chosen = [direction for direction, weight in enumerate(weights) if weight]
        rounding = replace(rounding, stream=Stream.ROUNDING)
        for library, table, mine in self._kernels_for(centers):
            squares = library.update(
                self.distribution,
                [address_of(self.key, parameters[i]) for i in mine],
                [address_of(rounding, parameters[i]) for i in mine],
                table,
                chosen,
                [weights[direction] for direction in chosen],
                [coefficients[i] for i in mine],
                [centers[i].view(-1) for i in mine],
            )
            for i, square in zip(mine, squares, strict=True):
                norms[i] = math.sqrt(square)
        return norms

    # --- several tensors, in one call of a kernel ---

    def _kernels_for(self, centers: Sequence[Tensor]) -> Iterator[tuple[kernels.Library, Tensor, list[int]]]:
        """Kernels, the table, and the numbers of the tensors that they support, one dtype at a time."""
        fitting: dict[torch.dtype, list[int]] = {}
        for i, center in enumerate(centers):
            if kernels.supports(center.detach()):
                fitting.setdefault(center.dtype, []).append(i)
        for mine in fitting.values():
            table = normal_table(centers[mine[0]].device)
            library = kernels.library_for(table)
            if library is not None:
                yield library, table, mine

    # --- whole rows, fused with what becomes of them ---

    def _fused(self, start: int, elements: int) -> int:
        """How many leading elements of a range are whole rows that are worth a kernel of their own."""
        size = row_size(self.distribution)
        whole = elements // size * size
        return whole if start % size == 0 and whole >= 2 * size else 0

    def _write_members(
        self,
        directions: Sequence[int],
        steps: Sequence[float],
        parameter: int,
        part: Tensor,
        start: int,
        out: Tensor,
    ) -> int:
        """``out[i] = part + steps[i] * eps``, from whole rows on; returns how many leading elements were written."""
        fused, size = self._fused(start, len(part)), row_size(self.distribution)
        if not fused:
            return 0
        first, address, table = start // size, address_of(self.key, parameter), normal_table(part.device)
        scales = torch.tensor(steps, dtype=noise_dtype(part), device=part.device).view(len(directions), -1)
        rows_of = out[:, :fused].view(len(directions), -1, fused // size, size)
        pieces = -(-fused // _AT_ONCE)
        for direction, scale, outs in zip(directions, scales, rows_of, strict=True):
            words = torch.tensor([first, direction, *address], device=part.device)
            tensors = (part[:fused].view(-1, size), *outs)
            for center, *members in zip(*(tensor.tensor_split(pieces) for tensor in tensors), strict=True):
                _write_members(center.numel(), self.distribution, words, table, scale, center, members)
                words[0] += len(center)
        return fused

    def _add_noise(
        self, directions: Sequence[int], weights: Sequence[float], parameter: int, total: Tensor, start: int
    ) -> None:
        """``total += sum_d weights[d] eps_d``, of a vector of whole rows."""
        size, address, table = row_size(self.distribution), address_of(self.key, parameter), normal_table(total.device)
        total = total.view(-1, size)
        library = kernels.library_for(table, total)
        if library:
            library.add_noise(self.distribution, address, table, start // size, directions, weights, total)
            return
        for direction, weight in zip(directions, weights, strict=True):
            words = torch.tensor([start // size, direction, *address], device=total.device)
            coefficient = torch.tensor(weight, dtype=total.dtype, device=total.device)
            _add_noise(total.numel(), self.distribution, words, table, coefficient, total)

    # --- any elements ---

    def _noise_of_chosen_rows(
        self, directions: Sequence[int], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor:
        """``[directions, number of chosen rows, elements of a row]``."""
        size, width = row_size(self.distribution), math.prod(center.shape[1:])
        aligned = width % size == 0
        each = width // size if aligned else (width + size - 2) // size + 1  # rows of noise that hold a row of weights
        start = chosen.reshape(-1, 1) * width
        numbers = start // size + torch.arange(each, device=center.device)
        values = draw_rows(self.key, directions, parameter, numbers.flatten(), distribution=self.distribution)
        values = values.view(len(directions), -1, each * size)
        if not aligned:
            index = start % size + torch.arange(width, device=center.device)
            values = values.gather(2, index.expand(len(directions), -1, -1))
        return standardised(self.distribution, values.to(noise_dtype(center)))

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
