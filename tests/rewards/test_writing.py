"""How a model writes: where texts end, from which distribution tokens are sampled, and which settings are refused."""

import warnings

import pytest
import torch

from lightning_evo.rewards import PromptData, RewardModule
from tests.rewards.fitting import LENGTH, USER, fit, module, strategy, written
from tests.rewards.models import LETTERS, ROWS, gpt2, llama, tokenizer, vowels
from tests.strategies.models import trainer

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


class Scripted(torch.nn.Module):
    """A model that writes given tokens."""

    def __init__(self, tokens):
        super().__init__()
        from transformers import GenerationConfig

        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
        self.tokens = tokens

    def generate(self, input_ids, attention_mask, generation_config, logits_processor, **arguments):
        new = torch.tensor(self.tokens)
        return torch.cat([input_ids, new.repeat(len(input_ids) // len(new), 1)], 1)


@pytest.mark.parametrize(
    ("tokens", "ids", "text", "truncated"),
    [
        ([10, 11, 2, 0, 0, 0], [10, 11, 2], "fg", False),  # TRL keeps the end of the sequence
        ([10, 11, 12, 13, 14, 15], [10, 11, 12, 13, 14, 15], "fghijk", True),
        ([10, 11, 12, 13, 14, 2], [10, 11, 12, 13, 14, 2], "fghij", False),
        ([2, 2, 0, 0, 0, 0], [2], "", False),
        ([10, 0, 11, 2, 0, 0], [10, 0, 11, 2], "fg", False),  # padding that the model writes itself
        ([10, 11], [10, 11], "fg", False),  # something else has ended all texts
        ([10, 11, 0], [10, 11], "fg", False),
    ],
)
def test_completions_are_cut_where_they_end(tokens, ids, text, truncated):
    found = written(RewardModule(Scripted([tokens]), tokenizer(), vowels, max_completion_length=6), ["hi"])
    assert (found.token_ids, found.texts, found.truncated) == ([ids], [text], [truncated])


def test_the_end_of_the_sequence_may_be_the_padding_too():
    names = tokenizer()
    names.pad_token = "</s>"
    found = written(RewardModule(Scripted([[10, 2, 2, 2, 2, 2]]), names, vowels, max_completion_length=6), ["hi"])
    assert (found.token_ids, found.truncated) == ([[10, 2]], [False])


def test_several_ends():
    made = RewardModule(Scripted([[10, 7, 0, 0, 0, 0]]), tokenizer(), vowels, max_completion_length=6)
    made.model.generation_config.eos_token_id = [7, 2]
    made = RewardModule(made.model, tokenizer(), vowels, max_completion_length=6)
    assert written(made, ["hi"]).token_ids == [[10, 7]]
    assert made.writer.config.eos_token_id == [7, 2]
    only = RewardModule(made.model, tokenizer(), vowels, generation_kwargs={"eos_token_id": 9})
    assert only.writer.config.eos_token_id == [9]


def test_dropout_is_off_while_it_writes_and_modes_stay():
    made = module(model=lambda: gpt2(resid_pdrop=0.5).train())
    made.model.transformer.h[0].attn.eval()
    modes = {name: part.training for name, part in made.named_modules()}
    assert made.generate(["abc"] * 3) == made.generate(["abc"] * 3)
    assert len(set(made.generate(["abc"] * 3))) == 1
    assert {name: part.training for name, part in made.named_modules()} == modes


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_is_that_of_transformers_and_repeats(temperature):
    made = module(temperature=temperature)
    prompts = ["hello ", [USER], "b"]
    texts = made.generate(prompts)
    assert texts == made.generate(prompts) == [made.generate([prompt])[0] for prompt in prompts]
    assert made.generate([]) == []
    if not temperature:
        ids = tokenizer()("hello ", return_tensors="pt", return_token_type_ids=False)
        expected = made.model.generate(**ids, max_new_tokens=LENGTH, do_sample=False)[0, 6:]
        assert texts[0] == tokenizer().decode(expected, skip_special_tokens=True)
    for wrong in ("hello", [USER]):
        with pytest.raises(TypeError, match="generate takes a list of prompts, got one"):
            made.generate(wrong)
    with pytest.raises(TypeError, match="The prompt of number 1 is 3"):
        made.generate(["a", 3])


@pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness")
def test_other_texts_in_another_generation_the_same_in_validation():
    texts = {"train": [], "val": []}

    class Noting(RewardModule):
        def _log_rewards(self, stage, rows, key):
            own = self._write([row["prompt"] for row in ROWS], key, 1).texts
            texts[stage].append(own)
            return super()._log_rewards(stage, rows, key)

    made = module(temperature=2.0, kind=Noting)
    t = trainer(strategy(learning_rate=1e-12, sigma=1e-9), max_steps=3, check_val_every_n_epoch=1)
    t.fit(made, datamodule=PromptData(ROWS, batch_size=4, validation=ROWS))
    assert len({str(each) for each in texts["train"]}) == 3
    assert len({str(each) for each in texts["val"]}) == 1


def test_samples_are_of_the_models_distribution():
    """4,000 copies of a prompt, the first token, at a temperature; chi-square over tokens, p > 0.001."""
    from scipy import stats

    made = module(temperature=0.7, max_completion_length=1)
    found = [ids[0] for ids in written(made, ["hello "] * 4000).token_ids]
    ids = tokenizer()("hello ", return_tensors="pt", return_token_type_ids=False)
    probabilities = (made.model(**ids).logits[0, -1].detach().double() / 0.7).softmax(0)
    counts = torch.bincount(torch.tensor(found), minlength=len(probabilities)).double()
    likely = probabilities * 4000 > 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    expected = torch.cat([probabilities[likely], probabilities[~likely].sum()[None]]) * 4000
    statistic = float(((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum())
    assert stats.chi2.sf(statistic, int(likely.sum())) > 1e-3


@pytest.mark.parametrize("limit", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5}])
def test_what_is_ruled_out_is_never_written(limit):
    from transformers.generation import logits_process

    made = module(temperature=1.5, max_completion_length=1, generation_kwargs=limit)
    ids = tokenizer()("hello ", return_tensors="pt", return_token_type_ids=False)
    scores = made.model(**ids).logits[:, -1].detach() / 1.5
    ((name, value),) = limit.items()
    kind = {"top_k": "TopKLogitsWarper", "top_p": "TopPLogitsWarper", "min_p": "MinPLogitsWarper"}[name]
    allowed = getattr(logits_process, kind)(value)(ids["input_ids"], scores)[0].isfinite()
    found = {token[0] for token in written(made, ["hello "] * 500).token_ids}
    assert found == set(allowed.nonzero().flatten().tolist())
    assert 1 < len(found) < len(LETTERS)


def test_other_processors_and_criteria_work():
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Two(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.ones(len(input_ids), dtype=torch.bool) * (input_ids.shape[1] >= 8)

    settings = {"suppress_tokens": [0] + [LETTERS.index(letter) for letter in "abcdefghijklm"], "min_new_tokens": 2}
    made = module(temperature=3.0, generation_kwargs={**settings, "stopping_criteria": StoppingCriteriaList([Two()])})
    found = written(made, ["hello "] * 50)
    assert not set("".join(found.texts)) & set("abcdefghijklm")
    assert {len(ids) for ids in found.token_ids} == {2}
    assert not any(found.truncated)

    made = module(
        generation_kwargs={"logits_processor": [lambda ids, scores: scores.index_fill(1, torch.tensor([9]), 99.0)]}
    )
    assert made.generate(["ab"]) == ["e" * LENGTH]


def test_the_models_own_sampling_does_not_count():
    plain, sampling = module(), llama()
    for name, value in {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.3, "max_length": 9}.items():
        setattr(sampling.generation_config, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = RewardModule(sampling, tokenizer(), vowels, max_completion_length=LENGTH)
        assert made.generate(["hello ", "ab"]) == plain.generate(["hello ", "ab"])
    assert sampling.generation_config.do_sample  # it stays as it is
    assert sampling.generation_config.max_length == 9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"generation_kwargs": {"do_sample": True}},
            ValueError,
            "do_sample=True, which is not taken: give temperature",
        ),
        ({"generation_kwargs": {"temperature": 1}}, ValueError, "temperature=1, which is not taken: give temperature"),
        ({"generation_kwargs": {"max_new_tokens": 4}}, ValueError, "not taken: give max_completion_length"),
        ({"generation_kwargs": {"num_return_sequences": 4}}, ValueError, "repeat prompts in the data"),
        ({"generation_kwargs": {"typical_p": 0.5}}, ValueError, "use top_k, top_p or min_p"),
        ({"generation_kwargs": {"top_p": 0.5}}, ValueError, "top_p=0.5, which has no effect at temperature=0"),
        (
            {"generation_kwargs": {"num_beams": 2}, "temperature": 1},
            ValueError,
            "num_beams=2 searches for likely texts",
        ),
        (
            {"generation_kwargs": {"repetition_penaltie": 2}},
            TypeError,
            "no setting of .*Did you mean 'repetition_penalty'",
        ),
        ({"generation_kwargs": {"top_k": -1}, "temperature": 1}, ValueError, "top_k.* has to be a strictly positive"),
        ({"generation_kwargs": {"top_p": 2.0}, "temperature": 1}, ValueError, "top_p.* has to be a float"),
        ({"temperature": -1}, ValueError, "temperature must be"),
        ({"max_completion_length": 0}, ValueError, "max_completion_length must be a whole number >= 1"),
        ({"model": lambda: torch.nn.Linear(2, 2)}, TypeError, "model must be a folder, a name on the hub, or a model"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        module(**options)


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": None, "top_p": None, "min_p": None}, {"top_p": 1.0}])
def test_what_is_off_rules_nothing_out(off):
    made = module(temperature=1.5, generation_kwargs=off)
    assert made.generate(["hello ", "ab"]) == module(temperature=1.5).generate(["hello ", "ab"])


@pytest.mark.parametrize("model", [gpt2, llama])
def test_a_text_that_may_become_too_long_is_refused_before_it_is_written(model):
    made = module(model=model, max_completion_length=6)
    made.generate(["b" * 59])  # 59 + 6 tokens, of which the last is not read
    message = (
        "reads at most 64 tokens; prompt number 1 has 60, and max_completion_length=6 would go on beyond that. Give "
        "max_completion_length=5 or less, or shorten the prompts"
    )
    made.model.generate = None  # it is not asked
    with pytest.raises(ValueError, match=message):
        made.generate(["b", "b" * 60])
    with pytest.raises(ValueError, match="prompt number 0 has 70, .* beyond that. Shorten the prompts"):
        made.generate(["b" * 70])


@pytest.mark.parametrize("evaluation", ["plain", "rows"])
def test_a_training_ends_where_texts_are_too_long(evaluation):
    with pytest.raises(Exception, match="Give max_completion_length=3 or less"):
        fit(module(model=gpt2), evaluation, steps=1, rows=[{"prompt": "b" * 62}], batch_size=1)


def test_scaled_positions_go_as_far_as_they_go():
    def scaled():
        return llama(rope_scaling={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})

    assert len(module(model=scaled).generate(["b" * 80])) == 1


@pytest.mark.parametrize("name", ["tokenize", "return_tensors", "padding", "add_generation_prompt"])
def test_settings_of_chat_templates_that_are_ours_are_refused(name):
    with pytest.raises(ValueError, match=f"chat_template_kwargs has {name}=True, which is not taken: "):
        module(chat_template_kwargs={"shout": 1, name: True})


def test_other_settings_reach_the_chat_template():
    quiet, loud = (written(module(chat_template_kwargs=kwargs), [[USER]]).prompts for kwargs in ({}, {"shout": 1}))
    assert (quiet, loud) == (["<user>hi <assistant>"], ["<user>hi?<assistant>"])


def test_a_model_may_have_been_put_on_a_device_before():
    """Lightning's own idea of the device is the CPU until a Trainer moves the module."""
    model = Scripted([[10, 11, 2, 0, 0, 0]])
    model.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))
    devices = []

    def generate(input_ids, attention_mask, **arguments):
        devices.extend([input_ids.device.type, attention_mask.device.type])
        return torch.tensor([[5, 6, 10, 11, 2, 0, 0, 0]])

    model.generate = generate
    made = RewardModule(model, tokenizer(), vowels, max_completion_length=6)
    assert made.device.type == "cpu"
    assert made.generate(["hi"]) == ["fg"]
    assert devices == ["meta", "meta"]
