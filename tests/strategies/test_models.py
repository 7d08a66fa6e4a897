"""Unchanged models of many kinds learn under strategy="evo"."""

import lightning as L
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel, ManualOptimBoringModel, RandomDataset
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_evo  # noqa: F401
from lightning_evo import EvoStrategy
from tests.strategies.models import ConvNet, images, trainer


def fit(module, loader=None, **options):
    """Mean training loss of the first and of the last five steps of a run."""
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    seed_everything(0, verbose=False)
    trainer(options.pop("strategy", "evo"), callbacks=[Losses()], **options).fit(module, loader)
    return sum(losses[:5]) / 5, sum(losses[-5:]) / 5


def test_cnn_with_batchnorm_and_dropout():
    first, last = fit(ConvNet(), max_steps=60)
    assert last < 0.5 * first


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda parameters, lr: torch.optim.SGD(parameters, lr=0.1), id="sgd"),
        pytest.param(
            lambda parameters, lr: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
            id="momentum",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda parameters, lr: torch.optim.AdamW(parameters, lr=0.01), id="adamw"),
        pytest.param(
            lambda parameters, lr: torch.optim.RMSprop(parameters, lr=0.003), id="rmsprop", marks=pytest.mark.slow
        ),
    ],
)
def test_learning_rates_made_for_backpropagation_fit(optimizer):
    """The estimate has the gradient's length, so nothing diverges and every one of them learns."""
    first, last = fit(ConvNet(optimizer=optimizer), max_steps=60)
    assert last < 0.75 * first


def test_boring_model():
    """With its own learning rate of 0.1 this model diverges under backpropagation, too; so with a tenth of it."""

    class Model(BoringModel):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    first, last = fit(Model(), max_steps=200, max_epochs=-1)
    assert last < 0.5 * first


@pytest.mark.filterwarnings("ignore:Generation .*members that should be compared have the same fitness")
def test_demo_model():
    """Its loss is a sum of ReLUs: zero is the best there is, and reached by all members."""
    first, last = fit(DemoModel(), DataLoader(torch.rand(64, 32), batch_size=8), max_steps=60, max_epochs=-1)
    assert first > 0.5
    assert last == 0


@pytest.mark.filterwarnings("ignore:ManualOptimBoringModel uses manual optimization.*nothing evolves")
def test_manual_optimization_is_left_alone():
    def run(strategy):
        seed_everything(0, verbose=False)
        module = ManualOptimBoringModel()
        t = trainer(strategy, max_steps=10)
        t.fit(module)
        return t.global_step, module.layer.weight

    (steps, weight), (expected_steps, expected_weight) = run("evo"), run("auto")
    assert steps == expected_steps == 10
    assert torch.equal(weight, expected_weight)


class LSTM(L.LightningModule):
    """Says whether the sum of a sequence is positive."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden, _ = self.lstm(x)
        loss = nn.functional.binary_cross_entropy_with_logits(self.head(hidden[:, -1]).squeeze(1), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def test_lstm():
    x = torch.randn(128, 6, 2)
    y = (x.sum((1, 2)) > 0).float()
    first, last = fit(LSTM(), DataLoader(TensorDataset(x, y), 64), max_steps=100, max_epochs=-1)
    assert last < 0.6 * first


class GPT2(L.LightningModule):
    """A tiny GPT-2 from transformers, input and output embeddings tied."""

    def __init__(self):
        super().__init__()
        transformers = pytest.importorskip("transformers")
        self.model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=16, n_positions=16, n_embd=16, n_layer=2, n_head=2)
        )
        assert self.model.lm_head.weight is self.model.transformer.wte.weight

    def training_step(self, batch, batch_idx):
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def test_gpt2_with_tied_weights():
    tokens = (torch.arange(16)[:, None] + torch.arange(16)) % 16  # counting, from 16 different starts
    module = GPT2()
    first, last = fit(module, DataLoader(tokens, 16), max_steps=80, max_epochs=-1)
    assert last < 0.7 * first
    assert module.model.lm_head.weight is module.model.transformer.wte.weight


@pytest.mark.filterwarnings(
    "ignore:Generation .*members that should be compared have the same fitness"
)  # all are right in the end
def test_fitness_step_replaces_the_loss():
    """Accuracy has no gradient; evolution climbs it all the same, while training_step's loss is only logged."""

    class Model(ConvNet):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.accuracies = []

        def fitness_step(self, batch, batch_idx):
            x, y = batch
            return self.net(x).argmax(1) == y

        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.accuracies.append(float(self.fitness_step(batch, batch_idx).float().mean()))
            return torch.tensor(0.0)  # nothing can be learnt from this

    module = Model()
    seed_everything(0, verbose=False)
    trainer(EvoStrategy(sigma=0.1), max_steps=80).fit(module)
    assert sum(module.accuracies[:4]) / 4 < 0.6
    assert sum(module.accuracies[-4:]) / 4 > 0.9


