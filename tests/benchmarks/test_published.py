"""The yardsticks do what the papers say: checked on a linear fitness, whose slope is known."""

import pytest
import torch
from torch import nn

from benchmarks._published import Backpropagation, ESAtScale, MeZO


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(5, dtype=torch.float64))


def noise_of(seed, model):
    torch.manual_seed(seed)
    return [torch.normal(0.0, 1.0, tuple(parameter.shape), dtype=torch.float64) for parameter in model.parameters()]


def test_mezo_steps_along_the_noise_by_the_difference_quotient():
    model = Weights()
    slopes = [torch.full_like(parameter, index + 1.0).detach() for index, parameter in enumerate(model.parameters())]

    def fitness(batch):
        return batch * sum((slope * weights).sum() for slope, weights in zip(slopes, model.parameters(), strict=True))

    method = MeZO(model, fitness, epsilon=1e-3, learning_rate=0.1)
    method.step(torch.tensor(2.0, dtype=torch.float64))
    z = noise_of(method.seed, model)
    quotient = 2 * sum(float((slope * part).sum()) for slope, part in zip(slopes, z, strict=True))
    for parameter, part in zip(model.parameters(), z, strict=True):
        torch.testing.assert_close(parameter.detach(), 0.1 * quotient * part, rtol=1e-9, atol=1e-12)


def test_mezo_draws_four_times_in_a_step(monkeypatch):
    model, draws = Weights(), []
    real = torch.normal
    monkeypatch.setattr(torch, "normal", lambda **options: draws.append(1) or real(**options))
    MeZO(model, lambda batch: model.first.sum()).step(torch.zeros(()))
    assert len(draws) == 4 * len(list(model.parameters()))


def test_es_at_scale_adds_z_scores_times_noise_and_restores():
    model = Weights()
    seen = []

    def fitness(batch):
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        return model.first.sum()

    ESAtScale(model, fitness, members=4, sigma=0.5, learning_rate=0.2).step(torch.zeros(()))
    noise = [[part / 0.5 for part in member] for member in seen]  # members start from zero weights, up to rounding
    rewards = torch.tensor([float(0.5 * member[0].sum()) for member in noise], dtype=torch.float64)
    z = (rewards - rewards.mean()) / rewards.std()
    for index, parameter in enumerate(model.parameters()):
        expected = 0.2 / 4 * sum(weight * member[index] for weight, member in zip(z, noise, strict=True))
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def test_es_at_scale_seeds_every_parameter_alike():
    """As the released code does: parameters of one shape have one noise, members and generations each another."""
    model, seen = nn.ParameterList(torch.zeros(6) for _ in range(3)), []

    def fitness(batch):
        seen.append(torch.stack([parameter.detach().clone() for parameter in model.parameters()]))
        return torch.tensor(1.0)  # all alike: the weights stay

    method = ESAtScale(model, fitness, members=2, sigma=0.5)
    method.step(torch.zeros(()))
    method.step(torch.zeros(()))
    assert all(torch.equal(member, member[:1].expand(3, 6)) for member in seen)
    assert len({tuple(member[0].tolist()) for member in seen}) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backpropagation_moves_against_the_loss(dtype):
    model = nn.Linear(4, 1).to(dtype)
    before = model.weight.detach().clone()
    method = Backpropagation(model, lambda batch: model(batch).sum())
    method.optimizer.param_groups[0]["lr"] = 0.1
    method.step(torch.ones(2, 4, dtype=dtype))
    assert (model.weight > before).all()  # fitness grows with every weight
