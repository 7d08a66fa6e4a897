"""Dense perturbations: every element of a tensor gets noise of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from torch import Tensor

from lightning_evo.kernels import Moved, Span, Values, backend_for
from lightning_evo.kernels.values import standardised
from lightning_evo.noise.philox import NoiseKey, Stream, address_of, check_offsets
from lightning_evo.noise.values import Distribution, draw
from lightning_evo.perturbations._base import Moving, Perturbation, Target, noise_dtype
from lightning_evo.utils.options import one_of

__all__ = ["Dense"]


class Dense(Perturbation):
    """One generation's noise: independent, with mean 0 and variance 1, for every element of every tensor.

    The noise of a tensor is addressed by the flat, row-major offset of its elements, whatever its memory format.

    Args:
        key: Seed and generation.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"uniform"`` (here on [-sqrt 3, sqrt 3)).

    Raises:
        ValueError: If the distribution is unknown.

    Example:
        >>> import torch
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
        self.key = key
        self.distribution: Distribution = one_of("noise", distribution, get_args(Distribution))

    def noise_of_range(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
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

    def write_members(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], targets: Sequence[Target]
    ) -> None:
        spans = []
        for parameter, _, start, values, out in targets:
            check_offsets(start, start + values.numel())
            spans.append(Span(self._values(parameter), start, values, out))
        backend_for(*[span.center for span in spans]).members(spans, directions, steps)

    def chosen_rows(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor:
        check_offsets(0, center.numel())
        center, values = center.detach(), self._values(parameter)
        out = center.new_empty(len(steps), *chosen.shape, *center.shape[1:])
        rows = out.view(len(steps), chosen.numel(), *center.shape[1:])
        backend_for(center).chosen_rows(values, directions, steps, center, chosen.flatten(), rows)
        return out

    def weighted_sum(  # noqa: D102
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        stop = center.numel() if stop is None else stop
        check_offsets(start, stop)
        center, values = center.detach(), self._values(parameter)
        return backend_for(center).weighted_sum(values, *_chosen(weights), start, stop, center)

    def move(self, weights: Sequence[float], tensors: Sequence[Moving], rounding: NoiseKey) -> Tensor:  # noqa: D102
        rounding = replace(rounding, stream=Stream.ROUNDING)
        moved = [
            Moved(
                self._values(one.parameter),
                address_of(rounding, one.parameter),
                one.center.view(-1),
                one.coefficient,
                one.pull,
            )
            for one in tensors
        ]
        return backend_for(*(one.center for one in moved)).update(moved, *_chosen(weights))

    def _values(self, parameter: int) -> Values:
        return Values(self.distribution, address_of(self.key, parameter))


def _chosen(weights: Sequence[float]) -> tuple[list[int], list[float]]:
    """The directions whose weights are not 0, and those."""
    chosen = [direction for direction, weight in enumerate(weights) if weight]
    return chosen, [weights[direction] for direction in chosen]
