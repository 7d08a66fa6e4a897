"""Members as rows of one batch: layers with evolving weights add each member's part to its rows.

All other code runs as it is, once for all members: caches, loops, ``.item()``, decisions. Where rows lie in a tensor is
followed through the torch functions (:mod:`.places`), since sizes don't tell: a sequence may be as long as there are
rows. A function that is given an evolving parameter has a rule (:mod:`.rules`, :mod:`.row_rules`), or makes something
of parameters alone (:mod:`.made`), or is called once for each member (:mod:`.one_by_one`), which needs small weights.
What can't be done is refused, by the names of function and parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_evo.algorithms import Population
from lightning_evo.evaluation.functions import HARMLESS, tensors_in, writes
from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.places import Lost, follow, forget_written, made_of, place_of, set_place
from lightning_evo.evaluation.ways.layouts import RowBlocks
from lightning_evo.evaluation.ways.made import Made, made_for_members
from lightning_evo.evaluation.ways.one_by_one import is_repeated, name_of, one_by_one
from lightning_evo.evaluation.ways.perturbed import Perturbed
from lightning_evo.evaluation.ways.routes import Routes, Summary, summary
from lightning_evo.evaluation.ways.row_rules import (
    EXPANDING,
    RANDOM,
    ROW_RULES,
    bound,
    expanded,
    with_equal_numbers,
)
from lightning_evo.evaluation.ways.rules import KEYWORDS, RULES, SMALL
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.utils.messages import preview

__all__ = ["PerturbedRows"]

_INPUT: dict[Callable[..., Any], int] = {torch.addmm: 1}  # which argument is a layer's input: the first one, but here
_WITH_BIAS: frozenset[Any] = frozenset({functional.linear, torch.addmm})
_SEQUENCES = (list, tuple)  # of arguments
_LINEAR = functional.linear
_CONVOLUTIONS: frozenset[Any] = frozenset({functional.conv1d, functional.conv2d, functional.conv3d})
_RECURRENT: frozenset[Any] = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
_FACTORIES: frozenset[Any] = frozenset({torch.rand, torch.randn, torch.randint, torch.normal, torch.randperm})


class PerturbedRows(Perturbed):
    """While it is active, the rows of a batch are those of some members.

    Args:
        space: The evolving parameters.
        population: All members.
        members: Numbers of the members whose rows the batch holds, one after the other. One may be there repeatedly.
        samples: Rows of each.
        after_call: Called after every torch function.
        routes: To be told where rows lie in calls that are given evolving parameters.
        trace: To be given what these calls gave, in brief.

    Raises:
        Refusal: From a call, or the context's end, if a function has no rule for a parameter that it is given.
    """

    def __init__(
        self,
        space: SearchSpace,
        population: Population,
        members: Sequence[int],
        samples: int,
        after_call: Callable[[], None] | None = None,
        routes: Routes | None = None,
        trace: list[Summary] | None = None,
    ) -> None:
        super().__init__(space, population, members, RowBlocks(len(members)))
        self._read_in_forward: set[int] = set()  # indices of parameters
        self._samples, self._rows = samples, len(members) * samples
        self._after_call, self._trace = after_call, trace
        self._routes = Routes() if routes is None else routes
        self._stacks: dict[int, Tensor] = {}

    def find(self, argument: object) -> EvolvingParameter | None:  # noqa: D102
        parameter = self._space.get(id(argument))
        if parameter is not None:
            return parameter
        made: Made | None = made_of(argument)
        if made is not None and made.owner is not self:
            raise Refusal(f"a tensor made of {made.name} is kept from an earlier forward")
        return made

    def factors(self, parameter: EvolvingParameter) -> tuple[Tensor, Tensor] | None:  # noqa: D102
        return parameter.factors if isinstance(parameter, Made) else super().factors(parameter)

    def _concerned(self, arguments: Any) -> bool:
        space = self._space
        for argument in arguments:
            if id(argument) in space or made_of(argument) is not None:
                return True
            if isinstance(argument, _SEQUENCES) and self._concerned(argument):
                return True
        return False

    def tensor(self, parameter: EvolvingParameter) -> Tensor:  # noqa: D102
        raise Refusal(f"members' values of {parameter.name} can't be one tensor of its shape")

    def stack(self, parameter: EvolvingParameter) -> Tensor:  # noqa: D102
        if isinstance(parameter, Made):
            return self._stack_of_made(parameter)
        values = self._stacks.get(parameter.index)
        if values is None:
            size = parameter.tensor.numel()
            if size > SMALL:
                raise Refusal(_too_large(parameter) + ("" if self.factors(parameter) else _ADVICE))
            values = self._stacks[parameter.index] = super().stack(parameter)
        return values

    def _stack_of_made(self, parameter: Made) -> Tensor:
        if parameter.values is not None:
            return parameter.values
        center, factors = parameter.tensor.detach(), parameter.factors
        assert factors is not None
        if center.numel() > SMALL:
            raise Refusal(_too_large(parameter))
        return center + (factors[0] @ factors[1].mT).to(center.dtype)

    def stacked(self, argument: Tensor) -> Tensor:  # noqa: D102
        parameter = self.find(argument)
        return self.layout.stack(argument) if parameter is None else self.stack(parameter)

    def _release(self, *exit: Any) -> None:
        super()._release(*exit)
        if exit[1] is None and self._refusal is None:
            self._routes.finish(self._read_in_forward)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stacks = {}
        forget_written()
        super().__exit__(kind, error, trace)

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
        try:
            if self._concerned(args) or (kwargs and self._concerned(kwargs.values())):
                result = self._noted(function, args, kwargs)
            else:
                result = self._unperturbed(function, args, kwargs)
        except Refusal as refusal:
            raise self._refused(refusal)  # noqa: B904
        if self._after_call is not None:
            self._after_call()
        return result

    def _noted(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call that is given evolving parameters, of which is noted where rows lie."""
        routes, parameter = self._routes, self._linear_weight(function, args, kwargs)
        if parameter is not None and place_of(args[0]) == -args[0].dim():
            if not routes.in_front(parameter.index, args[0], self._rows):
                routes.note(function, args, kwargs, self.find, self._rows)
                routes.put_in_front(parameter.index, args[0], self._rows)
            return self._linear(args, parameter)
        routes.note(function, args, kwargs, self.find, self._rows)
        return self._layer_called(function, args, kwargs)

    def _layer_called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call that is given evolving parameters, whose other arguments have their places."""
        result = self._perturbed(function, args, kwargs)
        self._read_in_forward.update(
            parameter.index
            for each in tensors_in([*args, *kwargs.values()])
            if (parameter := self._space.get(id(each))) is not None
        )
        self._trace_result(result)
        return result

    def _linear_weight(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> EvolvingParameter | None:
        """The weight of a linear layer that is ready to be multiplied by, which most calls are given."""
        if function is not _LINEAR or kwargs:
            return None
        parameter = self._space.get(id(args[1]))
        return parameter if parameter is not None and (parameter.index, False) in self.products else None

    def _linear(self, args: Sequence[Any], parameter: EvolvingParameter) -> Tensor:
        """A linear layer whose input has its rows in front."""
        x, bias = args[0], args[2] if len(args) > 2 else None
        if bias is not None:
            evolving = self.find(bias)
            bias = bias.detach()[None] if evolving is None else self.stack(evolving)
        result: Tensor = self.products[parameter.index, False].of_rows(x, bias, self.layout.members)
        set_place(result, -x.dim())
        self._read_in_forward.add(parameter.index)
        self._trace_result(result)
        return result

    def _trace_result(self, result: Any) -> None:
        if self._trace is not None:
            self._trace.append(summary(result, self.layout.members))

    def _unperturbed(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        rule = RANDOM.get(function)
        result = NotImplemented if rule is None else rule(self, function, args, kwargs)
        if result is not NotImplemented:
            self._follow_always()
        else:
            result = function(*args, **kwargs)
            if rule is with_equal_numbers or function in _FACTORIES:
                self._check_drawn(function, result)
                self._follow_always()
            follow(function, args, kwargs, result, self.layout.members)
        return result

    def _follow_always(self) -> None:
        """Note that calls without evolving parameters matter: they draw random numbers for all members."""
        self._routes.reason = "random numbers are drawn"

    def _check_drawn(self, function: Callable[..., Any], result: Any) -> None:
        rows = self._rows
        if isinstance(result, Tensor) and result.dim() and len(result) == rows:
            raise Refusal(
                f"{name_of(function)} draws random numbers for {rows} rows, which a member alone would not have: draw "
                "them by a tensor of the batch (torch.rand_like)"
            )

    def _perturbed(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call that is given evolving parameters."""
        try:
            position = _INPUT.get(function, 0)
            if len(args) > position and isinstance(place_of(args[position]), int):  # as in most calls
                result = self._of_rows(function, args, kwargs)
                if result is not NotImplemented:
                    return result
            return self._of_weights(function, args, kwargs)
        except Refusal as refusal:
            text, name, found = str(refusal), name_of(function), self._among(args, kwargs)
            if any(each in text for each in found):
                raise
            text = f" {text.removeprefix(name + ' ')}" if text.startswith(name) else f": {text}"
            raise Refusal(f"{name} with {preview(found, 5)}{text}") from None

    def _of_rows(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What has a rule for all members at once; ``NotImplemented`` for what has none."""
        if function in RULES and kwargs.keys() <= KEYWORDS:
            result = self._layer(function, list(args), kwargs)
            if result is not NotImplemented:
                return result
        rule = ROW_RULES.get(function)
        return NotImplemented if rule is None else rule(self, function, args, kwargs)

    def _of_weights(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call that may be given parameters in place of rows, or has no rule."""
        if args and writes(function) and (target := self.find(args[0])) is not None:
            raise self._written(target)
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {name: value for name, value in kwargs.items() if name != "input"}
        if self._keeps_statistics(function, args, kwargs):
            raise Refusal(f"{name_of(function)} is over all rows while it trains")
        if function in _RECURRENT:
            raise Refusal(f"{name_of(function)} has no rule for members as rows")
        if function in EXPANDING:
            result = expanded(self, function, args, kwargs, self._rows)
            if result is not NotImplemented:
                return result
        if all(place_of(tensor) is None for tensor in tensors_in([*args, *kwargs.values()])):
            args, made_for_rows = self._with_rows_made(function, args, kwargs)
            if not made_for_rows:
                return made_for_members(self, function, args, kwargs, self._among(args, kwargs))
        if function is Tensor.__getitem__ and self._is_lookup(*args):
            function, args = functional.embedding, args[::-1]
        result = self._of_rows(function, args, kwargs)
        return one_by_one(self, function, args, kwargs) if result is NotImplemented else result

    def _is_lookup(self, table: Tensor, index: Any) -> bool:
        """Whether ``table[index]`` is an embedding."""
        whole = isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64)
        return whole and table.dim() == 2 and self.find(table) is not None and self.find(index) is None

    def _with_rows_made(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], bool]:
        """A call's arguments, and whether one was made for all rows, as by a tokenizer or ``torch.zeros``.

        Layers give it its place themselves. In norms and elementwise functions it has more dimensions than the
        parameters, else it could be a constant beside a parameter of its shape.
        """
        rows, found = self._rows, [p for each in tensors_in(args) if (p := self.find(each)) is not None]
        most = max((parameter.tensor.dim() for parameter in found), default=0)

        def is_made(tensor: object) -> bool:
            if not isinstance(tensor, Tensor) or tensor.dim() < 2 or self.find(tensor) is not None:
                return False
            times, rest = divmod(len(tensor), rows)
            if rest or not times or (function not in RULES and tensor.dim() <= most):
                return False
            return (times == 1 and function in RULES) or is_repeated(tensor, self.layout.members)  # or several texts

        def placed(tensor: Tensor) -> Tensor:
            tensor = tensor.view(tensor.shape)  # the user's tensor gets no place
            set_place(tensor, -tensor.dim())
            return tensor

        if function in RULES:
            return args, any(map(is_made, tensors_in([*args, *kwargs.values()])))
        if function not in ROW_RULES:
            return args, False
        made = [is_made(each) for each in args]
        return [placed(each) if yes else each for each, yes in zip(args, made, strict=True)], any(made)

    def _layer(self, function: Callable[..., Any], args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        """A layer's input times a weight, with rows in front."""
        position = _INPUT.get(function, 0)
        x, weight = args[position], args[position + 1] if len(args) > position + 1 else kwargs.get("weight")
        parameter = self.find(weight)
        if parameter is None and function in _WITH_BIAS and self.find(x) is None:
            return self._shifted(function, args, kwargs)
        if parameter is None or self.find(x) is not None:
            return NotImplemented
        if self.factors(parameter) is None and parameter.tensor.numel() > SMALL:
            self.stack(parameter)  # refuses
        x = self._with_rows(x, function, parameter)
        place, moves = place_of(x), function not in _CONVOLUTIONS
        assert isinstance(place, int)
        if place != -x.dim():
            if not moves:
                return NotImplemented
            x = x.movedim(place, 0)
            set_place(x, -x.dim())
        args[position] = x
        result = RULES[function](self, *args, **kwargs)
        if result is NotImplemented and function is functional.embedding:
            if (args[3] if len(args) > 3 else kwargs.get("max_norm")) is not None:
                raise Refusal("embedding writes into its table: leave max_norm out")
            result = self._embedding(x, parameter)
        if result is NotImplemented or place == -x.dim():
            return result
        back = result.movedim(0, place + x.dim())
        set_place(back, place + x.dim() - back.dim())
        return back

    def _shifted(self, function: Callable[..., Any], args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        """A layer of which only the bias evolves."""
        if function is torch.addmm:
            bias, x, weight = args
            result = torch.mm(x, weight)
        else:
            x, weight, bias = bound(("x", "weight", "bias"), args, kwargs)
            result = functional.linear(x, weight)
        follow(functional.linear, (x, weight), {}, result, self.layout.members)
        return ROW_RULES[torch.add](self, torch.add, (result, bias), {})

    def _embedding(self, ids: Tensor, parameter: EvolvingParameter) -> Tensor:
        """Rows of small tables, each member's own."""
        tables, entries = self.stack(parameter), self.layout.split(ids)
        first = torch.arange(len(tables), device=ids.device).view(-1, *[1] * (entries.dim() - 1)) * tables.shape[1]
        return self.layout.join(functional.embedding(entries + first, tables.flatten(0, 1)))

    def _with_rows(self, x: Tensor, function: Callable[..., Any], parameter: EvolvingParameter) -> Tensor:
        """A layer's input, with rows for each member also where it is the same for all."""
        place, members = place_of(x), self.layout.members
        if isinstance(place, int):
            return x
        if isinstance(place, Lost):
            what = f"a tensor in which {place} has mixed or moved the members' rows"
        elif not is_repeated(x, members):
            what = f"a tensor of {len(x)} rows that does not come from the batch"
        else:
            x = x.view(x.shape)  # the user's tensor gets no place
            set_place(x, -x.dim())
            return x
        raise Refusal(f"{name_of(function)} with {parameter.name} is given {what}")

    def _keeps_statistics(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a norm is over the samples of a batch."""
        return function is functional.batch_norm and bool(args[5] if len(args) > 5 else kwargs.get("training", False))

    def _among(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        """The names of evolving parameters among arguments."""
        found: list[str] = []
        for argument in [*args, *kwargs.values()]:
            for each in argument if isinstance(argument, list | tuple) else [argument]:
                parameter = self.find(each)
                if parameter is not None:
                    found += parameter.names if isinstance(parameter, Made) else (parameter.name,)
        return list(dict.fromkeys(found))


def _too_large(parameter: EvolvingParameter) -> str:
    size = f"{parameter.tensor.numel():,} elements are too many for that (at most {SMALL:,})"
    return f"{parameter.name} would be made for each member, and {size}"


_ADVICE = ": give a rank, with which layers need no weights of each member"
