"""The search space: which of a module's tensors evolve, under which names, in which order."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from lightning_evo.spaces.memory import extent, overlap
from lightning_evo.spaces.shards import Shard, as_gradient, is_sharded, shape_of, shard_of
from lightning_evo.utils.messages import did_you_mean, preview, shown
from lightning_evo.utils.options import check_callable

__all__ = ["Evolve", "EvolvingParameter", "SearchSpace", "checked_choice"]

Evolve = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None
"""A choice of parameters: regular expressions searched for in their names, a callable, or None for all."""

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class EvolvingParameter:
    """One tensor of the search space.

    Attributes:
        name: Its name in the module (for tied weights, the first of its names).
        tensor: The parameter itself.
        index: Its number among *all* parameters of the module. The noise is keyed by it, so freezing one parameter
            does not change the noise of another.
        padding_row: The row of an embedding that stands for padding. It neither is perturbed nor learns, as it has no
            gradient in backpropagation. (``None`` if there is none, or if the weight is tied to another module's.)
        shard: What this process holds of it; ``None`` if that is the tensor itself.
    """

    name: str
    tensor: nn.Parameter
    index: int
    padding_row: int | None = None
    shard: Shard | None = None

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole tensor."""
        return shape_of(self.tensor)

    @property
    def local(self) -> Tensor:
        """What this process holds, to be written to: the tensor itself, or the flat elements of its shard."""
        return self.tensor.detach() if self.shard is None else self.shard.values

    def as_gradient(self, values: Tensor) -> Tensor:
        """Values of the shape of :attr:`local` as a tensor that can be the parameter's ``.grad``."""
        return values if self.shard is None else as_gradient(self.tensor, values)

    def keep_padding(self, values: Tensor, center: Tensor) -> Tensor:
        """``values``, with the padding row of ``center``; both of the parameter's shape."""
        if self.padding_row is not None:
            values = values.clone()
            values[self.padding_row] = center[self.padding_row]
        return values


class SearchSpace(Sequence[EvolvingParameter]):
    """The evolving parameters of a module, each once, in the module's order.

    Only floating-point parameters with ``requires_grad`` can evolve; frozen and integer ones are left alone. A weight
    that is tied under several names is found under any of them and evolves once. Of two parameters that are different
    views of the same memory, for example one transposed, only one can evolve, and the other moves with it.

    Args:
        module: The module whose parameters evolve.
        evolve: Which of them: regular expressions (searched for in the names, any match counts), a callable
            ``(name, parameter) -> bool``, or ``None`` for all.
        among: If given, only these parameters can evolve (for example those that an optimizer would update).

    Raises:
        ValueError: If nothing is chosen (the message lists the names), a regular expression is broken or matches
            nothing, a chosen parameter is not initialised yet or of a float8 type, or two of them overlap in memory.
        TypeError: If ``evolve`` is none of the above.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> space = SearchSpace(model, evolve="bias$")
        >>> [(parameter.name, parameter.index) for parameter in space]
        [('0.bias', 1), ('1.bias', 3)]
        >>> space.numel
        4
    """

    def __init__(
        self, module: nn.Module, evolve: Evolve = None, *, among: Iterable[nn.Parameter] | None = None
    ) -> None:
        allowed = None if among is None else {id(parameter) for parameter in among}
        candidates = []
        self._aliases: dict[int, list[Tensor]] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        for index, aliases in enumerate(_distinct_parameters(module)):
            self._aliases[index] = [tensor for _, tensor in aliases]
            names = [name for name, _ in aliases]
            self._names[index] = tuple(names)
            for _, tensor in aliases:
                if tensor.requires_grad and tensor.is_floating_point() and (allowed is None or id(tensor) in allowed):
                    padding_row, shard = _padding_row(module, names), shard_of(tensor, names[0])
                    candidates.append((EvolvingParameter(names[0], tensor, index, padding_row, shard), names))
                    break
        chosen = _choose(candidates, checked_choice(evolve), module)
        for parameter in chosen:
            if isinstance(parameter.tensor, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"Parameter {parameter.name!r} has no shape yet (a lazy module). Run one forward pass before "
                    "training, for example in `configure_model` or `setup`."
                )
            if parameter.tensor.dtype not in _DTYPES:
                raise ValueError(
                    f"Parameter {parameter.name!r} is of {parameter.tensor.dtype}, which can't evolve: noise would be "
                    "lost in it. Convert it to bfloat16 or wider, or leave it out: by `evolve` or requires_grad=False."
                )
        _check_no_overlap(chosen)
        self._parameters = tuple(chosen)

    @property
    def numel(self) -> int:
        """Number of evolving elements."""
        return sum(parameter.shape.numel() for parameter in self)

    @cached_property
    def offsets(self) -> dict[int, int]:
        """Where each parameter begins in a vector of all evolving elements, by its index.

        Example:
            >>> SearchSpace(nn.Linear(2, 3)).offsets
            {0: 0, 1: 6}
        """
        sizes = [parameter.shape.numel() for parameter in self]
        return {p.index: end - size for p, size, end in zip(self, sizes, accumulate(sizes), strict=True)}

    def vector(self) -> Tensor:
        """All evolving elements, one parameter after the other: float64 ``[numel]`` on the CPU."""
        return torch.cat([p.tensor.detach().reshape(-1).to("cpu", torch.float64) for p in self])

    def part_of(self, vector: Tensor, parameter: EvolvingParameter) -> Tensor:
        """A parameter's elements in a vector of all evolving ones, of the parameter's shape."""
        start = self.offsets[parameter.index]
        return vector[start : start + parameter.shape.numel()].view(parameter.shape)

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds only a part of some parameter."""
        return any(parameter.shard is not None for parameter in self)

    @classmethod
    def from_parameters(cls, parameters: Iterable[EvolvingParameter]) -> SearchSpace:
        """A search space of parameters that belong to no module, each with one name."""
        space = cls.__new__(cls)
        space._parameters = tuple(parameters)
        space._names = {parameter.index: (parameter.name,) for parameter in space}
        space._aliases = {parameter.index: [parameter.tensor] for parameter in space}
        return space

    def names(self, parameter: EvolvingParameter) -> tuple[str, ...]:
        """All names of a parameter; more than one if it is tied."""
        return self._names[parameter.index]

    def subset(self, parameters: Iterable[EvolvingParameter]) -> SearchSpace:
        """A search space of some of these parameters."""
        smaller = copy.copy(self)
        smaller._parameters = tuple(parameters)
        vars(smaller).pop("offsets", None)
        return smaller

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor of the module that stands for an evolving parameter: a tied weight may be several of them."""
        return [tensor for parameter in self for tensor in self._aliases[parameter.index]]

    def by_identity(self) -> dict[int, EvolvingParameter]:
        """The evolving parameters by the ``id`` of every tensor of the module that stands for them."""
        return {id(tensor): parameter for parameter in self for tensor in self._aliases[parameter.index]}

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[EvolvingParameter]:
        return iter(self._parameters)

    def __getitem__(self, item):  # type: ignore[no-untyped-def]  # as Sequence: int or slice
        return self._parameters[item]


def _distinct_parameters(module: nn.Module) -> list[list[tuple[str, nn.Parameter]]]:
    """Each distinct parameter under all of its names; parameters that share their memory count as one."""
    found: dict[object, list[tuple[str, nn.Parameter]]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        identity: object = id(tensor)
        if _has_own_memory(tensor):
            identity = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        found.setdefault(identity, []).append((name, tensor))
    return list(found.values())


def _has_own_memory(tensor: nn.Parameter) -> bool:
    if isinstance(tensor, nn.parameter.UninitializedParameter):
        return False
    return bool(tensor.numel()) and not tensor.is_meta and not is_sharded(tensor)


def _check_no_overlap(chosen: list[EvolvingParameter]) -> None:
    """Raise a ValueError if two parameters overlap in memory."""
    places = sorted(
        (str(p.tensor.device), *extent(p.tensor), i) for i, p in enumerate(chosen) if _has_own_memory(p.tensor)
    )
    open_ones: list[tuple[str, int, int, int]] = []
    for place in places:
        device, start, _, number = place
        open_ones = [before for before in open_ones if before[0] == device and before[2] > start]
        for *_, other in open_ones:
            first, second = (chosen[i] for i in sorted((number, other)))
            if overlap(first.tensor.detach(), second.tensor.detach()):
                raise ValueError(
                    f"The parameters {first.name!r} and {second.name!r} are different views of the same memory, so "
                    "each would be perturbed with the other's noise, too. Use one parameter for both (for a transposed "
                    "one write `functional.linear(x, weight.t())` in the forward), or leave one out: by `evolve`, "
                    "requires_grad=False or the optimizer. It moves with the other."
                )
        open_ones.append(place)


def _padding_row(module: nn.Module, names: list[str]) -> int | None:
    if len(names) > 1:
        return None
    owner = module.get_submodule(names[0].rpartition(".")[0])
    return owner.padding_idx if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else None


def checked_choice(evolve: object) -> Evolve:
    """A choice of parameters, as far as it can be judged without a module.

    Raises:
        ValueError: If a regular expression is broken, there is none, or a function can't take a name and a parameter.
        TypeError: If it is none of regular expressions, a function and None.
    """
    if evolve is None:
        return None
    if callable(evolve):
        check_callable("evolve", evolve, "name", "parameter")
        return evolve
    if not isinstance(evolve, Sequence | Set):
        raise TypeError(f"evolve takes regular expressions, a callable or None; got {type(evolve).__name__}.")
    patterns = [evolve] if isinstance(evolve, str) else list(evolve)
    if not patterns:
        raise ValueError(f"evolve={shown(evolve)} matches no parameter. Leave it out to evolve all of them.")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"evolve takes regular expressions, a callable or None; got {type(pattern).__name__} in the list."
            )
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"evolve={shown(pattern)} is not a regular expression: {error}.") from error
    return evolve if isinstance(evolve, str) else patterns


