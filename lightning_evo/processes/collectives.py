"""Refuses communication between processes while they evaluate different members."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

__all__ = ["no_collectives"]

_METHODS = {  # of a process group, by which Python code reaches other processes; and the functions that call them
    "_allgather_base": "all_gather_into_tensor",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "_start_coalescing": "batch_isend_irecv",
    "all_gather_single": "all_gather_single",
    "all_gather_single_coalesced": "all_gather_single",
    "all_to_all_single": "all_to_all_single",
    "allgather": "all_gather",
    "allgather_coalesced": "all_gather_coalesced",
    "allgather_into_tensor_coalesced": "all_gather_into_tensor",
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce_coalesced",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all_single",
    "barrier": "barrier",
    "broadcast": "broadcast",
    "gather": "gather",
    "monitored_barrier": "monitored_barrier",
    "recv": "recv",
    "recv_anysource": "recv",
    "reduce": "reduce",
    "reduce_scatter": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter_single",
    "reduce_scatter_single_coalesced": "reduce_scatter_single",
    "reduce_scatter_tensor_coalesced": "reduce_scatter_tensor",
    "scatter": "scatter",
    "send": "send",
}
_OPERATORS = (  # of functional collectives, which find their process group in C++
    "all_gather_into_tensor",
    "all_gather_into_tensor_coalesced",
    "all_gather_into_tensor_out",
    "all_reduce",
    "all_reduce_",
    "all_reduce_coalesced",
    "all_reduce_coalesced_",
    "all_to_all_single",
    "broadcast",
    "broadcast_",
    "reduce_scatter_tensor",
    "reduce_scatter_tensor_coalesced",
    "reduce_scatter_tensor_out",
)


@cache
def _entry_points() -> list[tuple[Any, str, str]]:
    """Those that this version of torch has: where each is, its name, and the function that calls it."""
    operators = {name: f"_functional_collectives.{name}" for name in _OPERATORS}
    homes: list[tuple[Any, dict[str, str]]] = [
        (torch.distributed.ProcessGroup, _METHODS),
        (torch.ops._c10d_functional, operators),
        (torch.ops._c10d_functional_autograd, operators),
    ]
    found = [(home, name, function) for home, functions in homes for name, function in functions.items()]
    return [(home, name, function) for home, name, function in found if hasattr(home, name) and name in vars(home)]


@contextmanager
def no_collectives() -> Iterator[None]:
    """In this context a RuntimeError is raised if this thread sends something by ``torch.distributed``.

    While ranks evaluate different members, a sum over ranks would mix them; and where some have more members than
    others, it would wait without end. Other threads may communicate, for example to save a checkpoint.
    """
    thread = threading.get_ident()

    def guarded(original: Callable[..., Any], function: str) -> Callable[..., Any]:
        def guard(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(*args, **kwargs)
            raise RuntimeError(
                f"torch.distributed.{function} was called while members are evaluated. Each process evaluates "
                "different members, which it would mix, and a different number of them, so some would wait without "
                "end. Evaluate all members on every process (shard='data'), or leave the call out of `training_step` "
                "and `fitness_step`."
            )

        return guard

    # Not the public functions: a module may have taken those by `from torch.distributed import all_reduce`.
    before = [(home, name, vars(home)[name]) for home, name, _ in _entry_points()]
    try:
        for home, name, function in _entry_points():
            setattr(home, name, guarded(getattr(home, name), function))
        yield
    finally:
        for home, name, own in before:
            setattr(home, name, own)
