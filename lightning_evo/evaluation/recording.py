"""Records what torch functions were given and gave, so that two ways of running a member can be compared call by call.

Recorded are the calls that are given an evolving parameter, and those by which floating-point numbers become others:
comparisons, ``argmax``, ``.item()``. Each is kept as a sample of its tensors' elements.

Two runs of the same member that are rounded differently agree to rounding, until a choice that hangs on the last digit
falls differently: another token is generated, another branch is taken. What follows can't be compared. So a difference
counts where floating-point numbers differ and no such choice came before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_evo.evaluation.ways import vmap
from lightning_evo.evaluation.ways.functions import HARMLESS
from lightning_evo.spaces.memory import extent
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace

__all__ = ["Call", "Comparison", "Recorder", "compare", "same"]

_SAMPLED = 256  # elements of a tensor
_CALLS = 4096
_ELEMENTS = 1 << 20  # of all samples of a forward

_TO_PYTHON = {Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__float__, Tensor.__int__}
_TO_PYTHON |= {Tensor.__bool__}
_UNINITIALISED: set[Any] = {torch.empty_like, Tensor.new_empty, Tensor.new_empty_strided}


@dataclass(frozen=True)
class Sample:
    """Some elements of a tensor.

    Attributes:
        shape: The tensor's, without a dimension of members.
        values: ``[members, elements]`` in float64, with 1 for members if they share it; ``None`` for a tensor that
            can't be looked into. Of whole numbers the last one is their sum.
        floating: Whether they are floating-point numbers.
    """

    shape: tuple[int, ...]
    values: Tensor | None
    floating: bool

    def of(self, member: int) -> Tensor | None:
        """The elements of a member's tensor."""
        return None if self.values is None else self.values[member if len(self.values) > 1 else 0]


@dataclass(frozen=True)
class Call:
    """A call of a torch function; the last one of a forward stands for the fitness, which is its input.

    Attributes:
        function: Its name.
        parameters: Indices of the evolving parameters that it was given.
        inputs: The other tensors that it was given.
        outputs: The tensors that it gave.
        eps: Of the coarsest floating-point numbers in the forward so far.
    """

    function: str
    parameters: tuple[int, ...]
    inputs: tuple[Sample, ...]
    outputs: tuple[Sample, ...]
    eps: float

    @property
    def signature(self) -> tuple[object, ...]:
        """What is the same where two runs go the same way."""
        return self.function, self.parameters, *[sample.shape for sample in (*self.inputs, *self.outputs)]


