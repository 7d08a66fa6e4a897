"""What all strategies for several processes have in common: a connected grid with the same start on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_evo.processes.network import choose_interface, connect
from lightning_evo.processes.ranks import Ranks
from lightning_evo.strategies import _compat
from lightning_evo.strategies._evolution import EvoStrategyMixin
from lightning_evo.utils.messages import did_you_mean, shown
from lightning_evo.utils.random_state import RandomState

__all__ = ["ProcessesEvoMixin", "connection_options", "refuse"]

if TYPE_CHECKING:
    from lightning.pytorch.strategies import ParallelStrategy
else:
    ParallelStrategy = object

_LONGEST = timedelta(days=36525)


def connection_options(backend: str | None, timeout: timedelta | None) -> dict[str, Any]:
    """The options of Lightning's strategies that say how processes are connected.

    Raises:
        ValueError: If torch knows no such backend, or the timeout is not a positive timedelta.
    """
    given: object = timeout
    if given is not None and not (isinstance(given, timedelta) and given > timedelta()):
        raise ValueError(
            f"timeout must be a positive datetime.timedelta, such as timedelta(minutes=5), got {shown(timeout)}."
        )
    if timeout is not None and timeout > _LONGEST:
        raise ValueError(f"timeout must be at most a hundred years, which torch can count, got {timeout!r}.")
    if backend is not None:
        _check_backend(backend)
    # Lightning has a default of its own for the timeout.
    return {"process_group_backend": backend, **({} if timeout is None else {"timeout": timeout})}


def _check_backend(backend: object) -> None:
    """Raise a ValueError unless it is a backend (``"gloo"``) or one for each device (``"cpu:gloo,cuda:nccl"``)."""
    known = [name for name in torch.distributed.Backend.backend_list if name != "undefined"]
    parts = [part.rpartition(":") for part in backend.split(",")] if isinstance(backend, str) else [("", "", "")]
    for _, _, name in parts:
        if name.lower() not in known:
            raise ValueError(
                f"Unknown process_group_backend {shown(backend)}.{did_you_mean(name, known)} Use 'nccl' for GPUs, "
                "'gloo' for CPUs, or leave it out for what suits the device."
            )
    devices = {device for device, _, _ in parts}
    if len(parts) > 1 and (len(devices) < len(parts) or "" in devices):
        raise ValueError(
            f"process_group_backend={backend!r} must name one for each kind of device, as 'cpu:gloo,cuda:nccl' does."
        )


def refuse(options: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Refuse options of Lightning's own strategy that have no effect here, and say why.

    Without this they would be taken for options of the algorithm.

    Args:
        options: What was given in addition to the strategy's own options.
        reasons: Why an option has no effect and what to do, by its name.

    Raises:
        TypeError: If one of them was given.
    """
    for name in options:
        if name in reasons:
            raise TypeError(f"{name} is no option of this strategy: {reasons[name]}.")


def _backend_for(device: str, backend: str) -> str:
    """What connects tensors on a kind of device, of ``"nccl"`` or ``"cpu:gloo,cuda:nccl"``."""
    of_devices = dict(part.split(":") for part in backend.lower().split(",") if ":" in part)
    return of_devices.get(device, backend.lower())


class ProcessesEvoMixin(EvoStrategyMixin, ParallelStrategy):
    """The evolving strategy for several processes."""

    @property
    def _grid(self) -> tuple[int, int]:
        """Groups that divide the members, and the processes of each, which evaluate the same members together.

        Raises:
            ValueError: If the number of processes is another.
        """
        raise NotImplementedError

    @property
    def _divides_data(self) -> bool:
        """Whether processes, if there are several, train on parts of the data."""
        return True

    # --- processes ---

    def setup_environment(self) -> None:
        """Connect the processes and divide the members among them."""
        groups, data = self._grid  # raises what it refuses before processes wait for each other
        parent: Any = self  # Lightning's strategies have no common class with this method
        backend, timeout = _compat.connection_of(self)
        if _backend_for(self.root_device.type, backend) == "nccl" and self.root_device.type == "cpu":
            raise ValueError("process_group_backend='nccl' connects GPUs only; use 'gloo' for processes on CPUs.")
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)  # which NCCL uses
        if parent.num_nodes > 1 and self.cluster_environment is not None:
            choose_interface(self.cluster_environment.main_address)
        connect(backend, timeout, self.root_device)
        random_state = RandomState(self.root_device)
        super().setup_environment()
        random_state.restore()  # Lightning has seeded again, which it does not for a single device
        self.evolution.ranks = Ranks(
            groups,
            data,
            self.global_rank,
            gather_from_all=self._gather_from_all,
            batches=self._batches,
        )

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        super().barrier(*args, **kwargs)  # type: ignore[safe-super]
        if "pre_setup" in (*args, kwargs.get("name")):  # only rank 0 may have drawn, in `prepare_data`
            self._share_random_state()

    def _share_random_state(self) -> None:
        """Let all processes continue with the random numbers of rank 0, which are those of a run of one process."""
        state = RandomState(self.root_device)
        state.load_state_dict(self.broadcast(state.state_dict()))

    def process_dataloader(self, dataloader: object) -> object:
        """Give the workers of processes that train on the same data the same seeds."""
        dataloader = super().process_dataloader(dataloader)
        if self._user_module.trainer.training:
            _compat.seed_workers(dataloader, self.global_rank % self._grid[1])
        return dataloader

    def _gather_from_all(self, values: Tensor) -> list[Tensor]:
        mine = values.to(self.root_device, non_blocking=True)
        everything = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(everything, mine)
        return list(torch.stack(everything).to(values.device))  # in one piece, as a GPU is waited for

    def _batches(self) -> tuple[float, bool]:
        """How many batches this process has in this epoch, which `max_steps` may end, and whether this is the last."""
        trainer, number = self._user_module.trainer, float(self._user_module.trainer.num_training_batches)
        done, at_once = trainer.fit_loop.epoch_loop.batch_idx, trainer.accumulate_grad_batches
        if trainer.max_steps >= 0:
            number = min(number, done // at_once * at_once + (trainer.max_steps - trainer.global_step) * at_once)
        return number, trainer.is_last_batch or done + 1 >= number

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Groups train on the same data, and their processes divide it; evaluation divides it among all processes."""
        processes = self.world_size
        if self.lightning_module is not None and self.lightning_module.trainer.training:
            _, processes = self._grid
        return {"num_replicas": processes, "rank": self.global_rank % processes}

    # --- setup ---

    def setup(self, trainer: Any) -> None:
        _compat.only_note_sigterm(trainer)
        _compat.allow_skipped_steps(trainer)
        if not self._divides_data:
            _compat.leave_sampler_of_training(trainer)
        super().setup(trainer)
        if trainer.state.fn == "fit" and self.evolution.is_set_up:
            # Without a seed every process has its own.
            state = self.evolution.state
            self.evolution.state = replace(state, seed=self.broadcast(state.seed))

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().training_step(*args, **kwargs)
        skipped = output is None and self._user_module.automatic_optimization
        return _compat.SKIPPED if skipped else output

    def _check(self, module: Any) -> None:
        super()._check(module)
        self._share_random_state()  # dropout and shuffling must not depend on which process evaluates a member
