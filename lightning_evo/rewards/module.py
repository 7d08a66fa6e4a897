"""A LightningModule that learns from rewards: it writes, reward functions judge, evolution learns.

:func:`~lightning_evo.rewards.lightning_class` makes it for either of Lightning's packages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_evo.evaluation.fitness import Fitness
from lightning_evo.evaluation.sharing import members_in_batch
from lightning_evo.noise.philox import NoiseKey, Stream
from lightning_evo.rewards.functions import Call, RewardFunctions, TrainerState
from lightning_evo.rewards.loading import language_model, tokenizer_of
from lightning_evo.rewards.prompts import check_prompt, columns_of, is_conversation, prefix_of, rows_of
from lightning_evo.rewards.scored import Judged
from lightning_evo.rewards.writing import Writer, Written
from lightning_evo.utils.messages import first_line, shown

__all__ = ["RewardModuleMixin"]

if TYPE_CHECKING:  # what the mixin is mixed into; at run time that of either of Lightning's packages
    from lightning.pytorch import LightningModule
else:
    LightningModule = object

RewardFunction = Callable[..., Any] | str | nn.Module
_LOST_REWARDS = "lightning_evo_lost_rewards"
"""Key of checkpoints."""
_FIXED = NoiseKey(seed=0, generation=(1 << 32) - 1, stream=Stream.SAMPLING)
"""Of texts outside training: the same each time, so that validations can be compared."""


class RewardModuleMixin(LightningModule):
    """A language model whose completions are judged by reward functions: the objective of evolution.

    Each member writes a completion for each prompt of the batch. A reward function is called once for each member with
    all of its samples, by keywords as TRL calls it: ``prompts``, ``completions``, ``completion_ids``, every other
    column of the data, ``trainer_state``, ``log_extra`` and ``log_metric``; it returns a list of numbers, or ``None``
    for samples that it has nothing to say about. Fitness is the mean over samples of the weighted sum of rewards.

    There is no optimizer: the strategy's learning rate counts, or the algorithm's own, and ``update="in_place"``. All
    parameters with ``requires_grad`` evolve, so of a model of peft the adapters alone.

    Logged: ``train/reward``, ``train/completion_length`` (in tokens) and ``train/truncated`` (a share) of the center in
    each step, and ``val/…`` and ``test/…`` likewise; ``train/reward/NAME`` for each of several functions; what they log
    by ``log_metric(name, value)`` as ``train/NAME``; with a timeout ``evo/timed_out_rewards`` and
    ``evo/crashed_rewards``: samples without a reward of a function that took too long, or ended its process, over all
    processes since the start. Checkpoints keep both.

    Args:
        model: A folder or a name on the hub, which ``AutoModelForCausalLM`` loads, or a model of transformers or peft.
        processing_class: Its tokenizer; ``None`` loads that of ``model``. Its padding side doesn't matter, nor whether
            it has a padding token.
        reward_funcs: One or several: a function, also a coroutine, or a model that classifies sequences with one label
            (a name or a model).
        reward_weights: One for each function; by default 1.
        max_completion_length: The most tokens of a completion.
        temperature: 0 takes the likeliest token each time. Above 0 tokens are sampled, by noise that all members share
            and that is another one in each generation; in validation it is always the same.
        reward_timeout: Seconds that a call of a function may take; functions then run in processes of their own.
            ``None``: in this one, without a limit.
        generation_kwargs: Further settings of ``generate``, such as ``repetition_penalty``, ``stop_strings``,
            ``stopping_criteria`` or, with a temperature, ``top_k``, ``top_p`` and ``min_p``.
        chat_template_kwargs: For the chat template of prompts that are messages: ``{"enable_thinking": False}``.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        TypeError: If an option is of a wrong type or unknown.
        ValueError: If options have impossible values or contradict each other, or ``processing_class`` is missing.

    Example:
        >>> import lightning as L
        >>> from lightning_evo import EvoStrategy
        >>> from lightning_evo.rewards import PromptData, RewardModule
        >>> def short(completions, **kwargs):
        ...     return [-len(text) for text in completions]
        >>> module = RewardModule("HuggingFaceTB/SmolLM2-135M-Instruct", reward_funcs=short)  # doctest: +SKIP
        >>> data = PromptData([{"prompt": "The capital of France is"}], batch_size=1)
        >>> trainer = L.Trainer(strategy=EvoStrategy("eggroll", sigma=2e-3), max_steps=20)  # doctest: +SKIP
        >>> trainer.fit(module, datamodule=data)  # doctest: +SKIP
    """

    evolution_update = "in_place"

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        processing_class: Any = None,
        reward_funcs: RewardFunction | Sequence[RewardFunction] = (),
        *,
        reward_weights: Sequence[float] | None = None,
        max_completion_length: int = 256,
        temperature: float = 0.0,
        reward_timeout: float | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = language_model(model)
        self.processing_class = tokenizer_of(self.model, processing_class)
        self.reward_functions = RewardFunctions(reward_funcs, reward_weights, timeout=reward_timeout)
        self.writer = Writer(
            self.model,
            self.processing_class,
            max_completion_length=max_completion_length,
            temperature=temperature,
            generation_kwargs=generation_kwargs,
            chat_template_kwargs=chat_template_kwargs,
        )
        self._has_timeout = reward_timeout is not None
        self._lost_rewards = (0, 0)  # of all processes: timed out, crashed
        self._has_warned = False
        self._judges_on = torch.device("cpu")
        # Tokenizers set themselves up anew in each call.
        ours = {"processing_class", "writer", "_has_warned", "_judges_on"}
        self.evolution_shared = ours | set(getattr(type(self), "evolution_shared", ()))

    # --- writing ---

    def generate(self, prompts: Sequence[Any]) -> list[str]:
        """What the model writes, as it does in validation: without dropout and gradients.

        Args:
            prompts: Texts or lists of messages.

        Returns:
            A completion for each, without the prompt and special tokens.

        Raises:
            TypeError: If it is a single text, or a prompt is neither text nor messages.
        """
        if isinstance(prompts, str) or any(isinstance(prompt, Mapping) for prompt in prompts):
            raise TypeError(f"generate takes a list of prompts, got one: {shown(prompts)}. Put it into a list.")
        for number, prompt in enumerate(prompts):
            check_prompt(prompt, f"number {number}")
        return self._write(prompts, _FIXED, 1).texts if len(prompts) else []

    def _write(self, prompts: Sequence[Any], key: NoiseKey, members: int) -> Written:
        return self.writer.write(
            self.model, self.processing_class, prompts, key=key, members=members, device=self._computes_on
        )

    @property
    def _computes_on(self) -> torch.device:
        """The device of the Trainer that runs; else where the user has put the model, which Lightning does not see."""
        is_running = self._trainer is not None and self._trainer.state.status == "running"
        parameter = None if is_running else next(self.model.parameters(), None)
        return self.device if parameter is None else parameter.device

    @property
    def _key(self) -> NoiseKey:
        """Of the generation that is running."""
        state = self._evolution.state
        return NoiseKey(state.seed, state.generation, Stream.SAMPLING)

    @property
    def _evolution(self) -> Any:
        """What evolves this module: the strategy's, or that of ``EvolutionMixin``."""
        strategy: Any = self.trainer.strategy
        return vars(self).get("evolution") or strategy.evolution

    # --- judging ---

    def fitness_step(self, batch: Any, batch_idx: int = 0) -> Fitness:
        """The rewards of a batch, for one member or, as rows of the batch, for several.

        Args:
            batch: A list with a dictionary for each sample, which has a ``"prompt"``; or a dictionary of lists.
            batch_idx: Not used.

        Returns:
            One value for each sample, and as ``details`` dictionaries with ``prompt`` and ``completion`` (texts),
            ``rewards`` (by function), ``reward``, ``truncated``, ``timed_out`` and ``extras`` (of ``log_extra``).
        """
        judged = self._judge(rows_of(batch), self._key, members_in_batch())
        errors = [scored.error for scored in judged.scored]
        error = next((error for error in errors if error is not None), None)
        if error is not None:
            if None not in errors:
                raise error
            self._warn(error)
        return Fitness(judged.values, missing=judged.missing, details=judged.details())

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"A reward function has failed for some texts, which don't count: {type(error).__name__}: "
                f"{first_line(error)} (said once)"
            )

    def _judge(self, rows: list[dict[str, Any]], key: NoiseKey, members: int = 1) -> Judged:
        samples = len(rows) // members
        if self._judges_on != self._computes_on:
            self._judges_on = self._computes_on
            self.reward_functions.to(self._judges_on)
        written = self._write([row["prompt"] for row in rows[:samples]], key, members)
        state, calls = self._trainer_state(), []
        for start in range(0, len(rows), samples):
            own = slice(start, start + samples)
            calls.append(
                Call(
                    prompts=[_as_trl(row["prompt"]) for row in rows[own]],
                    completions=[
                        _completion(row["prompt"], text)
                        for row, text in zip(rows[own], written.texts[own], strict=True)
                    ],
                    completion_ids=written.token_ids[own],
                    columns=columns_of(rows[own]),
                    trainer_state=state,
                )
            )
        return Judged(written, self.reward_functions(calls))

    def _trainer_state(self) -> TrainerState:
        trainer = self.trainer
        return TrainerState(global_step=trainer.global_step, epoch=trainer.current_epoch, max_steps=trainer.max_steps)

    # --- Lightning ---

    @override
    def configure_callbacks(self) -> list[Any]:
        """None; but it is the first that a Trainer asks for, so that the strategy is looked at here.

        Raises:
            TypeError: If the module is to be trained by a strategy that needs gradients.
        """
        strategy: Any = self.trainer.strategy
        if self.trainer.state.fn == "fit" and self.automatic_optimization and not hasattr(strategy, "evolution"):
            raise TypeError(
                f"{type(self).__name__} has rewards and no loss, so {type(strategy).__name__} can't train it by "
                'backpropagation. Use strategy=EvoStrategy("eggroll"), or EvoDDPStrategy for several devices.'
            )
        return []

    @override
    def on_fit_start(self) -> None:
        """Spare Lightning its warning of modules in eval mode, which loaded models are in: they write in no other."""
        self._in_eval = [module for module in self.modules() if not module.training]
        for module in self._in_eval:
            module.training = True

    @override
    def on_train_start(self) -> None:
        """Put all modules back into the mode that they were in."""
        for module in vars(self).pop("_in_eval", ()):
            module.training = False

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The center's rewards, logged: members have run :meth:`fitness_step` before.

        Returns:
            Minus the mean reward as ``"loss"`` and the mean reward as ``"fitness"``, 0-dimensional, float32.
        """
        reward = self._log_rewards("train", rows_of(batch), self._key)
        if self._has_timeout:
            self._count_lost()
        fitness = torch.tensor(reward, dtype=torch.float32, device=self.device)
        return {"loss": -fitness, "fitness": fitness}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The rewards of the weights as they are on held-out prompts, logged as ``val/…``."""
        self._log_rewards("val", rows_of(batch), _FIXED)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The rewards on prompts of the test, logged as ``test/…``."""
        self._log_rewards("test", rows_of(batch), _FIXED)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[str]:
        """A completion for each prompt of the batch."""
        return self._write([row["prompt"] for row in rows_of(batch)], _FIXED, 1).texts

    def _count_lost(self) -> None:
        """Sum what was lost over processes, and log it."""
        functions = self.reward_functions
        own = torch.tensor([functions.timed_out_rewards, functions.crashed_rewards], device=self.device)
        timed_out, crashed = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        self._lost_rewards = timed_out, crashed
        if not self.trainer.barebones:
            self.log("evo/timed_out_rewards", float(timed_out), batch_size=1)
            self.log("evo/crashed_rewards", float(crashed), batch_size=1)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how many rewards were lost."""
        if self._has_timeout:
            timed_out, crashed = self._lost_rewards
            checkpoint[_LOST_REWARDS] = {"timed_out": timed_out, "crashed": crashed}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting the rewards that are lost."""
        lost = checkpoint.get(_LOST_REWARDS, {})
        self._lost_rewards = lost.get("timed_out", 0), lost.get("crashed", 0)
        of_first = self._lost_rewards if self._trainer is None or self.trainer.is_global_zero else (0, 0)
        self.reward_functions.timed_out_rewards, self.reward_functions.crashed_rewards = of_first

    @override
    def teardown(self, stage: str) -> None:
        """End the workers of reward functions; the next call starts others."""
        self.reward_functions.close()

    def _log_rewards(self, stage: str, rows: list[dict[str, Any]], key: NoiseKey) -> float:
        """Log the rewards of the weights as they are; gives their mean, NaN if a function failed."""
        judged = self._judge(rows, key)
        (scored,) = judged.scored
        if scored.error is not None:  # members have ended the run if it fails for all of them
            self._warn(scored.error)
        if self.trainer.barebones:
            return judged.mean
        training = stage == "train"
        options: dict[str, Any] = {"on_step": training, "on_epoch": not training}
        several = len(self.reward_functions.names) > 1
        judged_samples = 0 if scored.error is not None else int((~judged.missing).sum())
        means = {"reward": (judged.mean if judged_samples or training else 0.0, judged_samples)}
        for name in self.reward_functions.names if several and scored.error is None else ():
            values = [value for value in scored.rewards[name] if value is not None]
            means[f"reward/{name}"] = (sum(values) / max(1, len(values)), len(values))
        means["completion_length"] = (sum(map(len, judged.written.token_ids)) / len(rows), len(rows))
        means["truncated"] = (sum(judged.written.truncated) / len(rows), len(rows))
        for name in means.keys() & scored.metrics.keys():
            raise ValueError(
                f"A reward function called log_metric({name!r}, …), and {type(self).__name__} logs a value of its own "
                "by this name. Choose another one."
            )
        for name, (mean, samples) in means.items():
            shows = name == "reward"
            self.log(f"{stage}/{name}", mean, prog_bar=shows, batch_size=samples, sync_dist=not training, **options)
        for name, value in scored.metrics.items():  # which there are may depend on the data: of the first process
            self.log(f"{stage}/{name}", float(value), batch_size=len(rows), rank_zero_only=True, **options)
        return judged.mean


def _as_trl(prompt: Any) -> Any:
    """What functions are given as prompt: without the beginning of the answer, which is in the completion."""
    return list(prompt)[:-1] if prefix_of(prompt) else prompt


def _completion(prompt: Any, text: str) -> Any:
    """A text, or for a conversation the message that follows."""
    return [{"role": "assistant", "content": prefix_of(prompt) + text}] if is_conversation(prompt) else text
