"""Every private piece of Lightning that this package touches, and the two names that Lightning goes by.

Checked against Lightning 2.4 to 2.6.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_evo.strategies._quiet import Quiet

__all__ = [
    "SKIPPED",
    "Namespace",
    "accumulates",
    "after_closures",
    "allow_skipped_steps",
    "around_validation",
    "backward_is_skipped",
    "call_by_forward",
    "class_named",
    "coming_plateau_steps",
    "connect_deepspeed",
    "connection_of",
    "gradient_scale",
    "is_attached",
    "is_fully_sharded",
    "leave_closures",
    "is_overridden",
    "leave_sampler_of_training",
    "leave_substitutes",
    "leave_validation",
    "lightning_module_class",
    "load_sharded",
    "nothing_is_heard",
    "loggers_of",
    "only_note_sigterm",
    "optimizers_without_state",
    "parent_strategy",
    "remove_module_hooks",
    "seed_workers",
    "set_data_parallel_size",
    "set_device_mesh",
    "substitute_optimizer",
    "substitute_training_step",
    "synchronizes_batch_norm",
    "unwrapped",
    "within_reach",
    "without_scaler",
]

Namespace = Literal["lightning.pytorch", "pytorch_lightning"]


def leave_sampler_of_training(trainer: Any) -> None:
    """Have the Trainer train on what the module's dataloader gives, in its order; evaluation is divided as usual.

    Lightning would put a ``DistributedSampler`` in its place, which shuffles whether the dataloader does or not.
    """
    connector = trainer._data_connector
    divides = type(connector)._requires_distributed_sampler

    def requires_distributed_sampler(dataloader: Any) -> bool:
        return not trainer.training and bool(divides(connector, dataloader))

    connector._requires_distributed_sampler = requires_distributed_sampler


def connection_of(strategy: Any) -> tuple[str, timedelta | None]:
    """The backend by which a strategy's processes talk to each other, and how long they wait for each other."""
    return strategy._get_process_group_backend(), strategy._timeout


def synchronizes_batch_norm(strategy: Any) -> bool:
    """Whether ``Trainer(sync_batchnorm=True)`` was given."""
    return strategy._layer_sync is not None


def is_attached(module: Any) -> bool:
    """Whether a LightningModule has a Trainer; asking for one that is not there raises an exception."""
    return module._trainer is not None


class _NoResults:
    """Takes the place of a loop's collection of logged values."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Drop a value."""

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Keep what was logged."""


@contextmanager
def nothing_is_heard(trainer: Any) -> Iterator[None]:
    """In this context the Trainer hears nothing of what a step says.

    Neither ``self.log``, however it is reached, nor the Trainer's loggers take anything, and no member can stop the
    run by ``trainer.should_stop``.
    """
    loop, connector, loggers = trainer.fit_loop.epoch_loop, trainer._logger_connector, trainer.loggers
    results, current, should_stop = loop._results, connector._current_fx, trainer.should_stop
    loop._results = _NoResults()
    trainer.loggers = [Quiet(logger) for logger in loggers]
    try:
        yield
    finally:
        loop._results, connector._current_fx = results, current
        trainer.loggers, trainer.should_stop = loggers, should_stop


def within_reach(trainer: Any) -> dict[str, Any]:
    """What a step reaches by the Trainer, by names for people."""
    optimizers = {f"optimizers[{i}]": optimizer for i, optimizer in enumerate(trainer.optimizers)}
    schedulers = {f"lr_schedulers[{i}]": each.scheduler for i, each in enumerate(trainer.lr_scheduler_configs)}
    callbacks = {f"trainer.callbacks[{i}]": callback for i, callback in enumerate(trainer.callbacks)}
    return {**optimizers, **schedulers, **callbacks, "trainer.datamodule": trainer.datamodule}


def loggers_of(trainer: Any) -> list[Any]:
    """The loggers that the Trainer gives hyperparameters to by itself."""
    return list(trainer.loggers) if getattr(trainer, "enable_autolog_hparams", True) else []  # not in Lightning 2.4


def seed_workers(dataloader: object, rank: int) -> None:
    """Seed a dataloader's workers as those of process ``rank``, if ``seed_everything(workers=True)`` was called."""
    from lightning.fabric.utilities.data import _auto_add_worker_init_fn

    _auto_add_worker_init_fn(dataloader, rank)


