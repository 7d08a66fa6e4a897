"""Sparse perturbations: the large weights of a tensor are left alone.

Liu et al., "Sparse MeZO: Less Parameters for Better Performance in Zeroth-Order LLM Fine-Tuning", 2024,
https://arxiv.org/abs/2402.15751: ``eps = m z`` with ``m_i = 1`` if ``|theta_i| <= h``, else 0, and a threshold h for
each tensor. As in the paper the mask is made again from the weights wherever it is needed, and never stored.

One departure: the paper fixes the thresholds before training. Here they are the quantiles of the weights as they are
in each generation, so checkpoints need not keep them, and the share of the weights that learn stays as asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_evo.perturbations._base import Perturbation, Target, check_whole, noise_dtype
from lightning_evo.utils.options import number

__all__ = ["Sparse"]

_SAMPLE = 1 << 24  # elements that a quantile is taken of; of a larger tensor every k-th one


class Sparse(Perturbation):
    """Another perturbation's noise for the small weights of each tensor, and none for the large ones.

    Of a tensor of n weights ``round(sparsity n)`` are left out, but not all, and none that tie with a small one: a
    constant tensor is perturbed whole. That holds for tensors of any number of dimensions. The quantile of a tensor
    of more than 2^24 elements is that of every k-th element.

    The threshold is taken from ``center`` at first use and kept, on its device. From then on only those elements of
    ``center`` count that are asked for, so the rest may already have moved.

    Args:
        inner: Its noise is masked.
        sparsity: Share of each tensor's weights that is left out, those of largest magnitude; in (0, 1). (With 0.75 a
            quarter is perturbed and learns.)

    Raises:
        ValueError: If ``sparsity`` is not in (0, 1).

    Example:
        >>> from lightning_evo.noise.values import NoiseKey
        >>> from lightning_evo.perturbations.dense import Dense
        >>> perturbation = Sparse(Dense(NoiseKey(seed=0, generation=0)), sparsity=0.5)
        >>> noise = perturbation.noise([0], parameter=0, center=torch.tensor([0.1, -3.0, 2.0, -0.2]))
        >>> (noise[0] != 0).tolist()
        [True, False, False, True]
    """

    def __init__(self, inner: Perturbation, sparsity: float) -> None:
        self.inner = inner
        self.sparsity = number("sparsity", sparsity, above=0, below=1)
        self._thresholds: dict[int, Tensor] = {}

    def noise_of_range(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        mask = self._mask(parameter, center, center.detach().reshape(-1)[start:stop])
        return self.inner.noise_of_range(directions, parameter, center, start, stop) * mask

    def write_members(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], targets: Sequence[Target]
    ) -> None:
        self.inner.write_members(directions, steps, targets)
        for target in targets:
            mask = self._mask(target.parameter, target.center, target.values)
            torch.where(mask, target.out, target.values, out=target.out)

    def chosen_rows(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor:
        members = self.inner.chosen_rows(directions, steps, parameter, center, chosen)
        rows = center.detach()[chosen]
        return torch.where(self._mask(parameter, center, rows), members, rows)

    def weighted_sum(  # noqa: D102
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        mask = self._mask(parameter, center, center.detach().reshape(-1)[start:stop])
        return self.inner.weighted_sum(weights, parameter, center, start, stop) * mask

    def _mask(self, parameter: int, center: Tensor, part: Tensor) -> Tensor:
        if parameter not in self._thresholds:
            check_whole(self, center)
            self._thresholds[parameter] = _threshold(center.detach(), self.sparsity)
        return part.detach().abs() <= self._thresholds[parameter]


def _threshold(center: Tensor, sparsity: float) -> Tensor:
    """The largest magnitude that still counts as small: one of the weights' own, hence the same on any device."""
    values = center.reshape(-1)
    values = values[:: max(1, math.ceil(values.numel() / _SAMPLE))].abs().to(noise_dtype(center))
    small = max(1, values.numel() - round(sparsity * values.numel()))
    if not values.numel():
        return values.new_zeros(())
    if values.device.type == "cpu":
        return values.kthvalue(small).values
    return values.sort().values[small - 1].clone()  # on a GPU `kthvalue` is not among the deterministic algorithms
