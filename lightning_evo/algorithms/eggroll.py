"""EGGROLL: evolution of large models with noise of low rank.

Sarkar et al., "Evolution Strategies at the Hyperscale", 2025, https://arxiv.org/abs/2511.16652:
``M <- M + alpha / N sum_i f_i E_i`` with ``E_i = A_i B_i^T / sqrt(r)``, in antithetic pairs, f being standardised
scores. A single noise has rank r, the sum of N of them up to N r.

Rank 1 and sigma are those of the authors' code (https://github.com/ESHyperscale/HyperscaleES); population and learning
rate those of the code for transformers (https://github.com/AnqiQu/eggroll-vllm). The former steps with
``learning_rate sigma sqrt(N)`` in place of alpha.

Departures. f divides by the deviation of the members' mean scores, where the paper divides by that of all single ones:
members are compared by one number here. (The paper's baseline of each prompt is the same thing as ours, since all
members see the same prompts.) Vectors and scalars learn, too, by dense noise, where the authors' scripts for language
models leave them out: ``evolve`` does that.
"""

from lightning_evo.algorithms.recipe import Recipe

EGGROLL = Recipe(
    name="eggroll",
    summary="Large populations for large models: rank-1 noise, antithetic pairs, z-scores.",
    paper="Sarkar et al. 2025, arXiv:2511.16652",
    defaults={
        "population": 128,
        "sigma": 1e-3,
        "learning_rate": 1e-3,
        "antithetic": True,
        "shaping": "z_score",
        "scaling": "none",
        "rank": 1,
    },
)
