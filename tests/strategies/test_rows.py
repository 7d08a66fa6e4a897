"""Runs in which members are rows of one batch: their weights, checkpoints, failures and journals."""

import math
import time
import warnings
from collections import Counter
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import Evolution, EvolutionMixin, EvoStrategy, Fitness
from lightning_evo.journal.replay import replay
from tests.strategies.models import assert_same_weights, weights
from tests.strategies.models import trainer as quiet_trainer
from tests.strategies.test_ddp import digest, flat, only, quietly

pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")

MEMBERS = 8
ROWS = {"population": MEMBERS, "sigma": 0.1, "seed": 5, "rank": 1, "evaluation": "rows"}


def data(samples=48):
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > x[:, 1]).long())


class Model(L.LightningModule):
    """It decides by a value, which members of ``vmap`` can't."""

    outcome = staticmethod(lambda values: values)  # what becomes of the samples' fitness

    def __init__(self, dropout=0.0, lr=0.5):
        super().__init__()
        torch.manual_seed(3)
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.LayerNorm(16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 2, bias=False)
        )

    def values(self, batch):
        x, y = batch
        scores = self.net(x.to(self.dtype)).float()
        if not scores.isfinite().all():
            raise OverflowError
        return scores.log_softmax(1).gather(1, y[:, None])[:, 0]

    def fitness_step(self, batch, batch_idx):
        return self.outcome(self.values(batch))

    def training_step(self, batch, batch_idx):
        loss = -self.values(batch).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ByLoss(Model):
    """Without ``fitness_step``: the loss is given for each sample, too."""

    fitness_step = None

    def training_step(self, batch, batch_idx):
        losses = -self.values(batch)
        return {"loss": losses.mean(), "loss_per_sample": losses}


def train(module, generations=6, batch=8, shuffle=False, strategy=None, samples=48, **options):
    """The module after a run, its Trainer, and what was said of ways."""
    t = quiet_trainer(EvoStrategy(**{**ROWS, **(strategy or {})}), max_steps=generations, **options)
    start = flat(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        t.fit(module, DataLoader(data(samples), batch, shuffle=shuffle))
    assert (flat(module) - start).norm() > 1e-3, "nothing was learnt, so equal weights would show nothing"
    return module, t, [str(each.message) for each in caught if "evaluation" in str(each.message)]


def assert_as_plain(make, tolerance=1e-5, strategy=None, summary="evaluation: rows, 8 members per forward", **options):
    alone = {"evaluation": "plain", "members_per_forward": None}
    expected, _, _ = train(make(), strategy={**(strategy or {}), **alone}, **options)
    found, t, said = train(make(), strategy=strategy, **options)
    assert t.strategy.evolution.evaluation.summary == summary
    torch.testing.assert_close(flat(found), flat(expected), rtol=tolerance, atol=tolerance)
    return t, said


def summary_of(t):
    return t.strategy.evolution.evaluation.summary


# --- what fitness may be --------------------------------------------------------------------------------------------


def judged(values):
    return Fitness(values > -0.5, tie_breaker=values, missing=values < -1.2)


OUTCOMES = {
    "per_sample": lambda values: values,
    "right_or_wrong": lambda values: values > -0.7,
    "list": lambda values: values.tolist(),
    "array": lambda values: values.numpy(),
    "tie_breaker": lambda values: Fitness(values > -0.5, tie_breaker=values),
    "missing": judged,
    "half": lambda values: values.bfloat16(),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_fitness_of_every_kind(monkeypatch, outcome, update):
    monkeypatch.setattr(Model, "outcome", staticmethod(OUTCOMES[outcome]))
    assert_as_plain(Model, strategy={"update": update})


@pytest.mark.parametrize("evaluation", ["rows", "in_forward", "auto"])
def test_losses_of_samples(evaluation):
    """They are the fitness in every way of evaluating, and with maximize=True the higher the better."""
    expected, _, _ = train(Model(), strategy={"evaluation": "plain"})
    found, t, _ = train(ByLoss(), strategy={"evaluation": evaluation})
    name = "rows" if evaluation == "auto" else evaluation
    assert summary_of(t).startswith(f"evaluation: {name}")
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-5, atol=1e-5)


def test_one_loss_for_all_samples_is_refused_by_name():
    class OneLoss(Model):
        fitness_step = None

    reason = (
        "rows is not possible: the fitness is one number for the whole batch: return one value per sample from "
        "`fitness_step`, or `loss_per_sample` with `loss` from `training_step`"
    )
    _, said = assert_as_plain(OneLoss, summary=f"evaluation: in_forward; {reason}")
    assert len(said) == 1
    assert reason in said[0]
    assert said[0].startswith("evaluation='rows' does not work with this module.")


@pytest.mark.parametrize("declined", [(0,), (0, 2, 3), (5,)])
def test_a_declined_batch(declined):
    class Declines(ByLoss):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            return None if batch_idx in declined else output

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        assert_as_plain(Declines)


def test_a_row_that_is_not_a_number_fails_its_member_only(monkeypatch):
    failed = []

    class Keeps(Model):
        def fitness_step(self, batch, batch_idx):
            values = self.values(batch)
            return values.where(values > -1.4, math.nan)

        def on_train_batch_end(self, *args):
            failed.append(int(self.trainer.callback_metrics["evo/failed_members"]))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Generation")
        assert_as_plain(Keeps, strategy={"sigma": 0.3, "antithetic": False, "scaling": "none"})
    assert any(0 < count < MEMBERS for count in failed)
    assert failed[:6] == failed[6:]


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_precisions(precision):
    """Half precision rounds members apart, so a few ranks swap."""
    tolerance = 1e-9 if precision == "64-true" else 0.03
    assert_as_plain(partial(Model, lr=0.05), tolerance, precision=precision)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ({"samples_per_generation": 12}, {"accumulate_grad_batches": 2}),
        ({"samples_per_generation": 5}, {}),
        ({}, {"accumulate_grad_batches": 3}),
        ({}, {"samples": 44}),  # the last batch is smaller
        ({"members_per_forward": 8}, {"batch": 1}),
        ({"rank": 4, "antithetic": False}, {}),
    ],
    ids=["subset_accumulated", "subset", "accumulated", "last_smaller", "batch_of_one", "rank_4"],
)
def test_batches_of_a_generation(strategy, options):
    assert_as_plain(Model, strategy=strategy, **options)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_groups_and_dropout(size):
    """Members share their masks, whoever is in one forward."""
    summary = f"evaluation: rows, {size} members per forward"
    t, _ = assert_as_plain(partial(Model, dropout=0.3), strategy={"members_per_forward": size}, summary=summary)


