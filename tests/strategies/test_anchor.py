"""`anchor=` under Lightning: drift is logged, checkpoints and journals keep it, other starting weights are refused."""

import lightning as L
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import Anchor, Evolution, EvolutionMixin, EvoStrategy
from lightning_evo.journal import Journal, JournalError
from lightning_evo.journal.replay import replay
from lightning_evo.journal.verify import verify
from tests.strategies.models import assert_same_weights, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def data():
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] > x[:, 1]).long()), 8)


class Model(L.LightningModule):
    """Two groups with rates of their own, weight decay and a schedule."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 20), nn.Linear(20, 2)
        self.drifts = []

    def forward(self, x):
        return self.second(torch.tanh(self.first(x.to(self.dtype))))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]).float(), batch[1])

    def on_train_batch_end(self, *_):
        self.drifts.append(float(self.trainer.callback_metrics["evo/drift"]))

    def configure_optimizers(self):
        groups = [
            {"params": self.first.parameters(), "lr": 0.2, "weight_decay": 0.1},
            {"params": self.second.parameters(), "lr": 0.1},
        ]
        optimizer = torch.optim.SGD(groups)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def fit(folder, epochs=3, ckpt_path=None, module=None, seed=7, anchor=1.0, callbacks=(), update="in_place", **options):
    seed_everything(seed, verbose=False)
    module = (module or Model)()
    start = weights(module)
    strategy = EvoStrategy("openai_es", population=8, update=update, sigma=0.1, seed=5, anchor=anchor)
    callbacks = [ModelCheckpoint(folder, save_last=True, filename="{epoch}", save_top_k=-1), *callbacks]
    trainer = L.Trainer(
        strategy=strategy, max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
        gradient_clip_val=0.5, **options,
    )  # fmt: skip
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return trainer, module, start


def drift(module, start):
    now = weights(module)
    names = [name for name, _ in module.named_parameters()]
    distance = sum((now[name].double() - start[name].double()).square().sum() for name in names).sqrt()
    norm = sum(start[name].to(now[name].dtype).double().square().sum() for name in names).sqrt()
    return float(distance / norm)


@pytest.mark.parametrize("anchor", [2.0, Anchor(0.02, "l1", device="cpu")])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_resumed_equals_uninterrupted(tmp_path, precision, anchor):
    whole, expected, start = fit(tmp_path / "whole", anchor=anchor, precision=precision)
    if precision == "32-true":
        assert expected.drifts[-1] == pytest.approx(drift(expected, start), rel=1e-5)
    assert len(expected.drifts) == whole.global_step == 12
    assert len(set(expected.drifts)) > 6
    _, free, _ = fit(tmp_path / "free", anchor=None, module=Silent, precision=precision)
    assert drift(free, start) > 1.1 * drift(expected, start)

    fit(tmp_path / "part", epochs=1, anchor=anchor, precision=precision)
    path = tmp_path / "part" / "last.ckpt"
    saved = torch.load(path, weights_only=True)["lightning_evo"]["anchor"]
    assert sorted(saved["start"]) == sorted(name for name, _ in expected.named_parameters())
    _, resumed, _ = fit(tmp_path / "part", ckpt_path=path, anchor=anchor, precision=precision)
    assert_same_weights(weights(resumed), weights(expected))
    assert resumed.drifts == expected.drifts[4:]


class Silent(Model):
    def on_train_batch_end(self, *_):
        assert "evo/drift" not in self.trainer.callback_metrics


def test_other_starting_weights_are_refused(tmp_path):
    fit(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"starting weights are not those .*first\.weight.*seed_everything"):
        fit(tmp_path, ckpt_path=tmp_path / "last.ckpt", seed=8)


def test_a_checkpoint_without_an_anchor_is_drawn_to_what_the_script_built(tmp_path):
    fit(tmp_path, epochs=1, anchor=None, module=Silent)
    with pytest.warns(UserWarning, match=r"anchor=1 \(l2\); the checkpoint's run had None"):
        _, module, start = fit(tmp_path / "more", ckpt_path=tmp_path / "last.ckpt")
    assert module.drifts[-1] == pytest.approx(drift(module, start), rel=1e-5)


class Thaw(L.Callback):
    """The first layer is frozen for an epoch, the second after two."""

    def setup(self, trainer, pl_module, stage):
        pl_module.first.requires_grad_(False)

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.first.requires_grad_(trainer.current_epoch >= 1)
        pl_module.second.requires_grad_(trainer.current_epoch < 2)


def test_layers_that_a_callback_freezes_and_thaws(tmp_path):
    """They begin where they were built, also in a run that is resumed before or after that."""
    _, expected, start = fit(tmp_path / "whole", callbacks=[Thaw()])
    half = {name: value for name, value in start.items() if name.startswith("first")}
    assert expected.drifts[-1] == pytest.approx(drift(expected.first, {n[6:]: v for n, v in half.items()}), rel=1e-5)
    for epochs in (1, 2):
        folder = tmp_path / str(epochs)
        fit(folder, epochs=epochs, callbacks=[Thaw()])
        _, resumed, _ = fit(folder, ckpt_path=folder / "last.ckpt", callbacks=[Thaw()])
        assert_same_weights(weights(resumed), weights(expected))
    replayed = replay(start, tmp_path / "whole" / "evolution.evoj")["state_dict"]
    assert_same_weights(replayed, weights(expected))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_replay_gives_the_weights_bit_for_bit(tmp_path, precision):
    trainer, module, start = fit(tmp_path, precision=precision)
    converted = {name: value.to(module.dtype) for name, value in start.items()}
    path = tmp_path / "evolution.evoj"
    with Journal.open(path) as journal:
        assert journal.header.anchor["strength"] == 1.0
        assert len(journal.header.anchor["start"]) == 32
    assert_same_weights(replay(converted, path)["state_dict"], weights(module))

    first = tmp_path / "epoch=0.ckpt"
    replayed = replay(first, path, start=converted)
    assert replayed["lightning_evo"]["compared"] == trainer.global_step
    assert_same_weights(replayed["state_dict"], weights(module))
    with pytest.raises(JournalError, match=r"the checkpoint holds others.*start=…\), or --start FILE"):
        replay(first, path)
    with pytest.raises(JournalError, match="those that were given are others"):
        replay(first, path, start=first)

    torch.save(converted, tmp_path / "start.pt")
    checkpoints = sorted(tmp_path.glob("epoch*.ckpt"))
    with Journal.open(path) as journal:
        assert verify(journal, [tmp_path / "start.pt", *checkpoints]).holds
        assert verify(journal, checkpoints, start=tmp_path / "start.pt").holds


def test_recorded_generations_are_repeated_with_their_anchor(tmp_path):
    _, expected, _ = fit(tmp_path)
    first = tmp_path / "epoch=0.ckpt"
    _, again, _ = fit(tmp_path, ckpt_path=first)  # all from the journal
    assert_same_weights(weights(again), weights(expected))
    for anchor, here in ((2.0, r"2 \(l2\)"), (Anchor(1.0, "l1"), r"1 \(l1\)"), (None, "None")):
        module = Silent if anchor is None else Model
        with (
            pytest.warns(UserWarning, match="Resuming with anchor"),
            pytest.raises(JournalError, match=rf"anchor: '1 \(l2\)' there, '?{here}'? here"),
        ):
            fit(tmp_path, ckpt_path=first, anchor=anchor, module=module)


def test_what_it_does_not_go_with(tmp_path):
    with pytest.raises(ValueError, match=r"optimizer that is given gradients .* update='in_place'"):
        EvoStrategy("openai_es", update="optimizer", anchor=1.0)
    with pytest.raises(ValueError, match="update='in_place'"):
        fit(tmp_path, update=None)  # not before: the module might have wanted it in place
    with pytest.raises(ValueError, match="no effect on 'csa_es'"):
        EvoStrategy("csa_es", anchor=1.0)
    with pytest.raises(ValueError, match="anchor must be an Anchor, or its strength"):
        EvoStrategy("mezo", anchor="strong")


def test_too_strong_a_pull_ends_the_fit(tmp_path):
    with pytest.raises(ValueError, match="anchor=5 with a learning rate of 0.2 .* must be below 1"):
        fit(tmp_path, anchor=5)


class Manual(EvolutionMixin, Model):
    evolution_update = "in_place"

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.evolution = Evolution("openai_es", population=8, sigma=0.1, seed=5, anchor=1.0)

    def fitness_step(self, batch, batch_idx):
        return -Model.training_step(self, batch, batch_idx)

    def training_step(self, batch, batch_idx):
        self.log_dict(self.evolve(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


def manual(folder, epochs, ckpt_path=None, seed=7):
    seed_everything(seed, verbose=False)
    module = Manual()
    start = {name: value.detach().clone() for name, value in module.state_dict().items()}
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=[ModelCheckpoint(folder,
        save_last=True)], enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return module, start


def test_manual_optimization(tmp_path):
    expected, start = manual(tmp_path / "whole", 3)
    assert expected.drifts[-1] == pytest.approx(drift(expected, start), rel=1e-5)
    manual(tmp_path / "part", 1)
    resumed, _ = manual(tmp_path / "part", 3, tmp_path / "part" / "last.ckpt")
    assert_same_weights(weights(resumed), weights(expected))
    assert resumed.drifts == expected.drifts[4:]
    with pytest.raises(ValueError, match="starting weights are not those"):
        manual(tmp_path / "part", 4, tmp_path / "part" / "last.ckpt", seed=8)


def test_manual_optimization_without_in_place(monkeypatch, tmp_path):
    monkeypatch.setattr(Manual, "evolution_update", "optimizer")
    with pytest.raises(ValueError, match="Use evolution_update = 'in_place'"):
        manual(tmp_path, 1)
