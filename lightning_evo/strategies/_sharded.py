"""What strategies for sharded weights have in common: some processes evaluate the same member at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_evo.strategies._processes import ProcessesEvoMixin

__all__ = ["Regathering", "ShardedEvoMixin", "share"]

if TYPE_CHECKING:
    from lightning.pytorch.strategies import ParallelStrategy
else:
    ParallelStrategy = object


class Regathering(ParallelStrategy):
    """Lightning's strategy, as the evolving one calls it: after every step each process holds only its shards.

    Weights that stay gathered would be used by the next forward, whatever has been written to the shards since.
    """

    def _give_up_gathered(self) -> None:
        """Free every whole weight."""
        raise NotImplementedError

    @contextmanager
    def _regathering(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._give_up_gathered()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._regathering():
            return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._regathering():
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._regathering():
            return super().test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._regathering():
            return super().predict_step(*args, **kwargs)


class ShardedEvoMixin(ProcessesEvoMixin, Regathering):
    """The evolving strategy for sharded weights."""

    strategy_name: str

    def _check(self, module: nn.Module) -> None:
        super()._check(module)
        option = self.evolution.algorithm.needs_whole_tensors
        if option:
            raise ValueError(
                f"{option} needs each tensor whole, and no process has one of strategy={self.strategy_name!r}. Use "
                "another, or strategy='evo_ddp'."
            )
        if self.evolution.evaluation.member_timeout is not None:
            raise ValueError(
                f"member_timeout can't be used with strategy={self.strategy_name!r}: a process that gave a member up "
                "would leave the others waiting for its part of the weights. Leave it out."
            )

    @property
    def _fitness_step(self) -> Callable[..., Any] | None:
        fitness_step = super()._fitness_step
        return None if fitness_step is None else self._regathering()(fitness_step)


@torch.no_grad()
def share(tensor: torch.Tensor, source: int, group: Any = None) -> None:
    """Give a tensor the values that it has on the process of rank ``source``."""
    values = tensor.detach().contiguous()
    torch.distributed.broadcast(values, source, group=group)
    if not tensor.is_contiguous():
        tensor.copy_(values)
