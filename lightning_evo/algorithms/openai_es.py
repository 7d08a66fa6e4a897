"""OpenAI-ES: antithetic Gaussian perturbations, centered ranks, and any first-order optimizer on the estimate.

Salimans, Ho, Chen, Sidor and Sutskever, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning",
2017, https://arxiv.org/abs/1703.03864: Algorithm 1 (the estimate), section 2.1 (mirrored sampling, rank shaping).

One departure: the estimate has the paper's direction but the length of the gradient (``scaling="gradient"``; the
paper's own is ``"sigma"``). The paper steps with Adam, to which length means nothing; here any optimizer may step, with
a learning rate that was chosen for gradients. Weight decay is an option (default 0; the paper's code uses 0.005).
"""

from lightning_evo.algorithms.recipe import Recipe

OPENAI_ES = Recipe(
    name="openai_es",
    summary="Antithetic pairs, centered ranks, your optimizer: the robust default.",
    paper="Salimans et al. 2017, arXiv:1703.03864",
    defaults={
        "population": 64,
        "sigma": 0.02,
        "learning_rate": 0.01,
        "antithetic": True,
        "shaping": "centered_ranks",
        "scaling": "gradient",
    },
)
