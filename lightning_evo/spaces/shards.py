"""Tensors of which this process holds a part: FSDP2's and those of DeepSpeed's ZeRO stage 3.

The rest of the package knows sharding only by this file: a process holds consecutive elements of a tensor, in its
flat, row-major order, and can write to them. Noise is a function of that order's offsets, so a part gets the noise that
it has in the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Shard", "as_gradient", "gathered", "global_sum", "is_sharded", "shape_of", "shard_of"]


@dataclass(frozen=True)
class Shard:
    """The part of a tensor that this process holds.

    Attributes:
        values: Its elements, flat ``[elements]``: the memory itself, to be written to. May be empty.
        start: Flat, row-major offset of the first one in the whole tensor.
        shape: Of the whole tensor.
        group: The processes that hold the whole tensor together.
    """

    values: Tensor
    start: int
    shape: torch.Size
    group: Any = None

    @property
    def whole(self) -> Tensor:
        """Stands for the whole tensor: its shape, dtype and device, and no memory (one element, repeated)."""
        return self.values.new_zeros(()).expand(self.shape)


def shape_of(parameter: Tensor) -> torch.Size:
    """The shape of the whole tensor, however it is sharded."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def shard_of(parameter: nn.Parameter, name: str = "?") -> Shard | None:
    """What this process holds of a parameter; ``None`` if it is an ordinary parameter, held whole.

    Args:
        parameter: An ordinary one, one that ``fully_shard`` has sharded, or one that DeepSpeed has partitioned.
        name: For error messages.

    Raises:
        ValueError: If the part is not a range of consecutive elements: a tensor that is sharded along another
            dimension than its first, or along several dimensions of a device mesh.
    """
    if hasattr(parameter, "ds_tensor"):
        return _partition_of_deepspeed(parameter, name)
    return _shard_of_dtensor(parameter, name) if is_sharded(parameter) else None


def is_sharded(parameter: Tensor) -> bool:
    """Whether FSDP2 or DeepSpeed handles this parameter."""
    if type(parameter) is Tensor:
        return False
    # By name: importing `torch.distributed.tensor` takes a second, also where nothing is sharded.
    return hasattr(parameter, "ds_tensor") or any(cls.__name__ == "DTensor" for cls in type(parameter).__mro__)


def _shard_of_dtensor(parameter: Any, name: str) -> Shard:
    mesh, placements = parameter.device_mesh, parameter.placements
    if mesh.ndim != 1 or not placements[0].is_shard(0):
        raise ValueError(
            f"{name} is laid out as {placements} over a device mesh of shape {tuple(mesh.shape)}; only tensors sharded "
            "along their first dimension over one dimension of a mesh can evolve. Call "
            "`fully_shard(layer, mesh=self.device_mesh['data_parallel'])` without `shard_placement_fn`, and no tensor "
            "parallelism."
        )
    local = parameter.to_local()
    if not local.is_contiguous():
        raise ValueError(
            f"The shard of {name} is not contiguous in memory; make the parameter so before `fully_shard`."
        )
    shape = parameter.shape
    rows = -(-shape[0] // mesh.size())  # as torch.chunk: the last shards may be smaller or empty
    first = min(shape[0], mesh.get_local_rank() * rows)
    width = shape[1:].numel()
    return Shard(local.detach().view(-1), first * width, shape, mesh.get_group())


def _partition_of_deepspeed(parameter: Any, name: str) -> Shard:
    partition, group = parameter.ds_tensor, parameter.ds_process_group
    if parameter.ds_persist:
        raise ValueError(
            f"DeepSpeed keeps {name} whole on every process, and would not see what is written to its partition. "
            "Set stage3_param_persistence_threshold to 0."
        )
    if not partition.is_floating_point() or len(partition) < 0:
        raise ValueError(f"The partition of {name} can't be written to.")
    start = len(partition) * torch.distributed.get_rank(group)
    held = max(0, min(len(partition), parameter.ds_numel - start))  # the rest pads the last partitions
    return Shard(partition.detach()[:held], start, torch.Size(parameter.ds_shape), group)


def as_gradient(parameter: Any, values: Tensor) -> Tensor:
    """The flat values of a shard as what goes into ``.grad``: a tensor sharded as the parameter is.

    Raises:
        ValueError: For DeepSpeed, whose partitions have no gradient that an optimizer of torch could use.
    """
    if hasattr(parameter, "ds_tensor"):
        raise ValueError("A parameter that DeepSpeed has partitioned has no gradient; use update='in_place'.")
    from torch.distributed.tensor import DTensor

    local = parameter.to_local()
    return DTensor.from_local(
        values.view(local.shape),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def gathered(shard: Shard, device: torch.device) -> Tensor:
    """The whole tensor, on every process of the group. All of its processes must call this.

    Args:
        shard: The part of this process.
        device: Where the group's processes talk to each other, and where the result is.
    """
    own = shard.values.to(device)
    if shard.group is None:
        return own.view(shard.shape)
    processes = torch.distributed.get_world_size(shard.group)
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(processes)]
    torch.distributed.all_gather(counts, torch.tensor([len(own)], device=device), group=shard.group)
    sizes = [int(count) for count in counts]
    padded = own.new_zeros(max(sizes))
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(processes)]
    torch.distributed.all_gather(parts, padded, group=shard.group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).view(shard.shape)


def global_sum(values: Tensor, group: Any) -> Tensor:
    """The sum of ``values`` over the processes of a group; ``values`` themselves without a group."""
    if group is None:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values, group=group)
    return values
