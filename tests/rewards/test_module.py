"""A language model learns from rewards: what functions are given, what is logged, and that all ways agree."""

import math
import warnings

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy
from lightning_evo.evaluation.sharing import for_members
from lightning_evo.rewards import PromptData, RewardModule
from tests.rewards.models import LETTERS, ROWS, gpt2, llama, tokenizer, vowels
from tests.strategies.models import trainer

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated"),  # of peft
]
TIES = pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness")
USER = {"role": "user", "content": "hi"}


def module(rewards=vowels, model=llama, **options):
    kind = options.pop("kind", RewardModule)
    return kind(model(), tokenizer(), rewards, **{"max_completion_length": 6, **options})


def strategy(evaluation="auto", **options):
    defaults = {"population": 8, "sigma": 0.1, "learning_rate": 0.3, "seed": 0, "update": "in_place"}
    return EvoStrategy("eggroll", **{**defaults, "evaluation": evaluation, **options})


def fit(made, evaluation="auto", steps=3, rows=ROWS, batch_size=4, run=None, **options):
    t = trainer(strategy(evaluation, **options), max_steps=steps, **(run or {}))
    torch.manual_seed(1)  # the order of rows
    t.fit(made, datamodule=PromptData(rows, batch_size=batch_size, validation=rows))
    return t


def flat(made):
    return torch.cat([parameter.detach().float().flatten() for parameter in made.parameters()])


# --- what functions are given ---------------------------------------------------------------------------------------


class Record:
    """A reward function that notes its calls in a list that all members share."""

    __name__ = "record"
    calls = []  # of the class, so that it is no state of the module

    def __call__(self, **given):
        given["log_extra"]("shout", [str(text).upper() for text in given["completions"]])
        given["log_metric"]("samples", len(given["completions"]))
        Record.calls.append(given)
        return vowels(given["completions"])


@pytest.fixture
def calls():
    Record.calls.clear()
    return Record.calls


@pytest.mark.parametrize("evaluation", ["plain", "in_forward", "rows"])
def test_functions_are_called_once_for_each_member(calls, evaluation):
    rows = [{**row, "numbers": [1, 2]} for row in ROWS]
    made = module(Record())
    fit(made, evaluation, steps=1, rows=rows)
    assert {len(call["completions"]) for call in calls} == {4}
    for call in calls:
        assert sorted(call["prompts"]) == sorted(row["prompt"] for row in rows)
        assert dict(zip(call["prompts"], call["answer"], strict=True)) == {r["prompt"]: r["answer"] for r in rows}
        assert call["numbers"] == [[1, 2]] * 4
        assert set(call) == {
            "prompts", "completions", "completion_ids", "answer", "numbers", "trainer_state", "log_extra", "log_metric",
        }  # fmt: skip
        assert call["trainer_state"].global_step in (0, 1)
        assert call["trainer_state"].max_steps == 1
        for text, ids in zip(call["completions"], call["completion_ids"], strict=True):
            assert text == "".join(LETTERS[token] for token in ids if token > 4)
            assert 0 not in ids[:-1]
            assert 2 not in ids[:-1]  # the end of the sequence is the last token
            assert 1 <= len(ids) <= 6


