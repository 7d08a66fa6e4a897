"""ARS: augmented random search, the best directions only.

Mania, Guy and Recht, "Simple random search provides a competitive approach to reinforcement learning", 2018,
https://arxiv.org/abs/1803.07055, Algorithm 2, versions V1-t and V2-t:
``theta <- theta + alpha / (b sigma_R) sum_{k<=b} (r_k+ - r_k-) delta_k`` over the b directions whose better member is
best; sigma_R is the standard deviation of the 2 b rewards used. (V2's normalisation of observations belongs to the
user's environment.)

The estimate divides by N members = 2 b, the paper by b: a learning rate here is twice the paper's.
"""

from lightning_evo.algorithms.recipe import Recipe

ARS = Recipe(
    name="ars",
    summary="Only the best directions count, scaled by the deviation of their rewards.",
    paper="Mania et al. 2018, arXiv:1803.07055",
    defaults={
        "population": 64,
        "sigma": 0.03,
        "learning_rate": 0.04,
        "antithetic": True,
        "shaping": "top_k",
        "top_k": 16,
        "scaling": "none",
    },
)
