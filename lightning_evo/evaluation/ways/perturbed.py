"""Members without touching a weight: torch functions that are given an evolving parameter see a member's instead.

A :class:`Perturbed` is a ``TorchFunctionMode``: every call of a torch function from Python passes through it, with its
arguments. Where an evolving parameter is among them, ``center + sigma * noise`` is made in a scratch tensor for the
duration of the call; small ones are made before, all at once. So it does not matter which module owns a parameter or
who reads it: tied heads, ``nn.MultiheadAttention``, parametrizations and functions of the user's come out right. What
does not pass through, because it is called from C++ (TorchScript) or was compiled before, keeps the center's weights;
that is what the first generation's check is for (:mod:`lightning_evo.evaluation.check`). What is written into a member
is lost with the scratch tensor, so a write to a parameter raises
:class:`~lightning_evo.evaluation.center.NeedsWeights`.

Noise of low rank is not even made: ``x (W + A B^T)^T = x W^T + (x B) A^T``
(:mod:`lightning_evo.evaluation.ways.low_rank`).

Several members run at once under ``torch.func.vmap``: then what a parameter is replaced with has a batch dimension of
members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.center import NeedsWeights
from lightning_evo.evaluation.functions import GET_DATA, HARMLESS, SET_DATA, writes
from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.ways.layouts import Layout
from lightning_evo.evaluation.ways.rules import BATCHED, HUGE, KEYWORDS, RULES, SMALL
from lightning_evo.isolation.contents import version_of
from lightning_evo.perturbations import Part
from lightning_evo.spaces.memory import Scratch, copies_of
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.utils.tensors import uploaded

__all__ = ["Perturbed"]

_SEQUENCES = (list, tuple)  # of arguments
_PURE: frozenset[Any] = frozenset(RULES) - {functional.embedding} | {functional.layer_norm, functional.group_norm}
"""They write to no argument, and are what most forwards call with a weight. (An embedding writes with ``max_norm``.)"""

_CACHED = 1 << 22  # elements of small tensors, and of others that are kept from the second read in a forward on


class Perturbed(TorchFunctionMode):
    """While it is active, evolving parameters are those of some members.

    Args:
        space: The evolving parameters, which hold the center.
        population: All members.
        members: Numbers of the members that run: one, or consecutive ones that split no pair.
        layout: How they lie in the tensors that the user's code sees.
        shared: What the members of one direction have in common: the caller gives the same dictionary, empty at first,
            to both members of an antithetic pair.
        scratch: Memory for weights that are gone after one call: the caller gives the same every time.
        repeated: Indices of parameters that forwards read more than once, to be added to: the caller gives the
            same every time. As many of them as fit are kept from the first read on.

    Attributes:
        noise_made: Elements of noise that were made, in all directions; low-rank noise costs none.
        largest: Elements of the largest tensor, of one member, that a torch function has given.
        products: Linear layers' weights as they are multiplied, by the parameter's index and whether it is transposed.
        looked_up: Elements of noise that were made for lookups, by the parameter's index.

    Raises:
        NeedsWeights: From a call, or the context's end, if a parameter is written to or its address is asked for.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> model = torch.nn.Linear(3, 2)
        >>> algorithm = get("openai_es")(population=4, sigma=0.1)
        >>> population = algorithm.ask(algorithm.init(seed=0))
        >>> from lightning_evo.evaluation.ways.layouts import OneMember
        >>> with torch.no_grad(), Perturbed(SearchSpace(model), population, [2], OneMember()):
        ...     perturbed = model(torch.ones(3))
        >>> torch.equal(perturbed, model(torch.ones(3)))
        False
    """

    def __init__(
        self,
        space: SearchSpace,
        population: Population,
        members: Sequence[int],
        layout: Layout,
        shared: dict[Any, Any] | None = None,
        scratch: Scratch | None = None,
        repeated: set[int] | None = None,
    ) -> None:
        super().__init__()
        if len(members) != layout.members:
            raise ValueError(f"This layout is one of {layout.members} members, not of {len(members)}.")
        self.population = population
        self.members = members
        self.layout = layout
        self.noise_made = 0
        self.largest = 0
        self.products: dict[tuple[int, bool], Any] = {}
        self.looked_up: dict[int, int] = {}
        self._parameters = space
        self._space = space.by_identity()
        self._shared = {} if shared is None else shared
        self._scratch = Scratch() if scratch is None else scratch
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._exposed: list[tuple[EvolvingParameter, Tensor, int | None]] | None = None
        self._data: list[tuple[EvolvingParameter, Tensor, int | None]] = []
        self._refusal: Refusal | None = None
        self._factors: dict[int, tuple[Tensor, Tensor] | None] = {}
        self._small: dict[int, Tensor] = {}
        self._step_index = 0  # of this member's step among those that the small tensors were made for
        self._read: set[int] = set()
        self._repeated = set() if repeated is None else repeated
        self._cache_budget = _CACHED
        directions, steps = zip(*map(population.address, members), strict=True)
        self.directions: list[int] = list(dict.fromkeys(directions))
        self.steps: list[float] = list(steps)

    # --- what a parameter is replaced with ---

    def __enter__(self) -> Perturbed:
        with self.layout.outside():
            self._make_small()
        self._intercept()
        return self

    def _intercept(self) -> None:
        """Have calls of torch functions come here, from now on."""
        super().__enter__()  # type: ignore[no-untyped-call]

    def _release(self, *exit: Any) -> None:
        """Have calls go their own way again; ``exit`` is what ``__exit__`` is given."""
        super().__exit__(*exit)  # type: ignore[no-untyped-call]

    def _make_small(self) -> None:
        """Make small tensors, all at once, and for both members of a pair.

        One by one the calls would take longer than the noise; in the midst of a forward they would scatter over the
        heap and pin it.
        """
        if "small" not in self._shared:
            pair = not self.layout.shares_forward and self.population.antithetic
            steps = [self.steps[0], -self.steps[0]] if pair else self.steps
            budget, chosen = _CACHED, []
            for parameter in self._parameters:
                size = len(self.members) * parameter.tensor.numel()
                fits = parameter.tensor.numel() <= SMALL and size <= budget and parameter.tensor.is_contiguous()
                if fits and self.factors(parameter) is None:
                    budget -= size
                    chosen.append(parameter)
            self.noise_made += len(self.directions) * sum(p.tensor.numel() for p in chosen)
            parts = [Part(parameter.index, parameter.tensor.detach()) for parameter in chosen]
            made = self.population.perturbation.members(self.directions, steps, parts)
            if not self.layout.shares_forward:
                made = [copies_of(part.center, members) for part, members in zip(parts, made, strict=True)]
            self._shared["small"] = steps, {part.parameter: members for part, members in zip(parts, made, strict=True)}
        steps, self._small = self._shared["small"]
        self._step_index = steps.index(self.steps[0])

    def find(self, argument: object) -> EvolvingParameter | None:
        """The evolving parameter that an argument is."""
        return self._space.get(id(argument))

    def replace(self, argument: Tensor | None) -> Tensor | None:
        """The members' values, if the argument is an evolving parameter; else the argument."""
        parameter = self.find(argument)
        return argument if parameter is None else self.tensor(parameter)

    def tensor(self, parameter: EvolvingParameter) -> Tensor:
        """The members' values of a parameter, as the user's code gets them."""
        if parameter.index in self._cache:
            values, memory = self._cache[parameter.index]
            self._expose(parameter, memory)
            return values
        small = self._small.get(parameter.index)
        if small is not None:  # in as few operations as there can be
            one = not self.layout.shares_forward
            memory = small.select(0, self._step_index) if one else small
            self._expose(parameter, memory)
            return memory if one else self.layout.join(memory)
        keeps = self.keeps(parameter)
        with self.layout.outside():
            memory = self.stack(parameter)
        self._expose(parameter, memory)
        values = self.layout.join(memory)
        if keeps:
            self._cache_budget -= memory.numel()
            self._cache[parameter.index] = values, memory
        return values

    def keeps(self, parameter: EvolvingParameter) -> bool:
        """Whether the members' values are kept: a forward reads them more than once, and there is room."""
        index = parameter.index
        if index in self._small or index in self._cache:
            return index in self._cache
        again = index in self._read or index in self._repeated
        return again and parameter.tensor.numel() * len(self.members) <= self._cache_budget

    def _note(self, parameter: EvolvingParameter) -> None:
        """Note that a parameter is read, as far as its noise is made for that."""
        if parameter.index in self._read:
            self._repeated.add(parameter.index)
        self._read.add(parameter.index)

    def stacked(self, argument: Tensor) -> Tensor:
        """An argument for all members, ``[members, *shape]``, whatever it is."""
        parameter = self.find(argument)
        return self.layout.stack(argument) if parameter is None else self.layout.split(self.tensor(parameter))

    def _transient(self, parameter: EvolvingParameter) -> Tensor:
        """:meth:`tensor`, for a function whose result keeps nothing of it: in memory that is used again and again."""
        center = parameter.tensor.detach()
        if self.layout.shares_forward or center.dim() < 2 or not center.is_contiguous() or torch.is_grad_enabled():
            return self.tensor(parameter)  # autograd, if it is on, keeps the weight
        if self.keeps(parameter):  # read again, as in a recurrent network
            return self.tensor(parameter)
        rows = self.rows(parameter, 0, len(center))
        self._expose(parameter, rows)
        return rows[0].as_strided(center.shape, center.stride())

    def _expose(self, parameter: EvolvingParameter, memory: Tensor) -> None:
        """Note that a call gets a member's memory, if the call may write to it."""
        if self._exposed is not None:
            self._exposed.append((parameter, memory, version_of(memory)))

    def rows(self, parameter: EvolvingParameter, first: int, last: int) -> Tensor:
        """Some rows of the members' values, ``[members, last - first, ...]``, in scratch memory."""
        center, count = parameter.tensor.detach(), len(self.members)
        size = (last - first) * math.prod(center.shape[1:])
        out = self._scratch.elements(center[first:last], count * size).view(count, size)
        if first == 0:
            self._note(parameter)
        return self._made(Part.of_rows(parameter.index, center, first, last, out))

    def chosen_rows(self, parameter: EvolvingParameter, chosen: Tensor) -> Tensor:
        """Some rows of the members' values, in any order, ``[members, *chosen.shape, *row]``."""
        center = parameter.tensor.detach()
        perturbation = self.population.perturbation
        self.noise_made += len(self.directions) * chosen.numel() * math.prod(center.shape[1:])
        return perturbation.chosen_rows(self.directions, self.steps, parameter.index, center, chosen)

    def stack(self, parameter: EvolvingParameter) -> Tensor:
        """The members' values of a parameter, ``[members, *shape]``."""
        if parameter.index in self._small:
            made, count = self._small[parameter.index], len(self.members)
            return made if len(made) == count else made.narrow(0, self._step_index, count)
        center = parameter.tensor.detach()
        self._note(parameter)
        values = self._made(Part(parameter.index, center))
        # Operations choose their layout, dropout its order and matrix products their rounding by how a tensor lies.
        return values if self.layout.shares_forward else copies_of(center, values)

    def _made(self, part: Part) -> Tensor:
        """The members' values of a part, ``[members, *shape]``."""
        [values] = self.population.perturbation.members(self.directions, self.steps, [part])
        self.noise_made += len(self.directions) * values[0].numel()
        return values

    def factors(self, parameter: EvolvingParameter) -> tuple[Tensor, Tensor] | None:
        """Noise times step as a product ``A B^T``: ``[members, rows, rank]`` and ``[members, columns, rank]``."""
        if parameter.index not in self._factors:
            self._factors[parameter.index] = self._scaled_factors(parameter)
        return self._factors[parameter.index]

    def _scaled_factors(self, parameter: EvolvingParameter) -> tuple[Tensor, Tensor] | None:
        key = "factors", parameter.index
        if key not in self._shared:
            center = parameter.tensor.detach()
            self._shared[key] = self.population.perturbation.factors(self.directions, parameter.index, center)
        if self._shared[key] is None:
            return None
        a, b = self._shared[key]
        steps = uploaded(self.steps, a.dtype, a.device).view(len(a), -1, 1, 1)  # [directions, members of each, 1, 1]
        a = (a[:, None] * steps).flatten(0, 1)
        b = b[:, None].expand(-1, steps.shape[1], -1, -1).flatten(0, 1)
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
        if function in HARMLESS:
            return function(*args, **kwargs)
        if self._concerned(args) or (kwargs and self._concerned(kwargs.values())):
            result = self._perturbed(function, args, kwargs)
        elif not self.layout.shares_forward:
            return function(*args, **kwargs)
        else:
            result = self._call(function, args, kwargs)
        if self.layout.shares_forward and isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result

    def _perturbed(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call that is given evolving parameters."""
        rule = RULES.get(function) if kwargs.keys() <= KEYWORDS else None
        result = NotImplemented if rule is None else rule(self, *args, **kwargs)
        if result is not NotImplemented:
            return result
        if function is Tensor.data_ptr:
            raise self._refused(NeedsWeights("A weight's memory is read directly, by its address."))
        if function in _PURE:
            return self._with_members(function, args, kwargs)
        target = self.find(args[0]) if args else None
        if target is not None and (function == SET_DATA or (torch.is_inference_mode_enabled() and writes(function))):
            raise self._written(target)  # the latter, as tensors don't count writes there
        given = self._exposed = []
        try:
            result = self._with_members(function, args, kwargs)
        finally:
            self._exposed = None
        self._check_unwritten(given)
        if function == GET_DATA and not self.layout.shares_forward:  # whose writes tensors count separately
            self._data.append((given[0][0], result, version_of(result)))
        return result

    def _with_members(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call with the members' values in place of evolving parameters."""
        args = list(args)
        # The results of functions with a rule keep nothing of a weight's memory.
        for i, argument in enumerate(args if function in RULES else ()):
            parameter = self.find(argument)
            if parameter is not None and SMALL < parameter.tensor.numel() <= HUGE:
                args[i] = self._transient(parameter)
                break  # there is scratch memory for one
        args = [self.replace_all(argument) for argument in args]
        return self._call(function, args, {name: self.replace_all(argument) for name, argument in kwargs.items()})

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._release(kind, error, trace)
        self._small = {}
        if self.layout.shares_forward:  # if not, the other member of a pair needs them
            self._shared.pop("small", None)
        data, self._data = self._data, []
        if self._refusal is not None and error is not self._refusal and (error is None or isinstance(error, Exception)):
            raise self._refusal  # the user's code has caught it
        if error is None:
            self._check_unwritten(data)

    def _check_unwritten(self, memory: list[tuple[EvolvingParameter, Tensor, int | None]]) -> None:
        for parameter, values, version in memory:
            if version_of(values) != version:
                raise self._written(parameter)

    def _written(self, parameter: EvolvingParameter) -> Refusal:
        return self._refused(NeedsWeights(f"{parameter.name} is written to by the members' code"))

    def _refused(self, refusal: Refusal) -> Refusal:
        """What is to be raised, also where the user's code catches it."""
        self._refusal = refusal
        return refusal

    def _call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.layout.shares_forward and function in BATCHED:
            result = BATCHED[function](self, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return function(*args, **kwargs)

    def _concerned(self, arguments: Any) -> bool:
        """Whether an evolving parameter is among the arguments."""
        space = self._space
        for argument in arguments:
            if id(argument) in space or (isinstance(argument, _SEQUENCES) and self._concerned(argument)):
                return True
        return False

    def replace_all(self, argument: Any) -> Any:
        """An argument of any kind, with the members' values in place of evolving parameters."""
        if isinstance(argument, Tensor):
            return self.replace(argument)
        if isinstance(argument, _SEQUENCES):
            if not self._concerned(argument):
                return argument
            replaced = [self.replace_all(part) for part in argument]
            return type(argument)(*replaced) if hasattr(argument, "_fields") else type(argument)(replaced)
        return argument
