"""Algorithms that say where the weights go, under Lightning: what they use, what they refuse, and that they learn."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import Evolution, EvolutionMixin, EvoStrategy
from lightning_evo.callbacks import SeedJournal
from lightning_evo.journal import JournalError
from lightning_evo.journal.replay import replay
from lightning_evo.strategies import _evolution


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Manual(EvolutionMixin, Linear):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.evolution = Evolution("csa_es", sigma=0.3, seed=3)

    def fitness_step(self, batch, batch_idx):
        return -Linear.training_step(self, batch, batch_idx)

    def training_step(self, batch, batch_idx):
        self.log_dict(self.evolve(batch, batch_idx))


def fit(module, strategy="auto", epochs=20, **options):
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=64)
    trainer = L.Trainer(
        strategy=strategy, max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip
    trainer.fit(module, loader)
    with torch.no_grad():
        return trainer, float(nn.functional.mse_loss(module.layer(x), x.sum(1, keepdim=True)))


def test_finds_its_own_sigma_and_names_the_optimizer_as_unused(monkeypatch):
    said = []
    monkeypatch.setattr(_evolution, "rank_zero_info", said.append)
    trainer, loss = fit(Linear(), EvoStrategy("csa_es", sigma=0.3, seed=3))
    assert loss < 1e-4
    assert trainer.callback_metrics["evo/sigma"] < 0.05
    assert trainer.strategy.update == "in_place"
    assert said[0] == "update='in_place': of Adam nothing is used; csa_es says where the weights go."
    assert trainer.global_step == 80


def test_by_manual_optimization():
    module = Manual()
    trainer, loss = fit(module)
    assert loss < 1e-4
    assert trainer.callback_metrics["evo/sigma"] < 0.05
    module.evolution_update = "optimizer"
    with pytest.raises(ValueError, match="evolution_update='optimizer' does not work with 'csa_es'"):
        fit(module, epochs=1)


def test_accumulated_batches_make_one_generation():
    module = Linear()
    trainer, _ = fit(module, EvoStrategy("csa_es", seed=3), epochs=3, accumulate_grad_batches=4)
    assert trainer.strategy.evolution.state.generation == trainer.global_step == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"update": "optimizer"},
            ValueError,
            "update='optimizer' does not work with 'csa_es', which gives no gradient",
        ),
        ({"learning_rate": 0.1}, TypeError, "'csa_es' has no option 'learning_rate'"),
        ({"rank": 2}, TypeError, "'csa_es' has no option 'rank'. Its options: population, sigma"),
    ],
)
def test_options_without_a_meaning(options, error, message):
    with pytest.raises(error, match=message):
        EvoStrategy("csa_es", **options)


def test_clipping_has_no_effect():
    with pytest.raises(ValueError, match="gradient_clip_val has no effect on 'csa_es', which has no gradient"):
        fit(Linear(), EvoStrategy("csa_es"), gradient_clip_val=1.0)


class Clamps(L.Callback):
    def on_train_batch_end(self, trainer, module, *args):
        with torch.no_grad():
            module.layer.weight.clamp_(-0.05, 0.05)


@pytest.mark.filterwarnings("ignore:.*the weights were moved by something else than evolution")
def test_a_replay_names_a_callback_as_a_cause(tmp_path):
    """Which a search follows, so it is its update that differs, before any weight is compared."""
    module = Linear()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    journal = SeedJournal(tmp_path)
    fit(module, EvoStrategy("csa_es", sigma=0.3, seed=3), epochs=1, callbacks=[journal, Clamps()])
    with pytest.raises(JournalError, match="or something else than evolution .a callback. moved the weights, which"):
        replay(start, journal.path)
