"""How a journal describes algorithm, parameters and weights."""

from __future__ import annotations

import binascii
import ctypes
import hashlib
import struct
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import MappingProxyType
from typing import Any

from lightning_evo import algorithms
from lightning_evo.algorithms import Algorithm, Schedule
from lightning_evo.generation.update import Update
from lightning_evo.journal.code import name_of_code
from lightning_evo.journal.records import JournalError, RecordedParameter
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.spaces.shards import gathered

__all__ = ["check_of", "describe_algorithm", "describe_parameters", "rebuild_algorithm", "weights_checksum"]


def describe_algorithm(algorithm: Algorithm[Any]) -> dict[str, Any]:
    """An algorithm's class, name and, if it is a dataclass, its options as plain data.

    A function, or a class from another package, becomes ``{"not_plain": its name}``, with a digest of its code where a
    name does not tell two apart: lambdas, for example.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> describe_algorithm(get("mezo")())["shaping"]
        'raw'
    """
    given: Any = algorithm
    options = {f.name: _plain(getattr(given, f.name)) for f in fields(given)} if is_dataclass(given) else {}
    name = type(algorithm).__name__
    known = getattr(algorithms, name, None) is type(algorithm)
    kind = name if known else {"not_plain": name_of_code(type(algorithm))}
    return {"class": kind, "name": algorithm.name, **options}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Schedule):
        return {"schedule": asdict(value)}
    return {"not_plain": name_of_code(value)}


def rebuild_algorithm(described: dict[str, Any]) -> Algorithm[Any]:
    """The algorithm that :func:`describe_algorithm` described.

    Raises:
        JournalError: If its class or an option is not plain data, or unknown to this version.
    """
    missing = {name: value["not_plain"] for name, value in described.items() if _is(value, "not_plain")}
    if missing:
        given = ", ".join(f"{name}={value.partition('#')[0]}" for name, value in missing.items())
        raise JournalError(
            f"The algorithm can't be rebuilt from the journal alone: {given} is code, not data. Pass the algorithm: "
            "lightning_evo.journal.replay.replay(…, algorithm=…)."
        )
    options: dict[str, Any] = {
        name: Schedule(**value["schedule"]) if _is(value, "schedule") else value for name, value in described.items()
    }
    name = options.pop("class")
    kind: Any = getattr(algorithms, name) if name in algorithms.__all__ else None
    unknown = sorted(options.keys() - {f.name for f in fields(kind)}) if kind else [f"the class {name}"]
    if unknown:
        raise JournalError(
            f"The journal's algorithm has what this version does not know: {', '.join(unknown)}. Use the version of "
            "lightning-evo that wrote it, or a newer one."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice that was given when the run began
        algorithm: Algorithm[Any] = kind(**options)
    return algorithm


def _is(value: object, tag: str) -> bool:
    return isinstance(value, dict) and tag in value


def describe_parameters(
    space: SearchSpace, groups: Mapping[int, int] = MappingProxyType({})
) -> tuple[RecordedParameter, ...]:
    """How a journal describes the evolving parameters.

    Args:
        space: The parameters.
        groups: The number of each one's parameter group by its index; without an entry 0.
    """
    return tuple(
        RecordedParameter(
            names=space.names(parameter),
            index=parameter.index,
            shape=tuple(parameter.shape),
            dtype=str(parameter.tensor.dtype).removeprefix("torch."),
            padding_row=parameter.padding_row,
            group=groups.get(parameter.index, 0),
        )
        for parameter in space
    )


def weights_checksum(space: SearchSpace) -> str:
    """128 bits (BLAKE2b, as hexadecimal digits) of all evolving weights, with their places, shapes and dtypes.

    Where processes hold parts of them, all must call this: each tensor is gathered in turn.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> before = weights_checksum(SearchSpace(layer))
        >>> with torch.no_grad():
        ...     layer.bias += 1
        >>> before == weights_checksum(SearchSpace(layer))
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for parameter in space:
        tensor, shard = parameter.tensor.detach(), parameter.shard
        digest.update(f"{parameter.index} {tuple(parameter.shape)} {tensor.dtype}".encode())
        tensor = (tensor if shard is None else gathered(shard, tensor.device)).cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        if size:
            digest.update((ctypes.c_char * size).from_address(tensor.data_ptr()))
    return digest.hexdigest()


def check_of(update: Update) -> int:
    """A checksum of 16 bits of what an update makes of its fitness."""
    numbers = update.numbers.tolist()
    return binascii.crc_hqx(struct.pack(f"<{len(numbers)}d", *numbers), 0)
