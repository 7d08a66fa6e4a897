"""LOZO: MeZO in a random subspace of low rank that stays for a while.

Chen et al., "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank Structures", 2024,
https://arxiv.org/abs/2410.07698: ``c = (L(theta + eps U V^T) - L(theta - eps U V^T)) / (2 eps)`` and
``theta <- theta - eta c U V^T / r``, with a U for each step and a V for every nu steps; nu is ``basis_reuse``. Vectors
have dense noise. LOZO-M is ``momentum=0.9``: ``N <- beta N + (1 - beta) c U`` and a step along ``N V^T / r``.

The numbers are those of the authors' example for OPT-13B (https://github.com/optsuite/LOZO).

Departures. Noise has variance 1 here, so sigma is sqrt(r) eps; the estimate is then the paper's. The authors' code
leaves out the 1 / r, so its learning rate is a learning rate here divided by r. More than one pair of members may be
averaged (``population``), and then each has a V of its own. LOZO-M's N starts from zero with a new V, where the paper
projects the old one onto it: two random subspaces have almost nothing of N in common. Members are restored from a copy,
where the released code adds and subtracts the noise, which rounds.
"""

from lightning_evo.algorithms.recipe import Recipe

LOZO = Recipe(
    name="lozo",
    summary="MeZO with noise of low rank, one factor of which stays for 50 steps; momentum without memory.",
    paper="Chen et al. 2024, arXiv:2410.07698",
    defaults={
        "population": 2,
        "sigma": 1e-3,
        "learning_rate": 1e-7,
        "antithetic": True,
        "shaping": "raw",
        "scaling": "sigma",
        "rank": 2,
        "basis_reuse": 50,
    },
)
