"""EA4LLM: full-parameter evolution of language models, from pretraining on.

Liu, Song, Hao and Zhou, "EA4LLM", 2025, https://arxiv.org/abs/2510.10603. Each generation draws M samples, the same
for all members (Eq. 10 and 11), evaluates ``theta + sigma eps_j`` for N independent noises, turns fitness into z-scores
and steps ``theta <- theta + alpha / N sum_j w_j eps_j``. There is no antithetic sampling, no 1/sigma and no optimizer
in the paper's runs; ``shaping="linear_ranks"``, ``antithetic=True`` and ``scaling="sigma"`` are its options.

The paper's fitness is the mean token log-probability under the pad mask:
:func:`lightning_evo.evaluation.fitness.token_log_probability`. To step as the paper does use ``update="in_place"`` (or
plain SGD). For M samples in micro-batches of 16, use ``DataLoader(batch_size=16)`` and
``Trainer(accumulate_grad_batches=313)``: all batches of one accumulation window are seen by the same population.
"""

from lightning_evo.algorithms.recipe import Recipe

EA4LLM = Recipe(
    name="ea4llm",
    summary="Language models from scratch: z-scores, N=30, one random subset per generation.",
    paper="Liu et al. 2025, arXiv:2510.10603",
    defaults={
        "population": 30,
        "sigma": 1e-3,
        "learning_rate": 5e-4,
        "antithetic": False,
        "shaping": "z_score",
        "scaling": "none",
        "samples_per_generation": 5000,
    },
)
