"""Interrupted and resumed training is uninterrupted training, bit for bit."""

import copy
import os
import signal
import subprocess
import sys
import textwrap

import lightning as L
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.version import Version
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy
from lightning_evo.noise.values import draw
from tests.strategies.models import ConvNet, assert_same_weights, images, trainer, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Shuffled(ConvNet):
    """Shuffling and dropout draw from the global generators, which must resume, too."""

    def __init__(self):
        super().__init__(dropout=0.5)

    def train_dataloader(self):
        return DataLoader(images(), 16, shuffle=True)


draws_the_order_twice = pytest.mark.skipif(
    Version(L.__version__) < Version("2.5.3"),
    reason="Lightning before 2.5.3 draws the order of the first resumed epoch twice, also with backpropagation",
)


def fit(folder, strategy, epochs, ckpt_path=None, module=None, seed=7):
    seed_everything(seed, verbose=False)
    module = module or Shuffled()
    options = {"max_epochs": epochs, "max_steps": -1, "enable_checkpointing": True, "default_root_dir": folder}
    t = trainer(strategy, callbacks=[ModelCheckpoint(folder, save_last=True, filename="{epoch}")], **options)
    t.fit(module, ckpt_path=ckpt_path)
    return t, module


def assert_same_optimizer(a, b):
    a, b = (t.optimizers[0].state_dict() for t in (a, b))
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for index in a["state"]:
        for name, value in a["state"][index].items():
            assert torch.equal(value, b["state"][index][name])


def next_noise(t):
    evolution = t.strategy.evolution
    return draw(evolution.population.perturbation.key, [0, 1], 0, 0, 100)


@draws_the_order_twice
@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize("algorithm", ["openai_es", "es_at_scale"])
def test_resumed_equals_uninterrupted(tmp_path, update, algorithm):
    def strategy():
        return EvoStrategy(algorithm, population=8, update=update, sigma=0.05)

    whole, expected = fit(tmp_path / "whole", strategy(), epochs=4)
    fit(tmp_path / "part", strategy(), epochs=2)
    resumed, actual = fit(tmp_path / "part", strategy(), epochs=4, ckpt_path=tmp_path / "part" / "last.ckpt", seed=99)

    assert resumed.global_step == whole.global_step == 16
    assert_same_weights(weights(actual), weights(expected))
    assert_same_optimizer(resumed, whole)
    assert torch.equal(next_noise(resumed), next_noise(whole))


