"""Hooks, counters, logs, metrics and random numbers are those of training by backpropagation."""

import warnings

import pytest
import torch
from lightning import seed_everything
from torch import nn

import lightning_evo  # noqa: F401  registers "evo"
from lightning_evo import EvoStrategy
from tests.strategies.models import CallCounter, ConvNet, trainer


class Looking(ConvNet):
    """Counts the backward passes after which gradients are there."""

    gradients = 0

    def on_after_backward(self):
        super().on_after_backward()
        self.gradients += all(parameter.grad is not None for parameter in self.parameters())


def run(strategy, **options):
    seed_everything(1, verbose=False)
    module, counter = Looking(), CallCounter()
    t = trainer(strategy, callbacks=[counter], gradient_clip_val=1.0, log_every_n_steps=1, **options)
    t.fit(module)
    return t, module, counter


def progress(t):
    return t.fit_loop.epoch_loop.automatic_optimization.optim_progress.state_dict()


@pytest.mark.filterwarnings("ignore:With update='in_place' there are no gradients")
@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ten_steps_count_as_with_backpropagation(update, accumulate):
    options = {"accumulate_grad_batches": accumulate, "max_steps": 10}
    expected, expected_module, expected_counter = run("auto", **options)
    actual, module, counter = run(EvoStrategy(population=8, update=update), **options)

    assert expected_module.calls["optimizer_step"] == 10  # the comparison is not between two empty counters
    assert module.calls == expected_module.calls
    assert counter.calls == expected_counter.calls
    assert progress(actual) == progress(expected)
    assert actual.global_step == expected.global_step == 10
    assert actual.lr_scheduler_configs[0].scheduler.last_epoch == 10
    assert module.accuracy._update_count == expected_module.accuracy._update_count
    assert int(module.net[1].num_batches_tracked) == 10 * accumulate
    assert len(module.losses) == 10 * accumulate  # a list that training_step appends to
    assert module.gradients == (expected_module.gradients if update == "optimizer" else 0)


def test_logged_values_are_the_centers():
    """With a learning rate of zero the center stays, so logs must equal backpropagation's, not be a mix of members."""

    def logged(strategy):
        seed_everything(1, verbose=False)
        module = ConvNet(lr=0.0)
        t = trainer(strategy, max_epochs=1, max_steps=-1)
        t.fit(module)
        return {name: float(value) for name, value in t.callback_metrics.items() if not name.startswith("evo/")}

    expected = logged("auto")
    assert set(expected) == {"loss", "acc", "ones", "epoch_loss"}
    assert expected["ones"] == 4
    assert logged(EvoStrategy(population=8, sigma=1.0)) == expected


def test_evolution_is_logged_every_step():
    t, module, _ = run(EvoStrategy(population=8, sigma=0.03))
    values = {name: float(value) for name, value in t.logged_metrics.items() if name.startswith("evo/")}
    assert values.keys() == {
        "evo/fitness_mean",
        "evo/fitness_std",
        "evo/fitness_best",
        "evo/failed_members",
        "evo/sigma",
        "evo/update_norm",
        "evo/members_per_second",
    }
    assert values["evo/sigma"] == pytest.approx(0.03)
    assert values["evo/fitness_std"] > 0
    assert values["evo/fitness_best"] > values["evo/fitness_mean"]
    assert values["evo/update_norm"] > 0
    assert values["evo/members_per_second"] > 0
    assert "evo/fitness_mean" in t.progress_bar_metrics


def test_dropout_masks_are_the_same_for_all_members_and_as_with_backpropagation():
    masks = []

    class Module(ConvNet):
        evolution_shared = frozenset({"masks"})

        def training_step(self, batch, batch_idx):
            mask = torch.nn.functional.dropout(torch.ones(100), 0.5, training=True)
            masks.append(mask)
            return super().training_step(batch, batch_idx)

    def run(strategy):
        masks.clear()
        seed_everything(3, verbose=False)
        trainer(strategy, max_steps=3).fit(Module())
        return list(masks)

    expected = run("auto")
    actual = run(EvoStrategy(population=6, evaluation="plain"))
    assert len(actual) == 3 * (6 + 1)
    for step in range(3):
        for evaluation in range(7):  # six members and the center
            assert torch.equal(actual[7 * step + evaluation], expected[step])


def test_batchnorm_counts_and_statistics_are_the_centers():
    def statistics(strategy):
        seed_everything(3, verbose=False)
        module = ConvNet(lr=0.0, dropout=0.0)
        trainer(strategy, max_steps=4).fit(module)
        return module.net[1].running_mean, module.net[1].num_batches_tracked

    expected_mean, expected_count = statistics("auto")
    mean, count = statistics(EvoStrategy(population=8, sigma=1.0))
    assert torch.equal(mean, expected_mean)
    assert torch.equal(count, expected_count)


def test_step_output_reaches_callbacks():
    outputs = []

    class Module(ConvNet):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "extra": batch_idx}

        def on_train_batch_end(self, output, batch, batch_idx):
            outputs.append((output["extra"], float(output["loss"])))

    module = Module()
    trainer(EvoStrategy(population=4), max_steps=3).fit(module)
    assert outputs == [(i, pytest.approx(loss)) for i, loss in enumerate(module.losses)]


def test_no_graph_is_built():
    class Module(ConvNet):
        def training_step(self, batch, batch_idx):
            assert not torch.is_grad_enabled()
            loss = super().training_step(batch, batch_idx)
            assert not loss.requires_grad
            return loss

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*asks whether a tensor requires a gradient")
        trainer(EvoStrategy(population=4), max_steps=2).fit(Module())


def test_accumulating_batches_equals_one_large_batch():
    """The same population sees all batches of a window, so four batches of 16 are one of 64."""

    class Linear(ConvNet):
        def __init__(self, batch_size):
            super().__init__(optimizer=torch.optim.SGD, lr=0.1, batch_size=batch_size)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))

    def run(batch_size, accumulate):
        seed_everything(0, verbose=False)
        module = Linear(batch_size)
        trainer(EvoStrategy(population=16), max_steps=8, accumulate_grad_batches=accumulate).fit(module)
        return module.net[1].weight

    assert torch.allclose(run(16, 4), run(64, 1), atol=1e-6)
    assert not torch.allclose(run(16, 4), run(16, 1), atol=1e-3)
