"""ES at Scale: fine-tuning language models on rewards.

Qiu et al., "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning", 2025,
https://arxiv.org/abs/2509.24372: ``theta <- theta + alpha / N sum_n Z_n eps_n`` with z-scored rewards Z and 1/sigma
folded into alpha; no antithetic sampling, rank shaping, weight decay or Adam (section 3.2).

Two departures, both repairs: noise is independent for every tensor (the released code uses one seed for all), and
members are restored from a copy, bit for bit, where the released code subtracts the noise again.
"""

from lightning_evo.algorithms.recipe import Recipe

ES_AT_SCALE = Recipe(
    name="es_at_scale",
    summary="Fine-tuning on rewards: z-scores, N=30, no optimizer state.",
    paper="Qiu et al. 2025, arXiv:2509.24372",
    defaults={
        "population": 30,
        "sigma": 1e-3,
        "learning_rate": 5e-4,
        "antithetic": False,
        "shaping": "z_score",
        "scaling": "none",
    },
)
