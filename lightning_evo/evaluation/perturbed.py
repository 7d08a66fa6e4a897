"""Members without touching a weight: torch functions that are given an evolving parameter see a member's instead.

A :class:`Perturbed` is a ``TorchFunctionMode``: every call of a torch function from Python passes through it, with its
arguments. Where an evolving parameter is among them, ``center + sigma * noise`` is made in a scratch tensor for the
duration of the call. So it does not matter which module owns a parameter or who reads it: tied heads,
``nn.MultiheadAttention``, parametrizations and functions of the user's come out right. What never comes by, because it
is called from C++ (TorchScript) or was compiled before, keeps the center's weights; that is what the first
generation's check is for (:mod:`lightning_evo.evaluation.check`).

Noise of low rank is not even made: ``x (W + A B^T)^T = x W^T + (x B) A^T`` (:mod:`lightning_evo.evaluation.low_rank`).

Several members run at once under ``torch.func.vmap``: then what a parameter is replaced with has a batch dimension of
members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_evo.algorithms import Population
from lightning_evo.evaluation import _functorch, low_rank
from lightning_evo.search_space import EvolvingParameter, SearchSpace

__all__ = ["Perturbed"]

_HUGE = 1 << 22  # elements of a matrix above which a linear layer or an embedding is computed block by block of rows
_SHARED = 1 << 16  # elements of a tensor up to which both members of a pair are made at once, the second one for later
_CACHED = 1 << 22  # elements kept from the second read in a forward on: recurrent networks read weights often

Rule = Callable[..., Any]
"""A function's own way with a perturbed parameter: takes the mode, then the function's arguments; may return
``NotImplemented``."""


class Perturbed(TorchFunctionMode):
    """While it is active, evolving parameters are those of some members.

    Args:
        space: The evolving parameters, which hold the center.
        population: All members.
        members: Numbers of the members to be: one, or inside ``vmap`` consecutive ones that leave no pair apart.
        level: The innermost ``vmap``, whose batch dimension the members are; ``None`` outside of one.
        shared: What the members of one direction have in common: the caller gives the same dictionary, empty at first,
            to both members of an antithetic pair.
        scratch: Memory for weights that are gone after one call, by dtype: the caller gives the same dictionary every
            time.

    Attributes:
        seen: Indices of the parameters that were asked for.
        largest: Elements of the largest tensor, of one member, that a torch function has given.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> model = torch.nn.Linear(3, 2)
        >>> algorithm = get("openai_es")(population=4, sigma=0.1)
        >>> population = algorithm.ask(algorithm.init(seed=0))
        >>> with torch.no_grad(), Perturbed(SearchSpace(model), population, [2]):
        ...     perturbed = model(torch.ones(3))
        >>> torch.equal(perturbed, model(torch.ones(3)))
        False
    """

    def __init__(
        self,
        space: SearchSpace,
        population: Population,
        members: Sequence[int],
        level: int | None = None,
        shared: dict[Any, Any] | None = None,
        scratch: dict[torch.dtype, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if level is None and len(members) != 1:
            raise ValueError(f"Without vmap there is one member at a time, not {len(members)}.")
        self.population = population
        self.members = members
        self.level = level
        self.seen: set[int] = set()
        self.largest = 0
        self._space = space.by_identity()
        self._shared = {} if shared is None else shared
        self._scratch = {} if scratch is None else scratch
        self._cache: dict[int, Tensor] = {}
        self._factors: dict[int, tuple[Tensor, Tensor] | None] = {}
        self._read: set[int] = set()
        self._room = _CACHED
        directions, steps = zip(*map(population.address, members), strict=True)
        self.directions: list[int] = list(directions)
        self.steps: list[float] = list(steps)

    # --- what a parameter is replaced with ---

    def prepare(self) -> None:
        """Make what a pair shares before the forward: made in its midst, it would scatter over the heap and pin it."""
        if self.population.antithetic and not self._shared:
            room = _CACHED
            for parameter in {parameter.index: parameter for parameter in self._space.values()}.values():
                if parameter.tensor.numel() <= min(_SHARED, room):
                    room -= parameter.tensor.numel()
                    self._share(parameter)

    def find(self, argument: object) -> EvolvingParameter | None:
        """The evolving parameter that an argument is."""
        parameter = self._space.get(id(argument))
        if parameter is not None:
            self.seen.add(parameter.index)
        return parameter

    def replace(self, argument: Tensor | None) -> Tensor | None:
        """The members' values, if the argument is an evolving parameter; else the argument."""
        parameter = self.find(argument)
        return argument if parameter is None else self.tensor(parameter)

    def tensor(self, parameter: EvolvingParameter) -> Tensor:
        """The members' values of a parameter: of its shape, inside ``vmap`` with the members as batch dimension."""
        if parameter.index in self._cache:
            return self._cache[parameter.index]
        with _functorch.outside():
            values = self.stack(parameter) if self.level is not None else self._member(parameter)
        if self.level is not None:
            values = _functorch.wrap(values, self.level)
        size = parameter.tensor.numel() * len(self.members)
        if parameter.index in self._read and size <= self._room:
            self._room -= size
            self._cache[parameter.index] = values
        self._read.add(parameter.index)
        return values

    def stacked(self, argument: Tensor) -> Tensor:
        """An argument for all members, ``[members, *shape]``, be it a parameter, batched by ``vmap`` or neither."""
        assert self.level is not None
        replaced = self.replace(argument)
        assert replaced is not None
        batched = _functorch.batch_first(replaced, self.level)
        return argument.expand(len(self.members), *argument.shape) if batched is None else batched

    def _transient(self, parameter: EvolvingParameter) -> Tensor:
        """:meth:`tensor`, for a function whose result keeps nothing of it: in memory that is used again and again."""
        center = parameter.tensor.detach()
        if self.level is not None or center.dim() < 2 or not center.is_contiguous() or torch.is_grad_enabled():
            return self.tensor(parameter)  # autograd, if it is on, keeps the weight
        if parameter.index in self._read:  # read again, as in a recurrent network: worth keeping
            return self.tensor(parameter)
        self._read.add(parameter.index)
        rows = self.rows(parameter, 0, len(center))
        return self.tensor(parameter) if rows is None else rows

    def rows(self, parameter: EvolvingParameter, first: int, last: int) -> Tensor | None:
        """Some rows of the member's values, in scratch memory; ``None`` if the perturbation makes only all of them."""
        center = parameter.tensor.detach()
        size = (last - first) * center[0].numel()
        scratch = self._scratch.get(center.dtype)
        if scratch is None or len(scratch) < size or scratch.device != center.device:
            scratch = self._scratch[center.dtype] = center.new_empty(size)
        found = self.population.perturbation.members_of_rows(
            self.directions[0], self.steps, parameter.index, center, first, last, [scratch[:size]]
        )
        if found is None:
            return None
        padding = parameter.padding_row
        if padding is not None and first <= padding < last:
            found[0][padding - first] = center[padding]
        return found[0]

    def _share(self, parameter: EvolvingParameter) -> None:
        """Make a tensor of both members of a pair."""
        center, steps = parameter.tensor.detach(), [self.steps[0], -self.steps[0]]
        members = self.population.perturbation.members(self.directions[0], steps, parameter.index, center)
        self._shared["members", parameter.index] = dict(zip(steps, members, strict=True))

    def _member(self, parameter: EvolvingParameter) -> Tensor:
        center, direction, step = parameter.tensor.detach(), self.directions[0], self.steps[0]
        members = self.population.perturbation.members
        both = self._shared.get(("members", parameter.index))
        if both is not None:
            member: Tensor = both[step]
        else:
            (member,) = members(direction, [step], parameter.index, center)
        if (
            not center.is_contiguous()
        ):  # channels_last, say: operations choose their layout, and dropout its order, by it
            member = torch.empty_like(center).copy_(member)
        return parameter.keep_padding(member, center)

    def stack(self, parameter: EvolvingParameter) -> Tensor:
        """The members' values of a parameter, ``[members, *shape]``."""
        center, per_direction = parameter.tensor.detach(), self.population.per_direction
        directions = self.directions[::per_direction]
        noise = self.population.perturbation.noise(directions, parameter.index, center)
        steps = torch.tensor(self.steps, dtype=noise.dtype, device=noise.device)
        steps = steps.view(len(directions), per_direction, *[1] * center.dim())
        wide = center.to(noise.dtype)
        values = torch.addcmul(wide, noise.unsqueeze(1), steps).to(center.dtype).flatten(0, 1)
        if parameter.padding_row is not None:
            values[:, parameter.padding_row] = center[parameter.padding_row]
        return values

    def factors(self, parameter: EvolvingParameter) -> tuple[Tensor, Tensor] | None:
        """Noise times step as a product ``A B^T``: ``[members, rows, rank]`` and ``[members, columns, rank]``."""
        if parameter.index not in self._factors:
            self._factors[parameter.index] = self._scaled_factors(parameter)
        return self._factors[parameter.index]

    def _scaled_factors(self, parameter: EvolvingParameter) -> tuple[Tensor, Tensor] | None:
        per_direction = self.population.per_direction if self.level is not None else 1
        key = "factors", parameter.index
        if key not in self._shared:
            center, directions = parameter.tensor.detach(), self.directions[::per_direction]
            self._shared[key] = self.population.perturbation.factors(directions, parameter.index, center)
        if self._shared[key] is None:
            return None
        a, b = self._shared[key]
        if per_direction > 1:
            a, b = a.repeat_interleave(per_direction, 0), b.repeat_interleave(per_direction, 0)
        a = a * (self.steps[0] if len(self.steps) == 1 else a.new_tensor(self.steps)[:, None, None])
        if parameter.padding_row is not None:
            a[:, parameter.padding_row] = 0
        return a, b

    # --- calls ---

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A call of a torch function."""
        kwargs = kwargs or {}
        if function in _HARMLESS:
            return function(*args, **kwargs)
        result = self._call(function, args, kwargs)
        if self.level is not None and isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result

    def _call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self._concerned(args) or self._concerned(kwargs.values()):
            if function is Tensor.data_ptr:
                raise RuntimeError("A weight's memory is read directly, by its address.")
            rule = _RULES.get(function) if kwargs.keys() <= _KEYWORDS else None
            result = NotImplemented if rule is None else rule(self, *args, **kwargs)
            if result is not NotImplemented:
                return result
            args = list(args)
            for i, argument in enumerate(args if function in _FORGETFUL else ()):
                parameter = self.find(argument)
                if parameter is not None and _SHARED < parameter.tensor.numel() <= _HUGE:
                    args[i] = self._transient(parameter)
                    break  # there is scratch memory for one
            args = [self._replace(argument) for argument in args]
            kwargs = {name: self._replace(argument) for name, argument in kwargs.items()}
        if self.level is not None and function in _WITHOUT_BUFFERS:
            args, kwargs = _WITHOUT_BUFFERS[function](*args, **kwargs)
        return function(*args, **kwargs)

    def _concerned(self, arguments: Any) -> bool:
        """Whether an evolving parameter is among the arguments."""
        for argument in arguments:
            if id(argument) in self._space:
                return True
            if isinstance(argument, list | tuple) and self._concerned(argument):
                return True
        return False

    def _replace(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.replace(argument)
        if isinstance(argument, list | tuple):
            replaced = [self._replace(part) for part in argument]
            return type(argument)(replaced) if type(argument) in (list, tuple) else type(argument)(*replaced)
        return argument


# --- rules ----------------------------------------------------------------------------------------------------------


def _linear(mode: Perturbed, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    parameter = mode.find(weight)
    if parameter is None:
        return NotImplemented
    if mode.factors(parameter):
        return low_rank.linear(mode, x, weight, bias, parameter)
    if mode.level is not None:
        return _stacked_linear(mode, x, weight, bias)
    if weight.numel() <= _HUGE or torch.is_grad_enabled():
        return NotImplemented
    inputs, bias = mode._replace(x), mode.replace(bias)
    output: Any = NotImplemented
    for rows, first, last in _blocks_of_rows(mode, parameter):
        block = functional.linear(inputs, rows, None if bias is None else bias[first:last])
        if output is NotImplemented:
            output = block.new_empty(*block.shape[:-1], len(weight))
        output[..., first:last] = block
    return output


def _stacked_linear(mode: Perturbed, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    """All members' layers in one product; ``vmap`` would add the biases in a pass of their own."""
    assert mode.level is not None
    if torch.is_autocast_enabled(x.device.type) or x.dim() < 2 or mode.find(x) is not None:
        return NotImplemented
    inputs = _functorch.batch_first(x, mode.level)
    weights = mode.stacked(weight)
    biases = None if bias is None else mode.stacked(bias)
    with _functorch.outside():
        if inputs is None:  # the same for all members: one layer of all their outputs
            result = functional.linear(x, weights.flatten(0, 1), None if biases is None else biases.flatten())
            result = result.view(*x.shape[:-1], *weights.shape[:2]).movedim(-2, 0)
        else:
            flat = inputs.flatten(1, -2)
            result = flat @ weights.mT if biases is None else torch.baddbmm(biases[:, None], flat, weights.mT)
            result = result.view(*inputs.shape[:-1], result.shape[-1])
    return _functorch.wrap(result, mode.level)


