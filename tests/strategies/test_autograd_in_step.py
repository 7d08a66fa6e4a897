"""Steps that differentiate: with ``torch.enable_grad()`` they train, and without the error says what is missing."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_evo import Evolution, EvolutionMixin, EvoStrategy
from tests.strategies.models import trainer

WHAT_TO_DO = r"the forward included, under `with torch.enable_grad\(\):`.$"


def slopes_by_grad(net, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = net(x)
        slope = torch.autograd.grad(values.sum(), x, create_graph=True)[0]
        curvature = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        return values, slope, curvature


def slopes_by_func(net, x):
    def value(x):
        return net(x[None])[0, 0]

    slope, curvature = torch.func.grad(value), torch.func.jacrev(torch.func.grad(value))
    return net(x), torch.vmap(slope)(x), torch.vmap(curvature)(x)[:, 0]


def slopes_by_jacobian(net, x):
    def value(x):
        return net(x).sum()

    slope = torch.autograd.functional.jacobian(value, x)
    curvature = torch.autograd.functional.jacobian(
        lambda x: torch.autograd.functional.jacobian(value, x, create_graph=True).sum(), x
    )
    return net(x), slope, curvature


class Oscillator(L.LightningModule):
    """A physics-informed network: u'' = -u."""

    def __init__(self, slopes=slopes_by_grad, lr=0.05):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.slopes, self.lr, self.losses = slopes, lr, []

    def residual(self, x):
        values, _, curvature = self.slopes(self.net, x)
        start = self.net(torch.zeros(1, 1)) - 1
        return (curvature + values).square().mean() + start.square().sum()

    def training_step(self, batch, batch_idx):
        loss = self.residual(batch)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return DataLoader(torch.linspace(-1, 1, 32)[:, None], batch_size=32)


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("evaluation", ["plain", "in_forward", "auto"])
@pytest.mark.parametrize("slopes", [slopes_by_grad, slopes_by_func, slopes_by_jacobian])
def test_members_of_a_physics_informed_network_have_their_own_derivatives(slopes, evaluation, rank):
    """In every way each member's fitness is that of a network with the member's weights."""
    module = Oscillator(slopes)
    x = torch.linspace(-1, 1, 32)[:, None]
    evolution = Evolution(population=4, sigma=0.05, seed=0, rank=rank, evaluation=evaluation)
    evolution.setup(module)
    members = []
    for parameter in evolution.space:
        noise = evolution.population.perturbation.noise([0, 1], parameter.index, parameter.tensor.detach())
        members.append(torch.stack([0.05 * noise, -0.05 * noise], 1).flatten(0, 1))
    evolution.evaluate(lambda x: -module.residual(x), x)
    expected = []
    for member in range(4):
        other = Oscillator(slopes_by_grad)
        with torch.no_grad():
            for parameter, change in zip(other.parameters(), members, strict=True):
                parameter += change[member]
        expected.append(-float(other.residual(x).detach()))
    torch.testing.assert_close(
        evolution.conclude().fitness, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
def test_a_physics_informed_network_trains(update):
    module = Oscillator(lr=0.02)
    trainer(EvoStrategy(update=update, population=32, seed=0), max_steps=60).fit(module)
    assert sum(module.losses[-5:]) < 0.5 * sum(module.losses[:5])


def test_losses_are_those_of_backpropagation():
    modules = Oscillator(lr=0.0), Oscillator(lr=0.0)
    for module, strategy in zip(modules, ("auto", EvoStrategy(population=4)), strict=True):
        trainer(strategy, max_steps=2).fit(module)
    assert modules[0].losses == pytest.approx(modules[1].losses)


# --- without enable_grad ---


class WithoutGraph(Oscillator):
    def __init__(self, differentiate):
        super().__init__()
        self.differentiate = differentiate

    def training_step(self, batch, batch_idx):
        self.differentiate(self, batch)
        return self.net(batch).square().mean()


def by_grad(module, batch):
    torch.autograd.grad(module.net(batch.requires_grad_()).sum(), batch, create_graph=True)


def by_backward(module, batch):
    module.net(batch).sum().backward()


def by_retained_grad(module, batch):
    module.net(batch).retain_grad()


def by_tensor_hook(module, batch):
    module.net(batch).register_hook(lambda gradient: gradient)


def by_module_hook(module, batch):
    def hook(layer, inputs, output):
        output.sum().backward()

    handle = module.net[0].register_forward_hook(hook)
    try:
        module.net(batch)
    finally:
        handle.remove()


@pytest.mark.parametrize("evaluation", ["plain", "auto"])
@pytest.mark.parametrize("differentiate", [by_grad, by_backward, by_retained_grad, by_tensor_hook, by_module_hook])
def test_the_error_ends_with_what_to_do(differentiate, evaluation):
    module = WithoutGraph(differentiate)
    with pytest.raises(RuntimeError, match=WHAT_TO_DO):
        trainer(EvoStrategy(population=4, evaluation=evaluation), max_steps=1).fit(module)


def test_also_where_only_the_center_differentiates():
    class Both(WithoutGraph):
        def fitness_step(self, batch, batch_idx):
            return -self.net(batch).square().mean()

    with pytest.raises(RuntimeError, match=WHAT_TO_DO) as raised:
        trainer(EvoStrategy(population=4), max_steps=1).fit(Both(by_grad))
    assert str(raised.value).count("enable_grad") == 1


def test_also_with_manual_optimization():
    class Manual(EvolutionMixin, WithoutGraph):
        def __init__(self):
            super().__init__(by_grad)
            self.automatic_optimization = False
            self.evolution = Evolution(population=4)

        def fitness_step(self, batch, batch_idx):
            return -WithoutGraph.training_step(self, batch, batch_idx)

        def training_step(self, batch, batch_idx):
            self.evolve(batch, batch_idx)

    with pytest.raises(RuntimeError, match=WHAT_TO_DO):
        trainer("auto", max_steps=1).fit(Manual())


def test_other_errors_are_left_alone():
    def fail(module, batch):
        raise RuntimeError("the simulator requires a licence")

    with pytest.raises(RuntimeError, match="^the simulator requires a licence$"):
        trainer(EvoStrategy(population=4), max_steps=1).fit(WithoutGraph(fail))


def test_members_that_call_backward_leave_no_gradient():
    """Else their gradients would be added to the estimate where batches accumulate."""
    module = Oscillator()
    module.net[0].weight.grad = before = torch.ones(8, 1)

    def adversarial(x):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            module.net(x).sum().backward()
        return -module.net(x + 0.1 * x.grad.sign()).square().mean()

    evolution = Evolution(population=4, evaluation="plain")
    evolution.setup(module)
    evolution.evaluate(adversarial, torch.randn(4, 1))
    assert module.net[0].weight.grad is before
    assert torch.equal(before, torch.ones(8, 1))
    assert module.net[2].weight.grad is None
