"""Records what torch functions were given and gave, so that two ways of running a member can be compared call by call.

Recorded are the calls that are given an evolving parameter, and those by which floating-point numbers become others:
comparisons, ``argmax``, ``.item()``. Each is kept as a sample of its tensors' elements.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_evo.evaluation.functions import HARMLESS, tensors_in
from lightning_evo.evaluation.places import Lost, made_of, place_of
from lightning_evo.evaluation.ways import vmap
from lightning_evo.spaces.memory import extent
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace

__all__ = ["Call", "CallRecorder", "Detail", "Sample", "Samples"]

_SAMPLED = 256  # elements of a tensor
_PER_ROW = 8  # at least, of a tensor with a row for each sample
_CALLS = 4096
_ELEMENTS = 1 << 20  # of a member, in a forward

_TO_PYTHON = {Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__float__, Tensor.__int__}
_TO_PYTHON |= {Tensor.__bool__}
_UNINITIALISED: set[Any] = {torch.empty_like, Tensor.new_empty, Tensor.new_empty_strided}
_OVERWRITE: set[Any] = {Tensor.copy_, Tensor.__setitem__}  # whatever was there before


@dataclass(frozen=True)
class Sample:
    """Some elements of a tensor.

    Attributes:
        shape: The tensor's, without a dimension of members.
        values: ``[members, elements]`` in float64, with 1 for members if they share it; ``None`` for a tensor that
            can't be looked into. Of whole numbers the last one is their sum.
        floating: Whether they are floating-point numbers.
        rows: How many rows of a member the elements are of, as many of each; 1 if that is not known.
    """

    shape: tuple[int, ...]
    values: Tensor | None
    floating: bool
    rows: int = 1

    def of(self, member: int) -> Tensor | None:
        """The elements of a member's tensor."""
        return None if self.values is None else self.values[member if len(self.values) > 1 else 0]


Samples = tuple[Sample, ...]


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
    inputs: Samples
    outputs: Samples
    eps: float

    @property
    def signature(self) -> tuple[object, ...]:
        """What is the same where two runs go the same way."""
        return self.function, self.parameters, *[sample.shape for sample in self.inputs]

    @property
    def leaves(self) -> bool:
        """Whether Python got its numbers, and may choose by them."""
        return not self.outputs


@dataclass(frozen=True)
class Detail:
    """What of a forward is recorded.

    Attributes:
        times: How many calls of a function with the same parameters.
        samples: Rows of a member's batch, of each of which some elements are wanted; 0 if that does not matter.
    """

    times: int = _CALLS
    samples: int = 0


