"""Members as rows of one batch give what the plain loop gives, for each sample."""

import pytest
import torch

from lightning_evo import Evolution
from tests.evaluation.models import direction
from tests.evaluation.row_models import (
    DECODERS,
    FURTHER,
    MODELS,
    Encoder,
    assert_rows_equal,
    generated,
    in_rows,
    job_of,
    log_probability,
    t5,
    tokens,
    verdict,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*generation flags")]
transformers = pytest.importorskip("transformers")


def values(model, fitness, batch, evaluation, generations=1, **options):
    """The fitness of each member, and the evolution."""
    evolution = Evolution(
        "eggroll", **{"population": 8, "sigma": 0.05, "rank": 1, "seed": 0, "evaluation": evaluation, **options}
    )
    evolution.setup(model)
    found = []
    for _ in range(generations):
        evolution.evaluate(fitness, batch)
        found.append(evolution.conclude().fitness)
    return torch.stack(found), evolution


def assert_equal_rows(model, fitness, batch, generations=2, tolerance=1e-4, **options):
    expected, _ = values(model, fitness, batch, "plain", generations, **options)
    found, evolution = values(model, fitness, batch, "rows", generations, **options)
    assert evolution.evaluation.summary.startswith("evaluation: rows, 8 members per forward"), (
        evolution.evaluation.summary
    )
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    return evolution


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("samples", "length"), [(1, 8), (3, 24), (4, 1)])
def test_log_probabilities(name, samples, length):
    """With 8 members also where there are as many rows as tokens, or a fraction of them."""
    model = MODELS[name]()
    batch = tokens(samples, max(2, length), padded=length > 2)
    assert_equal_rows(model, log_probability(model), batch)


def test_an_encoder_with_convolutions():
    model, batch = Encoder(), torch.randn(3, 3, 8, 8)
    assert_equal_rows(model, lambda x: model(x).log_softmax(1)[:, 2], batch)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("samples", [1, 3])
def test_generation(name, samples):
    model = DECODERS[name]()
    fitness = generated(model)
    assert_equal_rows(model, fitness, tokens(samples, 8), generations=1)
    assert len({tuple(text) for text in fitness.texts}) > 4


GENERATION = {
    "greedy": {},
    "static_cache": {"cache_implementation": "static"},
    "no_cache": {"use_cache": False},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9},
    "beams": {"num_beams": 2},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    "ends_early": {"max_new_tokens": 12, "eos_token_id": [2, 3, 4, 5, 6, 7]},
}


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("options", GENERATION)
@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_each_text_is_that_of_a_member_alone(name, options, samples):
    """Also where there are as many rows as tokens: 4 members with 2 prompts of 8."""
    model = DECODERS[name]()
    fitness = generated(model, **GENERATION[options])
    torch.manual_seed(1)
    expected, found = in_rows(model, fitness, tokens(samples, 8), sigma=0.05)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    texts = fitness.texts[: 4 * samples]
    assert len({tuple(text) for text in texts}) > 2 or samples == 1


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_texts_sampled_in_groups_of_any_size(name):
    model = DECODERS[name]()
    fitness = generated(model, do_sample=True)
    found = [in_rows(model, fitness, tokens(3, 7), population=8, sigma=0.05, together=size) for size in (2, 4, 8)]
    for expected, values in found:
        torch.testing.assert_close(values, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", [*MODELS, *FURTHER])
def test_each_sample(name):
    model = {**MODELS, **FURTHER}[name]()
    fitness, batch = log_probability(model), tokens(3, 12)
    assert verdict(model, fitness, batch, sigma=0.05) == ""
    assert_rows_equal(model, fitness, batch, sigma=0.05)


@pytest.mark.parametrize("name", FURTHER)
def test_further_models_generate(name):
    model = FURTHER[name]()
    expected, found = in_rows(model, generated(model), tokens(3, 8), sigma=0.05)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_that_of_a_member_alone(name):
    model = MODELS[name]().train()
    for together in (2, 8):
        assert_rows_equal(model, log_probability(model), tokens(3, 8), sigma=0.05, population=8, together=together)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-13), (torch.bfloat16, 1e-2)])
def test_dtypes(name, dtype, rounding):
    model = MODELS[name]().to(dtype)
    assert_rows_equal(model, log_probability(model), tokens(3, 8), sigma=0.05, rounding=rounding)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_autocast(name):
    model = MODELS[name]()

    def fitness(batch):
        with torch.autocast("cpu", torch.bfloat16):
            return log_probability(model)(batch)

    assert_rows_equal(model, fitness, tokens(3, 8), sigma=0.05, rounding=1e-2)


@pytest.mark.parametrize("noise", [{}, {"rank": 4, "antithetic": False}, {"sigma_scale": "rms"}])
@pytest.mark.parametrize("name", MODELS)
def test_updates_point_the_same_way(name, noise):
    model = MODELS[name]()
    fitness, batch = log_probability(model), tokens(3, 8)
    job, _ = job_of(model, fitness, batch, sigma=0.05, population=8, **noise)
    expected, found = in_rows(model, fitness, batch, sigma=0.05, population=8, **noise)
    updates = [direction(model, job.population, values.mean(1)) for values in (expected, found)]
    assert torch.cosine_similarity(*updates, dim=0) > 0.999999


def test_an_encoder_and_a_decoder_with_relative_positions():
    model, batch = t5(), tokens(3, 8)

    def fitness(batch):
        logits = model(**batch, labels=batch["input_ids"]).logits
        return logits.log_softmax(2)[:, :, 5].sum(1)

    assert verdict(model, fitness, batch, sigma=0.05) == ""
    assert_rows_equal(model, fitness, batch, sigma=0.05)

    def generate(batch):
        return model.generate(**batch, max_new_tokens=6, min_new_tokens=6).float().cumsum(1)

    expected, found = in_rows(model, generate, batch, sigma=0.05)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_experts_are_refused_by_name():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=40, num_key_value_heads=2, num_local_experts=4, **sizes))
    reason = verdict(model, log_probability(model), tokens(3, 8))
    assert "experts.gate_up_proj" in reason, reason
    assert "__getitem__ has mixed" in reason, reason


def test_a_refusal_in_training_is_a_warning_and_the_plain_loop():
    torch.manual_seed(0)
    model = torch.nn.LSTM(6, 4, batch_first=True)
    batch = torch.randn(3, 5, 6)

    def fitness(batch):
        return model(batch)[0].sum((1, 2))

    expected, _ = values(model, fitness, batch, "plain", population=4)
    with pytest.warns(UserWarning, match="rows.* not possible: lstm with weight_ih_l0"):
        found, _ = values(model, fitness, batch, "rows", population=4)
    torch.testing.assert_close(found, expected)


def test_numbers_of_all_rows_for_a_log_are_no_obstacle():
    model, batch, logged = MODELS["llama"](), tokens(2, 8), []

    def fitness(batch):
        values = log_probability(model)(batch)
        logged.append(values.mean().item())
        return values

    assert_equal_rows(model, fitness, batch)


def test_a_reward_that_counts_padding_is_refuted():
    model = MODELS["gpt2"]()
    torch.manual_seed(0)

    def fitness(batch):
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": [2, 3, 4, 5, 6, 7]}
        new = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        return (new == 0).sum(1).float()

    with pytest.warns(UserWarning, match="rows is not possible: its fitness differs .* padding after"):
        values(model, fitness, tokens(2, 8), "rows")
