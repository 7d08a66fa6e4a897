"""``strategy="evo_ddp"``: several processes with the same weights divide the population, or the data, or both.

There is no ``DistributedDataParallel`` around the module, as there are no gradients to reduce: all processes draw the
same noise and learn from the same fitness, so their weights stay equal. In a training step nothing but fitness travels
(and parts of the update, with ``update_sync="sharded"`` and ``"all_reduce"``).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_evo._messages import preview
from lightning_evo.algorithms import Algorithm
from lightning_evo.evaluation.faults import Pace
from lightning_evo.evaluation.isolation import RandomState
from lightning_evo.ranks import Ranks, no_collectives
from lightning_evo.strategies import _compat
from lightning_evo.strategies._evolution import EvoStrategyMixin
from lightning_evo.strategies._network import choose_interface, connect
from lightning_evo.update import Update
from lightning_evo.update_sync import UpdateSync, check_update_sync, choose, synchronized

__all__ = ["DDPEvoMixin", "Shard"]

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DDPStrategy
else:
    DDPStrategy = object

Shard = Literal["population", "data"] | tuple[int, int]
"""What processes divide among them; two numbers make a grid of so many groups and so many processes in each."""

_PIECE = 1 << 20  # elements that are added up at a time for a checksum


class _Unwrapped(DDPStrategy):
    """Lightning's strategy without ``DistributedDataParallel``, and with the signature that ours calls."""

    _parent_options: dict[str, Any]

    def __init__(self, accelerator: Any, checkpoint_io: Any, precision_plugin: Any) -> None:
        super().__init__(
            accelerator=accelerator,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            **self._parent_options,
        )

    @torch.no_grad()
    def configure_ddp(self) -> None:
        """Leave the module as it is; processes start from the weights and buffers of the first."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            whole = tensor.detach().contiguous()
            torch.distributed.broadcast(whole, 0)
            tensor.copy_(whole)


class DDPEvoMixin(EvoStrategyMixin, _Unwrapped):
    """Evolve on several processes that hold the same weights: on one machine or many, on CPUs or GPUs.

    Args:
        algorithm: As in :class:`EvoStrategy`, whose other arguments are accepted, too.
        shard: What the processes divide. ``"population"`` (default): each evaluates its share of the members on the
            same batch, so the result does not depend on how many there are. ``"data"``: each evaluates all members on
            its share of the data, and the fitness is the mean. ``(groups, processes)``: a grid, in which groups divide
            the members, and the processes of a group the data.
        update_sync: Who makes the noise of an update: ``"replicated"`` (every process all of it), ``"sharded"`` (each
            a part of every tensor; the same bits), ``"all_reduce"`` (each some directions; rounded differently), or
            ``"auto"``: the first or the second, by a measurement (docs/scaling.md).
        checksum_every: After so many generations the processes compare checksums of their weights, and stop if they
            differ; 0 never does.
        drop_stragglers: The share of members, in [0, 1), that a generation does not wait for: once all others are
            evaluated, a slow process skips those that it has not begun. It costs reproducibility, so the default is 0.
        start_method: ``"popen"``, ``"spawn"``, ``"fork"`` or ``"forkserver"``: how processes are started that no
            cluster or torchrun has started.
        process_group_backend: ``"nccl"`` or ``"gloo"``; by default what suits the device.
        timeout: How long a process waits for the others; ``None`` for torch's default.
        parallel_devices: Set by the Trainer.
        cluster_environment: A cluster environment plugin.
        **options: All other arguments of :class:`EvoStrategy`.

    Raises:
        ValueError: If an option has an impossible value; the message says what was expected.
        TypeError: If the algorithm has no such option.
    """

    strategy_name = "evo_ddp"

    def __init__(
        self,
        algorithm: str | Algorithm[Any] = "openai_es",
        *,
        shard: Shard | list[int] = "population",
        update_sync: UpdateSync = "auto",
        checksum_every: int = 100,
        drop_stragglers: float = 0.0,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: Any = None,
        **options: Any,
    ) -> None:
        _check_shard(shard)
        check_update_sync(update_sync)
        every: object = checksum_every
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise ValueError(f"checksum_every must be a whole number >= 0, got {checksum_every!r}.")
        drop: object = drop_stragglers
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1:
            raise ValueError(f"drop_stragglers must be a share of the members, in [0, 1), got {drop_stragglers!r}.")
        if drop_stragglers and shard != "population":
            raise ValueError(
                "drop_stragglers leaves out members, and works with shard='population' only: where processes divide "
                "the data, each has every member. Leave it out."
            )
        self._drop_stragglers = drop_stragglers
        methods = ("popen", "spawn", "fork", "forkserver")
        if start_method not in methods:
            raise ValueError(f"start_method must be one of {', '.join(methods)}, got {start_method!r}.")
        self._shard, self._update_sync, self._checksum_every = shard, update_sync, checksum_every
        self._chunk = options.get("members_per_forward")
        self._parent_options = {
            "start_method": start_method,
            "process_group_backend": process_group_backend,
            "parallel_devices": parallel_devices,
            "cluster_environment": cluster_environment,
            **({} if timeout is None else {"timeout": timeout}),
        }
        super().__init__(algorithm, **options)
        if drop_stragglers > 1 - self.evolution.minimum_evaluated + 1e-9:
            raise ValueError(
                f"drop_stragglers={drop_stragglers} leaves fewer members than minimum_evaluated="
                f"{self.evolution.minimum_evaluated} asks for. Lower one of them."
            )
        if update_sync == "all_reduce" and self.evolution.algorithm.momentum:
            raise ValueError(
                "update_sync='all_reduce' can't add up momentum, which is made of past directions. Use 'sharded', "
                "'replicated' or 'auto'."
            )

    # --- processes ---

    @property
    def _grid(self) -> tuple[int, int]:
        """Groups that divide the members, and processes of each that divide the data."""
        processes = self.num_nodes * self.num_processes
        if self._shard == "population":
            return processes, 1
        if self._shard == "data":
            return 1, processes
        groups, data = self._shard
        if groups * data != processes:
            raise ValueError(
                f"shard=({groups}, {data}) is a grid of {groups * data} processes, but there are {processes} "
                f"({self.num_nodes} nodes with {self.num_processes} devices each). Their product must be the number "
                "of processes."
            )
        return groups, data

    def setup_environment(self) -> None:
        """Start the processes' connection; from then on the evolution knows the others."""
        groups, data = self._grid
        super().setup_environment()
        self.evolution.ranks = Ranks(
            population=groups,
            data=data,
            rank=self.global_rank,
            gather_from_all=self._gather_from_all,
            sum_over_all=self._sum_over_all,
            chunk=self._chunk if isinstance(self._chunk, int) else 1,
        )
        self.evolution.evaluating = no_collectives if groups > 1 else nullcontext

    def setup_distributed(self) -> None:  # noqa: D102
        if self.num_nodes > 1 and self.cluster_environment is not None:
            choose_interface(self.cluster_environment.main_address)
        connect(self._get_process_group_backend(), self._timeout, self.root_device)
        super().setup_distributed()

    def _gather_from_all(self, values: Tensor) -> list[Tensor]:
        mine = values.to(self.root_device)
        everything = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(everything, mine)
        return [theirs.to(values.device) for theirs in everything]

    def _sum_over_all(self, values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values)
        return values

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Groups train on the same data; evaluation divides it among all processes."""
        if self.lightning_module is not None and self.lightning_module.trainer.training:
            _, data = self._grid
            return {"num_replicas": data, "rank": self.global_rank % data}
        return dict(super().distributed_sampler_kwargs)

    # --- setup ---

    def _check(self, module: Any) -> None:
        super()._check(module)
        if self._layer_sync is not None:
            raise ValueError(
                "sync_batchnorm=True can't be used: its statistics would mix the members that different processes "
                "evaluate. Leave it out; members see the statistics of their own batch."
            )
        groups, _ = self._grid
        if groups > 1:
            # Dropout and shuffling: members must not differ by the process that evaluates them.
            state = RandomState(self.root_device)
            state.load_state_dict(self.broadcast(state.state_dict()))

    def setup(self, trainer: Any) -> None:  # noqa: D102
        super().setup(trainer)
        if trainer.state.fn != "fit" or not self.evolution.is_set_up:
            return
        # Without a seed every process has its own; and a fit has counters of its own.
        seed, name = self.broadcast((self.evolution.state.seed, uuid.uuid4().hex))
        self.evolution.state = replace(self.evolution.state, seed=seed)
        if self._drop_stragglers and self.world_size > 1:
            self.evolution.evaluation.pace = Pace(_compat.shared_counter(name), self._drop_stragglers)

    def _evaluate(self, batch: Any, *args: Any, **kwargs: Any) -> None:
        if not self.evolution.has_fitness and self._checks_now:
            self._compare_weights()
            self._compare_batches(batch)
        super()._evaluate(batch, *args, **kwargs)

    # --- the update ---

    @property
    def summation(self) -> str:  # noqa: D102
        processes = self.evolution.ranks.world_size
        return f"all_reduce over {processes} processes" if self._update_sync == "all_reduce" and processes > 1 else ""

    def _synchronized(self, update: Update) -> Update:
        ranks = self.evolution.ranks
        if ranks.world_size == 1 or not update:
            return update
        if self._update_sync == "auto":
            self._update_sync, why = choose(update, ranks)
            rank_zero_info(why)
        return synchronized(update, self._update_sync, ranks)

    # --- checksums ---

    @property
    def _checks_now(self) -> bool:
        every = self._checksum_every
        return every > 0 and self.evolution.state.generation % every == 0 and self.evolution.ranks.world_size > 1

    def _compare_batches(self, batch: Any) -> None:
        """Stop if groups, which evaluate different members, do so on different data."""
        groups, data = self._grid
        if groups == 1:
            return
        sums: list[int] = []
        apply_to_collection(batch, Tensor, lambda tensor: sums.append(_checksum(tensor)))
        everyone = torch.cat(self._gather_from_all(torch.tensor([sum(sums) % (1 << 62)])))
        if any((everyone[place::data] != everyone[place]).any() for place in range(data)):
            raise RuntimeError(
                f"Generation {self.evolution.state.generation}: processes evaluate different members on different "
                "batches, so their fitness can't be compared. Does the dataloader have a DistributedSampler of its "
                "own, or a dataset that divides itself by rank or draws at random? Give all the same batches, "
                "or use shard='data'."
            )

    def _compare_weights(self) -> None:
        """Stop if processes have different weights."""
        generation = self.evolution.state.generation
        own = torch.tensor([_checksum(parameter.tensor) for parameter in self.evolution.space], dtype=torch.int64)
        total = own.sum(0, keepdim=True)
        everyone = torch.cat(self._gather_from_all(total))
        different = (everyone != everyone[0]).nonzero().flatten().tolist()
        if not different:
            return
        sums = torch.stack(self._gather_from_all(own))
        names = [p.name for p, equal in zip(self.evolution.space, (sums == sums[0]).all(0), strict=True) if not equal]
        raise RuntimeError(
            f"Generation {generation}: the weights of processes {', '.join(map(str, different))} are not those of "
            f"process 0, in {preview(names)}. All must learn alike: does something write to the weights on some "
            "processes only, or do they differ in hardware or versions? Resume from a checkpoint."
        )


def _check_shard(shard: object) -> None:
    if shard in ("population", "data"):
        return
    numbers = list(shard) if isinstance(shard, Sequence) and not isinstance(shard, str) else []
    if len(numbers) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers):
        raise ValueError(
            "shard must be 'population', 'data' or two whole numbers >= 1 (groups, processes of a group), got "
            f"{shard!r}."
        )


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    """A sum over the bits of a tensor, in which every element counts by its place."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(-1).view(integer)
    total = 0
    for start in range(0, len(bits), _PIECE):
        piece = bits[start : start + _PIECE].to(torch.int64)
        places = torch.arange(start, start + len(piece), device=piece.device) * 2 + 1
        total += int((piece * places).sum())
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)
