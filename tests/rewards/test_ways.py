"""Members that write learn the same in every way of evaluating, and they learn."""

import pytest
import torch

from lightning_evo.rewards import PromptData
from tests.rewards.fitting import fit, flat, module, strategy
from tests.rewards.models import gpt2, llama
from tests.strategies.models import trainer

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated")  # of peft


@pytest.mark.parametrize(("model", "temperature"), [(llama, 0.0), (gpt2, 1.0)])
def test_every_way_gives_the_same_weights(model, temperature):
    start, found = flat(module(model=model)), {}
    for evaluation in ("plain", "in_forward", "rows"):
        made = module(model=model, temperature=temperature)
        run = fit(made, evaluation).strategy.evolution.evaluation.summary
        assert run == f"evaluation: {evaluation}" + (", 8 members per forward" if evaluation == "rows" else "")
        found[evaluation] = flat(made)
    assert (found["plain"] - start).norm() > 0.1
    for each in found.values():
        torch.testing.assert_close(each, found["plain"], rtol=1e-4, atol=1e-5)


def test_sampling_does_not_depend_on_groups():
    expected, made = module(temperature=1.5), module(temperature=1.5)
    fit(expected, "plain")
    fit(made, "rows", members_per_forward=2)
    torch.testing.assert_close(flat(made), flat(expected), rtol=1e-4, atol=1e-5)


def test_auto_takes_rows():
    """So it does with the model of docs/rewards.md, a Llama."""
    made = fit(module(model=gpt2), steps=1)
    assert made.strategy.evolution.evaluation.summary.startswith("evaluation: rows, 8 members per forward")


def lora():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    return peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def test_of_peft_only_adapters_evolve():
    found = []
    for evaluation in ("plain", "rows"):
        made = module(model=lora)
        before = {name: parameter.clone() for name, parameter in made.named_parameters()}
        t = fit(made, evaluation, sigma=0.5)
        assert t.strategy.evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
        moved = {name for name, parameter in made.named_parameters() if not torch.equal(parameter, before[name])}
        assert moved == {name for name in before if "lora_" in name}
        found.append(flat(made))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_bfloat16():
    found = []
    for evaluation in ("in_forward", "rows"):
        made = module()
        t = fit(made, evaluation, run={"precision": "bf16-true"})
        assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
        assert t.strategy.evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
        found.append(flat(made) - flat(module().bfloat16()))
    assert found[0].norm() > 0.1
    # Texts of two members in a hundred go another way where two tokens are equally likely to eight bits.
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.5


@pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness")
@pytest.mark.parametrize("temperature", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_it_learns_to_write_vowels(temperature):
    """Held-out prompts; a random text of these letters has 0.12 vowels; 16 generations of 32 members."""
    rows = [{"prompt": f"{a}{b}{c}"} for a in "bcdf" for b in "xyz" for c in "123"]
    made = module(temperature=temperature)
    t = trainer(strategy(population=32, sigma=0.1, learning_rate=0.5), max_steps=16)
    data = PromptData(rows, batch_size=8, validation=12)
    (before,) = t.validate(made, data, verbose=False)
    torch.manual_seed(1)  # the order of rows
    t.fit(made, data)
    (after,) = t.validate(made, data, verbose=False)
    assert before["val/reward"] < 0.3
    assert after["val/reward"] > before["val/reward"] + 0.3