class Recorder(TorchFunctionMode):
    """Records the calls of one forward.

    Args:
        space: The evolving parameters.
        watch_memory: Whether to look for tensors that share a weight's memory. Only where no member is in the weights:
            if one is, every view of them does.

    Attributes:
        calls: The first of them, in order.
        members: How many share the forward.
        seen: Indices of the evolving parameters that any call was given.
        aliases: Parameters whose memory calls were given in other tensors, by their indices.
    """

    def __init__(self, space: SearchSpace, *, watch_memory: bool = False) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.seen: set[int] = set()
        self.aliases: dict[int, EvolvingParameter] = {}
        self._known = space.by_identity()
        with torch._C.DisableTorchFunction():  # of members that run
            watched = [p for p in space if p.tensor.numel()] if watch_memory else []
            self._memory = [(parameter, *extent(parameter.tensor)) for parameter in watched]
        self._level, self.members = vmap.current()
        self._eps = max((torch.finfo(p.tensor.dtype).eps for p in space), default=0.0)
        self._elements = 0

    def run(self, fitness: Callable[[], Any]) -> Any:
        """Record a forward."""
        with self:
            return fitness()

    def finish(self, fitness: Sequence[float]) -> None:
        """Record the fitness of the forward's members."""
        values = torch.tensor(fitness, dtype=torch.float64)[:, None]
        self.calls.append(Call("fitness", (), (Sample((), values, True),), (), self._eps))

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in HARMLESS:
            return function(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        parameters = tuple(self._known[id(tensor)].index for tensor in tensors if id(tensor) in self._known)
        others = [tensor for tensor in tensors if id(tensor) not in self._known]
        self.seen.update(parameters)
        with torch._C.DisableTorchFunction():
            self._note_aliases(others)
        inputs = self._samples(others) if parameters else ()  # before they are written to
        result = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._eps = max([self._eps, *(torch.finfo(t.dtype).eps for t in outputs if t.is_floating_point())])
        chooses = function in _TO_PYTHON or any(not tensor.is_floating_point() for tensor in outputs)
        chooses = chooses and any(tensor.is_floating_point() for tensor in others)
        if (parameters or chooses) and len(self.calls) < _CALLS and self._elements < _ELEMENTS:
            inputs = inputs if parameters else self._samples(others)
            given = () if function in _UNINITIALISED else self._samples(outputs)
            self.calls.append(Call(getattr(function, "__name__", "?"), parameters, inputs, given, self._eps))
        return result

    def _note_aliases(self, tensors: list[Tensor]) -> None:
        for tensor in tensors if self._memory else ():
            if _has_memory(tensor):
                start, stop = extent(tensor)
                for parameter, first, last in self._memory:
                    if start < last and first < stop:
                        self.aliases[parameter.index] = parameter

    def _samples(self, tensors: list[Tensor]) -> tuple[Sample, ...]:
        return tuple(map(self._sample, tensors))

    def _sample(self, tensor: Tensor) -> Sample:
        with torch._C.DisableTorchFunction(), vmap.outside():
            values = _elements(tensor, self._level)
        self._elements += 0 if values is None else values.numel()
        return Sample(tuple(tensor.shape), values, tensor.is_floating_point())


def _elements(tensor: Tensor, level: int | None) -> Tensor | None:
    """Evenly spaced elements ``[members or 1, elements]`` on the CPU; ``None`` for what has no ordinary memory."""
    try:
        batched = vmap.batch_first(tensor, level) if level is not None else None
    except NotImplementedError:  # of a transformation of the user's
        return None
    values = tensor if batched is None else batched
    if not _has_memory(values):
        return None
    values = values.detach() if batched is not None else values.detach()[None]
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    members, size = len(values), values[0].numel()
    index = torch.arange(min(size, _SAMPLED), device=values.device) * size // min(size, _SAMPLED)
    index = index + size * torch.arange(members, device=values.device)[:, None]
    found = values.take(index).cpu().double()
    if values.is_floating_point():
        return found
    return torch.cat([found, values.reshape(members, size).sum(1, keepdim=True).cpu().double()], 1)


def _has_memory(tensor: Tensor) -> bool:
    ordinary = tensor.layout == torch.strided and not tensor.is_meta and not torch.nn.parameter.is_lazy(tensor)
    ordinary = ordinary and not tensor.is_nested and not tensor.is_quantized and tensor.numel() > 0
    return ordinary and not vmap.is_wrapped(tensor)


@dataclass(frozen=True)
class Comparison:
    """What two records of a member say.

    Attributes:
        compared: Calls that were given evolving parameters and gave the same, other than for the center.
        difference: The first call that was not the same, if the ways are to blame for it.
        in_output: Whether it was given the same.
    """

    compared: int
    difference: Call | None = None
    in_output: bool = False


def compare(
    expected: Sequence[Call],
    found: Sequence[Call],
    other: Sequence[Call],
    member: tuple[int, int, int] = (0, 0, 0),
    *,
    share: float,
    rounding: float,
) -> Comparison:
    """Compare two records of a member, up to where a choice that hangs on rounding falls differently.

    Args:
        expected: By the plain loop.
        found: By another way.
        other: Of another member, or the center: how far it is from ``expected`` says how large a difference may be.
        member: Position of the member in each of the three.
        share: Of that distance, which a difference may be.
        rounding: How many times the numbers' spacing it may be, in addition.
    """
    compared, chosen, beside = 0, False, True  # whether `other` goes the same way

    def differ(samples: Sequence[tuple[Sample, Sample, Sample | None]], eps: float, floating: bool) -> bool:
        for e, f, o in samples:
            a, b, c = e.of(member[0]), f.of(member[1]), None if o is None else o.of(member[2])
            if a is None or b is None or e.floating != floating:
                continue
            if not torch.equal(a, b) and (not floating or not _close(a, b, c, share, rounding * eps)):
                return True
        return False

    for number, (e, f) in enumerate(zip(expected, found, strict=False)):
        o = other[number] if beside and number < len(other) else None
        beside = o is not None and o.signature == e.signature
        o = o if beside else None
        inputs = _aligned(e.inputs, f.inputs, None if o is None else o.inputs)
        outputs = _aligned(e.outputs, f.outputs, None if o is None else o.outputs)
        eps = max(e.eps, f.eps)
        if e.signature != f.signature or differ(inputs, eps, floating=False):
            return Comparison(compared)
        if differ(inputs, eps, floating=True):
            return Comparison(compared, None if chosen else e)
        if differ(outputs, eps, floating=True):
            return Comparison(compared, e, in_output=True)
        chosen = chosen or differ(outputs, eps, floating=False)
        moved = any(c is None or not same_values(a.of(member[0]), c.of(member[2])) for a, _, c in outputs if a.floating)
        compared += bool(e.parameters) and moved
    return Comparison(compared)


def same(first: Sequence[Call], second: Sequence[Call]) -> bool:
    """Whether two records hold the same bits."""
    return len(first) == len(second) and all(
        a.signature == b.signature
        and all(
            same_values(p.values, q.values) for p, q, _ in _aligned(a.inputs + a.outputs, b.inputs + b.outputs, None)
        )
        for a, b in zip(first, second, strict=True)
    )


def same_values(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two samples hold the same numbers; NaN counts as one."""
    if first is None or second is None:
        return first is second
    return torch.equal(first.nan_to_num(nan=math.pi), second.nan_to_num(nan=math.pi))


def _aligned(
    first: tuple[Sample, ...], second: tuple[Sample, ...], third: tuple[Sample, ...] | None
) -> list[tuple[Sample, Sample, Sample | None]]:
    rest = third if third is not None else [None] * len(first)
    return list(zip(first, second, rest, strict=False))


def _close(expected: Tensor, found: Tensor, other: Tensor | None, share: float, rounding: float) -> bool:
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return False
    a, b = expected[finite], found[finite]
    if other is None:
        c, effect = a, a
    else:
        c = other[finite].nan_to_num(0, 0, 0)
        effect = a - c
    size = max(float(a.norm()), float(c.norm()))
    return float((a - b).norm()) <= share * float(effect.norm()) + rounding * size
