"""The module among Lightning's: what is logged and kept in checkpoints, which options and strategies it takes."""

import pickle
import warnings

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_evo.rewards import PromptData, RewardFunctions, RewardModule
from tests.rewards.fitting import LENGTH, Record, fit, flat, module, strategy, written
from tests.rewards.models import ROWS, llama, tokenizer, vowels
from tests.strategies.models import trainer

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


def test_what_is_logged():
    def rare(completions, **kwargs):
        return [None] * (len(completions) - 1) + [2.0]

    made = module([vowels, rare, Record()], reward_weights=[1, 2, 3])
    metrics = {name: float(value) for name, value in fit(made, "plain", steps=1).callback_metrics.items()}
    names = ["reward", "reward/vowels", "reward/rare", "reward/record", "completion_length", "truncated", "samples"]
    assert set(metrics) >= {f"{stage}/{name}" for stage in ("train", "val") for name in names}
    assert "evo/timed_out_rewards" not in metrics
    found = written(made, [row["prompt"] for row in ROWS])
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
    made = RewardModule(str(tmp_path), reward_funcs=vowels, max_completion_length=LENGTH)
    assert made.generate(["hello "]) == module().generate(["hello "])
    loaded = type(model).from_pretrained(tmp_path)
    assert RewardModule(loaded, reward_funcs=vowels, max_completion_length=LENGTH).generate(["b"]) == made.generate(
        ["b"]
    )


def test_the_update_is_in_place_unless_another_is_asked_for():
    found = []
    for options in ({}, {"update": None, "learning_rate": None}):
        made, t = module(), trainer(strategy("plain", **options), max_steps=2)
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
    fit(expected, "plain")
    t = trainer(strategy("plain", learning_rate=None), max_steps=2)
    torch.manual_seed(1)
    t.fit(made, datamodule=PromptData(ROWS, batch_size=4, validation=ROWS))
    assert torch.equal(flat(made), flat(expected))


def test_a_batch_may_be_a_dictionary_of_lists():
    expected, made = module(), module()
    for each, batch in ((expected, ROWS), (made, {k: [row[k] for row in ROWS] for k in ROWS[0]})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(strategy("rows"), max_steps=1).fit(each, DataLoader([batch], batch_size=None))
    assert torch.equal(flat(made), flat(expected))


class Losing:
    """In place of functions whose workers lose some rewards in each generation."""

    names = ["losing"]
    timed_out_rewards = crashed_rewards = 0

    def __call__(self, calls):
        return RewardFunctions(vowels)(calls)

    def to(self, device):
        return self

    def close(self):
        pass


class Loses(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.reward_functions.timed_out_rewards += 2
        pl_module.reward_functions.crashed_rewards += 1


@pytest.mark.filterwarnings("ignore:.*val_dataloader")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_lost_rewards_are_logged_and_counted_on_after_resuming(tmp_path):
    loader, lost = DataLoader(ROWS, 4, collate_fn=list), {}
    for steps, checkpoint in ((2, None), (3, tmp_path / "last.ckpt")):
        made = module(reward_timeout=5.0)
        made.reward_functions = Losing()
        t = trainer(strategy("plain"), max_steps=steps, callbacks=[Loses()])
        t.fit(made, loader, ckpt_path=checkpoint)
        t.save_checkpoint(tmp_path / "last.ckpt")
        lost[steps] = [int(t.callback_metrics[f"evo/{name}_rewards"]) for name in ("timed_out", "crashed")]
    assert lost == {2: [4, 2], 3: [6, 3]}
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["lightning_evo_lost_rewards"] == {"timed_out": 6, "crashed": 3}
    # What is loaded for anything else than training, by any Trainer or none, counts on, too.
    again = RewardModule.load_from_checkpoint(
        tmp_path / "last.ckpt", model=llama(), processing_class=tokenizer(), reward_funcs=vowels, reward_timeout=5.0
    )
    assert (again.reward_functions.timed_out_rewards, again.reward_functions.crashed_rewards) == (6, 3)


def test_checkpoints_are_ordinary(tmp_path):
    made = module()
    t = fit(made, "plain", steps=1)
    t.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"model.{name}" for name in made.model.state_dict()}
    assert isinstance(made, L.LightningModule)


def test_for_the_other_package_of_lightning():
    import pytorch_lightning

    from lightning_evo import pytorch_lightning as others

    expected, made = module(), module(kind=others.RewardModule)
    fit(expected, "plain")
    assert isinstance(made, pytorch_lightning.LightningModule)
    assert not isinstance(made, L.LightningModule)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    chosen = others.EvoStrategy("eggroll", population=8, sigma=0.1, learning_rate=0.3, seed=0, evaluation="plain")
    t = pytorch_lightning.Trainer(
        strategy=chosen, accelerator="cpu", max_steps=2, enable_checkpointing=False, num_sanity_val_steps=0, **quiet
    )
    torch.manual_seed(1)
    t.fit(made, datamodule=others.PromptData(ROWS, batch_size=4, validation=ROWS))
    assert torch.equal(flat(made), flat(expected))
    assert 0 <= t.callback_metrics["val/reward"] <= 1
    data = pickle.loads(pickle.dumps(others.PromptData(ROWS, batch_size=2)))
    assert type(data) is others.PromptData
    assert others.RewardModule.__doc__ == RewardModule.__doc__
