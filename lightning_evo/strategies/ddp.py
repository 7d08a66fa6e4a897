"""``strategy="evo_ddp"``: several processes with the same weights divide the population, or the data, or both.

There is no ``DistributedDataParallel`` around the module, as there are no gradients to reduce: all processes draw the
same noise and learn from the same fitness, so their weights stay equal. In a training step only fitness is sent
(and parts of the update, with ``update_sync="sharded"``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_evo.algorithms import Algorithm
from lightning_evo.generation.sync import UpdateSync, choose, synchronized
from lightning_evo.generation.update import AlongDirections, Update
from lightning_evo.processes.checksums import compare_batches, compare_weights
from lightning_evo.processes.collectives import no_collectives
from lightning_evo.strategies import _compat
from lightning_evo.strategies._processes import ProcessesEvoMixin, connection_options, refuse
from lightning_evo.utils.messages import shown
from lightning_evo.utils.options import as_whole, one_of, whole

__all__ = ["DDPEvoMixin", "Division"]

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DDPStrategy
else:
    DDPStrategy = object

Division = Literal["population", "data"] | tuple[int, int]
"""What processes divide; two numbers make a grid: groups, and processes in each group."""

_UNUSED = dict.fromkeys(  # options of Lightning's strategy and of DistributedDataParallel
    (
        "broadcast_buffers",
        "bucket_cap_mb",
        "check_reduction",
        "ddp_comm_hook",
        "ddp_comm_state",
        "ddp_comm_wrapper",
        "delay_all_reduce_named_params",
        "find_unused_parameters",
        "gradient_as_bucket_view",
        "init_sync",
        "model_averaging_period",
        "param_to_hook_all_reduce",
        "skip_all_reduce_unused_params",
        "static_graph",
    ),
    "there is no DistributedDataParallel around the module, as there are no gradients to reduce. Leave it out",
)


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


class DDPEvoMixin(ProcessesEvoMixin, _Unwrapped):
    """Evolve on several processes that hold the same weights: on one machine or many, on CPUs or GPUs.

    Args:
        algorithm: A registered name or an algorithm object.
        shard: What the processes divide. ``"population"`` (default): each evaluates its share of the members on the
            same batch, so the result does not depend on how many there are. ``"data"``: each evaluates all members on
            its share of the data, and the fitness is the mean. ``(groups, processes)``: a grid, in which groups divide
            the members, and the processes of a group the data.
        update_sync: Which process makes the noise of an update: ``"replicated"`` (every process all of it),
            ``"sharded"`` (each a part of every tensor; the same bits), or ``"auto"``, by a measurement
            (docs/scaling.md).
        checksum_every: After how many generations the processes compare checksums of their weights, and stop if they
            differ; 0 for never.
        start_method: ``"popen"``, ``"spawn"``, ``"fork"`` or ``"forkserver"``: how processes are started that no
            cluster or torchrun has started.
        process_group_backend: ``"nccl"`` or ``"gloo"``; by default what suits the device.
        timeout: How long a process waits for the others; ``None`` for torch's default.
        parallel_devices: Set by the Trainer.
        cluster_environment: A cluster environment plugin.
        **options: All other arguments of :class:`EvoStrategy`.

    Raises:
        ValueError: If an option has an impossible value; the message says what was expected.
        TypeError: If the algorithm has no such option, or it is one of DistributedDataParallel.
    """

    strategy_name = "evo_ddp"

    def __init__(
        self,
        algorithm: str | Algorithm[Any] = "openai_es",
        *,
        shard: Division | list[int] = "population",
        update_sync: UpdateSync = "auto",
        checksum_every: int = 100,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: Any = None,
        **options: Any,
    ) -> None:
        refuse(options, _UNUSED)
        self._shard = _checked_shard(shard)
        self._update_sync = self._chosen_update_sync = one_of("update_sync", update_sync, get_args(UpdateSync))
        self._checksum_every = whole("checksum_every", checksum_every, minimum=0)
        self._parent_options = {
            "start_method": one_of("start_method", start_method, ("popen", "spawn", "fork", "forkserver")),
            "parallel_devices": parallel_devices,
            "cluster_environment": cluster_environment,
            **connection_options(process_group_backend, timeout),
        }
        super().__init__(algorithm, **options)
        self._other_options["shard"] = shard

    # --- processes ---

    @property
    def _grid(self) -> tuple[int, int]:
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

    @property
    def _divides_data(self) -> bool:
        return self._shard == "data" or (self._shard != "population" and self._shard[1] > 1)

    def setup_environment(self) -> None:
        """Connect the processes and divide the members among them."""
        super().setup_environment()
        self.evolution.evaluating = no_collectives if self.evolution.ranks.groups > 1 else nullcontext

    # --- setup ---

    def _check(self, module: Any) -> None:
        super()._check(module)
        if _compat.synchronizes_batch_norm(self):
            raise ValueError(
                "sync_batchnorm=True can't be used: its statistics would mix the members that different processes "
                "evaluate. Leave it out; members see the statistics of their own batch."
            )

    def _share_start(self) -> None:
        if self.evolution.start is not None and self.evolution.ranks.world_size > 1:
            self.evolution.start.share(self._share_tensor)

    def _share_tensor(self, tensor: torch.Tensor) -> None:
        values = tensor.to(self.root_device)
        torch.distributed.broadcast(values, 0)
        tensor.copy_(values)

    def setup(self, trainer: Any) -> None:  # noqa: D102
        super().setup(trainer)
        self._chosen_update_sync = self._update_sync  # "auto" measures in each fit

    def _evaluate(self, batch: Any, *args: Any, **kwargs: Any) -> None:
        every, ranks, generation = self._checksum_every, self.evolution.ranks, self.evolution.state.generation
        if not self.evolution.has_fitness and ranks.world_size > 1 and every and generation % every == 0:
            compare_weights(self.evolution.space, ranks, generation)
            compare_batches(batch, ranks, generation)
        super()._evaluate(batch, *args, **kwargs)

    # --- the update ---

    def _synchronized(self, update: Update) -> Update:
        ranks = self.evolution.ranks
        if ranks.world_size == 1 or not update or not isinstance(update, AlongDirections):
            return update
        if self._chosen_update_sync == "auto":
            self._chosen_update_sync, why = choose(update, ranks)
            rank_zero_info(why)
        return synchronized(update, self._chosen_update_sync, ranks)


def _checked_shard(shard: object) -> Division:
    if isinstance(shard, str) and shard in ("population", "data"):
        return "population" if shard == "population" else "data"
    given = list(shard) if isinstance(shard, Sequence) and not isinstance(shard, str) else []
    numbers = [number for number in map(as_whole, given) if number is not None and number >= 1]
    if len(numbers) != 2 or len(given) != 2:
        raise ValueError(
            "shard must be 'population', 'data' or two whole numbers >= 1 (groups, processes of a group), got "
            f"{shown(shard)}."
        )
    return numbers[0], numbers[1]
