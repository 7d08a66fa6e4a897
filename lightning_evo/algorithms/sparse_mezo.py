"""Sparse-MeZO: MeZO on the small weights only.

Liu et al., "Sparse MeZO: Less Parameters for Better Performance in Zeroth-Order LLM Fine-Tuning", 2024,
https://arxiv.org/abs/2402.15751: MeZO with ``m z`` for z, where ``m_i = 1`` if ``|theta_i| <= h`` and else 0, since the
error of the estimate does more harm in large weights than in small ones.

A sparsity of 0.8 is what was best in most of the paper's tasks, among values from 0 to 0.8. Sigma and the learning rate
are MeZO's.

Departure: the threshold h of each tensor is its quantile in every step, where the paper fixes it before training; see
:mod:`lightning_evo.perturbations.sparse`.
"""

from lightning_evo.algorithms.recipe import Recipe

SPARSE_MEZO = Recipe(
    name="sparse_mezo",
    summary="MeZO that perturbs and moves only the smallest fifth of each tensor's weights.",
    paper="Liu et al. 2024, arXiv:2402.15751",
    defaults={
        "population": 2,
        "sigma": 1e-3,
        "learning_rate": 1e-6,
        "antithetic": True,
        "shaping": "raw",
        "scaling": "sigma",
        "sparsity": 0.8,
    },
)
