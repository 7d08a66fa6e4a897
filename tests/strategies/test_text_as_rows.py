"""A language model, batches of text, a tokenizer in ``fitness_step`` and a reward in Python, as rows of one batch."""

import warnings

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy, Fitness
from tests.evaluation.row_models import gpt2, llama
from tests.strategies.models import trainer as quiet_trainer
from tests.strategies.test_ddp import flat

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

LETTERS = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789 "]
PROMPTS = [("abc", "d"), ("xy", "a"), ("hello", "e"), ("a", "b")]


@pytest.fixture(scope="module")
def tokenizer():
    by_letter = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="<pad>")
    )
    by_letter.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    by_letter.decoder = tokenizers.decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=by_letter, padding_side="left", **special)


class Rewarded(L.LightningModule):
    def __init__(self, tokenizer, model=llama, turns=1, length=None):
        super().__init__()
        self.model, self.turns, self.length = model(), turns, length
        self.tokenizer = tokenizer

    def written(self, prompts):
        padding = {"padding": True} if self.length is None else {"padding": "max_length", "max_length": self.length}
        inputs = self.tokenizer(prompts, return_tensors="pt", return_token_type_ids=False, **padding)
        tokens = self.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        return self.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def fitness_step(self, batch, batch_idx):
        texts = batch["prompt"]
        for _ in range(self.turns):
            texts = self.written(texts)
            texts = [text or "a" for text in texts]
        pairs = zip(texts, batch["answer"], strict=True)
        rewards = [text.count(answer) - 0.1 * len(set(text)) for text, answer in pairs]
        return Fitness(rewards, tie_breaker=[ord(text[0]) for text in texts])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(module, evaluation, batch=4, **options):
    strategy = {"population": 8, "sigma": 0.1, "rank": 1, "seed": 0, "evaluation": evaluation, **options}
    t = quiet_trainer(EvoStrategy("eggroll", **strategy), max_steps=2)
    data = [{"prompt": prompt, "answer": answer} for prompt, answer in PROMPTS] * 3
    start = flat(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        t.fit(module, DataLoader(data, batch))
    assert (flat(module) - start).norm() > 1e-3
    said = [str(each.message) for each in caught if "evaluation" in str(each.message)]
    return flat(module), t.strategy.evolution.evaluation.summary, said


@pytest.mark.parametrize(
    ("model", "batch", "length"),
    [(llama, 4, None), (gpt2, 4, None), (llama, 1, None), (llama, 5, None), (llama, 2, 16), (llama, 1, 8)],
)
def test_batches_of_text(tokenizer, model, batch, length):
    """Prompts of uneven lengths, padded on the left, also to as many tokens as there are rows."""
    expected, _, _ = fit(Rewarded(tokenizer, model, length=length), "plain", batch)
    found, summary, said = fit(Rewarded(tokenizer, model, length=length), "rows", batch)
    assert summary == "evaluation: rows, 8 members per forward"
    assert not said
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("evolve", [r"norm|\bln_", r"norm\.weight|ln_f\.weight"])
def test_only_norms_evolve(tokenizer, model, evolve):
    """The first parameter that members differ in is given tokens' embeddings, of which no one knows whose they are."""
    expected, _, _ = fit(Rewarded(tokenizer, model), "plain", evolve=evolve)
    found, summary, said = fit(Rewarded(tokenizer, model), "rows", evolve=evolve)
    assert summary == "evaluation: rows, 8 members per forward"
    assert not said
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_auto_writes_with_all_members_at_once(tokenizer):
    _, summary, said = fit(Rewarded(tokenizer), "auto")
    assert summary.startswith("evaluation: rows, 8 members per forward; batched is not possible: ")
    assert not said


def test_one_reward_for_all_prompts(tokenizer):
    class OneReward(Rewarded):
        def fitness_step(self, batch, batch_idx):
            rewards = super().fitness_step(batch, batch_idx).values
            return sum(rewards) / len(rewards)

    _, summary, said = fit(OneReward(tokenizer), "auto")
    assert not summary.startswith("evaluation: rows")
    assert "rows is not possible: the fitness is one number for the whole batch: return one value per" in summary
    assert not said


@pytest.mark.slow
def test_several_turns(tokenizer):
    """What members wrote is read again, as tokens of which no one knows whose they are."""
    expected, _, _ = fit(Rewarded(tokenizer, turns=2), "plain")
    found, summary, said = fit(Rewarded(tokenizer, turns=2), "rows")
    assert "is given a tensor of 8 rows that does not come from the batch" in summary
    assert len(said) == 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
