"""A member's tensor lies where the weight does, modulo a cache line: MKL on AMD's processors rounds products by it."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from lightning_evo.evaluation.ways import perturbed, rules
from lightning_evo.evaluation.ways.in_forward import InForward
from tests.evaluation.models import NOISE, evaluate, population

SHAPES = {
    "vector": (11,),
    "matrix": (9, 13),
    "again": (15, 5),
    "images": (5, 3, 3, 3),
    "points": (6, 5, 1, 1),
    "table": (17, 7),
}


class Weights(torch.nn.Module):
    """Parameters of odd sizes; the others begin in the midst of a cache line."""

    def __init__(self, offset):
        super().__init__()
        for name, shape in SHAPES.items():
            memory = torch.randn(torch.Size(shape).numel() + offset)
            self.register_parameter(name, torch.nn.Parameter(memory[offset:].view(shape)))
        for weight in (self.images, self.points):
            weight.data = weight.data.to(memory_format=torch.channels_last)

    def forward(self):
        ids = torch.tensor([3, 16, 3])
        return (
            torch.nn.functional.linear(torch.ones(4, 13), self.matrix, self.vector[:9]).sum()
            + (self.again @ self.again.T + self.again.detach() @ self.again.data.T).sum()
            + torch.nn.functional.conv2d(torch.ones(1, 3, 5, 5), self.images).sum()
            + torch.nn.functional.conv2d(torch.ones(1, 5, 2, 2), self.points).sum()
            + torch.nn.functional.embedding(ids, self.table).sum()
            + self.table.mv(torch.ones(7)).sum()
            + self.vector.sum()
        )


F, T = torch.nn.functional, torch.Tensor
CALLED = {F.linear, F.conv2d, F.embedding, T.matmul, T.__matmul__, T.mv, T.sum}  # by the module; others make members


class Addresses(TorchFunctionMode):
    """Notes the addresses, modulo a cache line, of what the module's functions get in the place of parameters."""

    def __init__(self):
        super().__init__()
        self.found = {name: [] for name in SHAPES}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        for argument in (*args, *(kwargs or {}).values()) if function in CALLED else ():
            if isinstance(argument, torch.Tensor) and not isinstance(argument, torch.nn.Parameter):
                for name, shape in SHAPES.items():
                    if argument.shape == shape:
                        with torch._C.DisableTorchFunction():
                            self.found[name].append((argument.data_ptr() % 64, argument.stride()))
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
@pytest.mark.parametrize("offset", [0, 6])
@pytest.mark.parametrize("noise", NOISE)
def test_a_member_lies_where_the_weight_does(noise, offset, small, monkeypatch):
    if not small:  # made one by one, in scratch memory
        monkeypatch.setattr(rules, "SMALL", 0)
        monkeypatch.setattr(perturbed, "SMALL", 0)
    module = Weights(offset)
    mode = Addresses()
    with mode:
        evaluate(InForward(), module, population(**NOISE[noise]), module)
    for name, parameter in module.named_parameters():
        if "rank" in NOISE[noise] and not mode.found[name] and parameter.dim() > 1:
            continue  # its noise is never made
        expected = (parameter.data_ptr() % 64, parameter.stride())
        assert mode.found[name], name
        assert set(mode.found[name]) == {expected}, name
