"""Why a fast way is not taken: the reason names what the module has, and no dropout where there is none."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_evo import Evolution


class Teacher(nn.Module):
    """A frozen teacher that each forward moves."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)
        self.teacher = nn.Linear(8, 3).requires_grad_(False)

    def fitness(self, x):
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(self.net.weight, alpha=0.1)
        return -functional.mse_loss(self.net(x), self.teacher(x))


class Generator(nn.Module):
    """Random numbers of a generator of its own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)
        self.generator = torch.Generator().manual_seed(0)

    def fitness(self, x):
        return -self.net(x + torch.randn(x.shape, generator=self.generator)).square().mean()


class Counter(nn.Module):
    """Something that is kept from one forward to the next, in an object of another class."""

    class Box:
        calls = 0

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)
        self.box = self.Box()

    def fitness(self, x):
        self.box.calls += 1
        return -(self.net(x) * (1 + 0.1 * self.box.calls)).square().mean()


@pytest.mark.parametrize("module", [Teacher, Generator, Counter])
def test_no_dropout_is_blamed_where_there_is_none(module):
    torch.manual_seed(0)
    subject = module()
    evolution = Evolution(population=4, seed=0)
    evolution.setup(subject)
    evolution.evaluate(subject.fitness, torch.randn(16, 8))
    summary = evolution.evaluation.summary
    assert "(dropout)" not in summary
    assert "differently" not in summary or "a generator of the module's own" in summary
    assert "differently" not in summary or "something is kept from one forward to the next" in summary
