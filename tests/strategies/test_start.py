"""The line at the start of a fit says what is optimised and how, word for word."""

from unittest import mock

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import EvoDDPStrategy, Evolution, EvolutionMixin, EvoStrategy, Schedule
from lightning_evo.processes.ranks import Ranks
from lightning_evo.strategies import start
from lightning_evo.strategies.start import start_line
from tests.strategies.models import trainer
from tests.strategies.test_ddp import quietly
from tests.strategies.test_ddp import trainer as trainer_of_processes

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning"),
]


class Loss(L.LightningModule):
    def __init__(self, optimizer=None):
        super().__init__()
        self.layer = nn.Linear(1000, 2)
        self.optimizer = optimizer or (lambda module: torch.optim.Adam(module.parameters(), lr=0.05))

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return self.optimizer(self)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 1000)), 4)


class Judged(Loss):
    training_step = L.LightningModule.training_step

    def fitness_step(self, batch):
        return -self.layer(batch[0]).square().mean(1)


def warm_up(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10)]


def groups(module):
    return torch.optim.AdamW([{"params": [module.layer.weight]}, {"params": [module.layer.bias], "lr": 0.5}], lr=1e-3)


def none(module):
    return None


SCHEDULE = Schedule("cosine", start=0.05, end=0.005, generations=1000)


@pytest.mark.parametrize(
    ("strategy", "module", "line"),
    [
        (EvoStrategy, Loss, "evolution of Loss: fitness is minus the loss of training_step; 2,002 elements in 2 "
         "tensors; openai_es, population 64, sigma 0.02; Adam moves the weights, learning rate 0.05"),
        (lambda: EvoStrategy("mezo", evolve="bias", sigma=SCHEDULE), Judged, "evolution of Judged: fitness is what "
         "fitness_step returns, maximised; 2 elements in 1 tensor; mezo, population 2, sigma 0.05 to 0.005 (cosine, "
         "1,000 generations); Adam moves the weights, learning rate 0.05"),
        (lambda: EvoStrategy("eggroll", update="in_place", population=4), lambda: Judged(warm_up), "evolution of "
         "Judged: fitness is what fitness_step returns, maximised; 2,002 elements in 2 tensors; eggroll, population 4, "
         "sigma 0.001; the update moves the weights in place, learning rate 0.05 of SGD, scheduled"),
        (lambda: EvoStrategy("mezo", update="in_place"), lambda: Loss(none), "evolution of Loss: fitness is minus the "
         "loss of training_step; 2,002 elements in 2 tensors; mezo, population 2, sigma 0.001; the update moves the "
         "weights in place, learning rate 1e-06 (mezo's own)"),
        (lambda: EvoStrategy("mezo", update="in_place", learning_rate=0.5), lambda: Loss(none), "evolution of Loss: "
         "fitness is minus the loss of training_step; 2,002 elements in 2 tensors; mezo, population 2, sigma 0.001; "
         "the update moves the weights in place, learning rate 0.5"),
        (lambda: EvoStrategy("csa_es", evolve="bias"), Loss, "evolution of Loss: fitness is minus the loss of "
         "training_step; 2 elements in 1 tensor; csa_es, population 16, sigma 0.1; csa_es moves the weights itself, "
         "without a learning rate"),
        (lambda: EvoStrategy("es_at_scale"), lambda: Loss(groups), "evolution of Loss: fitness is minus the loss of "
         "training_step; 2,002 elements in 2 tensors; es_at_scale, population 30, sigma 0.001; AdamW moves the "
         "weights, learning rates 0.001, 0.5"),
    ],
)  # fmt: skip
def test_one_line(monkeypatch, strategy, module, line):
    said = []
    monkeypatch.setattr(start, "rank_zero_info", said.append)
    trainer(strategy(), max_steps=2).fit(module())
    assert said == [line]


def test_the_sigma_set_by_hand_and_the_generation_that_is_next(monkeypatch):
    said = []
    monkeypatch.setattr(start, "rank_zero_info", said.append)
    strategy, module = EvoStrategy(sigma=SCHEDULE, population=4), Loss()
    t = trainer(strategy, max_steps=2)
    t.fit(module)
    strategy.sigma = 0.125
    t.fit_loop.epoch_loop.max_steps = 3
    t.fit(module)
    assert len(said) == 2
    assert said[1].endswith("sigma 0.125; Adam moves the weights, learning rate 0.05; goes on at generation 2")


@pytest.mark.parametrize(
    ("ranks", "end"),
    [
        (Ranks(3, 1), "; 3 processes divide the members"),
        (Ranks(1, 2), "; 2 processes divide the data"),
        (Ranks(2, 3), "; 6 processes in 2 groups, which divide the members, each group the data"),
    ],
)
def test_what_processes_divide(ranks, end):
    module, evolution = nn.Linear(2, 1), Evolution()
    evolution.setup(module)
    alone = start_line(module, evolution, [], "in_place")
    evolution.ranks = ranks
    assert start_line(module, evolution, [], "in_place") == alone + end


def said_in_a_process():
    quietly()
    with mock.patch.object(start, "rank_zero_info") as said:
        trainer_of_processes(EvoDDPStrategy(population=4), 1).fit(Judged())
    return said.call_args.args[0]


def test_several_processes(world):
    assert world(2).run(said_in_a_process)[0] == (
        "evolution of Judged: fitness is what fitness_step returns, maximised; 2,002 elements in 2 tensors; openai_es, "
        "population 4, sigma 0.02; Adam moves the weights, learning rate 0.05; 2 processes divide the members"
    )


def test_the_mixin_says_it_once(monkeypatch):
    class Manual(EvolutionMixin, Judged):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.evolution = Evolution("openai_es", population=4)

        fitness_step = Judged.fitness_step

        def training_step(self, batch, batch_idx):
            self.evolve(batch, batch_idx)

    said, module = [], Manual()
    monkeypatch.setattr("lightning_evo.strategies.start.rank_zero_info", said.append)
    for _ in range(2):
        trainer("auto", max_steps=3).fit(module)
    line = (
        "evolution of Manual: fitness is what fitness_step returns, maximised; 2,002 elements in 2 tensors; openai_es, "
        "population 4, sigma 0.02; Adam moves the weights, learning rate 0.05"
    )
    assert said == [line, f"{line}; goes on at generation 3"]
