"""What is wrong with a configuration, in one line.

The parser of LightningCLI tries every type that an option may have, and prints what each of them says and a dump of all
values. The one line that helps stands in between.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any

from lightning_evo.strategies.names import option_names
from lightning_evo.utils.messages import did_you_mean
from lightning_evo.utils.options import check_names, one_of

__all__ = ["ConfigurationError", "reason"]

_NO_OPTION = re.compile(
    r"class_path '([^']+)':\s*(?:Error: )?(?:Option|Key) '([^']+)' is not (?:accepted|expected)", flags=re.IGNORECASE
)
_WRONG_VALUE = re.compile(r"Parser key \"([^\"]+)\":\n(.*?)(?:\n\s*Given|\. Got) value: ([^\n]*)", flags=re.DOTALL)
_OF_A_CLASS = re.compile(r"class_path '([^']+)':\n\s*(?!Parser key)(\S[^\n]*)")
_ITEM = re.compile(r"^\s*- (?!Expected |Problem with |Does not validate )(.+)$", flags=re.MULTILINE)
_UNKNOWN = re.compile(r"unrecognized arguments?: (\S+?)(?:=|\s|$)", flags=re.IGNORECASE)


class ConfigurationError(ValueError):
    """A value in a configuration is wrong: the message says which, and what was expected."""


def reason(message: str, known: Iterable[str] = ()) -> str | None:
    """The line of a parser's error that says what is wrong; ``None`` if it is not found or stands alone.

    Args:
        message: From the parser.
        known: Options of the command line, with their hyphens.

    Example:
        >>> print(reason("unrecognized arguments: --modle=x", ["--model", "--data"]))
        There is no option --modle. Did you mean '--model'?
    """
    if found := _NO_OPTION.search(message):
        return _no_option(*found.groups())
    if found := _UNKNOWN.search(message):
        return f"There is no option {found[1]}.{did_you_mean(found[1], known)}"
    if found := _OF_A_CLASS.search(message):
        return f"{found[1]}: {found[2].strip()}"
    if items := _ITEM.findall(message):
        return str(items[-1]).strip()
    # The innermost: the values around it are wrong because of it.
    start, found = 0, None
    while following := _WRONG_VALUE.search(message, start):
        found, start = following, following.start() + 1
    return _wrong_value(*found.groups()) if found else None


def _no_option(path: str, name: str) -> str | None:
    try:
        cls = getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2])
        is_ours = any(base.__module__.startswith("lightning_evo.strategies") for base in cls.__mro__)
        known = option_names(cls) if is_ours else _parameters(cls)
    except Exception:  # of the user's module: the parser has said so
        return f"{path} has no option {name!r}."
    try:
        check_names(path, [name], known)
    except TypeError as error:
        return str(error)
    return None


def _parameters(cls: type[Any]) -> list[str]:
    """Names of the arguments that a class takes, or passes on to those that it derives from."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _wrong_value(key: str, details: str, value: str) -> str:
    if literal := re.search(r"Literal(\[[^\]]*\])", details):
        choices = [choice for choice in ast.literal_eval(literal[1]) if isinstance(choice, str)]
        try:
            one_of(key, value, choices)
        except ValueError as error:
            return str(error)
    subtypes = re.search(r"Subtypes: ([^\n]*)", details)
    types = (
        re.findall(r"([\w.]+)(?:'>|[\],\[])", subtypes[1]) if subtypes else re.findall(r"<class '([^']+)'>", details)
    )
    names = dict.fromkeys(name.rpartition(".")[2] for name in types)
    wanted = " or ".join(name for name in names if name not in ("NoneType", "class"))
    return f"{key} must be of type {wanted}, got {value[:80]!r}." if wanted else f"{key} can't be {value[:80]!r}."
