"""What reward functions are given of each member's texts, and what becomes of what they give."""

import math
import pickle
import warnings

import pytest
from torch.utils.data import DataLoader

from lightning_evo.evaluation.sharing import for_members
from lightning_evo.rewards import PromptData, RewardModule
from lightning_evo.rewards import functions as functions_module
from lightning_evo.rewards.calling import Answer
from lightning_evo.rewards.workers.pool import Lost
from tests.rewards.fitting import LENGTH, USER, Record, fit, flat, judged, module, strategy
from tests.rewards.models import LETTERS, ROWS, llama, tokenizer
from tests.strategies.models import trainer

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


@pytest.fixture
def calls():
    Record.calls.clear()
    return Record.calls


def test_functions_are_called_once_for_each_member(calls):
    rows, texts = [{**row, "numbers": [1, 2]} for row in ROWS], {}
    for evaluation in ("plain", "in_forward", "rows"):
        calls.clear()
        fit(module(Record()), evaluation, steps=1, rows=rows)
        texts[evaluation] = {str(sorted(zip(call["prompts"], call["completions"], strict=True))) for call in calls}
        if evaluation == "plain":  # the others are compared with it
            assert len(calls) == 11  # 8 members, and the center in training, in validation, and in the check before
        for call in calls:
            check_call(call, rows)
    assert len(texts["plain"]) == 10  # 8 members, and the center before and after the step
    assert texts["in_forward"] == texts["rows"] == texts["plain"]


def check_call(call, rows):
    assert sorted(call["prompts"]) == sorted(row["prompt"] for row in rows)
    assert dict(zip(call["prompts"], call["answer"], strict=True)) == {row["prompt"]: row["answer"] for row in rows}
    assert call["numbers"] == [[1, 2]] * 4
    assert set(call) == {
        "prompts", "completions", "completion_ids", "answer", "numbers", "trainer_state", "log_extra", "log_metric",
    }  # fmt: skip
    assert call["trainer_state"].global_step in (0, 1)
    assert call["trainer_state"].max_steps == 1
    for text, ids in zip(call["completions"], call["completion_ids"], strict=True):
        assert text == "".join(LETTERS[token] for token in ids if token > 4)
        assert 2 not in ids[:-1]  # the end of the sequence is the last token
        assert 1 <= len(ids) <= LENGTH


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

    made = Watched(llama(), tokenizer(), sometimes, max_completion_length=LENGTH)
    before = flat(made)
    with pytest.warns(UserWarning, match="failed for some texts, which don't count: .*the judge is away"):
        run = fit(made, "rows", steps=2)
    assert run.global_step == 2
    assert math.isnan(run.callback_metrics["train/reward"])
    assert (flat(made) - before).norm() > 0


def test_a_generation_may_see_some_samples_of_a_batch(calls):
    fit(module(Record()), "plain", steps=2, samples_per_generation=2)
    sizes = [len(call["prompts"]) for call in calls]
    assert sizes == [4] + ([2] * 8 + [4, 4]) * 2  # validated before and after each step, which is an epoch
    seen = [[call["prompts"] for call in calls[start : start + 8]] for start in (1, 11)]
    assert all(each == members[0] for members in seen for each in members)
    assert len({str(members[0]) for members in seen}) > 1


def test_rows_of_some_samples(calls):
    fit(module(Record()), "rows", steps=1, samples_per_generation=3)
    assert {len(call["prompts"]) for call in calls} == {3, 4}
    assert {str(call["prompts"]) for call in calls if len(call["prompts"]) == 3} == {str(calls[1]["prompts"])}


class Losing:
    """In place of a pool of workers: every call and sample with an "n" in a text takes too long there."""

    restarts = 0

    def run(self, tasks, limit):
        texts = [pickle.loads(task.call).completions for task in tasks]
        return [Lost(True, "took too long") if "n" in "".join(each) else Answer([1.0] * len(each)) for each in texts]

    def close(self):
        pass


@pytest.mark.parametrize("evaluation", ["in_forward", "rows"])
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness")
def test_what_took_too_long_is_missing_and_counted(monkeypatch, evaluation):
    pytest.importorskip("cloudpickle")
    monkeypatch.setattr(functions_module, "Pool", lambda functions: Losing())
    made = module(lambda completions: [1.0] * len(completions), reward_timeout=2.0)
    chosen = strategy(evaluation)
    chosen.evolution.wants_details = lambda generation: True
    t = trainer(chosen, max_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        t.fit(made, datamodule=PromptData([{"prompt": letter} for letter in "abcdefgh"], batch_size=8))
    samples = [sample for member in chosen.evolution.details for sample in member]
    late = ["n" in sample["completion"] for sample in samples]
    assert len(samples) == 64
    assert 0 < sum(late) < 64
    assert [sample["timed_out"] for sample in samples] == late
    assert [sample["reward"] for sample in samples] == [None if is_late else 1.0 for is_late in late]
    counted = made.reward_functions.timed_out_rewards
    assert t.callback_metrics["evo/timed_out_rewards"] == counted >= sum(late)
    assert t.callback_metrics["evo/crashed_rewards"] == 0
    assert sum("took longer than reward_timeout=2.0 s" in str(each.message) for each in caught) == 1
