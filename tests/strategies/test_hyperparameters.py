"""A run's options stand in its loggers' hyperparameters, with the module's own, and in one call."""

import argparse
import warnings

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import Evolution, EvolutionMixin, EvoStrategy, Schedule
from lightning_evo.strategies.hyperparameters import hyperparameters
from tests.strategies.models import trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists"),
]


class Plain(L.LightningModule):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 3)), 4)


class Saving(Plain):
    def __init__(self, width=3, sigma=7.0):  # which is not the strategy's
        super().__init__(width)
        self.save_hyperparameters()


class Recording(Logger):
    """Every call."""

    def __init__(self):
        super().__init__()
        self.calls, self.arguments = [], []

    name = version = "recording"

    def log_hyperparams(self, params, *args, **kwargs):
        self.calls.append(dict(params))
        self.arguments.append((args, kwargs))

    def log_metrics(self, metrics, step=None):
        pass


def shaping(fitness, per_direction):
    return fitness - fitness.mean()


EXPECTED = {
    "evo/algorithm": "openai_es", "evo/population": 8, "evo/sigma": 0.02, "evo/learning_rate": 0.05,
    "evo/optimizer": "Adam", "evo/update": "optimizer", "evo/evaluation": "plain", "evo/seed": 5, "evo/rank": 2,
    "evo/evolve": "weight, bias", "evo/strategy": "evo", "evo/noise": "gaussian", "evo/antithetic": True,
    "evo/noise_reuse": 1, "evo/basis_reuse": 1, "evo/scaling": "gradient", "evo/sigma_scale": "none",
    "evo/weight_decay": 0.0, "evo/momentum": 0.0, "evo/shaping": "centered_ranks",
}  # fmt: skip


def strategy(**options):
    return EvoStrategy(population=8, rank=2, evolve=["weight", "bias"], evaluation="plain", seed=5, **options)


@pytest.mark.parametrize("model", [Plain, Saving])
def test_csv(tmp_path, model):
    own = {"width": 3, "sigma": 7.0} if model is Saving else {}
    loggers = [CSVLogger(tmp_path / "a"), CSVLogger(tmp_path / "b"), Recording()]
    trainer(strategy(), logger=loggers, max_steps=3).fit(model())
    for logger in loggers[:2]:
        with open(f"{logger.log_dir}/hparams.yaml") as file:
            assert yaml.safe_load(file) == {**own, **EXPECTED}
    assert loggers[2].calls == [{**own, **EXPECTED}]  # one call
    assert all("log_hyperparams" not in vars(logger) for logger in loggers)


def test_options_are_plain_values(tmp_path):
    logger = Recording()
    options = {"sigma": Schedule("linear", start=0.5, end=0.25, generations=10), "shaping": shaping}
    trainer(strategy(update="in_place", **options), logger=logger, max_steps=1).fit(Plain())
    (found,) = logger.calls
    assert found["evo/sigma"] == "0.5 to 0.25 (linear, 10 generations)"
    assert found["evo/shaping"].endswith("test_hyperparameters.shaping")
    assert found["evo/update"] == "in_place"
    evolution = Evolution("mezo", seed=3)
    evolution.setup(nn.Linear(2, 1))
    several = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.25}], lr=0.5)
    assert hyperparameters(evolution, "in_place", [several])["evo/learning_rate"] == "0.5, 0.25"
    search = hyperparameters(Evolution("csa_es", seed=1), "in_place", [several])
    assert search == {
        "evo/algorithm": "csa_es", "evo/population": 16, "evo/sigma": 0.1, "evo/update": "in_place", "evo/seed": 1,
        "evo/evaluation": "auto",
    }  # fmt: skip