def test_conversations_get_conversational_completions(calls):
    begun = [USER, {"role": "assistant", "content": "well "}]
    made = module(Record())
    data = PromptData([{"prompt": [USER]}, {"prompt": begun}, {"prompt": "hi"}], batch_size=3)
    (batch,) = [sorted(batch, key=str) for batch in data.train_dataloader()]
    t = trainer(strategy("rows"), max_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You defined a `validation_step`")
        t.fit(made, DataLoader(batch, 3, collate_fn=list))
    for call in calls:
        assert sorted(map(str, call["prompts"])) == sorted([str([USER]), str([USER]), "hi"])
    texts = [text for call in calls for text in call["completions"]]
    assert {type(text) for text in texts} == {list, str}
    assert {text[0]["role"] for text in texts if isinstance(text, list)} == {"assistant"}
    assert sum(text[0]["content"].startswith("well ") for text in texts if isinstance(text, list)) == len(calls)


def written(made, prompts):
    return made._write(prompts, made._key if made._trainer else _fixed(), 1)


def _fixed():
    from lightning_evo.rewards.module import _FIXED

    return _FIXED


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


# --- what fitness_step gives ----------------------------------------------------------------------------------------


def judged(made, rows, members=1):
    """``fitness_step`` within a generation."""
    t = trainer(strategy(), max_steps=1)
    t.strategy.evolution.setup(made)
    t.strategy._lightning_module = made
    made.trainer = t
    with for_members(members):
        return made.fitness_step(rows * members, 0)


def test_values_and_details():
    def rare(completions, **kwargs):
        kwargs["log_extra"]("length", [len(text) for text in completions])
        return [None, 1.0, 2.0, None]

    def rarer(completions, **kwargs):
        return [None, None, 3.0, 4.0]

    made = module([rare, rarer], reward_weights=[1.0, 0.5])
    fitness = judged(made, ROWS)
    assert fitness.values.tolist() == [0.0, 1.0, 3.5, 2.0]
    assert fitness.missing.tolist() == [True, False, False, False]
    texts = made.generate([row["prompt"] for row in ROWS])
    assert fitness.details == [
        {
            "prompt": row["prompt"],
            "completion": text,
            "rewards": {"rare": rare_one, "rarer": rarer_one},
            "reward": reward,
            "truncated": detail["truncated"],
            "timed_out": False,
            "extras": {"length": len(text)},
        }
        for row, text, rare_one, rarer_one, reward, detail in zip(
            ROWS, texts, [None, 1.0, 2.0, None], [None, None, 3.0, 4.0], [None, 1.0, 3.5, 2.0], fitness.details,
            strict=True,
        )
    ]  # fmt: skip


def test_rows_are_member_by_member():
    one, three = judged(module(), ROWS), judged(module(), ROWS, members=3)
    assert three.values.tolist() == one.values.tolist() * 3
    assert three.details == one.details * 3


def test_a_function_that_fails_for_all_members_ends_the_run():
    def broken(completions, **kwargs):
        raise KeyError("answer")

    with pytest.raises(Exception, match="answer"):
        fit(module(broken), "rows", steps=1)


def test_a_function_that_fails_for_some_members_costs_them_alone():
    t = trainer(strategy(), max_steps=1)
    calls = iter(range(100))

    def every_second(completions, **kwargs):
        if next(calls) % 2:
            raise KeyError("answer")
        return [1.0] * len(completions)

    made = module(every_second)
    made.trainer = t
    t.strategy.evolution.setup(made)
    with for_members(4), pytest.warns(UserWarning, match="failed for some texts, which don't count: .*answer"):
        values = made.fitness_step(ROWS * 4, 0).values.view(4, 4)
    assert values.isnan().all(1).tolist() == [False, True, False, True]
    with for_members(4), warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        made.fitness_step(ROWS * 4, 0)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_a_function_that_fails_for_the_center_alone_costs_a_line_of_the_log():
    """As a judge over a network does now and then: members have their rewards, and the run goes on."""

    class Watched(RewardModule):
        judges_center = False

        def training_step(self, batch, batch_idx):
            self.judges_center = True
            try:
                return super().training_step(batch, batch_idx)
            finally:
                self.judges_center = False

    def sometimes(completions, **kwargs):
        if made.judges_center:
            raise ConnectionError("the judge is away")
        return [float(len(text)) for text in completions]

    made = Watched(llama(), tokenizer(), sometimes, max_completion_length=6)
    before = flat(made)
    with pytest.warns(UserWarning, match="failed for some texts, which don't count: .*the judge is away"):
        run = fit(made, "rows", steps=2)
    assert run.global_step == 2
    assert math.isnan(run.callback_metrics["train/reward"])
    assert (flat(made) - before).norm() > 0


# --- all ways agree -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("model", [llama, gpt2])
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


@pytest.mark.parametrize("grouped", [2, 4, 8])
def test_sampling_does_not_depend_on_groups(grouped):
    expected, made = module(temperature=1.5), module(temperature=1.5)
    fit(expected, "plain")
    fit(made, "rows", members_per_forward=grouped)
    torch.testing.assert_close(flat(made), flat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [llama, gpt2])
def test_auto_takes_rows(model):
    made = fit(module(model=model), steps=1)
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
        t = fit(made, evaluation, steps=2, run={"precision": "bf16-true"})
        assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
        assert t.strategy.evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
        found.append(flat(made) - flat(module().bfloat16()))
    assert found[0].norm() > 0.1
    # Texts of two members in a hundred go another way where two tokens are equally likely to eight bits.
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.5


def test_dropout_is_off_while_it_writes_and_modes_stay():
    made = module(model=lambda: gpt2(resid_pdrop=0.5).train())
    made.model.transformer.h[0].attn.eval()
    modes = {name: part.training for name, part in made.named_modules()}
    assert made.generate(["abc"] * 3) == made.generate(["abc"] * 3)
    assert len(set(made.generate(["abc"] * 3))) == 1
    assert {name: part.training for name, part in made.named_modules()} == modes


# --- learning -------------------------------------------------------------------------------------------------------


@TIES
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_learns_to_write_vowels(temperature):
    """Held-out prompts; a random text of these letters has 0.12 vowels; 16 generations of 32 members."""
    rows = [{"prompt": f"{a}{b}{c}"} for a in "bcdf" for b in "xyz" for c in "123"]
    made = module(temperature=temperature)
    t = trainer(strategy(population=32, sigma=0.1, learning_rate=0.5), max_steps=16)
    data = PromptData(rows, batch_size=8, validation=12)
    (before,) = t.validate(made, data, verbose=False)
    t.fit(made, data)
    (after,) = t.validate(made, data, verbose=False)
    assert before["val/reward"] < 0.3
    assert after["val/reward"] > before["val/reward"] + 0.3


# --- Lightning ------------------------------------------------------------------------------------------------------


def test_what_is_logged():
    def rare(completions, **kwargs):
        return [None] * (len(completions) - 1) + [2.0]

    made = module([vowels, rare, Record()], reward_weights=[1, 2, 3])
    metrics = {name: float(value) for name, value in fit(made, steps=1).callback_metrics.items()}
    names = ["reward", "reward/vowels", "reward/rare", "reward/record", "completion_length", "truncated", "samples"]
    assert set(metrics) >= {f"{stage}/{name}" for stage in ("train", "val") for name in names}
    assert "evo/timed_out_rewards" not in metrics
    found = made.writer.write(
        made.model, made.processing_class, [row["prompt"] for row in ROWS], key=_fixed(), device="cpu"
    )
    share = sum(vowels(found.texts)) / 4
    assert metrics["val/reward/vowels"] == pytest.approx(share)
    assert metrics["val/reward/rare"] == 2.0  # of those that have one
    assert metrics["val/reward"] == pytest.approx(4 * share + 1)
    assert metrics["val/completion_length"] == pytest.approx(sum(map(len, found.token_ids)) / 4)
    assert metrics["val/truncated"] == sum(found.truncated) / 4
    assert metrics["val/samples"] == 4


def test_means_over_batches_count_samples_that_have_a_reward():
    class SomeMissing:
        __name__ = "some"

        def __call__(self, completions, answer, **kwargs):
            return [None if each is None else float(each) for each in answer]

    rows = [{"prompt": "a", "answer": each} for each in (None, None, 1, 2, 3)]
    t = trainer(strategy(), max_steps=1)
    (found,) = t.validate(module(SomeMissing()), PromptData(rows, batch_size=2, validation=rows), verbose=False)
    assert found["val/reward"] == 2.0


@pytest.mark.filterwarnings("ignore:.*val_dataloader")
def test_test_and_predict():
    made = module()
    t = trainer(strategy(), max_steps=1)
    loader = DataLoader(ROWS, 2, collate_fn=list)
    (found,) = t.test(made, loader, verbose=False)
    texts = made.generate([row["prompt"] for row in ROWS])
    assert found["test/reward"] == pytest.approx(sum(vowels(texts)) / 4)
    assert sum(t.predict(made, loader), []) == texts


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_is_that_of_transformers_and_repeats(temperature):
    made = module(temperature=temperature)
    prompts = ["hello ", [USER], "b"]
    texts = made.generate(prompts)
    assert texts == made.generate(prompts) == [made.generate([prompt])[0] for prompt in prompts]
    assert made.generate([]) == []
    if not temperature:
        ids = tokenizer()("hello ", return_tensors="pt", return_token_type_ids=False)
        expected = made.model.generate(**ids, max_new_tokens=6, do_sample=False)[0, 6:]
        assert texts[0] == tokenizer().decode(expected, skip_special_tokens=True)
    for wrong in ("hello", [USER]):
        with pytest.raises(TypeError, match="generate takes a list of prompts, got one"):
            made.generate(wrong)
    with pytest.raises(TypeError, match="The prompt of number 1 is 3"):
        made.generate(["a", 3])


@TIES
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
    assert made.generate(["ab"]) == ["e" * 6]


def test_the_models_own_sampling_does_not_count():
    plain, sampling = module(), llama()
    for name, value in {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.3, "max_length": 9}.items():
        setattr(sampling.generation_config, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = RewardModule(sampling, tokenizer(), vowels, max_completion_length=6)
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


def test_a_model_with_an_encoder_is_refused():
    model = llama()
    model.config.is_encoder_decoder = True
    with pytest.raises(TypeError, match="LlamaForCausalLM has an encoder for the prompt"):
        RewardModule(model, tokenizer(), vowels)


@pytest.mark.parametrize("given", [vowels, "gpt2", [vowels]])
def test_what_is_no_tokenizer_is_refused(given):
    with pytest.raises(TypeError, match="processing_class must be the model's tokenizer, got .*reward_funcs="):
        RewardModule(llama(), given)


@pytest.mark.parametrize("name", ["reward", "truncated"])
def test_a_metric_must_not_have_the_name_of_ours(name):
    def logs(completions, log_metric, **kwargs):
        log_metric(name, 1.0)
        return vowels(completions)

    with pytest.raises(ValueError, match=f"log_metric..{name}., .* RewardModule logs a value of its own by this name"):
        fit(module(logs), "rows", steps=1)


def test_a_model_that_was_not_loaded_needs_a_tokenizer():
    with pytest.raises(ValueError, match="its tokenizer is not known. Give it as processing_class"):
        RewardModule(llama(), reward_funcs=vowels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports to load models
def test_from_a_folder(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    made = RewardModule(str(tmp_path), reward_funcs=vowels, max_completion_length=6)
    assert made.generate(["hello "]) == module().generate(["hello "])
    loaded = type(model).from_pretrained(tmp_path)
    assert RewardModule(loaded, reward_funcs=vowels, max_completion_length=6).generate(["b"]) == made.generate(["b"])


def test_the_update_is_in_place_unless_another_is_asked_for():
    found = []
    for options in ({}, {"update": None, "learning_rate": None}):
        made, t = module(), trainer(strategy(**options), max_steps=2)
        torch.manual_seed(1)
        t.fit(made, datamodule=PromptData(ROWS, batch_size=4, validation=ROWS))
        assert t.strategy.update == "in_place"
        found.append(flat(made))
    assert not torch.equal(*found)  # the second one with the algorithm's own learning rate
    assert all((each - flat(module())).norm() > 1e-3 for each in found)
    t = trainer(strategy(update="optimizer", learning_rate=None), max_steps=1)
    with pytest.raises(ValueError, match="RewardModule has no `configure_optimizers`, and update='optimizer' needs"):
        t.fit(module(), datamodule=PromptData(ROWS, batch_size=4, validation=ROWS))


def test_backpropagation_is_refused():
    with pytest.raises(TypeError, match="SingleDeviceStrategy can't train it by backpropagation. Use strategy=Evo"):
        trainer("auto", max_steps=1).fit(module(), datamodule=PromptData(ROWS, validation=ROWS))


def test_another_strategy_may_validate():
    (found,) = trainer("auto").validate(module(), DataLoader(ROWS, 4, collate_fn=list), verbose=False)
    assert 0 <= found["val/reward"] <= 1


def test_an_optimizer_of_a_subclass_counts():
    class Scheduled(RewardModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    expected, made = module(), module(kind=Scheduled)
    fit(expected)
    t = trainer(strategy(learning_rate=None), max_steps=3)
    torch.manual_seed(1)
    t.fit(made, datamodule=PromptData(ROWS, batch_size=4, validation=ROWS))
    assert torch.equal(flat(made), flat(expected))


def test_a_batch_may_be_a_dictionary_of_lists():
    expected, made = module(), module()
    for each, batch in ((expected, ROWS), (made, {k: [row[k] for row in ROWS] for k in ROWS[0]})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(strategy(), max_steps=1).fit(each, DataLoader([batch], batch_size=None))
    assert torch.equal(flat(made), flat(expected))


def test_checkpoints_are_ordinary(tmp_path):
    made = module()
    t = fit(made, steps=1)
    t.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"model.{name}" for name in made.model.state_dict()}
    assert isinstance(made, L.LightningModule)
