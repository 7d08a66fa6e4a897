"""A stand-in for an object that writes somewhere, such as a logger, to be used while members run."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["Quiet"]

_PLAIN = (str, bytes, int, float, complex, os.PathLike, type(None))


class Quiet:
    """Looks like an object, and does nothing.

    Plain values are the object's own: a logger's ``log_dir``, ``name`` and ``version``, from which a step makes paths.
    All else is quiet in turn, a call gives ``None``, and nothing can be written.

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
        found = getattr(object.__getattribute__(self, "_value"), name)
        return found if isinstance(found, _PLAIN) else Quiet(found)

    def __setattr__(self, name: str, value: Any) -> None:
        """Drop the value."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; a figure that TensorBoard would have drawn and closed is closed."""
        if getattr(object.__getattribute__(self, "_value"), "__name__", "") == "add_figure":
            _close_figures(args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop the value."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was opened."""


def _close_figures(args: Any, figure: Any = (), close: bool = True, **kwargs: Any) -> None:
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    figures = [figure, *args] if pyplot is not None and close else []
    for each in figures:
        for one in each if isinstance(each, list) else [each]:
            if isinstance(one, pyplot.Figure):
                pyplot.close(one)
