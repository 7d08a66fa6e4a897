"""``strategy="evo_deepspeed_stage_3"``: weights partitioned over processes by DeepSpeed's ZeRO, without an optimizer.

DeepSpeed's engine is made for inference, so there is neither an optimizer's state nor a master copy of the weights in
float32: the partitions, a copy of them while members run, and what a forward gathers. All processes evaluate the same
member at the same time, each on its own part of the data, and its fitness is the mean over them.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lightning_evo.algorithms import Algorithm
from lightning_evo.strategies import _compat
from lightning_evo.strategies._processes import connection_options, refuse
from lightning_evo.strategies._sharded import Regathering, ShardedEvoMixin, share
from lightning_evo.utils.messages import shown
from lightning_evo.utils.options import flag

__all__ = ["DeepSpeedEvoMixin"]

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DeepSpeedStrategy
else:
    DeepSpeedStrategy = object

_UNUSED = {  # options of Lightning's strategy
    **dict.fromkeys(
        ("offload_optimizer", "offload_optimizer_device", "optimizer_buffer_count", "sub_group_size"),
        "there is no optimizer's state. Leave it out",
    ),
    **dict.fromkeys(
        (
            "allgather_bucket_size",
            "allgather_partitions",
            "contiguous_gradients",
            "overlap_comm",
            "reduce_bucket_size",
            "reduce_scatter",
        ),
        "there are no gradients to reduce. Leave it out",
    ),
    **dict.fromkeys(
        ("hysteresis", "initial_scale_power", "loss_scale", "loss_scale_window", "min_loss_scale"),
        "there is no backward pass, for which a loss would be scaled. Leave it out",
    ),
    **dict.fromkeys(
        (
            "contiguous_memory_optimization",
            "cpu_checkpointing",
            "partition_activations",
            "synchronize_checkpoint_boundary",
        ),
        "no activations are kept, as there is no backward pass. Leave it out",
    ),
    **dict.fromkeys(
        ("exclude_frozen_parameters", "load_full_weights"),
        "checkpoints are ordinary files with all weights. Leave it out",
    ),
    **dict.fromkeys(
        (
            "block_size",
            "max_in_cpu",
            "nvme_path",
            "offload_params_device",
            "overlap_events",
            "params_buffer_count",
            "params_buffer_size",
            "queue_depth",
            "remote_device",
            "single_submit",
            "thread_count",
        ),
        "members are written into the partitions, which stay in memory: the CPU's with offload_parameters=True",
    ),
    "pin_memory": "set it in `config`, next to the device of offload_param",
    "zero_optimization": "weights are always partitioned. To leave them whole use strategy='evo_ddp'",
}
_UNUSED_SECTIONS = {  # of DeepSpeed's configuration that would do nothing here
    "optimizer": "return the optimizer from `configure_optimizers`; its learning rate counts",
    "scheduler": "return the scheduler from `configure_optimizers`",
    "gradient_clipping": "use Trainer(gradient_clip_val=…)",
    "gradient_accumulation_steps": "use Trainer(accumulate_grad_batches=…)",
}


class _Parent(Regathering, DeepSpeedStrategy):
    """Lightning's strategy, as the evolving one calls it: for inference, on any device, with ordinary checkpoints."""

    _parent_options: dict[str, Any]
    config: dict[str, Any]

    def __init__(self, accelerator: Any, checkpoint_io: Any, precision_plugin: Any) -> None:
        super().__init__(accelerator=accelerator, precision_plugin=precision_plugin, **self._parent_options)
        self.checkpoint_io = checkpoint_io

    # --- setup ---

    def setup_environment(self) -> None:
        _check_device(self.root_device)
        # Lightning's strategy refuses all devices but CUDA's; the one that it derives from does not.
        super(_compat.class_named("DeepSpeedStrategy", self), self).setup_environment()

    def setup_distributed(self) -> None:
        if self.root_device.type == "cuda":
            super().setup_distributed()
        else:  # without the check of the devices' numbers, which CPUs don't have
            self.set_world_ranks()
            _compat.connect_deepspeed(self)

    def setup_optimizers(self, trainer: Any) -> None:
        super(_compat.class_named("DeepSpeedStrategy", self), self).setup_optimizers(trainer)

    def init_deepspeed(self) -> None:
        import deepspeed

        module: Any = self.lightning_module
        device: int | None = self.root_device.index
        sections = ("fp16", "bf16", "zero_optimization", "zero_allow_untested_optimizer")
        _compat.remove_module_hooks(module)  # of the engine of an earlier run
        self.model, *_ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=-1 if device is None else device),
            config={
                "train_micro_batch_size_per_gpu": 1,  # of which only DeepSpeed's own measurements make use
                **{name: self.config[name] for name in sections if name in self.config},
            },
            model=module,
            model_parameters=[],
            dist_init_required=False,
        )
        for buffer in module.buffers():
            share(buffer, 0)

    # --- steps ---

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False

    def block_backward_sync(self) -> Any:
        return nullcontext()  # there is no backward pass; DeepSpeed's engine would refuse

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        # DeepSpeed's precision plugin would step the engine's optimizer, and there is none.
        step = _compat.class_named("Precision", self.precision_plugin).optimizer_step
        return step(self.precision_plugin, optimizer, model=model or self.lightning_module, closure=closure, **kwargs)

    def _give_up_gathered(self) -> None:
        module = self.lightning_module
        gathered: list[Any] = [] if module is None else [*filter(_is_gathered, module.parameters())]
        if gathered:
            gathered[0].partition(param_list=gathered, has_been_updated=False)

    # --- checkpoints ---

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights on process 0, on the CPU, gathered one by one; those of other processes are empty."""
        module: Any = self.lightning_module
        state = {}
        for name, value in module.state_dict(keep_vars=True).items():
            if not hasattr(value, "ds_id"):
                state[name] = value.detach() if isinstance(value, Tensor) else value
                continue
            with _gathered([value], modifier_rank=None):
                if self.is_global_zero:
                    state[name] = value.detach().cpu().clone()
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        super(_compat.class_named("DeepSpeedStrategy", self), self).save_checkpoint(
            checkpoint, filepath, storage_options=storage_options
        )

    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        path = self.broadcast(checkpoint_path)
        if os.path.isdir(path):
            raise ValueError(
                f"{path} is a folder, as DeepSpeed and FSDP2 write them. evo_deepspeed_stage_3 loads ordinary "
                "checkpoint files. DeepSpeed's own can be made one: "
                "lightning.pytorch.utilities.deepspeed.convert_zero_checkpoint_to_fp32_state_dict."
            )
        parent: Any = super(_compat.class_named("DeepSpeedStrategy", self), self)
        checkpoint: dict[str, Any] = parent.load_checkpoint(path, *args, **kwargs)
        return checkpoint

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super(_compat.class_named("DeepSpeedStrategy", self), self).load_optimizer_state_dict(checkpoint)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        self._load_weights(checkpoint["state_dict"], strict)

    @torch.no_grad()
    def _load_weights(self, state: Mapping[str, Any], strict: bool) -> None:
        module: Any = self.lightning_module
        own = module.state_dict(keep_vars=True)
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if strict and (missing or unexpected):
            raise RuntimeError(
                f"The checkpoint does not fit {type(module).__name__}: missing {missing}, unexpected {unexpected}. "
                "Use the module that wrote it, or set its `strict_loading = False`."
            )
        for name, value in own.items():
            if name not in state:
                continue
            whole = tuple(getattr(value, "ds_shape", value.shape))
            if tuple(state[name].shape) != whole:
                raise RuntimeError(
                    f"{name} has the shape {tuple(state[name].shape)} in the checkpoint and {whole} in the module. "
                    "Use the module that wrote the checkpoint."
                )
            if not hasattr(value, "ds_id"):
                value.copy_(state[name])
                continue
            with _gathered([value], modifier_rank=0):
                if self.is_global_zero:
                    value.copy_(state[name])


class DeepSpeedEvoMixin(ShardedEvoMixin, _Parent):
    """Evolve a model whose weights DeepSpeed's ZeRO stage 3 partitions over all processes.

    Needs DeepSpeed: ``pip install "lightning-evo[deepspeed]"``. Works on GPUs and, to try things out, on CPUs. Build
    large models in ``configure_model``, where they are partitioned while they are made.

    Args:
        algorithm: A registered name or an algorithm object.
        stage: 3. (Stages 1 and 2 divide gradients and an optimizer's state, which evolution does not have.)
        update: ``"in_place"``. A partition has no gradient that an optimizer of torch could use; of the one that
            ``configure_optimizers`` returns only the learning rate, weight decay and maximize count.
        offload_parameters: Keep the partitions in the CPU's memory.
        config: DeepSpeed's configuration, a dictionary or a JSON file, instead of the arguments above. Its
            ``stage3_param_persistence_threshold`` must be 0 or left out.
        process_group_backend: ``"nccl"`` or ``"gloo"``; by default what suits the device.
        timeout: How long a process waits for the others; ``None`` for Lightning's default.
        **options: All other arguments of :class:`EvoStrategy`.

    Raises:
        ModuleNotFoundError: If DeepSpeed is not installed.
        ValueError: If an option has an impossible value; the message says what was expected.
        TypeError: If the algorithm has no such option, or it is one of DeepSpeed that has no effect.
    """

    strategy_name = "evo_deepspeed_stage_3"

    def __init__(
        self,
        algorithm: str | Algorithm[Any] = "openai_es",
        *,
        stage: int = 3,
        update: Literal["in_place"] = "in_place",
        offload_parameters: bool = False,
        config: str | dict[str, Any] | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        **options: Any,
    ) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise ModuleNotFoundError(
                "strategy='evo_deepspeed_stage_3' needs DeepSpeed. Install it: "
                "DS_BUILD_OPS=0 pip install 'lightning-evo[deepspeed]'"
            )
        refuse(options, _UNUSED)
        given: object = update
        if not (isinstance(given, str) and given == "in_place"):
            raise ValueError(
                f"evo_deepspeed_stage_3 works with update='in_place' only, not with {shown(given)}: DeepSpeed's "
                "partitions have no gradient that an optimizer of torch could use. To train with an optimizer use "
                "strategy='evo_fsdp'."
            )
        offload_parameters = flag("offload_parameters", offload_parameters)
        if config is not None and offload_parameters:
            raise ValueError("offload_parameters has no effect together with `config`; set offload_param in `config`.")
        self._parent_options = {
            "stage": stage,
            "offload_parameters": offload_parameters,
            "config": config,
            **connection_options(process_group_backend, timeout),
        }
        super().__init__(algorithm, update="in_place", **options)
        self.config = _checked(self.config)

    @property
    def _grid(self) -> tuple[int, int]:
        return 1, self.num_nodes * self.num_processes

    def _check(self, module: nn.Module) -> None:
        super()._check(module)
        if any(getattr(p, "ds_secondary_tensor", None) is not None for p in module.parameters()):
            raise ValueError(
                "zero_hpz_partition_size keeps second copies of weights, which would not evolve. Leave it out."
            )

    @property
    def _fitness_step(self) -> Callable[..., Any] | None:
        fitness_step = super()._fitness_step
        if fitness_step is None:
            return None

        engine: Any = self.model

        @functools.wraps(fitness_step)
        def through_the_engine(*args: Any) -> Any:  # whose hooks gather weights
            return _compat.call_by_forward(self, engine, self._user_module, "fitness_step", *args)

        return self._regathering()(through_the_engine)


def _checked(config: Any) -> dict[str, Any]:
    """DeepSpeed's configuration, with what evolution needs.

    Raises:
        ValueError: If it asks for something else, or for what has no effect.
    """
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage != 3:
        raise ValueError(
            f"evo_deepspeed_stage_3 needs ZeRO stage 3, got stage {stage!r}. Stages 1 and 2 divide gradients and the "
            "optimizer's state, which evolution does not have: use strategy='evo_ddp' instead."
        )
    threshold = zero.get("stage3_param_persistence_threshold", 0)
    if threshold != 0:
        raise ValueError(
            f"stage3_param_persistence_threshold must be 0, got {threshold!r}: parameters below it stay whole on every "
            "process, and their perturbations would be ignored. Leave it out."
        )
    for name, instead in _UNUSED_SECTIONS.items():
        if name in config:
            raise ValueError(f"{name!r} in DeepSpeed's configuration has no effect on evolution: {instead}.")
    if "offload_optimizer" in zero:
        raise ValueError("'offload_optimizer' has no effect: there is no optimizer's state. Leave it out.")
    if zero.get("offload_param", {}).get("device") == "nvme":
        raise ValueError(
            "offload_param with device='nvme' does not work: members are written into the partitions, which have to "
            "be in memory. Use device='cpu'."
        )
    return {
        "zero_allow_untested_optimizer": True,
        **config,
        "zero_optimization": {**zero, "stage3_param_persistence_threshold": 0},
    }


def _check_device(device: torch.device) -> None:
    """Check that DeepSpeed uses the same device; on a CPU it compiles a helper when it is first used."""
    from deepspeed.accelerator import get_accelerator

    chosen = get_accelerator().device_name()
    if chosen != device.type:
        raise RuntimeError(
            f"DeepSpeed computes on {chosen!r}, but the Trainer on {device.type!r}. Set the environment variable "
            f"DS_ACCELERATOR={device.type} before starting Python, or choose Trainer(accelerator=…) accordingly."
        )
    if device.type != "cpu":
        return
    scripts = sysconfig.get_path("scripts")
    if shutil.which("ninja") is None and shutil.which("ninja", path=scripts):  # an environment that is not activated
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), scripts])
    compiler = os.environ.get("CXX", "g++")
    missing = [tool for tool in (compiler.split()[0], "ninja") if shutil.which(tool) is None]
    if missing:
        raise RuntimeError(
            f"On a CPU DeepSpeed compiles a helper when it is first used, which needs {' and '.join(missing)}. Install "
            "a C++ compiler (apt install g++; $CXX names another) and ninja (pip install ninja)."
        )


def _is_gathered(parameter: Any) -> bool:
    return hasattr(parameter, "ds_status") and parameter.ds_status.name == "AVAILABLE"


def _gathered(parameters: list[Any], modifier_rank: int | None) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank)
