"""What failing members do to a run: a fitness that is not finite never ends it; exceptions and timeouts may."""

import itertools
import math
import warnings

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy

MEMBERS, GENERATIONS = 8, 3


class Failing(L.LightningModule):
    """Some members fail; the others are the better the smaller their weights are."""

    def __init__(self, failing, outcome):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        numbers = itertools.count()  # out of isolation's reach, which would set a counter of the module's back

        def fitness(module):
            if next(numbers) % MEMBERS not in failing:
                return -module.layer.weight.square().sum()
            if isinstance(outcome, Exception):
                raise outcome
            return torch.tensor(outcome)

        self.fitness = fitness
        self.failed = []

    def fitness_step(self, batch, batch_idx):
        return self.fitness(self)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def on_train_batch_end(self, *args):
        self.failed.append(int(self.trainer.callback_metrics["evo/failed_members"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(failing, outcome, **options):
    """The module after a run, whether its weights have moved, and what was warned of."""
    torch.manual_seed(0)
    module = Failing(failing, outcome)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = L.Trainer(
        strategy=EvoStrategy(population=MEMBERS, seed=0, evaluation="plain", **options),
        max_steps=GENERATIONS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, DataLoader(torch.randn(4 * GENERATIONS, 2), batch_size=4))
    moved = any(not torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    return module, moved, [text for text in (str(one.message) for one in caught) if text.startswith("Generation")]


ALL = range(MEMBERS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("minimum", [0.0, 0.5, 1.0])
def test_no_finite_fitness_changes_nothing_and_the_run_goes_on(value, minimum):
    module, moved, said = fit(ALL, value, minimum_evaluated=minimum)
    assert module.failed == [MEMBERS] * GENERATIONS
    assert not moved
    assert [text.partition(":")[0] for text in said] == [f"Generation {number}" for number in range(GENERATIONS)]
    assert all("every member is NaN or infinite. Nothing is changed, and the run goes on" in text for text in said)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_fitness_that_is_not_finite_does_not_count_against_the_minimum(value):
    module, moved, said = fit(range(6), value, minimum_evaluated=1.0)
    assert module.failed == [6] * GENERATIONS
    assert moved  # by the pair that is left
    assert len(said) == 1
    assert "6 of 8 members is NaN or infinite" in said[0]


@pytest.mark.parametrize(("failing", "minimum"), [(4, 0.5), (6, 0.25), (6, 0.0)])
def test_exceptions_of_some_members_are_left_out(failing, minimum):
    module, moved, said = fit(range(failing), ValueError("no reward"), minimum_evaluated=minimum)
    assert module.failed == [failing] * GENERATIONS
    assert moved
    assert len(said) == 1
    assert f"{failing} of 8 members failed and are left out, the first with ValueError: no reward" in said[0]


@pytest.mark.parametrize(("failing", "minimum"), [(5, 0.5), (1, 1.0), (8, 0.0)])
@pytest.mark.parametrize("error", [ValueError("no reward"), TimeoutError("took longer than member_timeout")])
def test_exceptions_of_too_many_members_end_the_run(failing, minimum, error):
    with pytest.raises(type(error), match=str(error)):
        fit(range(failing), error, minimum_evaluated=minimum)


def test_a_pair_without_one_member_is_left_out_and_no_pair_is_nothing_to_learn():
    module, moved, said = fit(range(0, MEMBERS, 2), math.nan)
    assert module.failed == [MEMBERS // 2] * GENERATIONS
    assert not moved
    assert "of every antithetic pair a member failed" in said[-1]
