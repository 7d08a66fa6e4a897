"""Notes where a step asks for what only backpropagation has: results that require a gradient.

Everything runs under ``no_grad``. Code that does something only if ``x.requires_grad``, such as filling a memory bank,
leaves it out, and nothing fails: so it is said.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Questions"]

_ASKS = tuple(vars(torch._C.TensorBase)[name].__get__ for name in ("requires_grad", "grad_fn"))
_CUTS = (Tensor.detach, Tensor.detach_, vars(torch._C.TensorBase)["data"].__get__)
_KNOWN = frozenset(("torch", "torchmetrics", "lightning", "pytorch_lightning", "lightning_fabric", "transformers"))
"""Packages that ask in order to save memory or time, which changes no result."""


class Questions(TorchFunctionMode):
    """While it is active, code is watched; at the end one warning names the files and lines that asked.

    Only questions about what backpropagation would give a gradient count: results of parameters, but not of their
    detached values.

    Example:
        >>> import torch, warnings
        >>> layer = torch.nn.Linear(2, 2)
        >>> with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        ...     warnings.simplefilter("always")
        ...     with Questions():
        ...         _ = layer(torch.ones(2)).requires_grad
        >>> len(caught)
        1
    """

    def __init__(self) -> None:
        super().__init__()
        self._derived: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
        self._places: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ASKS:
            if not result and self._is_derived(args[0]):
                self._note(sys._getframe(1))
        elif func not in _CUTS and any(map(self._is_derived, _tensors((args, kwargs)))):
            for tensor in _tensors(result):
                if tensor.is_floating_point():
                    self._derived[id(tensor)] = tensor
        return result

    def _is_derived(self, tensor: Tensor) -> bool:
        return tensor.requires_grad or self._derived.get(id(tensor)) is tensor

    def _note(self, frame: Any) -> None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _KNOWN:
            self._places[f"{frame.f_code.co_filename}:{frame.f_lineno}"] = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._derived.clear()
        if self._places and error is None:
            verb = "asks" if len(self._places) == 1 else "ask"
            warnings.warn(
                f"{', '.join(self._places)} {verb} whether a tensor requires a gradient. Under evolution nothing does, "
                "so what the code does only then (filling a memory bank, for example) is left out. If it is wanted, "
                "ask `self.training` there, or do it in `on_train_batch_end`.",
                stacklevel=2,
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