class Perceptron(Shuffled):
    """What every way of evaluating can do: no metrics, no `float(loss)`."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(x), y)


@draws_the_order_twice
@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"accumulate": 3}], ids=["dense", "low_rank", "accumulated"])
@pytest.mark.parametrize("evaluation", ["auto", "plain", "in_forward", "batched"])
def test_resumed_equals_uninterrupted_in_every_way_of_evaluating(tmp_path, evaluation, options):
    """Also a run that was told nothing goes on in the way of the one before, which rounds as it did."""
    accumulate, options = options.get("accumulate", 1), {k: v for k, v in options.items() if k != "accumulate"}
    found = []

    def run(folder, epochs, evaluation, **kwargs):
        seed_everything(kwargs.pop("seed", 7), verbose=False)
        module = Perceptron()
        t = trainer(
            EvoStrategy(population=6, sigma=0.05, evaluation=evaluation, **options), max_epochs=epochs, max_steps=-1,
            callbacks=[ModelCheckpoint(folder, save_last=True)], enable_checkpointing=True, default_root_dir=folder,
            accumulate_grad_batches=accumulate,
        )  # fmt: skip
        t.fit(module, **kwargs)
        found.append(t.strategy.evolution.evaluation.state_dict())
        return t, module

    whole, expected = run(tmp_path / "whole", 4, evaluation)
    run(tmp_path / "part", 2, evaluation)
    for name in {evaluation, "auto"}:
        resumed, actual = run(tmp_path / f"resumed_{name}", 4, name, ckpt_path=tmp_path / "part" / "last.ckpt", seed=99)
        assert resumed.global_step == whole.global_step
        assert_same_weights(weights(actual), weights(expected))
        assert_same_optimizer(resumed, whole)
    if evaluation != "auto":
        assert [state["evaluation"] for state in found] == [evaluation] * len(found)
        assert all(state == found[0] for state in found)


def test_momentum_in_the_space_of_a_factor_is_resumed(tmp_path):
    """It is kept as the weights of past generations, and the checkpoint falls between two changes of the basis."""

    def strategy():
        return EvoStrategy(
            "lozo", population=8, sigma=0.05, momentum=0.9, rank=2, basis_reuse=3, update="in_place",
            evaluation="in_forward",
        )  # fmt: skip

    whole, expected = fit(tmp_path / "whole", strategy(), epochs=4)
    fit(tmp_path / "part", strategy(), epochs=2)
    saved = torch.load(tmp_path / "part" / "last.ckpt", weights_only=True)["lightning_evo"]
    assert saved["state"]["generation"] == 8  # the third of a basis' generations comes next
    assert [generation for generation, _ in saved["state"]["momentum"]] == [6, 7]
    resumed, actual = fit(tmp_path / "part", strategy(), epochs=4, ckpt_path=tmp_path / "part" / "last.ckpt", seed=99)
    assert resumed.strategy.evolution.state == whole.strategy.evolution.state
    assert_same_weights(weights(actual), weights(expected))


def test_resuming_in_the_middle_of_an_accumulation_window(tmp_path):
    """The fitness gathered so far is saved, so nothing of a window is lost."""
    saved = {}

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 1:  # the second of four batches
                trainer.save_checkpoint(tmp_path / "middle.ckpt")
                saved.update(torch.load(tmp_path / "middle.ckpt", weights_only=True)["lightning_evo"])

    strategy = EvoStrategy(population=8)
    module = ConvNet()
    trainer(strategy, callbacks=[Save()], accumulate_grad_batches=4, max_steps=1).fit(module)
    assert saved["fitness_weight"] == 2
    assert saved["state"]["generation"] == 0

    resumed = EvoStrategy(population=8).evolution
    resumed.load_state_dict(saved, torch.device("cpu"))
    resumed.setup(module)
    assert resumed.has_fitness
    assert torch.equal(resumed.conclude().fitness, saved["fitness_sums"][:-1, 0] / 2)


def test_checkpoint_is_ordinary(tmp_path):
    t, module = fit(tmp_path, EvoStrategy(population=8, seed=3), epochs=1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint) >= {"state_dict", "optimizer_states", "lr_schedulers", "lightning_evo"}
    saved = checkpoint["lightning_evo"]
    assert saved["state"]["seed"] == 3
    assert saved["state"]["generation"] == 4
    assert saved["algorithm"] == "openai_es"


def test_backpropagation_goes_on_from_evolution_and_back(tmp_path):
    """Each way the next trainer starts from the weights, optimizer state and counters of the one before."""
    fit(tmp_path, EvoStrategy(population=8), epochs=1)
    first = torch.load(tmp_path / "last.ckpt", weights_only=True)

    class Watch(Shuffled):
        def on_train_start(self):
            state = copy.deepcopy(self.trainer.optimizers[0].state_dict()["state"])
            self.start = weights(self), self.trainer.global_step, state

    for path, strategy in ((tmp_path / "last.ckpt", "auto"), (tmp_path / "b" / "last.ckpt", EvoStrategy(population=8))):
        checkpoint = torch.load(path, weights_only=True)
        module = Watch()
        folder = tmp_path / "b" if strategy == "auto" else tmp_path / "c"
        t, module = fit(folder, strategy, epochs=checkpoint["epoch"] + 2, ckpt_path=path, module=module)
        start, step, state = module.start
        assert_same_weights(start, checkpoint["state_dict"])
        assert step == checkpoint["global_step"]
        assert all(
            torch.equal(state[i]["exp_avg"], s["exp_avg"])
            for i, s in checkpoint["optimizer_states"][0]["state"].items()
        )
        assert t.global_step == step + 4
        if strategy != "auto":  # no noise of the first four generations is used again
            assert t.strategy.evolution.state.generation == 12
        assert any(not torch.equal(a, b) for a, b in zip(weights(module).values(), start.values(), strict=True))
    assert first["global_step"] == 4


def test_in_place_drops_the_moments_of_backpropagation(tmp_path):
    fit(tmp_path, "auto", epochs=1)
    t, _ = fit(tmp_path, EvoStrategy(population=8, update="in_place"), epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert not t.optimizers[0].state


def test_another_algorithm_is_refused(tmp_path):
    fit(tmp_path, EvoStrategy("mezo"), epochs=1)
    with pytest.raises(ValueError, match="written by the algorithm 'mezo', but this run uses 'openai_es'"):
        fit(tmp_path, EvoStrategy(), epochs=2, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # pytest.warns shows it again, as if it came from here
def test_another_seed_is_announced(tmp_path):
    fit(tmp_path, EvoStrategy(population=8, seed=1), epochs=1)
    with pytest.warns(UserWarning, match="seed=2; the checkpoint's run used 1"):
        fit(tmp_path, EvoStrategy(population=8, seed=2), epochs=1, ckpt_path=tmp_path / "last.ckpt")


def test_sigma_set_by_a_callback_is_resumed(tmp_path):
    class Halve(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.strategy.sigma /= 2

    def run(epochs, folder, ckpt_path=None, callback=True):
        seed_everything(0, verbose=False)
        callbacks = [Halve()] if callback else []
        callbacks.append(ModelCheckpoint(folder, save_last=True))
        t = trainer(
            EvoStrategy(population=8, sigma=0.08), callbacks=callbacks, max_epochs=epochs, max_steps=-1,
            enable_checkpointing=True, default_root_dir=folder,
        )  # fmt: skip
        t.fit(ConvNet(), ckpt_path=ckpt_path)
        return t

    run(2, tmp_path)
    t = run(3, tmp_path, tmp_path / "last.ckpt", callback=False)
    assert t.strategy.sigma == pytest.approx(0.02)
    assert float(t.callback_metrics["evo/sigma"]) == pytest.approx(0.02)


class Resumable:
    """A dataloader that saves its place: four different batches, in order."""

    def __init__(self):
        pictures, labels = images().tensors
        self.next, self.batches = 0, list(zip(pictures.split(16), labels.split(16), strict=True))

    def __len__(self):
        return 4

    def __iter__(self):
        for index in range(self.next, 4):
            self.next = (index + 1) % 4
            yield self.batches[index]

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def test_resumed_within_an_epoch_with_a_dataloader_that_saves_its_place(tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    class Model(ConvNet):
        def train_dataloader(self):
            return Resumable()

    def run(ckpt_path=None):
        seed_everything(0, verbose=False)
        module = Model(dropout=0.5)
        options = {"max_epochs": 3, "max_steps": -1, "default_root_dir": tmp_path}
        trainer(EvoStrategy(population=8), callbacks=[] if ckpt_path else [Save()], **options).fit(
            module, ckpt_path=ckpt_path
        )
        return module

    expected = run()
    assert_same_weights(weights(run(tmp_path / "middle.ckpt")), weights(expected))


SCRIPT = """
import itertools, sys, time
import torch
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_evo import EvoStrategy
from tests.strategies.test_resume import Shuffled

