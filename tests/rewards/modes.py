"""Modes of torch's that take note of what passes through them."""

from torch.overrides import TorchFunctionMode


class Foreign(TorchFunctionMode):
    """Somebody else's."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.functions.append(function)
        return function(*args, **(kwargs or {}))


class Follows(Foreign):
    """As those by which members are evaluated."""

    __module__ = "lightning_evo.evaluation.ways.perturbed"
