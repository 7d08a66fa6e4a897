"""Members as rows where only calls that are given evolving parameters come to Python.

Where rows lie in such a call was noted by a forward that was followed (:mod:`.routes`). All other calls run at torch's
own speed: while members run, the evolving parameters are of a class that torch asks, in place of a mode that it would
ask at every call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evo.evaluation.functions import HARMLESS, tensors_in
from lightning_evo.evaluation.job import Refusal
from lightning_evo.evaluation.places import made_of, place_of
from lightning_evo.evaluation.ways.perturbed_rows import PerturbedRows
from lightning_evo.evaluation.ways.routes import Unfamiliar
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["RememberedRows"]


class RememberedRows(PerturbedRows):
    """While it is active, the rows of a batch are those of some members; rows are not followed.

    Args:
        space: The evolving parameters.
        population: All members.
        members: Numbers of the members whose rows the batch holds, one after the other.
        samples: Rows of each.
        after_call: Called after every call that is given an evolving parameter.
        routes: Where rows lie.
        trace: To be given what these calls gave, in brief.

    Raises:
        Unfamiliar: From a call, or the context's end, if a call is of a kind that was not noted.
        Refusal: Likewise, if a function has no rule for a parameter that it is given.
    """

    def _intercept(self) -> None:
        self._asked = self._parameters.tensors
        if any(type(tensor) is not nn.Parameter for tensor in self._asked):
            raise Unfamiliar("parameters are of a class of their own")
        if _active.members is not None:
            raise Unfamiliar("a forward runs within another one")
        self._drawn = _random_state(self._parameters)
        self._fused = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # as where a mode is active: it rounds in another way
            _active.members = self
            for tensor in self._asked:
                tensor.__class__ = _AskedParameter
        except BaseException:  # an interrupt, after which nobody calls `_release`
            self._take_back()
            raise

    def _take_back(self) -> None:
        _active.members = None
        for tensor in self._asked:
            tensor.__class__ = nn.Parameter
        torch.backends.mha.set_fastpath_enabled(self._fused)

    def _release(self, *exit: Any) -> None:
        self._take_back()
        if exit[1] is not None or self._refusal is not None:
            return
        if not torch.equal(self._drawn, _random_state(self._parameters)):
            self._refused(Unfamiliar("random numbers are drawn, for all members' rows"))
        elif not self._routes.knows(self._read_in_forward):
            self._refused(Unfamiliar("a forward has read other parameters"))

    def _of_weights(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = super()._of_weights(function, args, kwargs)
        for tensor in tensors_in([result]):
            if type(tensor) is Tensor and made_of(tensor) is not None:
                tensor.__class__ = _Asked
        return result

    def call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call that is given an evolving parameter."""
        if function in HARMLESS:
            return function(*args, **kwargs)
        try:
            parameter = self._linear_weight(function, args, kwargs)
            if parameter is not None and self._routes.in_front(parameter.index, args[0], self._rows):
                result = self._linear(args, parameter)
            else:
                self._routes.recall(function, args, kwargs, self.find, self._rows)
                if parameter is not None and place_of(args[0]) == -args[0].dim():
                    self._routes.put_in_front(parameter.index, args[0], self._rows)
                result = self._layer_called(function, args, kwargs)
        except Refusal as refusal:
            raise self._refused(refusal)  # noqa: B904
        if self._after_call is not None:
            self._after_call()
        return result


def _random_state(space: SearchSpace) -> Tensor:
    device = space[0].tensor.device
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return torch.cat(states)


class _Active(threading.local):
    """The forward that runs in this thread: as a mode, it is not asked of the calls of others."""

    members: RememberedRows | None = None


_active = _Active()


class _Asked(Tensor):
    """A tensor of whose calls the active forward is asked."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if _active.members is None:  # another thread; or an interrupt came before the class was taken back
                return function(*args, **(kwargs or {}))
            return _active.members.call(function, args, kwargs or {})


class _AskedParameter(_Asked, nn.Parameter):
    """An evolving one."""
