"""How noise is laid over a tensor. One kind of perturbation per file; :func:`compose` puts them together."""

from __future__ import annotations

from typing import Literal

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import Distribution
from lightning_evo.perturbations._base import Moving, Part, Perturbation, noise_dtype
from lightning_evo.perturbations.dense import Dense
from lightning_evo.perturbations.low_rank import LowRank
from lightning_evo.perturbations.padding import WithoutRows, without_padding
from lightning_evo.perturbations.scaled import Scaled
from lightning_evo.perturbations.sparse import Sparse
from lightning_evo.perturbations.vectors import Vectors

__all__ = [
    "Dense",
    "LowRank",
    "Moving",
    "Part",
    "Perturbation",
    "Scaled",
    "SigmaScale",
    "Sparse",
    "Vectors",
    "WithoutRows",
    "compose",
    "noise_dtype",
    "without_padding",
]

SigmaScale = Literal["none", "rms"]
"""Whether sigma is a number for all tensors, or in units of each tensor's root mean square."""


def compose(
    key: NoiseKey,
    distribution: Distribution = "gaussian",
    *,
    rank: int | None = None,
    basis_key: NoiseKey | None = None,
    sparsity: float | None = None,
    sigma_scale: SigmaScale = "none",
) -> Perturbation:
    """The perturbation that these options describe.

    Args:
        key: Seed and generation.
        distribution: Of the random numbers.
        rank: For :class:`LowRank` noise; ``None`` for :class:`Dense`.
        basis_key: With ``rank``: seed and generation of the factor B; ``None`` for ``key``.
        sparsity: For :class:`Sparse` noise; ``None`` perturbs all elements.
        sigma_scale: ``"rms"`` for :class:`Scaled` noise.

    Raises:
        ValueError: If an option is out of range, or ``rank`` and ``sparsity`` are both given: a masked product is not
            of low rank.

    Example:
        >>> perturbation = compose(NoiseKey(seed=0, generation=0), sparsity=0.75, sigma_scale="rms")
        >>> type(perturbation).__name__, type(perturbation.inner).__name__, type(perturbation.inner.inner).__name__
        ('Scaled', 'Sparse', 'Dense')
    """
    if rank is not None and sparsity is not None:
        raise ValueError("rank and sparsity don't go together: a masked matrix is not of low rank. Leave one out.")
    perturbation: Perturbation
    if rank is None:
        perturbation = Dense(key, distribution)
    else:
        perturbation = LowRank(key, rank, basis_key, distribution)
    if sparsity is not None:
        perturbation = Sparse(perturbation, sparsity)
    return Scaled(perturbation) if sigma_scale == "rms" else perturbation
