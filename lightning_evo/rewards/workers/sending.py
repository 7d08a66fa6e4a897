"""Functions and calls as bytes for workers, with the code of what workers can't import."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from lightning_evo.rewards.calling import Call
from lightning_evo.utils.messages import first_line

__all__ = ["code_of", "code_of_call", "dumps"]


def dumps(value: Any) -> bytes:
    """An object as bytes, with the code of what the script itself defines.

    Raises:
        ImportError: If cloudpickle is not installed.
    """
    code: bytes = _cloudpickle().dumps(value)
    return code


def code_of(name: str, function: Callable[..., Any]) -> bytes:
    """A function as bytes: its name where a worker can import it from, else its code.

    Args:
        name: The function's, for messages.
        function: A function, or another callable object.

    Raises:
        ValueError: If it holds on to something that can't be pickled.
        ImportError: If cloudpickle is not installed.
    """
    cloudpickle = _cloudpickle()
    try:
        with _by_value(cloudpickle, function):
            return dumps(function)
    except Exception as error:
        raise ValueError(
            f"Reward function {name!r} can't be sent to a worker: {type(error).__name__}: {first_line(error)}. With "
            "reward_timeout a function, and what it holds on to, must be picklable: make clients and models within "
            "it, when it is first called."
        ) from error


def code_of_call(call: Call) -> bytes:
    """A call as bytes.

    Raises:
        ValueError: If a column holds something that can't be pickled.
        ImportError: If cloudpickle is not installed.
    """
    try:
        return dumps(call)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"The data can't be sent to workers, as reward_timeout asks for: {type(error).__name__}: "
            f"{first_line(error)}. Leave out the column that can't be pickled, or keep plain values in it."
        ) from error


def _cloudpickle() -> Any:
    try:
        import cloudpickle
    except ImportError as error:
        raise ImportError(
            "reward_timeout needs cloudpickle, which sends functions to workers: pip install 'lightning-evo[rewards]'."
        ) from error
    return cloudpickle


@contextlib.contextmanager
def _by_value(cloudpickle: Any, function: Any) -> Iterator[None]:
    """Have a function's module pickled as code if nobody else can import it, as those that a test runner loads."""
    while isinstance(function, functools.partial):
        function = function.func
    names = {str(getattr(each, "__module__", None)) for each in (function, type(function))} - {"__main__", "builtins"}
    modules = [sys.modules[name] for name in sorted(names) if name in sys.modules and not _can_be_found(name)]
    modules = [each for each in modules if each.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _can_be_found(name: str) -> bool:
    """Whether an import that starts from nothing finds the package that a module lies in."""
    package = name.partition(".")[0]
    if package in sys.builtin_module_names:
        return True
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):
            if finder.find_spec(package, None) is not None:
                return True
    return False