def _embedding(
    mode: Perturbed,
    ids: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    parameter = mode.find(weight)
    if parameter is None or max_norm is not None:
        return NotImplemented
    if mode.factors(parameter):
        return low_rank.embedding(mode, ids, weight, parameter)
    if mode.level is not None or weight.numel() <= _HUGE or torch.is_grad_enabled():
        return NotImplemented
    output = None
    for rows, first, last in _blocks_of_rows(mode, parameter):
        if output is None:
            output = rows.new_empty(*ids.shape, *weight.shape[1:])
        here = (ids >= first) & (ids < last)
        output[here] = rows[ids[here] - first]
    return NotImplemented if output is None else output


def _blocks_of_rows(mode: Perturbed, parameter: EvolvingParameter) -> Iterator[tuple[Tensor, int, int]]:
    """A huge matrix's rows, some at a time, with their numbers; nothing if the perturbation can't."""
    center = parameter.tensor.detach()
    at_once = max(1, _HUGE // 4 // center[0].numel())
    for first in range(0, len(center), at_once):
        last = min(first + at_once, len(center))
        rows = mode.rows(parameter, first, last)
        if rows is None:
            return
        yield rows, first, last


def _addmm(mode: Perturbed, bias: Tensor, x: Tensor, weight: Tensor) -> Any:
    parameter = mode.find(weight)
    if parameter is None or bias.dim() != 1 or not mode.factors(parameter):
        return NotImplemented
    return low_rank.linear(mode, x, weight, bias, parameter, transposed=True)


def _matmul(mode: Perturbed, x: Tensor, weight: Tensor) -> Any:
    parameter = mode.find(weight)
    if parameter is None or weight.dim() != 2 or x.dim() < 2 or not mode.factors(parameter):
        return NotImplemented
    return low_rank.linear(mode, x, weight, None, parameter, transposed=True)


def _convolution(function: Callable[..., Tensor]) -> Rule:
    def rule(
        mode: Perturbed,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        parameter = mode.find(weight)
        if parameter is None or groups != 1 or x.dim() != weight.dim() or not mode.factors(parameter):
            return NotImplemented
        return low_rank.convolution(mode, function, x, weight, bias, parameter, (stride, padding, dilation))

    return rule


_RULES: dict[Callable[..., Any], Rule] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    torch.addmm: _addmm,
    torch.mm: _matmul,
    torch.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    functional.conv1d: _convolution(functional.conv1d),
    functional.conv2d: _convolution(functional.conv2d),
    functional.conv3d: _convolution(functional.conv3d),
}
_KEYWORDS = frozenset(
    ("weight", "bias", "stride", "padding", "dilation", "groups", "padding_idx", "max_norm", "norm_type", "sparse")
)  # other arguments are given by position, or a call follows no rule


# Their results keep nothing of a weight's memory.
_FORGETFUL = frozenset(_RULES)


def _batch_norm_without_buffers(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *args: Any,
    **kwargs: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """While training, members' statistics are forgotten, and ``vmap`` can't write them into a shared buffer."""
    if training:
        running_mean = running_var = None
    return (x, running_mean, running_var, weight, bias, training, *args), kwargs


def _instance_norm_without_buffers(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    *args: Any,
    **kwargs: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if use_input_stats:
        running_mean = running_var = None
    return (x, running_mean, running_var, weight, bias, use_input_stats, *args), kwargs


_WITHOUT_BUFFERS: dict[Callable[..., Any], Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]] = {
    functional.batch_norm: _batch_norm_without_buffers,
    functional.instance_norm: _instance_norm_without_buffers,
}

# They tell what kind of tensor a parameter is, and a member's is of the same kind.
_HARMLESS: frozenset[Any] = frozenset(
    vars(torch._C.TensorBase)[name].__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_leaf", "layout", "is_meta", "grad")
) | {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.nelement,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.element_size,
    Tensor.get_device,
    Tensor.__len__,
    Tensor.__hash__,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
}
