"""MeZO: fine-tuning with two forward passes and the memory of inference.

Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023, https://arxiv.org/abs/2305.17333:
``g = (L(theta + eps z) - L(theta - eps z)) / (2 eps) z`` (Definition 1, SPSA) and ``theta <- theta - eta g``. More
pairs (n-SPSA) are averaged: ``population`` is twice their number.

Members are restored from a copy, where the released code adds and subtracts the noise, which in bfloat16 changes 44 %
of the weights in each step.
"""

from lightning_evo.algorithms.recipe import Recipe

MEZO = Recipe(
    name="mezo",
    summary="Two-point SPSA: one antithetic pair per step, raw loss difference.",
    paper="Malladi et al. 2023, arXiv:2305.17333",
    defaults={
        "population": 2,
        "sigma": 1e-3,
        "learning_rate": 1e-6,
        "antithetic": True,
        "shaping": "raw",
        "scaling": "sigma",
    },
)
