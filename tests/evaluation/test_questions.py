"""A step that asks whether a tensor requires a gradient is told that nothing does."""

import re
import warnings

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_evo import EvoStrategy


class Module(L.LightningModule):
    """With a memory bank that is filled as some libraries do it."""

    def __init__(self, ask):
        super().__init__()
        self.net, self.ask = nn.Linear(3, 3), ask
        self.attention = nn.TransformerEncoderLayer(3, 1, 4, batch_first=True)  # asks, too, which changes nothing
        self.register_buffer("bank", torch.zeros(3))

    def training_step(self, batch, batch_idx):
        output = self.net(self.attention(batch[:, None])[:, 0])
        if self.ask(output, batch, self):
            self.bank = output[0].detach()
        return output.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(module):
    strategy = EvoStrategy(population=4, evaluation="plain")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(strategy=strategy, max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader(torch.randn(8, 3), batch_size=4))


@pytest.mark.parametrize(
    "ask",
    [
        lambda y, x, m: y.requires_grad,
        lambda y, x, m: y[0].requires_grad,
        lambda y, x, m: y.square().sum().grad_fn,
        lambda y, x, m: torch.cat([y, y]).requires_grad,
    ],
)
def test_one_warning_names_the_line_that_asks(ask):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Module(ask))
    asked = [str(w.message) for w in caught if "requires a gradient" in str(w.message)]
    assert len(asked) == 1
    assert re.match(re.escape(__file__) + r":\d+ asks", asked[0])


@pytest.mark.parametrize(
    "ask",
    [
        lambda y, x, m: x.requires_grad,
        lambda y, x, m: y.detach().requires_grad,
        lambda y, x, m: y.data.mul(2).requires_grad,
        lambda y, x, m: next(m.parameters()).requires_grad,
        lambda y, x, m: y.argmax().requires_grad,
        lambda y, x, m: m.bank.requires_grad,
    ],
)
def test_what_has_no_gradient_under_backpropagation_either_is_no_question(ask):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*requires a gradient")
        fit(Module(ask))