def test_what_the_user_logs_first_takes_ours_along():
    """TensorBoard shows the first call's only; the one that Lightning's pages recommend has metrics of the user's."""

    class Model(Plain):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters(logger=False)

        def on_train_start(self):
            self.logger.log_hyperparams(argparse.Namespace(mine=1), {"hp/metric": 0})
            self.logger.log_hyperparams({"late": 2})

    logger = Recording()
    trainer(strategy(), logger=logger, max_steps=1).fit(Model())
    assert logger.calls == [{"mine": 1, **EXPECTED}, {"late": 2}]
    assert logger.arguments == [(({"hp/metric": 0},), {}), ((), {})]


def test_where_nothing_is_to_be_logged():
    logger = Recording()
    trainer(strategy(), logger=logger, max_steps=1, enable_autolog_hparams=False).fit(Saving())
    assert logger.calls == []
    trainer(strategy(), logger=False, max_steps=1).fit(Saving())


def test_a_fit_that_ends_at_once_leaves_the_logger_as_it_was():
    class Fails(Plain):
        def on_train_start(self):
            raise RuntimeError("of the user's")

    logger = Recording()
    with pytest.raises(RuntimeError, match="of the user's"):
        trainer(strategy(), logger=logger, max_steps=1).fit(Fails())
    assert "log_hyperparams" not in vars(logger)
    assert logger.calls == []


def test_a_resumed_run_says_the_same(tmp_path):
    first, second = Recording(), Recording()
    t = trainer(strategy(), logger=first, max_steps=2)
    t.fit(Saving())
    t.save_checkpoint(tmp_path / "two.ckpt")
    trainer(strategy(), logger=second, max_steps=4).fit(Saving(), ckpt_path=tmp_path / "two.ckpt")
    assert first.calls == second.calls  # the scheduler has halved the learning rate since
    third = Recording()
    unseeded = EvoStrategy(population=8, rank=2, evolve=["weight", "bias"], evaluation="plain")
    trainer(unseeded, logger=third, max_steps=4).fit(Saving(), ckpt_path=tmp_path / "two.ckpt")
    assert third.calls == [{name: value for name, value in first.calls[0].items() if name != "evo/seed"}]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    logger = TensorBoardLogger(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(strategy(), logger=logger, max_steps=2).fit(Saving())
    accumulator = EventAccumulator(logger.log_dir)
    accumulator.Reload()
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["evo/algorithm"].string_value == "openai_es"
    assert shown["evo/population"].number_value == 8
    assert shown["width"].number_value == 3


def test_the_mixin():
    class Manual(EvolutionMixin, Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.evolution = Evolution("eggroll", population=4, seed=2)

        def fitness_step(self, batch):
            return -self.layer(batch[0]).square().mean(1)

        def training_step(self, batch, batch_idx):
            self.evolve(batch, batch_idx)

    logger = Recording()
    trainer("auto", logger=logger, max_steps=3).fit(Manual())
    (found,) = logger.calls
    assert {name: found[f"evo/{name}"] for name in ("algorithm", "population", "rank", "seed", "optimizer")} == {
        "algorithm": "eggroll", "population": 4, "rank": 1, "seed": 2, "optimizer": "Adam",
    }  # fmt: skip


def test_the_other_package():
    import pytorch_lightning as pl

    from lightning_evo.pytorch_lightning import EvoStrategy as EvoStrategyForPL

    class Model(pl.LightningModule):
        training_step, train_dataloader = Plain.training_step, Plain.train_dataloader
        configure_optimizers = Plain.configure_optimizers

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

    class RecordingForPL(pl.loggers.logger.Logger):
        name, version = Recording.name, Recording.version
        log_hyperparams, log_metrics = Recording.log_hyperparams, Recording.log_metrics

        def __init__(self):
            super().__init__()
            self.calls, self.arguments = [], []

    logger = RecordingForPL()
    pl.Trainer(
        strategy=EvoStrategyForPL(population=4), max_steps=1, accelerator="cpu", logger=logger,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(Model())  # fmt: skip
    assert logger.calls[0]["evo/population"] == 4
    assert len(logger.calls) == 1
