"""How a journal describes algorithm, parameters and weights."""

from __future__ import annotations

import binascii
import ctypes
import hashlib
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from lightning_evo.algorithms import EvolutionStrategy, Schedule
from lightning_evo.journal.records import JournalError, RecordedParameter
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.spaces.shards import gathered

__all__ = ["check_of", "describe_algorithm", "describe_parameters", "rebuild_algorithm", "weights_checksum"]


def describe_algorithm(algorithm: EvolutionStrategy) -> dict[str, Any]:
    """All options of an algorithm as plain data; a function becomes ``{"not_plain": its name}``.

    Example:
        >>> from lightning_evo.algorithms import get
        >>> describe_algorithm(get("mezo")())["shaping"]
        'raw'
    """
    described = {f.name: _plain(getattr(algorithm, f.name)) for f in fields(algorithm)}
    if type(algorithm) is not EvolutionStrategy:
        described["class"] = {"not_plain": _qualified_name(type(algorithm))}
    return described


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Schedule):
        return {"schedule": asdict(value)}
    return {"not_plain": _qualified_name(value)}


def _qualified_name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def rebuild_algorithm(described: dict[str, Any]) -> EvolutionStrategy:
    """The algorithm that :func:`describe_algorithm` described.

    Raises:
        JournalError: If an option is not plain data, or unknown to this version.
    """
    missing = {name: value["not_plain"] for name, value in described.items() if _is(value, "not_plain")}
    if missing:
        given = ", ".join(f"{name}={value}" for name, value in missing.items())
        raise JournalError(
            f"The algorithm can't be rebuilt from the journal alone: {given} is code, not data. Pass the algorithm: "
            "lightning_evo.journal.replay.replay(…, algorithm=EvolutionStrategy(…))."
        )
    options: dict[str, Any] = {
        name: Schedule(**value["schedule"]) if _is(value, "schedule") else value for name, value in described.items()
    }
    unknown = sorted(options.keys() - {f.name for f in fields(EvolutionStrategy)})
    if unknown:
        raise JournalError(
            f"The journal's algorithm has options that this version does not know: {', '.join(unknown)}. Use the "
            "version of lightning-evo that wrote it, or a newer one."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice that was given when the run began
        return EvolutionStrategy(**options)


def _is(value: object, tag: str) -> bool:
    return isinstance(value, dict) and tag in value


def describe_parameters(
    space: SearchSpace, group: Callable[[torch.nn.Parameter], int] = lambda parameter: 0
) -> tuple[RecordedParameter, ...]:
    """How a journal describes the evolving parameters.

    Args:
        space: The parameters.
        group: The number of each one's parameter group.
    """
    return tuple(
        RecordedParameter(
            names=space.names(parameter),
            index=parameter.index,
            shape=tuple(parameter.shape),
            dtype=str(parameter.tensor.dtype).removeprefix("torch."),
            padding_row=parameter.padding_row,
            group=group(parameter.tensor),
        )
        for parameter in space
    )


def weights_checksum(space: SearchSpace) -> str:
    """128 bits (BLAKE2b, as hexadecimal digits) of all evolving weights, with their places, shapes and dtypes.

    Where processes hold parts of them, all must call this: each tensor is gathered in turn.

    Example:
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


def check_of(weights: Sequence[float], dtype: torch.dtype = torch.float32) -> int:
    """A checksum of 16 bits of an update's weights, in the precision in which they are used.

    Args:
        weights: One for each noise direction.
        dtype: float64 if a parameter is, else float32.
    """
    values: Tensor = torch.tensor(weights, dtype=torch.float64).to(dtype)
    return binascii.crc_hqx(struct.pack(f"<{len(weights)}d", *values.tolist()), 0)
