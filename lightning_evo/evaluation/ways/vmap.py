"""Every private piece of ``torch.func`` that this package touches: what a ``vmap`` batches, seen from outside of it.

Checked against torch 2.5 to 2.13. ``torch.func`` has a public way (``torch.autograd.Function`` with a ``vmap`` method),
which costs 100 microseconds a call; this costs six.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["batch_first", "current", "is_wrapped", "level_of", "outside", "without_fallback_warnings", "wrap"]


def level_of(batched: Tensor) -> int:
    """The level of the ``vmap`` that batches a tensor."""
    return torch._C._functorch.maybe_get_level(batched)


def wrap(values: Tensor, level: int) -> Tensor:
    """Dimension 0 of ``values`` becomes the batch dimension of a ``vmap``."""
    return torch._C._functorch._add_batch_dim(values, 0, level)


def batch_first(tensor: Tensor, level: int) -> Tensor | None:
    """A tensor with its batch dimension in front; ``None`` if this ``vmap`` does not batch it.

    Raises:
        NotImplementedError: If another ``vmap`` does.
    """
    functorch = torch._C._functorch
    if not functorch.is_functorch_wrapped_tensor(tensor):
        return None
    if functorch.maybe_get_level(tensor) != level or not functorch.is_batchedtensor(tensor):
        raise NotImplementedError("The model uses torch.func transformations of its own.")
    value = functorch.get_unwrapped(tensor)
    if functorch.is_functorch_wrapped_tensor(value):
        raise NotImplementedError("The model uses torch.func transformations of its own.")
    return value.movedim(functorch.maybe_get_bdim(tensor), 0)


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to some transformation, so that it has no memory of its own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def outside() -> AbstractContextManager[object]:
    """Operations in this context don't pass through ``vmap``."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

    return temporarily_pop_interpreter_stack()


def current() -> tuple[int | None, int]:
    """The level of the innermost ``vmap`` that runs, and its batch size; ``None`` and 1 outside of one."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return None, 1
    from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter

    interpreter = retrieve_current_functorch_interpreter()
    return interpreter.level(), interpreter.batch_size() if isinstance(interpreter, VmapInterpreter) else 1


@contextmanager
def without_fallback_warnings() -> Iterator[None]:
    """No line for each operation that has no batching rule and is done for one member after the other.

    torch would print it in every forward. (It has no way to ask whether such warnings were on, as they are by default.)
    """
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)
