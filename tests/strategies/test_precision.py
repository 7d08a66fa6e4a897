"""Precisions, gradient scaling and clipping, for both kinds of update."""

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.plugins import MixedPrecision

from lightning_evo import EvoStrategy
from tests.strategies.models import ConvNet, trainer

PRECISIONS = ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]


def new_module(lr=0.05):
    seed_everything(0, verbose=False)
    return ConvNet(optimizer=torch.optim.SGD, lr=lr, dropout=0.0)


def fit(precision="32-true", update="optimizer", lr=0.05, steps=5, algorithm="openai_es", **options):
    module = new_module(lr)
    if (
        precision == "16-mixed"
    ):  # on the CPU Lightning would turn the name into bf16-mixed, which has no gradient scaler
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]
    else:
        options["precision"] = precision
    t = trainer(EvoStrategy(algorithm, population=16, update=update, seed=0), max_steps=steps, **options)
    t.fit(module)
    return t, module


def movement(module):
    """How far training has moved each parameter, as one vector."""
    start = dict(new_module().named_parameters())
    moved = [(p.detach().float() - start[name].detach()).flatten() for name, p in module.named_parameters()]
    return torch.cat(moved)


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_follows_float32(precision, update):
    _, reference = fit()
    t, module = fit(precision, update)
    assert t.global_step == 5
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    assert {parameter.dtype for parameter in module.parameters()} == {dtype.get(precision, torch.float32)}
    similarity = torch.nn.functional.cosine_similarity(movement(module), movement(reference), dim=0)
    # Half-precision fitness swaps a few ranks and bf16 weights round: alike, not equal. Double and float32 agree.
    assert similarity > (0.999 if precision in ("32-true", "64-true") else 0.8)


def test_gradient_scaler_unscales_the_estimate():
    """The scale (65,536 at the start) must be multiplied in, since the scaler divides it out."""
    t, scaled = fit("16-mixed", steps=1)
    assert t.precision_plugin.scaler.get_scale() == 65536
    _, plain = fit("32-true", steps=1)
    assert float(movement(scaled).norm()) == pytest.approx(float(movement(plain).norm()), rel=0.1)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_limits_the_step(update, algorithm, precision):
    limit = 0.01
    options = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm, "steps": 1, "lr": 1.0}
    moved = movement(fit(precision, update, **options)[1])
    size = moved.norm() if algorithm == "norm" else moved.abs().max()
    assert float(size) == pytest.approx(limit, rel=1e-3)


def test_in_place_clips_as_the_optimizer_does():
    for algorithm in ("norm", "value"):
        options = {"gradient_clip_val": 0.02, "gradient_clip_algorithm": algorithm}
        _, expected = fit(update="optimizer", **options)
        _, actual = fit(update="in_place", **options)
        for a, b in zip(actual.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_in_place_equals_plain_sgd():
    _, expected = fit(update="optimizer")
    _, actual = fit(update="in_place")
    for a, b in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_in_place_has_no_gradient_and_no_optimizer_state():
    module = ConvNet(optimizer=torch.optim.AdamW)
    t = trainer(EvoStrategy(population=8, update="in_place"), max_steps=4)
    t.fit(module)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not t.optimizers[0].state


def test_in_place_follows_the_scheduler():
    """The learning rate falls to zero, so the last step moves nothing."""

    class Model(ConvNet):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 2))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        def on_train_batch_end(self, *args):
            self.history.append(self.net[5].weight.detach().clone())

    module = Model()
    module.history = []
    trainer(EvoStrategy(population=8, update="in_place"), max_steps=4).fit(module)
    first, second, third, fourth = module.history
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert torch.equal(third, fourth)


def test_learning_rates_of_parameter_groups():
    class Model(ConvNet):
        def configure_optimizers(self):
            groups = [{"params": self.net[0].parameters(), "lr": 0.0}, {"params": self.net[5].parameters()}]
            return torch.optim.SGD(groups, lr=0.1)

    module = Model()
    before = module.net[0].weight.detach().clone(), module.net[5].weight.detach().clone()
    trainer(EvoStrategy(population=8, update="in_place"), max_steps=2).fit(module)
    assert torch.equal(module.net[0].weight, before[0])
    assert not torch.equal(module.net[5].weight, before[1])


@pytest.mark.filterwarnings("ignore:.*will run with no optimizer")
def test_without_an_optimizer_the_strategy_has_the_learning_rate():
    class Model(ConvNet):
        def configure_optimizers(self):
            return None

    def run(learning_rate):
        seed_everything(0, verbose=False)
        module = Model()
        trainer(EvoStrategy(population=8, update="in_place", learning_rate=learning_rate), max_steps=1).fit(module)
        return module.net[5].weight.detach()

    seed_everything(0, verbose=False)
    start = Model().net[5].weight.detach()
    moved = run(0.1) - start
    assert moved.abs().max() > 1e-3
    assert torch.allclose(run(0.2) - start, 2 * moved, atol=1e-6)