def around_validation(trainer: Any, context: Callable[[], AbstractContextManager[object]]) -> None:
    """Run each validation during a fit within a context."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    run = type(loop).run

    def run_in_context() -> Any:
        with context():
            return run(loop)

    loop.run = run_in_context


def leave_validation(trainer: Any) -> None:
    """Undo :func:`around_validation`."""
    vars(trainer.fit_loop.epoch_loop.val_loop).pop("run", None)


def accumulates(trainer: Any) -> bool:
    """Whether the current batch is not the last one for the optimizer's coming step."""
    return bool(trainer.fit_loop._should_accumulate())


def after_closures(trainer: Any, then: Callable[[], None]) -> None:
    """Do something at the end of each closure (training step and backward), whoever calls it and however often."""
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    make = type(loop)._make_closure

    def make_closure(*args: Any, **kwargs: Any) -> Any:
        closure = make(loop, *args, **kwargs)
        run = closure.closure

        def run_and_then(*args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            then()
            return result

        closure.closure = run_and_then
        return closure

    loop._make_closure = make_closure


def leave_closures(trainer: Any) -> None:
    """Undo :func:`after_closures`."""
    vars(trainer.fit_loop.epoch_loop.automatic_optimization).pop("_make_closure", None)


def coming_plateau_steps(trainer: Any) -> list[tuple[int, Any, Any]]:
    """Schedulers like ``ReduceLROnPlateau`` that Lightning will step at the end of the epoch that ends just now.

    Gives the number of each, the scheduler, and its metric, if that is known by now: during ``on_train_epoch_end``, and
    for a metric of the validation at its end. None for a module's own ``lr_scheduler_step``, which may do anything.
    """
    module, loop = trainer.lightning_module, trainer.fit_loop
    progress = loop.epoch_progress.current
    ends = progress.completed < progress.started and loop.epoch_loop._num_ready_batches_reached()
    own = type(module).lr_scheduler_step is not lightning_module_class(module).lr_scheduler_step
    if trainer.state.fn != "fit" or not ends or own:
        return []
    if progress.processed > progress.completed:
        metrics = trainer.callback_metrics
    elif trainer.validating:
        metrics = trainer._logger_connector.metrics["callback"]  # without the last epoch's
    else:
        return []
    return [
        (number, config.scheduler, metrics[config.monitor])
        for number, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and (trainer.current_epoch + 1) % config.frequency == 0
        and config.monitor in metrics
    ]


def only_note_sigterm(trainer: Any) -> None:
    """Have the Trainer only note a SIGTERM, and stop before the next batch, as it did before Lightning 2.6.

    Since then its handler broadcasts in the middle of what it has interrupted: among members that is an error,
    so the member fails and the signal is forgotten; elsewhere it waits for processes that wait for this one.
    """
    connector = trainer._signal_connector

    def take_note(signum: Any, frame: Any) -> None:
        launcher = trainer.strategy.launcher
        if not connector.received_sigterm and launcher is not None:
            launcher.kill(signum)
        connector.received_sigterm = True

    connector._sigterm_notifier_fn = take_note


def parent_strategy(namespace: Namespace, name: str) -> type[Any]:
    """A strategy class of Lightning, such as ``SingleDeviceStrategy``, from one of its two packages."""
    strategies = importlib.import_module(f"{namespace}.strategies")
    return getattr(strategies, name)  # type: ignore[no-any-return]


def lightning_module_class(module: object) -> type[Any]:
    """The ``LightningModule`` class that a module derives from, whichever package it is from."""
    return next(cls for cls in type(module).__mro__ if cls.__name__ == "LightningModule")


def gradient_scale(precision_plugin: Any, device: torch.device) -> float:
    """What a mixed-precision plugin's gradient scaler divides gradients by; 1 if it has none."""
    scaler = getattr(precision_plugin, "scaler", None)
    # Scaling a one also sets the scaler up, which it demands before it unscales.
    return 1.0 if scaler is None else float(scaler.scale(torch.ones((), device=device)))


@contextmanager
def without_scaler(precision_plugin: Any) -> Iterator[None]:
    """In this context a mixed-precision plugin has no gradient scaler."""
    scaler = getattr(precision_plugin, "scaler", None)
    if scaler is None:
        yield
        return
    precision_plugin.scaler = None
    try:
        yield
    finally:
        precision_plugin.scaler = scaler


def backward_is_skipped(trainer: Any) -> bool:
    """Whether this epoch only runs forward passes (stochastic weight averaging's extra epoch for BatchNorm)."""
    return bool(trainer.fit_loop._skip_backward)


# --- modules without `training_step` or `configure_optimizers` ---


def is_overridden(method: str, module: object) -> bool:
    """Whether a LightningModule has a method of its own in place of Lightning's; a substitute is none."""
    from lightning_utilities.core.overrides import is_overridden

    return vars(module).get(method) not in _SUBSTITUTES and is_overridden(
        method, module, lightning_module_class(module)
    )


def substitute_training_step(module: nn.Module) -> None:
    """Let Lightning find a ``training_step``, without which it neither fits nor loads data, until the fit's end."""
    vars(module)["training_step"] = _no_training_step


def _no_training_step(batch: Any, batch_idx: int) -> None:  # of this file, so that copies of a module can be pickled
    raise RuntimeError("This module has no `training_step`: the strategy runs its `fitness_step`.")


def substitute_optimizer(module: nn.Module) -> None:
    """Let Lightning find a ``configure_optimizers`` that makes none, until the fit's end."""
    vars(module)["configure_optimizers"] = _no_optimizer


def _no_optimizer() -> Any:
    from lightning.pytorch.core.optimizer import _MockOptimizer

    return _MockOptimizer()  # what Lightning takes for `None`, of which it warns


_SUBSTITUTES = (_no_training_step, _no_optimizer)


def leave_substitutes(module: nn.Module) -> None:
    """Undo :func:`substitute_training_step` and :func:`substitute_optimizer`."""
    for name in ("training_step", "configure_optimizers"):
        if vars(module).get(name) in _SUBSTITUTES:
            del vars(module)[name]


# --- a step that is skipped ---

SKIPPED = object()
"""What a strategy's ``training_step`` gives in place of ``None``, which Lightning refuses of several processes."""


def allow_skipped_steps(trainer: Any) -> None:
    """Have the Trainer take :data:`SKIPPED` for a ``training_step`` that returned ``None``."""
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    parent: Any = type(loop).output_result_cls

    class MaybeSkipped(parent):  # type: ignore[misc]
        @classmethod
        def from_training_step_output(cls, output: Any, *args: Any) -> Any:
            return super().from_training_step_output(None if output is SKIPPED else output, *args)

    loop.output_result_cls = MaybeSkipped


# --- sharded checkpoints ---


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` (FSDP2) was applied to a module."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)  # torch 2.5 has it in a private place


def set_data_parallel_size(strategy: Any, processes: int) -> None:
    """Let the ``ModelParallelStrategy`` make a mesh of ``processes`` processes, without tensor parallelism."""
    strategy._data_parallel_size, strategy._tensor_parallel_size = processes, 1


def set_device_mesh(strategy: Any, mesh: Any) -> None:
    """Give the ``ModelParallelStrategy`` and its module another mesh than Lightning's."""
    strategy._device_mesh = strategy.lightning_module._device_mesh = mesh


def unwrapped(optimizer: Any) -> Any:
    """The user's optimizer, which Lightning may have wrapped."""
    return getattr(optimizer, "_optimizer", optimizer)


def load_sharded(path: Path, state: dict[str, Any], strict: bool, weights_only: bool | None = None) -> dict[str, Any]:
    """Load a checkpoint, a folder or a file, into a module with sharded weights; returns what else is in it."""
    from lightning.fabric.strategies.model_parallel import _load_checkpoint

    options = {} if weights_only is None else {"weights_only": weights_only}  # Lightning 2.4 does not know it
    return _load_checkpoint(path=path, state=state, strict=strict, optimizer_states_from_list=True, **options)


def optimizers_without_state(path: Path, weights_only: bool | None = None) -> list[dict[str, Any]] | None:
    """The optimizers in a checkpoint, a folder or a file, if none of them has a state; else ``None``."""
    from lightning.fabric.utilities.load import _METADATA_FILENAME

    if path.is_dir():
        found = torch.load(path / _METADATA_FILENAME, weights_only=weights_only)
        states = found.get("lightning_evo", {}).get("optimizer_states")
    else:
        states = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only).get("optimizer_states")
    return None if not states or any(state["state"] for state in states) else states


# --- DeepSpeed ---


def connect_deepspeed(strategy: Any) -> None:
    """Let DeepSpeed connect the processes."""
    strategy._init_deepspeed_distributed()


def call_by_forward(strategy: Any, wrapped: Any, module: Any, method: str, *args: Any) -> Any:
    """Call a method of a module from within the forward of what wraps it, whose hooks then run."""
    return strategy._forward_redirection(wrapped, module, method, *args)


def class_named(name: str, instance: object) -> type[Any]:
    """The class of that name that an object derives from, whichever package of Lightning's it is from."""
    return next(cls for cls in type(instance).__mro__ if cls.__name__ == name)


def remove_module_hooks(module: nn.Module) -> None:
    """Remove the hooks of a module and its parts, as Lightning does before each of DeepSpeed's engines."""
    from lightning.pytorch.strategies.deepspeed import remove_module_hooks

    remove_module_hooks(module)
