"""Members as rows of one batch give what the plain loop gives, for each sample."""

import pytest
import torch

from lightning_evo import Evolution
from tests.evaluation.row_models import DECODERS, MODELS, Encoder, generated, log_probability, tokens

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
@pytest.mark.parametrize(("samples", "length"), [(1, 8), (3, 24), (3, 7), (2, 16), (4, 1)])
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
    assert_equal_rows(model, fitness, tokens(samples, 8))
    assert len({tuple(text) for text in fitness.texts}) > 8
