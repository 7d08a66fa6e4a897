"""Adapters of language models where members are rows of one batch: rank 1, and dense noise of small factors."""

import pytest
import torch
from torch import nn

from lightning_evo import Evolution
from tests.evaluation.row_models import generated, llama, log_probability, tokens

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*generation flags"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated"),  # of peft
]
pytest.importorskip("transformers")

NOISE = {"eggroll": {"rank": 1}, "mezo": {"population": 2}, "openai_es": {}, "es_at_scale": {}}


class LoRA(nn.Module):
    """``x W^T + s (x A^T) B^T`` with a frozen W."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.lora_B = nn.Parameter(torch.randn(base.out_features, rank) / rank)

    def forward(self, x):
        return self.base(x) + 2 * nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B)


def own(model):
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.self_attn.q_proj = LoRA(layer.self_attn.q_proj)
        layer.self_attn.v_proj = LoRA(layer.self_attn.v_proj)
    return model


def of_peft(model):
    peft = pytest.importorskip("peft", reason="pip install peft")
    torch.manual_seed(1)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.normal_(0, 0.3)
    return model


def fitness_of(make, task, algorithm, evaluation, **options):
    model = make(llama()).eval()
    options = {"population": 8, "sigma": 0.1, "seed": 0, "evolve": "lora", **NOISE[algorithm], **options}
    evolution = Evolution(algorithm, evaluation=evaluation, **options)
    evolution.setup(model)
    found = []
    for _ in range(2):
        evolution.evaluate(task(model), tokens(3, 8))
        found.append(evolution.conclude().fitness)
    return torch.stack(found), evolution


@pytest.mark.parametrize("make", [own, of_peft])
@pytest.mark.parametrize(
    ("task", "algorithm"), [*((log_probability, name) for name in NOISE), (generated, "eggroll"), (generated, "mezo")]
)
def test_adapters(make, task, algorithm):
    expected, _ = fitness_of(make, task, algorithm, "plain")
    found, evolution = fitness_of(make, task, algorithm, "rows")
    members = evolution.algorithm.population
    assert evolution.evaluation.summary == f"evaluation: rows, {members} members per forward"
    assert {parameter.name.split(".")[-1] for parameter in evolution.space} <= {"lora_A", "lora_B", "weight"}
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("make", [own, of_peft])
def test_auto_generates_with_adapters_as_rows(make):
    expected, _ = fitness_of(make, generated, "eggroll", "plain")
    found, evolution = fitness_of(make, generated, "eggroll", "auto")
    assert evolution.evaluation.summary.startswith("evaluation: rows, 8 members per forward; batched is not possible")
    torch.testing.assert_close(found, expected)


def test_a_large_factor_needs_a_rank():
    """Dense noise makes a member's factor, which rows do for small ones only."""

    def make(model):
        model.lm_head = LoRA(model.lm_head, rank=2100)  # 2,100 x 32 elements
        return model

    with pytest.warns(UserWarning, match=r"lm_head\.lora_A would be made for each member, and 67,200 .*: give a rank"):
        fitness_of(make, log_probability, "openai_es", "rows", evolve="lora_A", sigma=0.001)
    _, evolution = fitness_of(make, log_probability, "eggroll", "rows", evolve="lora_A", sigma=0.001)
    assert evolution.evaluation.summary == "evaluation: rows, 8 members per forward"