def test_evolve_chooses_parameters():
    module = ConvNet()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer(EvoStrategy(evolve=r"net\.5", population=8), max_steps=3).fit(module)
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert moved == [False, False, False, False, True, True]


def test_parameters_without_an_optimizer_stay():
    """As with backpropagation: what the optimizer does not hold is not trained."""

    class Model(ConvNet):
        def configure_optimizers(self):
            return torch.optim.Adam(self.net[5].parameters(), lr=0.01)

    module = Model()
    before = module.net[0].weight.detach().clone()
    t = trainer("evo", max_steps=3)
    t.fit(module)
    assert torch.equal(module.net[0].weight, before)
    assert [parameter.name for parameter in t.strategy.evolution.space] == ["net.5.weight", "net.5.bias"]


def test_both_namespaces():
    import pytorch_lightning as pl
    from pytorch_lightning.demos.boring_classes import BoringModel as OtherBoringModel

    from lightning_evo.pytorch_lightning import EvoStrategy as OtherEvoStrategy

    def run(package, model, strategy):
        torch.manual_seed(0)
        module = model()
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        options |= {"enable_model_summary": False, "accelerator": "cpu", "max_steps": 5}
        package.Trainer(strategy=strategy, **options).fit(module, DataLoader(RandomDataset(32, 64)))
        return module.layer.weight

    expected = run(L, BoringModel, EvoStrategy(seed=1))
    assert torch.equal(run(pl, OtherBoringModel, OtherEvoStrategy(seed=1)), expected)
    assert not torch.equal(run(pl, OtherBoringModel, "evo"), expected)  # another seed


def test_parameters_unfrozen_in_mid_training_evolve_from_then_on():
    """BackboneFinetuning gives a frozen backbone to the optimizer after some epochs."""
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Model(ConvNet):
        def __init__(self):
            super().__init__()
            self.backbone = self.net[0]

        def configure_optimizers(self):
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)

    sizes = []

    class Sizes(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            sizes.append(len(trainer.strategy.evolution.space))
            weights.append(module.backbone.weight.detach().clone())

    weights = []
    callbacks = [BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False), Sizes()]
    trainer(EvoStrategy(population=4), callbacks=callbacks, max_epochs=4, max_steps=-1).fit(Model())
    assert sizes == [4, 4, 6, 6]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_members_cannot_spoil_the_batch():
    """In-place augmentation and popping from a dictionary act on each member's own batch, and on the center's once."""
    means = []

    class Model(ConvNet):
        evolution_shared = frozenset({"means"})

        def training_step(self, batch, batch_idx):
            labels = batch.pop("labels")
            means.append(float(batch["images"].mean()))
            batch["images"].mul_(2)
            return super().training_step((batch["images"], labels), batch_idx)

    pictures, labels = images().tensors
    data = [{"images": pictures[i], "labels": labels[i]} for i in range(16)]
    for evaluation, calls in (("plain", 4 + 1), ("auto", None)):  # the latter compares ways of evaluating first
        means.clear()
        trainer(EvoStrategy(population=4, evaluation=evaluation), max_steps=1).fit(Model(), DataLoader(data, 16))
        assert means == pytest.approx([means[0]] * (calls or len(means)))
    assert len(means) > 5


def test_padding_neither_is_perturbed_nor_learns():
    class Model(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 3, padding_idx=0)
            self.head = nn.Linear(3, 1)

        def training_step(self, batch, batch_idx):
            assert not self.embedding.weight[0].any()
            return self.head(self.embedding(batch).mean(1)).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

    for update in ("optimizer", "in_place"):
        module = Model()
        before = module.embedding.weight.detach().clone()
        tokens = torch.randint(0, 5, (32, 4))
        trainer(EvoStrategy(population=8, update=update), max_steps=3).fit(module, DataLoader(tokens, 8))
        assert not module.embedding.weight[0].any()
        assert (module.embedding.weight[1:] != before[1:]).all()


def test_one_strategy_for_two_trainers():
    strategy = EvoStrategy(population=4, seed=0)
    for _ in range(2):
        t = trainer(strategy, max_steps=2, accelerator="auto")  # Lightning refuses to be told a second time
        t.fit(ConvNet())
        assert t.strategy is strategy
        assert strategy.evolution.state.generation == 2


def test_an_aborted_accumulation_window_is_forgotten():
    class Model(ConvNet):
        def on_train_batch_end(self, *args):
            if self.fails and args[-1] == 1:
                raise RuntimeError("abort")

    module = Model()
    module.fails = True
    strategy = EvoStrategy(population=4)
    with pytest.raises(RuntimeError, match="abort"):
        trainer(strategy, accelerator="auto", accumulate_grad_batches=4, max_steps=1).fit(module)
    assert strategy.evolution.has_fitness
    module.fails = False
    weights = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            weights.append(trainer.strategy.evolution.has_fitness)

    options = {"accelerator": "auto", "accumulate_grad_batches": 4, "max_steps": 1}
    trainer(strategy, callbacks=[Watch()], **options).fit(module)
    assert weights == [False, True, True, True]
    assert strategy.evolution.state.generation == 1
