"""``strategy="evo_fsdp"``: models whose weights are sharded over processes by FSDP2 (``fully_shard``).

The processes that hold one copy of the weights evaluate the same member at the same time, each on its own part of the
data, and its fitness is the mean over them: every forward gathers weights, so all must run it. More processes than
one copy needs make a mesh of two dimensions, whose groups divide the population.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lightning_evo.algorithms import Algorithm
from lightning_evo.generation.evolution import CHECKPOINT_KEY
from lightning_evo.spaces.shards import is_sharded
from lightning_evo.strategies import _compat
from lightning_evo.strategies._processes import connection_options, refuse
from lightning_evo.strategies._sharded import Regathering, ShardedEvoMixin, share
from lightning_evo.utils.options import flag, whole_or_auto

__all__ = ["FSDPEvoMixin"]

if TYPE_CHECKING:
    from lightning.pytorch.strategies import ModelParallelStrategy
else:
    ModelParallelStrategy = object

_OPTIMIZERS = "optimizer_states"

_UNUSED = {  # options of Lightning's strategies for FSDP and FSDP2
    **dict.fromkeys(
        ("data_parallel_size", "device_mesh", "sharding_strategy"),
        "shards=… says how many processes hold one copy of the weights",
    ),
    "tensor_parallel_size": "there is no tensor parallelism; fully_shard in `configure_model` divides the weights",
    **dict.fromkeys(
        ("auto_wrap_policy", "cpu_offload", "ignored_modules", "ignored_states", "use_orig_params"),
        "FSDP2 is told what to shard, and how, by calls of fully_shard in `configure_model`",
    ),
    **dict.fromkeys(
        ("activation_checkpointing", "activation_checkpointing_policy", "backward_prefetch", "limit_all_gathers"),
        "there is no backward pass. Leave it out",
    ),
    "mixed_precision": "use Trainer(precision=…)",
    "state_dict_type": "use save_distributed_checkpoint=True or False",
}


class _Parent(Regathering, ModelParallelStrategy):
    """Lightning's strategy, as the evolving one calls it; optimizers without a state are saved and loaded without one.

    With ``update="in_place"`` no optimizer has any. To save a state torch would first make one, by a step with
    gradients of zero; and Lightning can't load an empty one.
    """

    _parent_options: dict[str, Any]

    def __init__(self, accelerator: Any, checkpoint_io: Any, precision_plugin: Any) -> None:
        super().__init__(**self._parent_options)
        self.accelerator, self.checkpoint_io, self.precision_plugin = accelerator, checkpoint_io, precision_plugin

    def _give_up_gathered(self) -> None:
        # Without a backward pass FSDP2 leaves the weights of its root gathered.
        modules: Any = () if self.lightning_module is None else self.lightning_module.modules()
        for module in modules:
            if _compat.is_fully_sharded(module):
                module.reshard()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        plain = _compat.unwrapped(optimizer)
        return super().optimizer_state(optimizer) if plain.state else plain.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        states = checkpoint.get(_OPTIMIZERS, [])
        if (
            self._parent_options["save_distributed_checkpoint"]
            and states
            and not any(state["state"] for state in states)
        ):
            del checkpoint[_OPTIMIZERS]
            checkpoint[CHECKPOINT_KEY] = {**checkpoint.get(CHECKPOINT_KEY, {}), _OPTIMIZERS: states}
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        states = _compat.optimizers_without_state(path, *args, **kwargs) if self.optimizers else None
        if states is None and not self._ignores_optimizer_state:
            return super().load_checkpoint(path, *args, **kwargs)
        assert self.lightning_module is not None
        strict = self.lightning_module.strict_loading
        checkpoint = _compat.load_sharded(path, {"state_dict": self.model}, strict, *args, **kwargs)
        for optimizer, state in zip(self.optimizers, states or (), strict=False):
            optimizer.load_state_dict(state)
        return checkpoint

    @property
    def _ignores_optimizer_state(self) -> bool:
        return False


class FSDPEvoMixin(ShardedEvoMixin, _Parent):
    """Evolve a model whose weights are sharded over processes by FSDP2.

    The module's ``configure_model`` applies ``fully_shard`` from ``torch.distributed.fsdp``, as for Lightning's
    ``ModelParallelStrategy``, over ``self.device_mesh["data_parallel"]``. Members are written into each process's shard
    and restored from a copy of it.

    Args:
        algorithm: A registered name or an algorithm object.
        shards: How many processes hold one copy of the weights. ``"auto"`` (default): all. With fewer, the processes
            form groups, each with a copy, that divide the population. Must divide the number of processes.
        save_distributed_checkpoint: Whether each process saves its shard, in a folder, which any number of processes
            can load; if not, process 0 saves one ordinary file, and needs memory for all weights.
        process_group_backend: ``"nccl"`` or ``"gloo"``; by default what suits the device.
        timeout: How long a process waits for the others; ``None`` for Lightning's default.
        **options: All other arguments of :class:`EvoStrategy`.

    Raises:
        ValueError: If an option has an impossible value; the message says what was expected.
        TypeError: If the algorithm has no such option, or it is one of FSDP that has no effect.
    """

    strategy_name = "evo_fsdp"

    def __init__(
        self,
        algorithm: str | Algorithm[Any] = "openai_es",
        *,
        shards: int | Literal["auto"] = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        **options: Any,
    ) -> None:
        refuse(options, _UNUSED)
        self._shards: int | Literal["auto"] = whole_or_auto("shards", shards)
        self._parent_options = {
            "save_distributed_checkpoint": flag("save_distributed_checkpoint", save_distributed_checkpoint),
            **connection_options(process_group_backend, timeout),
        }
        super().__init__(algorithm, **options)

    # --- processes ---

    @property
    def _grid(self) -> tuple[int, int]:
        processes = self.num_nodes * self.num_processes
        shards = processes if self._shards == "auto" else self._shards
        if processes % shards:
            raise ValueError(
                f"shards={shards} does not divide the {processes} processes ({self.num_nodes} nodes with "
                f"{self.num_processes} devices each). Choose another number of devices, or shards='auto'."
            )
        return processes // shards, shards

    @property
    def _divides_data(self) -> bool:
        return self._shards != 1

    def setup_environment(self) -> None:  # noqa: D102
        groups, shards = self._grid
        # Checked by Lightning; there is no tensor parallelism, and the mesh of the population is made below.
        _compat.set_data_parallel_size(self, groups * shards)
        super().setup_environment()
        if groups > 1:
            from torch.distributed.device_mesh import init_device_mesh

            names = ("population", "data_parallel", "tensor_parallel")
            mesh = init_device_mesh(self.root_device.type, (groups, shards, 1), mesh_dim_names=names)
            _compat.set_device_mesh(self, mesh)

    # --- setup ---

    def _check(self, module: Any) -> None:
        super()._check(module)
        if getattr(self.precision_plugin, "scaler", None) is not None:
            raise ValueError("evo_fsdp does not work with precision='16-mixed'. Use 'bf16-mixed', 'bf16-true' or 32.")
        if not any(map(is_sharded, module.parameters())):
            raise ValueError(
                f"{type(module).__name__}.configure_model shards nothing. Call "
                "`torch.distributed.fsdp.fully_shard(layer, mesh=self.device_mesh['data_parallel'])` there for the "
                "layers that hold the weights. For a model that fits on every device use strategy='evo_ddp'."
            )
        self._check_and_share_weights(module)

    @torch.no_grad()
    def _check_and_share_weights(self, module: nn.Module) -> None:
        """Copies of the same weights become equal: those that are not sharded, and those of different groups."""
        groups, shards = self._grid
        tensor: Any
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not is_sharded(tensor):
                share(tensor, 0)
                continue
            processes = tensor.device_mesh.size()
            if processes != shards:
                raise ValueError(
                    f"{name} is sharded over {processes} processes, but shards={shards}. Give `fully_shard` the mesh: "
                    "fully_shard(layer, mesh=self.device_mesh['data_parallel'])."
                )
            if groups > 1:
                mesh = self.device_mesh["population"]
                source = torch.distributed.get_global_rank(mesh.get_group(), 0)
                share(tensor.to_local(), source, mesh.get_group())

    # --- checkpoints ---

    def load_checkpoint(  # noqa: D102
        self, checkpoint_path: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path, *args, **kwargs)
        if self._user_module.trainer.state.fn == "fit":  # Lightning leaves optimizers, and so the rest, to this method
            self._load_evolution(checkpoint)
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Does nothing: :meth:`load_checkpoint` has loaded the optimizers."""

    @property
    def _ignores_optimizer_state(self) -> bool:
        return self.update == "in_place"
