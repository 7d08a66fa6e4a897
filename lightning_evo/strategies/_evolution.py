"""What makes a Lightning strategy evolve: the hooks of one optimization step, filled with a generation.

``training_step`` evaluates the population and then runs the center once, logged, as the step's output. ``backward``
keeps its hooks but computes no gradient; with ``update="optimizer"`` it puts the estimate into ``.grad``, whoever calls
the closure. With ``update="in_place"`` the weights move after a step of the optimizer, whoever makes it. All counts of
hooks, callbacks and progress are those of backpropagation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_evo.algorithms import Algorithm, Scaling, Schedule, UpdateName
from lightning_evo.algorithms.shaping import Shaping
from lightning_evo.evaluation.choice import EvaluationName
from lightning_evo.evaluation.fitness import fitness_of_loss, fitness_of_step
from lightning_evo.evaluation.questions import Questions
from lightning_evo.generation.anchor import Anchor
from lightning_evo.generation.evolution import CHECKPOINT_KEY, Evolution
from lightning_evo.generation.moves import InPlace, IntoGradients
from lightning_evo.generation.step import Step, maximizes
from lightning_evo.generation.update import WITHOUT_ANCHOR, Update
from lightning_evo.noise.values import Distribution
from lightning_evo.perturbations import SigmaScale
from lightning_evo.strategies import _compat
from lightning_evo.strategies._checks import check_module, unused_options
from lightning_evo.strategies._plateau import step_plateaus_of
from lightning_evo.strategies.hyperparameters import Hyperparameters, hyperparameters
from lightning_evo.strategies.logs import UnheardLogs
from lightning_evo.strategies.methods import check_methods, has_training_step, output_of
from lightning_evo.strategies.names import check_options
from lightning_evo.strategies.start import announce
from lightning_evo.utils.autograd import autograd_explained
from lightning_evo.utils.options import flag
from lightning_evo.utils.random_state import RandomState

__all__ = ["EvoStrategyMixin"]


if TYPE_CHECKING:  # what the mixin is mixed into; at run time the strategy of either of Lightning's packages
    from lightning.pytorch.strategies import Strategy

    from lightning_evo.callbacks.journal import SeedJournal
else:
    Strategy = object


class EvoStrategyMixin(Strategy):
    """Train any LightningModule by evolution instead of backpropagation.

    Every step evaluates a population of perturbed models under ``no_grad``; their fitness decides the update. Fitness
    is what ``fitness_step(self, batch, batch_idx)`` returns, if the module has such a method (a scalar, one value per
    sample or a :class:`~lightning_evo.Fitness`; higher is better, nothing need be differentiable), if not, minus the
    loss of ``training_step``, or minus its ``loss_per_sample`` if it returns that in addition. A module with
    ``fitness_step`` needs no ``training_step``: the center's run of it is then the step's output,
    ``{"loss": -fitness, "fitness": fitness}``, and is logged.

    Args:
        algorithm: A registered name (``lightning-evo algorithms`` lists them) or an algorithm object.
        population: Members per generation; even with antithetic pairs. This and all other options of the algorithm
            default to its published values.
        sigma: Standard deviation of the perturbations, > 0, or a :class:`~lightning_evo.Schedule`. A callback can set
            ``trainer.strategy.sigma`` at any time.
        learning_rate: Only for modules without an optimizer (``configure_optimizers`` returns ``None``); with an
            optimizer its own learning rate and scheduler count.
        noise: ``"gaussian"``, ``"rademacher"`` or ``"uniform"``.
        shaping: How fitness becomes weights: ``"centered_ranks"``, ``"linear_ranks"``, ``"z_score"``, ``"raw"``,
            ``"top_k"`` or a function.
        top_k: With ``shaping="top_k"``, how many directions count.
        antithetic: Whether each direction is evaluated with both signs.
        scaling: Length of the estimate: ``"none"`` (a mean over members), ``"sigma"`` (divided by sigma, too) or
            ``"gradient"`` (the gradient's own length, so that learning rates made for backpropagation fit).
        weight_decay: L2 coefficient taken off the estimate.
        samples_per_generation: The most samples of a generation, chosen at random, the same for all members.
        rank: Noise of low rank for matrices: the product of two random factors of ``rank`` columns.
        noise_reuse: How many consecutive generations use the same noise.
        basis_reuse: With ``rank``: how many generations keep one of the factors.
        sparsity: Leave out this share of each tensor's weights, those of largest magnitude.
        sigma_scale: ``"rms"`` takes sigma in units of each tensor's root mean square, ``"none"`` as it is.
        momentum: With ``basis_reuse``: momentum while a factor is kept, in [0, 1), without memory for it.
        restarts: With ``cma_es`` and ``sep_cma_es``: begin again with other populations when a run has ended, by
            ``"ipop"`` or ``"bipop"`` (docs/algorithms/cma_es.md).
        evolve: Which parameters evolve: regular expressions over names, or a callable ``(name, parameter) -> bool``.
            Default: all with ``requires_grad`` that the optimizer updates.
        update: ``"optimizer"`` puts the estimate into ``.grad`` for the user's optimizer, clipping and precision
            plugin. ``"in_place"`` moves the weights directly: no gradient, no optimizer state. Default: the module's
            ``evolution_update``, if it has one, or the algorithm's own, ``"optimizer"`` for those that estimate a
            gradient.
        evaluation: How members are run: ``"plain"`` (one after the other, weights written and restored),
            ``"in_forward"`` (one after the other, weights never touched), ``"batched"`` (many at once, by ``vmap``) or
            ``"rows"`` (many at once, as rows of one batch; fitness is one value per sample); ``"auto"`` chooses. Each
            gives what the plain loop gives, or is replaced with a warning.
        members_per_forward: With ``"batched"`` and ``"rows"``: how many members run at once, even with antithetic
            pairs; ``"auto"`` chooses by memory.
        seed: Seed of the noise. Default: the seed of ``seed_everything``, or a random one without it; checkpoints keep
            it.
        anchor: Draws the weights back to those that the script builds, in each update: an
            :class:`~lightning_evo.Anchor`, or a number, the strength of one by L2. It needs ``update="in_place"`` and
            memory for one copy of the evolving weights; ``evo/drift`` is logged. Default: no pull.
        journal: Whether to write a :class:`~lightning_evo.callbacks.SeedJournal`, which needs ``update="in_place"``.
            Default: if checkpoints are written.
        accelerator: Set by the Trainer.
        checkpoint_io: A checkpoint plugin.
        precision_plugin: A precision plugin.
        **algorithm_options: ``member_timeout`` and ``minimum_evaluated``, for members that fail (docs/faults.md), and
            options of algorithms that are registered by other packages.

    Raises:
        ValueError: If an option has an impossible value; the message says what was expected.
        TypeError: If the algorithm has no such option, or ``seed``, ``evolve`` or ``algorithm`` is of a wrong type.
    """

    def __init__(
        self,
        algorithm: str | Algorithm[Any] = "openai_es",
        *,
        population: int | None = None,
        sigma: float | Schedule | None = None,
        learning_rate: float | Schedule | None = None,
        noise: Distribution | None = None,
        shaping: str | Shaping | None = None,
        top_k: int | None = None,
        antithetic: bool | None = None,
        scaling: Scaling | None = None,
        weight_decay: float | None = None,
        samples_per_generation: int | None = None,
        rank: int | None = None,
        noise_reuse: int | None = None,
        basis_reuse: int | None = None,
        sparsity: float | None = None,
        sigma_scale: SigmaScale | None = None,
        momentum: float | None = None,
        restarts: Literal["ipop", "bipop"] | None = None,
        evolve: str | list[str] | Callable[[str, nn.Parameter], bool] | None = None,
        update: UpdateName | None = None,
        evaluation: EvaluationName = "auto",
        members_per_forward: int | Literal["auto"] | None = None,
        seed: int | None = None,
        anchor: Anchor | float | None = None,
        journal: bool | None = None,
        accelerator: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Any = None,
        **algorithm_options: Any,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision_plugin=precision_plugin)
        check_options(self, algorithm, algorithm_options)
        journal = None if journal is None else flag("journal", journal)
        self.evolution = Evolution(
            algorithm,
            evolve=evolve,
            seed=seed,
            evaluation=evaluation,
            members_per_forward=members_per_forward,
            anchor=anchor,
            population=population,
            sigma=sigma,
            learning_rate=learning_rate,
            noise=noise,
            shaping=shaping,
            top_k=top_k,
            antithetic=antithetic,
            scaling=scaling,
            weight_decay=weight_decay,
            samples_per_generation=samples_per_generation,
            rank=rank,
            noise_reuse=noise_reuse,
            basis_reuse=basis_reuse,
            sparsity=sparsity,
            sigma_scale=sigma_scale,
            momentum=momentum,
            restarts=restarts,
            **algorithm_options,
        )
        self.update: UpdateName = self.evolution.algorithm.checked_update(update)
        """Who moves the weights."""
        self._update_was_given = update is not None
        self._journal_wanted = journal
        if self._update_was_given:
            self._check_update()
        self._moves = self._made_moves()
        self.resumed_journal: dict[str, Any] | None = None
        """What the resumed checkpoint stores about its journal."""
        self._journal: SeedJournal | None = None
        self._random_state: RandomState | None = None  # while validation draws
        self._questions: AbstractContextManager[object] = nullcontext()  # but in the first step
        self._complete = False  # with "in_place": whether the generation has seen all of its batches
        self._said_no_step = False
        self._seconds = 0.0
        self._evaluations = 0
        self._summary = ""
        self._begun = False
        self._unheard: UnheardLogs | None = None  # while it is not known whether there are such
        self._hyperparameters: Hyperparameters | None = None
        self._other_options: dict[str, Any] = {"evolve": evolve, "members_per_forward": members_per_forward}

    @property
    def sigma(self) -> float:
        """Sigma of the coming generation; set it to override the algorithm's own."""
        return self.evolution.sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        self.evolution.sigma = value

    @property
    def _user_module(self) -> Any:
        return self.lightning_module  # there whenever a hook runs

    # --- setup ---

    def connect(self, model: Any) -> None:
        super().connect(model)
        if _compat.is_attached(model) and model.trainer.state.fn == "fit" and model.automatic_optimization:
            self._follow(model)
            check_methods(model, self.evolution.algorithm, self.update)

    def _follow(self, module: Any) -> None:
        """Have a module that has an ``evolution_update`` say who moves the weights, where no option said it."""
        wanted = None if self._update_was_given else getattr(module, "evolution_update", None)
        update = self.evolution.algorithm.checked_update(wanted, "evolution_update")
        if not self._update_was_given and update != self.update:
            self.update = update
            self._moves = self._made_moves()
        self._check_update()

    def _made_moves(self) -> InPlace | IntoGradients:
        if self.update == "in_place":
            return InPlace(self._current_optimizers, self._record)
        return IntoGradients(self._gradient_scale)

    def _check_update(self) -> None:
        """Refuse options that have no effect where an optimizer moves the weights."""
        if self.update == "in_place":
            return
        if self._journal_wanted:
            raise ValueError(
                "journal=True needs update='in_place': weights that an optimizer moves depend on its state, too, which "
                "the fitness in a journal does not give. Use update='in_place', or leave journal out."
            )
        if self.evolution.start is not None:
            raise ValueError(WITHOUT_ANCHOR)

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        self._journal = self.resumed_journal = None
        if trainer.state.fn != "fit":
            return
        module = self._user_module
        if not module.automatic_optimization:
            if hasattr(module, "evolve"):  # EvolutionMixin
                return
            if self.evolution.ranks.world_size > 1:
                raise ValueError(
                    f"{type(module).__name__} uses manual optimization, which this strategy leaves alone: each of the "
                    f"{self.evolution.ranks.world_size} processes would train by itself. Use a strategy of Lightning's "
                    "own, or automatic optimization."
                )
            rank_zero_warn(
                f"{type(module).__name__} uses manual optimization, so the strategy leaves its steps "
                "alone and nothing evolves. Use `lightning_evo.EvolutionMixin` to evolve inside `training_step`."
            )
            return
        self._check(module)
        self._questions = Questions()
        self.evolution.traces.also = partial(_compat.within_reach, trainer)
        self.evolution.traces.begin()
        _compat.around_validation(trainer, self._keep_random_state)
        _compat.after_closures(trainer, self._after_closure)
        self._complete = self._said_no_step = False
        self._share_start()
        self._choose_parameters()
        self._begun = False
        self._unheard = UnheardLogs(module) if has_training_step(module) and self._fitness_step else None
        self._hyperparameters = Hyperparameters(
            _compat.loggers_of(trainer), lambda: self._options(resumed=trainer.ckpt_path is not None)
        )
        if isinstance(self._moves, IntoGradients):
            self._moves.attach(self.optimizers)
        else:
            self._moves.attach(self.optimizers, self._after_step)
            vars(self.precision_plugin)["clip_gradients"] = self._moves.clip  # there will be no `.grad` to clip
            from lightning_evo.callbacks.journal import SeedJournal  # which imports one of Lightning's two packages

            self._journal = SeedJournal.of(trainer, self._journal_wanted)
            unused = unused_options(self.optimizers, self.evolution)
            if unused:
                rank_zero_info(unused)

    @contextmanager
    def _keep_random_state(self) -> Iterator[None]:
        """Restore the random state afterwards: how much validation draws depends on the number of processes."""
        self._random_state = RandomState(self.root_device)
        self._random_state.branch()
        try:
            yield
        finally:
            self._random_state.restore()
            self._random_state = None

    def _begin(self) -> None:
        """Say what is optimised, and have the loggers know how."""
        self._begun = True
        by_loss = self._fitness_step is None
        announce(self._user_module, self.evolution, self._stepping_optimizers, self.update, by_loss=by_loss)
        if self._hyperparameters is not None:
            self._hyperparameters.flush()

    def _options(self, resumed: bool) -> dict[str, Any]:
        """What loggers are told about this run."""
        return hyperparameters(
            self.evolution,
            self.update,
            self._stepping_optimizers,
            resumed=resumed,
            strategy=getattr(self, "strategy_name", None),
            **self._other_options,
        )

    @property
    def _stepping_optimizers(self) -> list[Any]:
        """Without the one that Lightning makes where there is none."""
        return self.optimizers if self._optimized_parameters else []

    def _check(self, module: Any) -> None:
        check_module(module, self.optimizers, self.evolution, self.update)

    def _share_start(self) -> None:
        """Let all processes be drawn back to the same weights, where each has built a module of its own."""

    def _choose_parameters(self) -> None:
        """Evolve what the optimizer updates, as it is now: callbacks may freeze, unfreeze and add parameters."""
        self.evolution.setup(self._user_module, self._optimized_parameters or None)

    @property
    def _optimized_parameters(self) -> list[nn.Parameter]:
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return [parameter for group in groups for parameter in group["params"]]

    def teardown(self) -> None:
        vars(self.precision_plugin).pop("clip_gradients", None)
        self._moves.detach()
        self.evolution.traces.also = dict
        if self.lightning_module is not None:
            _compat.leave_validation(self.lightning_module.trainer)
            _compat.leave_closures(self.lightning_module.trainer)
            _compat.leave_substitutes(self.lightning_module)
        if self._hyperparameters is not None:
            self._hyperparameters.forget()
        super().teardown()

    # --- one step ---

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if not self._user_module.automatic_optimization:
            return super().training_step(*args, **kwargs)
        with autograd_explained(), torch.no_grad():
            if not _compat.backward_is_skipped(self._user_module.trainer):
                self._evaluate(*args, **kwargs)
            questions, self._questions = self._questions, nullcontext()
            with questions:
                output = self._center_step(*args, **kwargs)
        if self.evolution.has_fitness:
            if self._unheard is not None and self._evaluations:
                self._unheard.warn()
                self._unheard = None
            self._log(**self.evolution.statistics(), sigma=self.evolution.population.sigma)
        return output

    def _center_step(self, *args: Any, **kwargs: Any) -> Any:
        """The step's output: what the center gives, logged."""
        if has_training_step(self._user_module):
            with nullcontext() if self._unheard is None else self._unheard.in_center():
                return super().training_step(*args, **kwargs)
        step = self._fitness_of_batch
        assert step is not None
        return output_of(step(args[0]), self.root_device)

    def _evaluate(self, batch: Any, *args: Any, **kwargs: Any) -> None:
        module = self._user_module
        parent: Any = super()
        maximize = maximizes(self.optimizers)

        def fitness_by_loss(batch: Any) -> Any:
            return fitness_of_loss(parent.training_step(batch, *args, **kwargs), maximize)

        fitness = self._fitness_of_batch or fitness_by_loss
        if self._unheard is not None:
            fitness = self._unheard.in_members(fitness)
        start = time.perf_counter()
        if not self.evolution.has_fitness:
            self._choose_parameters()
        if not self._begun:
            self._begin()
        if self._journal is None or not self._journal.recall(module.trainer):  # the generation is not in the journal
            with _compat.nothing_is_heard(module.trainer):
                evaluated = self.evolution.evaluate(fitness, batch)
            self._evaluations += len(self.evolution.population) if evaluated else 0
        self._seconds += time.perf_counter() - start
        if self.evolution.evaluation.summary != self._summary:
            self._summary = self.evolution.evaluation.summary
            rank_zero_info(self._summary)

    @property
    def _fitness_of_batch(self) -> Callable[[Any], Any] | None:
        """Runs the module's ``fitness_step`` on a batch; ``None`` without one."""
        fitness_step = self._fitness_step
        if fitness_step is None:
            return None
        step = fitness_of_step(fitness_step, self._user_module.trainer.fit_loop.batch_idx)

        def fitness(batch: Any) -> Any:
            with self.precision_plugin.train_step_context():
                return step(batch)

        return fitness

    @property
    def _fitness_step(self) -> Callable[..., Any] | None:
        """The module's ``fitness_step``, if it has one, as the strategy calls it."""
        return getattr(self._user_module, "fitness_step", None)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        module = self._user_module
        if not module.automatic_optimization:
            return super().backward(closure_loss, optimizer, *args, **kwargs)
        self.pre_backward(closure_loss)
        closure_loss = self.precision_plugin.pre_backward(closure_loss, module)
        if isinstance(self._moves, IntoGradients):
            if self.evolution.has_fitness and not _compat.accumulates(module.trainer):
                self._conclude()
            else:
                self._moves.hold(self.evolution.space)
        closure_loss = self.precision_plugin.post_backward(closure_loss, module)
        self.post_backward(closure_loss)
        return closure_loss

    def _after_closure(self) -> None:
        """End the generation with its last batch: its gradients are there, whoever has called the closure."""
        trainer = self._user_module.trainer
        if not self._active or _compat.accumulates(trainer):
            return
        if isinstance(self._moves, InPlace):
            self._complete = True
            return
        if _compat.backward_is_skipped(trainer):
            # Lightning still steps once, without clearing gradients: the last generation's would be used again.
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            self._moves.hold(self.evolution.space)
        self._conclude()  # if `training_step` returned no loss: then `backward` was not called

    def _after_step(self) -> None:
        """Move the weights in place, once the generation has seen all of its batches."""
        if self._complete:
            self._complete = False
            self._conclude()

    def _check_step(self) -> None:
        """Say that the last batch's generation still waits for a step of the optimizer."""
        if self._complete and not self._said_no_step:
            self._said_no_step = True
            name = type(self._user_module).__name__
            rank_zero_warn(
                f"{name}.optimizer_step ran its closure and did not step, and with update='in_place' the weights move "
                "when the optimizer steps. Until it does, what the members find adds up. If the step waits for "
                "gradients: there are none in `.grad`, so step without looking at them, or use update='optimizer', "
                "which fills `.grad`. Shown once."
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._check_step()

    def on_train_end(self) -> None:
        super().on_train_end()
        self._check_step()

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        if not self._user_module.automatic_optimization:
            return super().optimizer_step(optimizer, closure, model, **kwargs)
        has_gradients = False

        def generation() -> Any:
            nonlocal has_gradients
            loss = closure()
            has_gradients = self._has_gradients
            # None tells a gradient scaler that there are no gradients to unscale.
            return (0.0 if loss is None else loss) if has_gradients else None

        result = super().optimizer_step(optimizer, generation, model, **kwargs)
        if self._gradient_scaler is not None and not has_gradients:
            optimizer.step()  # moves nothing; the scaler skipped it, but schedulers expect a step
        self._after_step()  # of an optimizer that takes no hook
        return result

    @property
    def _has_gradients(self) -> bool:
        parameters = self._optimized_parameters if self._moves.before_optimizer else ()
        return any(parameter.grad is not None for parameter in parameters)

    def _synchronized(self, update: Update) -> Update:
        """The update as the processes of a strategy make it together."""
        return update

    def _current_optimizers(self) -> list[Any]:
        return self.optimizers

    def _gradient_scale(self) -> float:
        scale = _compat.gradient_scale(self.precision_plugin, self.root_device)
        return -scale if maximizes(self.optimizers) else scale

    def _record(self, update: Update, step: Step) -> Step:
        """Have the journal record the generation before the weights move; gives the step to move them with."""
        return step if self._journal is None else self._journal.record(self._user_module.trainer, update, step)

    @property
    def _gradient_scaler(self) -> Any:
        return getattr(self.precision_plugin, "scaler", None)

    def _conclude(self) -> None:
        """Learn from the generation, if there is one."""
        if not self.evolution.has_fitness:
            return
        start = time.perf_counter()
        update = self._synchronized(self.evolution.conclude())
        norm = self._moves.learn(update)
        self._seconds += time.perf_counter() - start
        speed = self._evaluations / max(self._seconds, 1e-9)
        self._log(update_norm=norm, members_per_second=speed, **self.evolution.drift())
        self._seconds, self._evaluations = 0.0, 0

    def _log(self, **values: float) -> None:
        module = self._user_module
        if module.trainer.barebones:
            return
        for name, value in values.items():
            module.log(
                f"evo/{name}", value, on_step=True, on_epoch=False, prog_bar=name == "fitness_mean", batch_size=1
            )

    # --- checkpoints ---

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if "optimizer_states" in checkpoint and self._active:
            checkpoint[CHECKPOINT_KEY] = self.evolution.state_dict(self._random_state or RandomState(self.root_device))
            step_plateaus_of(checkpoint, self._user_module.trainer)
            if self._journal is not None and (journal := self._journal.saved(self._user_module.trainer)) is not None:
                checkpoint[CHECKPOINT_KEY]["journal"] = journal
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self._user_module
        if module.automatic_optimization and _compat.is_attached(module) and module.trainer.state.fn == "fit":
            self.evolution.before_restoring(module, checkpoint.get(CHECKPOINT_KEY, {}))
        super().load_model_state_dict(checkpoint, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        if self._active and self.update == "in_place":
            # The learning rate is taken over; an optimizer state of a run with backpropagation would only cost memory.
            states = [{**state, "state": {}} for state in checkpoint["optimizer_states"]]
            checkpoint = {**checkpoint, "optimizer_states": states}
        super().load_optimizer_state_dict(checkpoint)
        self._load_evolution(checkpoint)

    def _load_evolution(self, checkpoint: Mapping[str, Any]) -> None:
        if self._active and CHECKPOINT_KEY in checkpoint:
            self.evolution.load_state_dict(checkpoint[CHECKPOINT_KEY], self.root_device)
            self.resumed_journal = checkpoint[CHECKPOINT_KEY].get("journal")
        elif self._active:  # backpropagation wrote it, perhaps after evolution with the same seed
            self.evolution.start_at(checkpoint["global_step"])

    @property
    def _active(self) -> bool:
        return self.evolution.is_set_up and self._user_module.automatic_optimization