class CallRecorder(TorchFunctionMode):
    """Records the calls of one forward.

    Args:
        space: The evolving parameters.
        watch_memory: Whether to look for tensors that share a weight's memory. Only where no member is in the weights:
            if one is, every view of them does.
        detail: What to record.
        members: How many share the forward as rows of one batch; ``None`` if they don't.

    Attributes:
        calls: The first of them, in order.
        members: How many share the forward.
        seen: Indices of the evolving parameters that any call was given.
        aliases: Parameters whose memory calls were given in other tensors, by their indices.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        watch_memory: bool = False,
        detail: Detail | None = None,
        members: int | None = None,
    ) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.seen: set[int] = set()
        self.aliases: dict[int, EvolvingParameter] = {}
        self._known = space.by_identity()
        with torch._C.DisableTorchFunction():  # of members that run
            watched = [p for p in space if p.tensor.numel()] if watch_memory else []
            self._memory = sorted((*extent(parameter.tensor), i) for i, parameter in enumerate(watched))
            self._watched = watched
            self._longest = max((stop - start for start, stop, _ in self._memory), default=0)
        self._level, self.members = vmap.current()
        self._detail = Detail() if detail is None else detail
        self._as_rows = members is not None
        self.members = self.members if members is None else members
        self._times: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._eps = max((torch.finfo(p.tensor.dtype).eps for p in space), default=0.0)
        self._elements = 0
        self._given: list[tuple[weakref.ref[Tensor], str]] = []

    def outliving(self) -> str | None:
        """The function that gave a tensor of a ``vmap`` that is there after the forward; ``None`` if there is none."""
        for reference, name in self._given:
            tensor = reference()
            if tensor is not None and vmap.is_wrapped(tensor):
                return name
        return None

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
        tensors = tensors_in([*args, *kwargs.values()] if kwargs else args)
        parameters = tuple(self._known[id(tensor)].index for tensor in tensors if id(tensor) in self._known)
        others = [tensor for tensor in tensors if id(tensor) not in self._known]
        self.seen.update(parameters)
        with torch._C.DisableTorchFunction():
            self._note_aliases([tensor for tensor in others if made_of(tensor) is None])
        forgotten = {id(kwargs.get("out")), id(args[0]) if function in _OVERWRITE else 0}
        read = [tensor for tensor in others if id(tensor) not in forgotten]
        name = getattr(function, "__name__", "?")
        wanted = self._is_wanted(name, parameters)
        inputs = self._samples(read) if wanted else ()  # before they are written to
        result = function(*args, **kwargs)
        outputs = [result] if isinstance(result, Tensor) else tensors_in((result,))
        if self._level is not None and len(self._given) < _CALLS:
            self._given += [(weakref.ref(tensor), name) for tensor in outputs]
        self._eps = max([self._eps, *(torch.finfo(t.dtype).eps for t in outputs if t.is_floating_point())])
        chooses = function in _TO_PYTHON or any(not tensor.is_floating_point() for tensor in outputs)
        chooses = chooses and any(tensor.is_floating_point() for tensor in read)
        if wanted or (chooses and not parameters and self._has_room()):
            inputs = inputs if parameters else self._samples(read)
            grows = self._as_rows and wanted and bool(read) and not any(map(self._rows_of, read))
            given = () if function in _UNINITIALISED else self._samples(outputs, grown=grows)
            self.calls.append(Call(name, parameters, inputs, given, self._eps))
        return result

    def _has_room(self) -> bool:
        return len(self.calls) < _CALLS and self._elements < _ELEMENTS

    def _is_wanted(self, name: str, parameters: tuple[int, ...]) -> bool:
        """Whether a call with evolving parameters is recorded."""
        if not parameters or not self._has_room():
            return False
        self._times[name, parameters] += 1
        return self._times[name, parameters] <= self._detail.times

    def _rows_of(self, tensor: Tensor) -> int | None:
        """The dimension in which members' rows lie; ``None`` if it is the same for all."""
        place = place_of(tensor)
        if isinstance(place, int):
            return place
        made_for_rows = tensor.dim() and len(tensor) == self.members * self._detail.samples
        return -tensor.dim() if made_for_rows else None

    def _repeats(self, values: Tensor) -> bool:
        """Whether members' values ``[members, rows, ...]`` are the same for the rows of each member."""
        blocks = values.reshape(len(values), self.members, -1, *values.shape[2:])
        return torch.equal(blocks, blocks[:, :1].expand_as(blocks))

    def _note_aliases(self, tensors: list[Tensor]) -> None:
        for tensor in tensors if self._memory else ():
            if _has_memory(tensor):
                start, stop = extent(tensor)
                for first, last, i in self._memory[bisect_left(self._memory, (start - self._longest,)) :]:
                    if first >= stop:
                        break
                    if start < last:
                        self.aliases[self._watched[i].index] = self._watched[i]

    def _samples(self, tensors: list[Tensor], *, grown: bool = False) -> Samples:
        with torch._C.DisableTorchFunction(), vmap.outside():
            return tuple(self._sample(tensor, grown) for tensor in tensors)

    def _sample(self, tensor: Tensor, grown: bool) -> Sample:
        shape, rows = tuple(tensor.shape), 1
        try:
            batched = vmap.batch_first(tensor, self._level) if self._level is not None else None
        except NotImplementedError:  # of a transformation of the user's
            return Sample(shape, None, tensor.is_floating_point())
        if self._as_rows and id(tensor) in self._known:  # as `weight.float()` may give it
            return Sample(shape, None, tensor.is_floating_point())
        made = made_of(tensor) if self._as_rows else None
        if made is not None:
            if made.values is None:  # a large matrix
                return Sample(shape, None, tensor.is_floating_point())
            batched = made.values
            for_all = shape and shape[0] == self.members * self._detail.samples
            if for_all and self._repeats(batched):  # made for all rows
                batched = batched[:, : self._detail.samples]
                shape = tuple(batched.shape[1:])
        place = self._rows_of(tensor) if self._as_rows and made is None else None
        if place is not None:
            sizes = list(tensor.shape)
            sizes[place : place + 1 or None] = [self.members, sizes[place] // self.members]
            batched = tensor.reshape(sizes).movedim(place - 1, 0)
            batched = batched.narrow(place, 0, 1) if grown else batched  # of rows that are made of one
            shape = tuple(batched.shape[1:])
            rows = shape[0] if place == -tensor.dim() else 1
        if self._as_rows and isinstance(place_of(tensor), Lost):  # a number of all rows, for a log perhaps
            return Sample(shape, None, tensor.is_floating_point())
        values = _elements(tensor.detach()[None] if batched is None else batched.detach(), self._detail.samples)
        self._elements += 0 if values is None else values.numel() // len(values)
        return Sample(shape, values, tensor.is_floating_point(), rows)


def _elements(values: Tensor, samples: int) -> Tensor | None:
    """Evenly spaced elements ``[members or 1, elements]`` on the CPU; ``None`` for what has no ordinary memory."""
    if not _has_memory(values):
        return None
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    members, size = len(values), values[0].numel()
    wanted = min(size, max(_SAMPLED, _PER_ROW * samples))
    index = torch.arange(wanted, device=values.device) * size // wanted
    index = index + size * torch.arange(members, device=values.device)[:, None]
    found = values.take(index).cpu().double()
    if values.is_floating_point():
        return found
    return torch.cat([found, values.reshape(members, size).sum(1, keepdim=True).cpu().double()], 1)


def _has_memory(tensor: Tensor) -> bool:
    ordinary = tensor.layout == torch.strided and not tensor.is_meta and not torch.nn.parameter.is_lazy(tensor)
    ordinary = ordinary and not tensor.is_nested and not tensor.is_quantized and tensor.numel() > 0
    return ordinary and not vmap.is_wrapped(tensor)