class ByHand(EvolutionMixin, Model):
    fitness_step = Model.fitness_step

    def __init__(self, evaluation):
        super().__init__()
        self.automatic_optimization = False
        self.evolution = Evolution("eggroll", **{**ROWS, "evaluation": evaluation})

    def training_step(self, batch, batch_idx):
        self.evolve(batch, batch_idx)


def test_manual_optimization():
    found = []
    for evaluation in ("plain", "rows"):
        module = ByHand(evaluation)
        quiet_trainer("auto", max_steps=4).fit(module, DataLoader(data(), 8))
        assert module.evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
        found.append(flat(module))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_auto_takes_rows_where_vmap_cannot_run():
    _, t, said = train(Model(), strategy={"evaluation": "auto"})
    assert summary_of(t).startswith("evaluation: rows, 8 members per forward; batched is not possible: ")
    assert not said


# --- resume and replay ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize("size", [None, 4])
def test_resumed_equals_uninterrupted(tmp_path, update, size):
    """The way and its size are in the checkpoint, and a run that was told nothing goes on with them."""

    def run(folder, epochs, seed=0, evaluation="rows", members_per_forward=size, **options):
        torch.manual_seed(seed)
        strategy = {**ROWS, "update": update, "evaluation": evaluation, "members_per_forward": members_per_forward}
        t = quiet_trainer(
            EvoStrategy(**strategy, journal=False), max_epochs=epochs, max_steps=-1, enable_checkpointing=True,
            callbacks=[ModelCheckpoint(folder, save_last=True)], default_root_dir=folder,
        )  # fmt: skip
        module = Model(dropout=0.2)
        torch.manual_seed(seed)
        t.fit(module, DataLoader(data(), 8, shuffle=True), **options)
        return module, t

    start, (expected, _) = flat(Model()), run(tmp_path / "whole", 4)
    assert (flat(expected) - start).norm() > 1e-3
    run(tmp_path / "part", 2)
    checkpoint = tmp_path / "part" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["lightning_evo"]
    assert (saved["evaluation"], saved["members_per_forward"]) == ("rows", size or MEMBERS)
    for evaluation, members in (("rows", size), ("auto", None)):
        found, t = run(tmp_path / evaluation, 4, 99, evaluation, members, ckpt_path=checkpoint)
        assert summary_of(t) == f"evaluation: rows, {size or MEMBERS} members per forward"
        assert_same_weights(weights(found), weights(expected))