def _choose(
    candidates: list[tuple[EvolvingParameter, list[str]]], evolve: Evolve, module: nn.Module
) -> list[EvolvingParameter]:
    if evolve is None:
        chosen = [parameter for parameter, _ in candidates]
    elif callable(evolve):
        chosen = [p for p, names in candidates if any(evolve(name, p.tensor) for name in names)]
    else:
        matched: set[int] = set()
        for pattern in [evolve] if isinstance(evolve, str) else evolve:
            hits = {p.index for p, names in candidates if any(re.search(pattern, name) for name in names)}
            if not hits:
                raise ValueError(_nothing_matches(pattern, candidates, module))
            matched |= hits
        chosen = [parameter for parameter, _ in candidates if parameter.index in matched]
    if not chosen:
        raise ValueError(_nothing_matches(evolve, candidates, module))
    return chosen


def _nothing_matches(evolve: object, candidates: list[tuple[EvolvingParameter, list[str]]], module: nn.Module) -> str:
    names = [name for _, aliases in candidates for name in aliases]
    if not names:
        total = sum(1 for _ in module.parameters())
        return (
            f"No parameter can evolve: of the module's {total} parameters none is floating point with "
            "requires_grad=True and given to the optimizer. Unfreeze some, or add them to the optimizer."
        )
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    hint = ""
    if isinstance(evolve, str):
        hint = did_you_mean(evolve, names)
        if any(re.search(evolve, name) for name in frozen):
            hint = " It matches only frozen parameters; set requires_grad=True on those that should evolve."
    return f"evolve={shown(evolve)} matches no parameter that can evolve.{hint} Names: {preview(names)}."
