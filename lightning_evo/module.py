"""Evolution inside a module with manual optimization."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_evo.algorithms import UpdateName
from lightning_evo.evaluation.fitness import fitness_of_step
from lightning_evo.generation.evolution import CHECKPOINT_KEY, Evolution
from lightning_evo.generation.moves import InPlace, IntoGradients
from lightning_evo.generation.step import maximizes
from lightning_evo.generation.update import WITHOUT_ANCHOR
from lightning_evo.spaces.outside import outside_parameters
from lightning_evo.strategies import _compat
from lightning_evo.strategies.hyperparameters import hyperparameters
from lightning_evo.strategies.methods import nearly_fitness_steps
from lightning_evo.strategies.start import announce
from lightning_evo.utils.autograd import autograd_explained
from lightning_evo.utils.random_state import RandomState

__all__ = ["EvolutionMixin"]


class EvolutionMixin:
    """Gives a LightningModule with ``automatic_optimization = False`` the method :meth:`evolve`.

    Use it when evolution is only a part of what a training step does: alternating with backpropagation, evolving one
    of several networks, or looping over generations. ``global_step``, checkpoints, schedulers and EarlyStopping stay
    right, because every generation makes exactly one step of the wrapped optimizer.

    Put it before ``LightningModule`` in the bases, set ``self.evolution`` and write ``fitness_step``.

    Attributes:
        evolution: The :class:`~lightning_evo.Evolution` to use, made in ``__init__``.
        evolution_update: ``"optimizer"`` (the estimate goes to ``.grad`` and the optimizer steps) or ``"in_place"``
            (the weights are moved directly, with the optimizer's learning rate and without optimizer state). ``None``
            takes the algorithm's own.

    Example:
        >>> import torch, lightning as L
        >>> from lightning_evo import Evolution, EvolutionMixin
        >>> class Model(EvolutionMixin, L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.automatic_optimization = False
        ...         self.evolution = Evolution("openai_es", population=16)
        ...         self.layer = torch.nn.Linear(8, 2)
        ...
        ...     def fitness_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return (self.layer(x).argmax(1) == y).float()
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         self.log_dict(self.evolve(batch, batch_idx))
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters(), lr=0.01)
    """

    evolution: Evolution
    evolution_update: UpdateName | None = None
    _begun_in = 0  # the id of a Trainer

    # What LightningModule provides.
    trainer: Any
    optimizers: Any
    automatic_optimization: bool

    def evolve(self, batch: Any, batch_idx: int = 0, *, optimizer: Any = None) -> dict[str, float | Tensor]:
        """One generation: evaluate the population on ``batch`` with ``fitness_step``, learn, step the optimizer once.

        Gradients that the optimizer's parameters hold are dropped before and after.

        Args:
            batch: Passed to ``fitness_step``.
            batch_idx: Passed to ``fitness_step``.
            optimizer: Which of several optimizers from ``self.optimizers()`` to step. The parameters that it holds
                evolve.

        Returns:
            ``evo/fitness_mean``, ``evo/fitness_std``, ``evo/fitness_best``, ``evo/failed_members``, ``evo/sigma`` and
            ``evo/update_norm``, with a tie breaker ``evo/tie_breaker_mean``, and with an anchor ``evo/drift``, for
            ``self.log_dict``. ``evo/update_norm`` and ``evo/drift`` are tensors, float64 ``[]``, on the weights'
            device: whoever reads them waits for the update.

        Raises:
            RuntimeError: If optimization is automatic, ``evolution`` or ``fitness_step`` is missing, or it is not clear
                which of several optimizers is meant.
        """
        optimizer = self._optimizer_to_step(optimizer)
        evolution = self._evolution_for(optimizer)
        self._begin(evolution, optimizer)
        plugin = self.trainer.precision_plugin

        step = fitness_of_step(self.fitness_step, batch_idx)

        def fitness(batch: Any) -> Any:
            with plugin.train_step_context():
                return step(batch)

        evolution.traces.also = partial(_compat.within_reach, self.trainer)
        try:
            with _compat.nothing_is_heard(self.trainer), autograd_explained():
                evolution.evaluate(fitness, batch)
        finally:
            evolution.traces.also = dict  # or the module would hold the Trainer, and could not be pickled
        values: dict[str, float | Tensor] = {**evolution.statistics(), "sigma": evolution.sigma}
        moves = self._moves(evolution, optimizer)
        update = evolution.conclude()
        self._clear_gradients(optimizer)
        if isinstance(moves, IntoGradients):
            moves.attach([_compat.unwrapped(optimizer)])
            values["update_norm"] = moves.learn(update)  # before the optimizer steps
        has_gradients = any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        try:
            with nullcontext() if has_gradients else _compat.without_scaler(plugin):  # which refuses one without them
                optimizer.step()  # without gradients it moves nothing, and counts the step
        finally:
            moves.detach()
        if isinstance(moves, InPlace):
            values |= {"update_norm": moves.learn(update), **evolution.drift()}
        self._clear_gradients(optimizer)
        return {f"evo/{name}": value for name, value in values.items()}

    def _begin(self, evolution: Evolution, optimizer: Any) -> None:
        """At a Trainer's first generation, say what is optimised, and have its loggers know how."""
        if self._begun_in == id(self.trainer):
            return
        self._begun_in = id(self.trainer)
        evolution.traces.begin()
        update = evolution.algorithm.checked_update(self.evolution_update, "evolution_update")
        optimizers = [_compat.unwrapped(optimizer)] if any(group["params"] for group in optimizer.param_groups) else []
        announce(self, evolution, optimizers, update)
        for logger in _compat.loggers_of(self.trainer):
            logger.log_hyperparams(hyperparameters(evolution, update, optimizers))

    def _moves(self, evolution: Evolution, optimizer: Any) -> IntoGradients | InPlace:
        if evolution.algorithm.checked_update(self.evolution_update, "evolution_update") == "in_place":
            return InPlace(lambda: [optimizer])
        plugin, device = self.trainer.precision_plugin, self.trainer.strategy.root_device
        sign = -1 if maximizes([optimizer]) else 1
        return IntoGradients(lambda: sign * _compat.gradient_scale(plugin, device))

    def _clear_gradients(self, optimizer: Any) -> None:
        """Clear all gradients of the optimizer: parameters that do not evolve must not step on an old one."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def fitness_step(self, batch: Any, batch_idx: int) -> Any:
        """How good the module is with its weights as they are: a scalar, one value per sample or a ``Fitness``.

        Raises:
            RuntimeError: If you have not written it.
        """
        nearly = next(nearly_fitness_steps(self), None)
        hint = f" It has a method `{nearly}`, which you may want to rename." if nearly else ""
        raise RuntimeError(
            f"{type(self).__name__} needs a method `fitness_step(self, batch, batch_idx)` that returns the fitness "
            f"(higher is better); `evolve` evaluates every member with it.{hint}"
        )

    def _optimizer_to_step(self, optimizer: Any) -> Any:
        if self.automatic_optimization:
            raise RuntimeError(
                "`evolve` needs manual optimization: set `self.automatic_optimization = False` in `__init__`. For a "
                "module with automatic optimization use Trainer(strategy='evo') instead."
            )
        if self.trainer.world_size > 1:
            raise RuntimeError(
                f"EvolutionMixin runs on one device, not on {self.trainer.world_size}: each process would learn from "
                "other data, and the weights would no longer be the same. Use Trainer(devices=1)."
            )
        if optimizer is None:
            optimizer = self.optimizers()
        if isinstance(optimizer, list):
            raise RuntimeError(
                f"There are {len(optimizer)} optimizers; say which one to step: "
                "self.evolve(batch, batch_idx, optimizer=self.optimizers()[0])."
            )
        return optimizer

    def _evolution_for(self, optimizer: Any) -> Evolution:
        evolution = getattr(self, "evolution", None)
        if not isinstance(evolution, Evolution):
            raise RuntimeError("Set `self.evolution = Evolution('openai_es', …)` in `__init__`.")
        update = evolution.algorithm.checked_update(self.evolution_update, "evolution_update")
        if not isinstance(self, nn.Module):
            raise TypeError("EvolutionMixin goes with a LightningModule: class Model(EvolutionMixin, LightningModule).")
        if evolution.start is not None and update != "in_place":
            raise ValueError(WITHOUT_ANCHOR.replace("update=", "evolution_update = "))
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not parameters and update == "optimizer":
            raise ValueError(
                "evolution_update='optimizer' needs an optimizer, but `configure_optimizers` returned none. Return "
                "one, or set evolution_update = 'in_place'."
            )
        if parameters and evolution.learning_rate_was_given:
            raise ValueError(
                "learning_rate was given to the evolution, but `configure_optimizers` returns an optimizer, whose "
                "learning rate counts. Set it there."
            )
        outside = None if evolution.is_set_up else outside_parameters(self, [optimizer])
        if outside:
            rank_zero_warn(outside)
        evolution.setup(self, parameters or None)
        return evolution

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the evolution's state. Call ``super().on_save_checkpoint(checkpoint)`` if you override this."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        evolution = getattr(self, "evolution", None)
        if isinstance(evolution, Evolution) and evolution.is_set_up:
            checkpoint[CHECKPOINT_KEY] = evolution.state_dict(RandomState(self.trainer.strategy.root_device))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue a resumed evolution. Call ``super().on_load_checkpoint(checkpoint)`` if you override this."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        resuming = _compat.is_attached(self) and self.trainer.state.fn == "fit"
        if resuming:
            self.evolution.before_restoring(self, checkpoint.get(CHECKPOINT_KEY, {}))
        if resuming and CHECKPOINT_KEY in checkpoint:
            self.evolution.load_state_dict(checkpoint[CHECKPOINT_KEY], self.trainer.strategy.root_device)