def test_a_replay_gives_the_same_bits(tmp_path):
    strategy = {"update": "in_place"}
    module, t, _ = train(
        Model(), -1, strategy=strategy, max_epochs=3, enable_checkpointing=True, default_root_dir=tmp_path,
        callbacks=[ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")],
    )  # fmt: skip
    assert summary_of(t).startswith("evaluation: rows")
    replayed = replay(tmp_path / "epoch=0.ckpt", tmp_path / "evolution.evoj")
    assert_same_weights(replayed["state_dict"], weights(module))


# --- several processes ----------------------------------------------------------------------------------------------


def train_here(strategy, batch=8, generations=6, **options):
    """On this process of several."""
    from lightning_evo import EvoDDPStrategy
    from tests.strategies.test_ddp import trainer

    quietly()
    module = Model()
    start = flat(module)
    t = trainer(EvoDDPStrategy(**{**ROWS, "population": 12, **strategy}), generations, **options)
    t.fit(module, DataLoader(data(), batch))
    assert (flat(module) - start).norm() > 1e-3
    return digest(module), summary_of(t), flat(module).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_any_number_of_processes_gives_the_same_bits(world, update):
    found = set()
    for count in (1, 2, 3):
        results = world(count).run(train_here, {"members_per_forward": 4, "update": update})
        assert only([summary for _, summary, _ in results]) == "evaluation: rows, 4 members per forward"
        found |= {digest for digest, _, _ in results}
    assert len(found) == 1


@pytest.mark.slow
def test_processes_that_divide_the_data(world):
    """Each has other rows of the batch; what they give is added in another order."""
    found = {}
    for count in (1, 2):
        results = world(count).run(train_here, {"members_per_forward": 4, "shard": "data"}, 16 // count)
        assert only([summary for _, summary, _ in results]) == "evaluation: rows, 4 members per forward"
        only([digest for digest, _, _ in results])
        found[count] = torch.tensor(results[0][2])
    torch.testing.assert_close(found[1], found[2], rtol=1e-4, atol=1e-4)


# --- what goes wrong in mid-run -------------------------------------------------------------------------------------


class Turns(Model):
    """From the fourth step on it calls what rows refuse."""

    def values(self, batch):
        if self.trainer.global_step < 3:
            return super().values(batch)
        return super().values([torch.cat([part, part]) for part in batch])[: len(batch[1])]


def test_a_way_that_stops_working_is_replaced_once_and_nothing_is_lost():
    summary = (
        "evaluation: in_forward; rows is not possible: linear with net.0.weight is given a tensor in which cat has "
        "mixed or moved the members' rows"
    )
    _, said = assert_as_plain(Turns, summary=summary)
    assert said == [f"evaluation='rows' does not work with this module. {summary}."]


class Raises(Model):
    """Some members raise, or take their time."""

    evolution_shared = frozenset({"forwards"})

    def __init__(self, threshold, seconds=0.0):
        super().__init__()
        self.threshold, self.seconds, self.failed, self.counts = threshold, seconds, [], []
        self.forwards = []

    def fitness_step(self, batch, batch_idx):
        values = self.values(batch)
        self.forwards.append(len(values))
        if (values < self.threshold).any():
            time.sleep(self.seconds)
            raise ValueError("a value is too low")
        return values

    def on_train_batch_end(self, *args):
        self.failed.append(int(self.trainer.callback_metrics["evo/failed_members"]))
        self.counts.append(Counter(self.forwards))
        self.forwards.clear()


@pytest.mark.filterwarnings("ignore:Generation")
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_member_that_fails_costs_its_group_only(seconds):
    """A group in which one raises, or takes longer than all may together, is run one by one; others are not."""
    made = []

    def make():
        made.append(Raises(threshold=-1.9, seconds=seconds))
        return made[-1]

    strategy = {"members_per_forward": 4, "antithetic": False, "scaling": "none", "minimum_evaluated": 0.1}
    if seconds:
        strategy["member_timeout"] = 0.2
    summary = "evaluation: rows, 4 members per forward"
    assert_as_plain(make, strategy=strategy, summary=summary, generations=4 if seconds else 6)
    plain, rows = made
    assert plain.failed == rows.failed
    assert any(0 < count < MEMBERS for count in rows.failed)
    for failed, count in zip(rows.failed[1:], rows.counts[1:], strict=True):
        assert count[32] == 2  # of four members with eight rows each
        assert count[8] in ((0,) if not failed else (4, 8))
    assert {count[8] for count in rows.counts[1:]} >= {4}
