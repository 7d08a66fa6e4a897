"""Names that people try lead to the right one."""

import pytest

from lightning_evo import algorithms
from lightning_evo.utils import synonyms
from lightning_evo.utils.messages import did_you_mean
from lightning_evo.utils.synonyms import meant

OPTIONS = [
    *algorithms.get("openai_es").options, "evolve", "update", "evaluation", "members_per_forward", "seed", "journal",
    "member_timeout", "minimum_evaluated",
]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("lr", "learning_rate"), ("alpha", "learning_rate"), ("step_size", "learning_rate"), ("LR", "learning_rate"),
        ("std", "sigma"), ("stddev", "sigma"), ("noise_std", "sigma"), ("sigma_init", "sigma"), ("eps", "sigma"),
        ("zo_eps", "sigma"), ("epsilon", "sigma"),
        ("popsize", "population"), ("pop_size", "population"), ("n_pop", "population"), ("npop", "population"),
        ("num_members", "population"), ("population_size", "population"), ("lambda_", "population"),
        ("num_perturbations", "population"),
        ("noise_type", "noise"), ("distribution", "noise"),
        ("fitness_shaping", "shaping"), ("ranking_method", "shaping"), ("utilities", "shaping"),
        ("mirrored_sampling", "antithetic"), ("elites", "top_k"), ("weightdecay", "weight_decay"),
        ("l2coeff", "weight_decay"), ("wd", "weight_decay"), ("batch_size", "samples_per_generation"),
        ("lora_rank", "rank"), ("rnak", "rank"), ("random_seed", "seed"), ("trainable", "evolve"),
        ("optimizer", "update"), ("in_place", "update"), ("vmap", "evaluation"), ("evaluate", "evaluation"),
        ("chunk_size", "members_per_forward"), ("timeout", "member_timeout"), ("popluation", "population"),
        ("learningRate", "learning_rate"), ("members-per-forward", "members_per_forward"), ("beta1", "momentum"),
    ],
)  # fmt: skip
def test_options(word, ours):
    assert did_you_mean(word, OPTIONS) == f" Did you mean {ours!r}?"


@pytest.mark.parametrize(
    ("word", "choices", "ours"),
    [
        ("normal", ["gaussian", "rademacher", "uniform"], "gaussian"),
        ("sign", ["gaussian", "rademacher", "uniform"], "rademacher"),
        ("rank", ["z_score", "centered_ranks", "linear_ranks", "raw", "top_k"], "centered_ranks"),
        ("Z-score", ["z_score", "centered_ranks", "raw"], "z_score"),
        ("standardize", ["z_score", "centered_ranks", "raw"], "z_score"),
        ("identity", ["z_score", "centered_ranks", "raw"], "raw"),
        ("elite", ["z_score", "raw", "top_k"], "top_k"),
        ("adam", ["optimizer", "in_place"], "optimizer"),
        ("in-place", ["optimizer", "in_place"], "in_place"),
        ("vectorized", ["auto", "plain", "in_forward", "batched", "rows"], "batched"),
        ("sequential", ["auto", "plain", "in_forward", "batched", "rows"], "plain"),
        ("repeated", ["auto", "plain", "in_forward", "batched", "rows"], "rows"),
        ("relative", ["none", "rms"], "rms"),
        ("cos", ["linear", "cosine", "exponential"], "cosine"),
        ("openai-es", algorithms.available(), "openai_es"),
        ("spsa", algorithms.available(), "mezo"),
        ("CMA-ES", algorithms.available(), "cma_es"),
    ],
)
def test_values(word, choices, ours):
    assert did_you_mean(word, choices) == f" Did you mean {ours!r}?"


@pytest.mark.parametrize("word", ["foo", "xyz", "temperature", "epochs", "hidden_size", "", "???", "depth", "betas"])
def test_unrelated_words_lead_nowhere(word):
    assert did_you_mean(word, OPTIONS) == ""


def test_a_word_leads_only_to_what_there_is():
    assert meant("lr", ["sigma", "population"]) is None
    assert meant("rank", ["population"]) is None


def test_no_word_of_ours_is_anothers_within_the_same_list():
    """An option's own name is never explained as another one."""
    for option in OPTIONS:
        assert meant(option, OPTIONS) == option
    written = [word for words in synonyms._WORDS.values() for word in words.split()]
    assert all(word == word.lower() and word.isalnum() for word in written)
