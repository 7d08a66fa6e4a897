"""Scaled perturbations: each tensor is perturbed in proportion to its own weights.

One sigma for all tensors is a large step for those of small weights and a small one for the others. In units of each
tensor's root mean square it is the same for all, as the relative step size of Adafactor is (Shazeer and Stern, 2018,
https://arxiv.org/abs/1804.04235, section 8), from which the floor comes, too: a tensor of zeros must be able to move.

The estimate is in the same units: it is of the gradient with respect to the weights divided by their root mean square,
and the step that follows from it is as much larger in a tensor of large weights as the perturbation was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_evo.perturbations._base import Perturbation, Target, check_whole, noise_dtype

__all__ = ["Scaled"]

_FLOOR = 1e-3  # Adafactor's epsilon_2


class Scaled(Perturbation):
    """Another perturbation's noise times ``max(1e-3, RMS)``, the root mean square of the tensor's weights.

    It is taken by :meth:`look_at`, or from ``center`` at first use, which must be whole then; and kept as a number. It
    is a float32 sum (float64 for float64), so between devices its last bits may differ.

    Args:
        inner: Its noise is scaled.

    Example:
        >>> from lightning_evo.noise.values import NoiseKey
        >>> from lightning_evo.perturbations.dense import Dense
        >>> dense = Dense(NoiseKey(seed=0, generation=0))
        >>> weight = torch.tensor([3.0, -4.0, 0.0, 0.0])  # of root mean square 2.5
        >>> noise = Scaled(dense).noise([0], parameter=0, center=weight)
        >>> torch.equal(noise, dense.noise([0], parameter=0, center=weight) * 2.5)
        True
    """

    def __init__(self, inner: Perturbation) -> None:
        self.inner = inner
        self._scales: dict[int, float] = {}

    def look_at(self, centers: Mapping[int, Tensor]) -> None:  # noqa: D102
        new = {parameter: center for parameter, center in centers.items() if parameter not in self._scales}
        norms = [torch.linalg.vector_norm(center.detach(), dtype=noise_dtype(center)) for center in new.values()]
        if not norms:
            return
        for norm, (parameter, center) in zip(
            torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms]).tolist(), new.items(), strict=True
        ):
            check_whole(self, center)
            self._scales[parameter] = max(_FLOOR, norm / math.sqrt(max(1, center.numel())))

    def noise_of_range(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        scale = self._scale(parameter, center)
        return self.inner.noise_of_range(directions, parameter, center, start, stop) * scale

    def write_members(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], targets: Sequence[Target]
    ) -> None:
        for target in targets:
            self.inner.write_members(directions, self._scaled(steps, target.parameter, target.center), [target])

    def chosen_rows(  # noqa: D102
        self, directions: Sequence[int], steps: Sequence[float], parameter: int, center: Tensor, chosen: Tensor
    ) -> Tensor:
        return self.inner.chosen_rows(directions, self._scaled(steps, parameter, center), parameter, center, chosen)

    def factors(  # noqa: D102
        self, directions: Sequence[int], parameter: int, center: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        factors = self.inner.factors(directions, parameter, center)
        return None if factors is None else (factors[0] * self._scale(parameter, center), factors[1])

    def weighted_sum(  # noqa: D102
        self, weights: Sequence[float], parameter: int, center: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        scale = self._scale(parameter, center)
        return self.inner.weighted_sum(weights, parameter, center, start, stop) * scale

    def _scaled(self, steps: Sequence[float], parameter: int, center: Tensor) -> list[float]:
        scale = self._scale(parameter, center)
        return [step * scale for step in steps]

    def _scale(self, parameter: int, center: Tensor) -> float:
        if parameter not in self._scales:
            self.look_at({parameter: center})
        return self._scales[parameter]
