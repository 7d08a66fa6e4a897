"""What a step says besides `self.log` is said once per step, as with backpropagation, and not by members."""

import os
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_evo import Evolution, EvolutionMixin, EvoStrategy
from lightning_evo.strategies._quiet import Quiet


class Experiment:
    """As those of TensorBoard and Weights & Biases."""

    def __init__(self):
        self.calls, self.summary, self.dir, self.run = [], {}, "files", self

    def log_hparams(self, values):
        """The options of the run."""

    def add_scalar(self, name, value, step):
        self.calls.append((name, value, step))


class Logger(CSVLogger):
    def __init__(self, folder):
        super().__init__(folder, name="here", version=3)
        self.own, self.calls = Experiment(), []

    @property
    def experiment(self):
        return self.own

    def log_metrics(self, metrics, step=None):
        if "mine" in metrics:
            self.calls.append((metrics["mine"], step))

    def save(self):
        pass


class Module(L.LightningModule):
    said = None

    def __init__(self):
        super().__init__()
        self.net, self.paths = nn.Linear(3, 3), []

    def say(self, batch_idx):
        logger = self.trainer.logger
        assert isinstance(self.logger, Logger)
        self.logger.log_metrics({"mine": batch_idx}, step=self.global_step)
        for each in self.loggers:
            each.log_metrics({"mine": -batch_idx}, self.global_step)
        logger.experiment.add_scalar("x", batch_idx, self.global_step)
        logger.experiment.run.summary["last"] = logger.experiment.summary.get("last", 0) or batch_idx
        logger.experiment.dir = logger.experiment.dir + "/"
        self.paths.append(os.path.join(logger.log_dir, logger.save_dir, logger.experiment.dir, logger.name))
        self.print("batch", batch_idx)

    def training_step(self, batch, batch_idx):
        self.say(batch_idx)
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def run(module, strategy, folder, **options):
    torch.manual_seed(0)
    logger = Logger(str(folder))
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(strategy=strategy, max_epochs=1, accelerator="cpu", logger=logger, **quiet, **options)
    trainer.fit(module, DataLoader(torch.randn(12, 3), batch_size=4))
    return trainer, logger


class Recorded:
    def __init__(self):
        self.history, self.settings, self.calls = [1, 2], {"w": 3}, Experiment()


def test_containers_of_a_quiet_object_are_copies():
    value = Recorded()
    quiet = Quiet(value)
    quiet.history.append(3)
    assert ([*quiet.history], quiet.settings["w"] * 2, "w" in quiet.settings) == ([1, 2], 6, True)
    assert (value.history, value.settings) == ([1, 2], {"w": 3})
    assert ([*quiet.calls], len(quiet.calls), 1 in quiet.calls, bool(quiet.calls)) == ([], 0, False, True)
    quiet.calls.add_scalar("a", 1, 2)
    quiet.calls["b"] = 1
    assert value.calls.calls == []


@pytest.mark.parametrize("evaluation", ["plain", "in_forward", "batched"])
def test_loggers_and_print_hear_each_step_once(evaluation, tmp_path, capsys):
    heard = []
    for strategy in ("auto", EvoStrategy(population=4, evaluation=evaluation)):
        module = Module()
        _, logger = run(module, strategy, tmp_path)
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("batch")]
        heard.append((logger.calls, logger.own.calls, logger.own.summary, logger.own.dir, module.paths, printed))
    assert heard[0] == heard[1]
    assert heard[0][0] == [(0, 0), (0, 0), (1, 1), (-1, 1), (2, 2), (-2, 2)]
    assert heard[0][-1] == ["batch 0", "batch 1", "batch 2"]


def test_nor_do_they_hear_members_of_the_mixin(tmp_path, capsys):
    class Mixed(EvolutionMixin, Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.evolution = Evolution("openai_es", population=4)

        def fitness_step(self, batch, batch_idx):
            self.say(batch_idx)
            return -self.net(batch).square().mean()

        def training_step(self, batch, batch_idx):
            self.evolve(batch, batch_idx)

    module = Mixed()
    _, logger = run(module, "auto", tmp_path)
    assert (logger.calls, logger.own.calls, logger.own.summary) == ([], [], {})
    assert "batch" not in capsys.readouterr().out


def test_a_member_can_not_stop_the_run(tmp_path):
    """As a step does that meets a loss which is not finite; the center's is."""

    class Stops(Module):
        def training_step(self, batch, batch_idx):
            loss = self.net(batch).square().mean()
            if loss > self.limit:
                self.trainer.should_stop = True
            return loss

    steps = []
    for limit in (0.0, 1.0):  # times the center's largest loss
        module = Stops()
        torch.manual_seed(0)
        batches = torch.randn(12, 3).split(4)
        module.limit = limit * max(float(module.net(batch).square().mean().detach()) for batch in batches)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Trainer was signaled to stop")
            strategy = EvoStrategy(population=4, sigma=0.1, evaluation="plain")
            steps.append(run(module, strategy, tmp_path, min_epochs=0)[0].global_step)
    assert steps == [1, 3]


def test_a_quiet_object_looks_like_another_one():
    experiment = Experiment()
    quiet = Quiet(experiment)
    assert isinstance(quiet, Experiment)
    assert quiet.dir == "files"
    assert quiet.add_scalar("x", 1, 0) is None
    with quiet.run as run_:
        run_.calls.append(1)
    quiet.new = 1
    assert (experiment.calls, hasattr(experiment, "new")) == ([], False)
    with pytest.raises(AttributeError):
        quiet.is_not_there  # noqa: B018


def test_figures_are_closed_as_tensorboard_closes_them():
    pyplot = pytest.importorskip("matplotlib.pyplot")

    class Writer:
        def add_figure(self, tag, figure, global_step=None, close=True):
            raise AssertionError

    writer = Quiet(Writer())
    figures = [pyplot.figure() for _ in range(4)]
    writer.add_figure("one", figures[0])
    writer.add_figure(tag="more", figure=figures[1:3])
    writer.add_figure("kept", figures[3], close=False)
    assert [pyplot.fignum_exists(figure.number) for figure in figures] == [False, False, False, True]
    pyplot.close(figures[3])