folder, update, killed = sys.argv[1], sys.argv[2], sys.argv[3] == "killed"
calls = itertools.count()

class Model(Shuffled):
    def training_step(self, batch, batch_idx):
        if killed and next(calls) == 17 * 10 + 8:  # ten generations of 16 members and the center, and half
            print("here", flush=True)
            time.sleep(600)
        return super().training_step(batch, batch_idx)

def run(folder, ckpt_path=None):
    L.seed_everything(7, verbose=False)
    trainer = L.Trainer(
        strategy=EvoStrategy(population=16, sigma=0.05, update=update), max_epochs=6, accelerator="cpu", logger=False,
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_epochs=1)], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )
    model = Model()
    trainer.fit(model, ckpt_path=ckpt_path)
    torch.save(model.state_dict(), folder + "/final.pt")

if killed:
    run(folder + "/killed")
else:
    run(folder + "/killed", folder + "/killed/last.ckpt")
    run(folder + "/whole")
"""


@draws_the_order_twice
@pytest.mark.slow
@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_killed_within_a_generation_and_resumed(tmp_path, update):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}

    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), update]

    killed = subprocess.Popen([*command, "killed"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert killed.stdout.readline() == "here\n"
        killed.send_signal(signal.SIGKILL)
    finally:
        killed.kill()
        killed.stdout.close()
        assert killed.wait(timeout=30) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "final.pt").exists()

    last = tmp_path / "killed" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 8  # two epochs of four steps; two steps were lost
    subprocess.run([*command, "resumed"], env=environment, check=True, timeout=200, capture_output=True)
    expected, actual = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    assert_same_weights(actual, expected)
