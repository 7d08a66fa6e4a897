"""FZOO: fine-tuning by random signs, with steps that the spread of the losses adapts.

Dang et al., "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards Adam-Scale Speed", 2025,
https://arxiv.org/abs/2506.09034: ``theta <- theta - eta / (N std(L)) sum_i (L_i - L_0) u_i`` with
``L_i = L(theta + eps u_i)``, every u_i a vector of random signs. Steps are short where the loss is steep.

The numbers are those of the authors' example for OPT-13B (https://github.com/DKmiyan/FZOO).

Departures. The baseline is the members' mean loss, not the center's, L_0. That saves a forward pass and leaves less
variance, as it also takes off what the curvature adds to every L_i; in expectation it makes the sum (N - 1) / N as
long, since the mean holds L_i itself. std is the population's, as in the authors' code (the paper divides by N - 1). As
in that code, the estimate's 1 / eps is folded into eta; ``scaling="sigma"`` puts it back. It also takes losses of the
step before into account, to save evaluations; here every loss is used once.
"""

from lightning_evo.algorithms.recipe import Recipe

FZOO = Recipe(
    name="fzoo",
    summary="One-sided random signs, each step divided by the deviation of the losses.",
    paper="Dang et al. 2025, arXiv:2506.09034",
    defaults={
        "population": 8,
        "sigma": 1e-4,
        "learning_rate": 5e-5,
        "antithetic": False,
        "shaping": "z_score",
        "scaling": "none",
        "noise": "rademacher",
    },
)
