"""Processes compare checksums of what should be the same on all of them."""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_evo.processes.ranks import Ranks
from lightning_evo.spaces.search_space import SearchSpace
from lightning_evo.utils.messages import preview

__all__ = ["checksum", "compare_batches", "compare_weights", "dense_parts"]

_PIECE = 1 << 20  # elements that are added up at a time


def compare_batches(batch: Any, ranks: Ranks, generation: int) -> None:
    """Stop if groups, which evaluate different members, have different data.

    Args:
        batch: The batch of this process.
        ranks: All of them must call this.
        generation: For the message.

    Raises:
        RuntimeError: On all processes, if a process has another batch than those at its place in other groups.
    """
    if ranks.groups == 1:
        return
    sums: list[int] = []
    apply_to_collection(batch, Tensor, lambda tensor: sums.extend(map(checksum, dense_parts(tensor))))
    everyone = torch.cat(ranks.gather_from_all(torch.tensor([sum(sums) % (1 << 62)])))
    if any((everyone[place :: ranks.data] != everyone[place]).any() for place in range(ranks.data)):
        raise RuntimeError(
            f"Generation {generation}: processes evaluate different members on different batches, so their fitness "
            "can't be compared. Does the dataloader have a DistributedSampler of its own, or a dataset that divides "
            "itself by rank or draws at random? Give all the same batches, or use shard='data'."
        )


def compare_weights(space: SearchSpace, ranks: Ranks, generation: int) -> None:
    """Stop if processes have different weights.

    Args:
        space: The evolving parameters.
        ranks: All of them must call this.
        generation: For the message.

    Raises:
        RuntimeError: On all processes; it names those that differ from the first, and in what.
    """
    own = torch.tensor([checksum(parameter.tensor) for parameter in space], dtype=torch.int64)
    everyone = torch.cat(ranks.gather_from_all(own.sum(0, keepdim=True)))
    different = (everyone != everyone[0]).nonzero().flatten().tolist()
    if not different:
        return
    sums = torch.stack(ranks.gather_from_all(own))
    names = [parameter.name for parameter, equal in zip(space, (sums == sums[0]).all(0), strict=True) if not equal]
    raise RuntimeError(
        f"Generation {generation}: the weights of processes {', '.join(map(str, different))} are not those of "
        f"process 0, in {preview(names)}. All must make the same updates: does something write to the weights on some "
        "processes only, or do they differ in hardware or versions? Resume from a checkpoint."
    )


@torch.no_grad()
def checksum(tensor: Tensor, start: int = 0) -> int:
    """A sum over the bits of a tensor that depends on each element's place, modulo 2^64 and signed.

    Args:
        tensor: The elements.
        start: The place of the first one: checksums of a tensor's parts add up to that of the whole.

    Example:
        >>> checksum(torch.tensor([1, 2])), checksum(torch.tensor([2, 1]))
        (7, 5)
        >>> checksum(torch.tensor([1])) + checksum(torch.tensor([2]), start=1)
        7
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(-1).view(integer)
    total = 0
    for begin in range(0, len(bits), _PIECE):
        piece = bits[begin : begin + _PIECE].to(torch.int64)
        places = torch.arange(start + begin, start + begin + len(piece), device=piece.device) * 2 + 1
        total += int((piece * places).sum())
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """What a tensor holds, as dense tensors; of rare layouts only the values, or nothing."""
    if tensor.layout == torch.strided:
        return [] if tensor.is_quantized else [tensor]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    return [tensor.values()] if hasattr(tensor, "values") and not tensor.is_mkldnn else []
