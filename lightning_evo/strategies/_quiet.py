"""A stand-in for an object that writes somewhere, such as a logger, to be used while members run."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Quiet"]

_PLAIN = (str, bytes, int, float, complex, os.PathLike, type(None))


class Quiet:
    """Looks like an object, and does nothing.

    Plain values are the object's own: a logger's ``log_dir``, ``name`` and ``version``, from which a step makes paths;
    lists and dictionaries are copies. All else is quiet in turn, a call gives ``None``, and nothing can be written.

    Args:
        value: The object.

    Example:
        >>> class Logger:
        ...     log_dir = "runs/1"
        ...
        ...     def log_metrics(self, metrics, step=None):
        ...         print(metrics)
        >>> logger = Quiet(Logger())
        >>> logger.log_metrics({"loss": 1.0})
        >>> logger.log_dir, isinstance(logger, Logger)
        ('runs/1', True)
    """

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "_value", value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(object.__getattribute__(self, "_value"))

    def __getattr__(self, name: str) -> Any:
        return _quiet(getattr(object.__getattribute__(self, "_value"), name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Drop the value."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; a figure that TensorBoard would have drawn and closed is closed."""
        if getattr(object.__getattribute__(self, "_value"), "__name__", "") == "add_figure":
            _close_figures(args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        value = object.__getattribute__(self, "_value")
        return _quiet(value[key]) if isinstance(value, Mapping | Sequence) else self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: object) -> bool:
        return False

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop the value."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was opened."""


def _quiet(value: Any) -> Any:
    """A plain value itself, a container of Python's own as a copy, anything else quiet."""
    if isinstance(value, _PLAIN):
        return value
    return copy.copy(value) if type(value) in (list, dict, tuple, set) else Quiet(value)


def _close_figures(args: Any, figure: Any = (), close: bool = True, **kwargs: Any) -> None:
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    figures = [figure, *args] if pyplot is not None and close else []
    for each in figures:
        for one in each if isinstance(each, list) else [each]:
            if isinstance(one, pyplot.Figure):
                pyplot.close(one)
