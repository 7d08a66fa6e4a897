"""OpenAI-ES: antithetic Gaussian perturbations, centered ranks, and any first-order optimizer on the estimate.

Salimans, Ho, Chen, Sidor and Sutskever, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning",
2017, https://arxiv.org/abs/1703.03864: Algorithm 1 (the estimate), section 2.1 (mirrored sampling, rank shaping).

The paper steps with Adam; here the user's optimizer does. Its weight decay is an option (default 0, paper 0.005 times
the parameters, taken off the estimate).
"""

from lightning_evo.algorithms.evolution_strategy import Recipe

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
        "scale_by_sigma": True,
    },
)
