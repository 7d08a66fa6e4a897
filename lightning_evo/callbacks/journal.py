"""The seed journal under Lightning: every generation's fitness on the disk before the weights move."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from typing_extensions import override

from lightning_evo.algorithms import EvolutionStrategy
from lightning_evo.generation.update import Clipping, Update
from lightning_evo.journal import (
    Conditions,
    Header,
    Journal,
    JournalError,
    Record,
    RecordedParameter,
    check_of,
    describe_algorithm,
    describe_parameters,
    weights_checksum,
)
from lightning_evo.journal.checksums import WeightsCheck
from lightning_evo.journal.records import parameter_names, same_parameters
from lightning_evo.journal.resume import is_restart, open_journal
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["SeedJournal"]


@dataclass(frozen=True)
class _Opened:
    """What all processes need to know about the journal that the first one has opened."""

    run: int
    path: str
    start: int
    end: int
    evaluation: dict[str, Any]


class SeedJournal(Callback):
    """Writes each generation's fitness to a file before the weights move, so that a kill loses nothing.

    With ``EvoStrategy(update="in_place")`` a training that writes checkpoints has one by default; switch that off
    by ``EvoStrategy(journal=False)``. A resumed fit takes the generations that the journal holds from there instead
    of evaluating them. See docs/journal.md. Only the first process reads and writes it.

    Args:
        dirpath: Folder of the journal; ``None`` takes that of the first ``ModelCheckpoint``, or the Trainer's
            ``default_root_dir`` without one.
        filename: Its name without ``.evoj``. A new fit in the same folder appends ``-v1``, ``-v2``, ….

    Raises:
        ValueError: At the start of fit, if the strategy is not one of ours with ``update="in_place"``, the module is
            optimized manually, the folder is not on a local disk, or the Trainer has another one of these callbacks.
        JournalError: At the first batch, if the checkpoint is of another run than the folder's journals, or the run's
            journal was written with other options or weights, or is damaged.

    Example:
        >>> from lightning_evo.callbacks import SeedJournal
        >>> journal = SeedJournal(dirpath="journals", filename="digits")
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str = "evolution") -> None:
        self.dirpath = dirpath
        self.filename = filename
        self.path: Path | None = None
        """The file; ``None`` before the first batch."""
        self._forget()

    def _forget(self) -> None:
        self._journal: Journal | None = None
        self._weights: WeightsCheck | None = None
        self._strategy: Any = None  # during fit
        self._opened: _Opened | None = None
        self._recalled: tuple[Record, Conditions] | None = None
        self._batches = 0  # training steps of the current generation so far
        self._parameters: tuple[RecordedParameter, ...] = ()
        self._space: SearchSpace | None = None  # of the last generation that was recorded or recalled
        self._signature: tuple[tuple[int, int], ...] = ()
        self._warned: set[str] = set()

    # --- Lightning's hooks ---

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        self._close()
        self._forget()
        if any(isinstance(callback, SeedJournal) and callback is not self for callback in trainer.callbacks):
            raise ValueError(
                "The Trainer has several SeedJournal callbacks, but a run writes one journal. Leave all but one out."
            )
        strategy = self._strategy = trainer.strategy
        evolution = getattr(strategy, "evolution", None)
        if evolution is None:
            raise ValueError(
                f"SeedJournal records evolution, but the strategy is {type(strategy).__name__}. Use "
                "Trainer(strategy=EvoStrategy(update='in_place')), or leave the callback out."
            )
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"SeedJournal can't record {type(pl_module).__name__}, which is optimized manually: what its training "
                "step does in addition to `evolve` is not in a generation's fitness. Leave the callback out."
            )
        if strategy.update != "in_place":
            raise ValueError(
                f"SeedJournal needs update='in_place', and this strategy has update={strategy.update!r}: weights that "
                "an optimizer moves depend on its state, too, which fitness alone does not give. Use "
                "EvoStrategy(update='in_place'), or leave the callback out."
            )
        algorithm: Any = evolution.algorithm
        if not isinstance(algorithm, EvolutionStrategy):
            raise ValueError(
                f"SeedJournal can't record {type(algorithm).__name__}: its updates don't follow from seed and fitness "
                "alone. Leave the callback out."
            )
        folder = self._folder(trainer)
        if "://" in str(folder):
            raise ValueError(
                f"SeedJournal appends to a file on a local disk, and {folder} is not on one. Give it a folder: "
                "SeedJournal(dirpath=…)."
            )

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the checksum of the run's last weights; not after an error, which may have interrupted a move."""
        if self._weights is not None and self._space is not None:
            self._weights.at_the_end(trainer.strategy.evolution.state.generation, self._space)

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self._strategy = None
        if self._journal is not None:
            self._journal.close()

    # --- what the strategy calls ---

    def recall(self, trainer: Any) -> bool:
        """Take the fitness of the coming batch's generation from the journal, if it is there.

        Returns:
            Whether it is, so that nothing need be evaluated on this batch.
        """
        if self._is_tuned(trainer):
            return False
        evolution = trainer.strategy.evolution
        if self._opened is None:
            self._start(trainer)
        assert self._opened is not None
        self._batches += 1
        generation = evolution.state.generation
        if generation >= self._opened.end:
            return False
        if self._recalled is None:
            found = None
            if self._journal is not None:
                found = (self._journal.read(generation), self._journal.conditions_at(generation))
            self._recalled = trainer.strategy.broadcast(found)
            assert self._recalled is not None
        record, conditions = self._recalled
        if conditions.accumulate != trainer.accumulate_grad_batches:
            self._refuse_other_batches(record, f"accumulate_grad_batches={conditions.accumulate}",
                               f"accumulate_grad_batches={trainer.accumulate_grad_batches}")  # fmt: skip
        if self._batches >= record.batches:
            if record.sigma != evolution.sigma:
                self._differs("sigma", record.sigma, evolution.sigma)
            evolution.recall(torch.tensor(record.fitness, dtype=torch.float64), record.sigma)
        return True

    def record(
        self, trainer: Any, update: Update, clipping: Clipping | None
    ) -> tuple[Callable[[nn.Parameter], float], Clipping | None]:
        """Write a generation that was evaluated, before its update moves the weights.

        Returns:
            The learning rates and the clipping to move the weights with: the journal's, for a recalled generation.
        """
        strategy = trainer.strategy
        groups = [group for optimizer in strategy.optimizers for group in optimizer.param_groups]
        number = {id(parameter): i for i, group in enumerate(groups) for parameter in group["params"]}
        rates = tuple(float(group["lr"]) for group in groups) or (update.learning_rate,)
        if len(set(rates)) == 1:
            rates = rates[:1]
        if self._is_tuned(trainer):
            return (lambda parameter: rates[number.get(id(parameter), 0) if len(rates) > 1 else 0]), clipping
        before, self._space = self._space or update.space, update.space
        self._describe(update, number)
        if self._weights is not None:
            self._weights.before(update.population.generation, before)
        double = any(parameter.tensor.dtype == torch.float64 for parameter in update.space)
        check = check_of(update.weights, torch.float64 if double else torch.float32)
        if self._recalled is not None:
            record, conditions = self._recalled
            if record.batches != self._batches:
                self._refuse_other_batches(record, f"{record.batches} training steps", f"{self._batches}")
            self._compare(record, conditions, rates, clipping, check)
            rates, clipping = record.learning_rates, None
            if conditions.clipping is not None:
                limit, by = conditions.clipping
                clipping = Clipping(limit, by, record.coefficient)
        else:
            coefficient = update.clip_coefficient(clipping) if update else 1.0
            if clipping is not None and clipping.by == "norm":
                clipping = replace(clipping, coefficient=coefficient)
            if self._journal is not None:
                evaluation = strategy.evolution.evaluation.state_dict()
                record = Record(
                    update.population.generation,
                    tuple(update.fitness.tolist()),
                    update.population.sigma,
                    rates,
                    coefficient,
                    self._batches,
                    check,
                )
                conditions = Conditions(
                    seed=strategy.evolution.state.seed,
                    parameters=self._parameters,
                    clipping=None if clipping is None else (clipping.limit, clipping.by),
                    evaluation=tuple(sorted(evaluation.items())),
                    accumulate=trainer.accumulate_grad_batches,
                )
                self._journal.append(record, conditions)
        self._recalled, self._batches = None, 0
        if len(rates) == 1:
            return (lambda parameter: rates[0]), clipping
        return (lambda parameter: rates[number[id(parameter)]]), clipping

    def checkpoint(self) -> dict[str, Any] | None:
        """What a checkpoint stores about the journal, as plain data; ``None`` before a new fit's first batch."""
        if self._opened is None:  # a resumed fit's tuner saves and restores, too
            return None if self._strategy is None else self._strategy.resumed_journal
        saved = {"run": self._opened.run, "path": self._opened.path, "batches": self._batches}
        if self._space is not None and self._weights is not None:  # the process that writes, and those with parts of it
            saved["weights"] = weights_checksum(self._space)
        return saved

    def _is_tuned(self, trainer: Any) -> bool:
        """Whether one of Lightning's tuners runs, which will undo its steps: it removes the Trainer's callbacks."""
        return all(callback is not self for callback in trainer.callbacks)

    # --- generations ---

    def _describe(self, update: Update, number: Mapping[int, int]) -> None:
        """Describe the evolving parameters, if they are not those of the generation before."""
        signature = tuple((parameter.index, number.get(id(parameter.tensor), 0)) for parameter in update.space)
        if signature != self._signature:
            self._signature = signature
            self._parameters = describe_parameters(update.space, lambda tensor: number.get(id(tensor), 0))

    def _compare(
        self,
        record: Record,
        conditions: Conditions,
        rates: tuple[float, ...],
        clipping: Clipping | None,
        check: int,
    ) -> None:
        """Report where a recalled generation differs from what this process makes of its fitness."""
        if not same_parameters(conditions.parameters, self._parameters):
            raise JournalError(
                f"Generation {record.generation} of {self.path} evolved {parameter_names(conditions.parameters)}; now "
                f"{parameter_names(self._parameters)} would evolve. Use the same module, `evolve` and freezing "
                "callbacks, or resume without a journal (EvoStrategy(journal=False))."
            )
        if rates != record.learning_rates:
            self._differs("learning rate", record.learning_rates, rates)
        given = None if clipping is None else (clipping.limit, clipping.by)
        if given != conditions.clipping:
            self._differs("clipping", conditions.clipping, given)
        if check != record.check:
            self._warn_once(
                "check",
                f"Generation {record.generation} of {self.path}: its fitness gives another update here than when it "
                "was written, by another version of lightning-evo or torch, or on another processor. The weights will "
                "not be those of the run that wrote it, bit for bit.",
            )

    def _weights_differ(self, generation: int) -> None:
        self._warn_once(
            "weights",
            f"Generation {generation} of {self.path} began with other weights when it was written than it does here: "
            "what moves them in addition to evolution (for example a callback that clamps or averages them) has "
            "changed, or another version or processor rounds differently. The weights will not be those of the run "
            "that wrote it, bit for bit.",
        )

    def _refuse_other_batches(self, record: Record, recorded: str, here: str) -> NoReturn:
        """Refuse to go on: recorded fitness belongs to certain batches and must not be repeated on others."""
        raise JournalError(
            f"Generation {record.generation} of {self.path} was recorded with {recorded}; this run has {here}. Resume "
            "with the same accumulate_grad_batches, batch size and data; or, to go on from the checkpoint with these, "
            "without a journal (EvoStrategy(journal=False))."
        )

    def _differs(self, what: str, recorded: object, here: object) -> None:
        self._warn_once(
            what,
            f"The journal {self.path} has another {what} ({recorded}) than this run ({here}). Recorded generations are "
            "repeated as they were; then this run's own counts.",
        )

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            rank_zero_warn(f"{message} Shown once.")

    # --- opening ---

    def _start(self, trainer: Any) -> None:
        strategy = trainer.strategy
        outcome: _Opened | Exception | None = None
        resumed = strategy.resumed_journal
        # torchrun counts failures by host: where one host's workers fail, others restart theirs without counting it.
        restarted = strategy.reduce_boolean_decision(is_restart(), all=False)
        sharded = strategy.evolution.space.is_sharded
        header = self._header(trainer) if trainer.is_global_zero or sharded else None
        if header is not None and trainer.is_global_zero:
            try:
                journal = self._journal = open_journal(
                    header,
                    Path(self._folder(trainer)),
                    self.filename,
                    resumed=resumed,
                    checkpoint=trainer.ckpt_path,
                    restarted=restarted,
                )
                outcome = _Opened(
                    run=journal.header.run,
                    path=str(journal.path.resolve()),
                    start=strategy.evolution.state.generation,
                    end=journal.end,
                    evaluation=dict(journal.conditions.evaluation),
                )
            except (JournalError, OSError) as error:
                outcome = error
        outcome = strategy.broadcast(outcome)  # an error, too, so that no process waits for another
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        self._opened, self.path = outcome, Path(outcome.path)
        if sharded:
            self._weights = WeightsCheck(self._journal, self._weights_differ, strategy.broadcast)
        elif self._journal is not None:
            self._weights = WeightsCheck(self._journal, self._weights_differ)
        self._batches = int((resumed or {}).get("batches", 0))
        evaluation = strategy.evolution.evaluation
        if outcome.evaluation and not evaluation.state_dict():
            strategy.evolution.load_evaluation(outcome.evaluation)
        recorded = outcome.end - outcome.start
        what = f"generations {outcome.start} to {outcome.end - 1} are taken from it, not evaluated"
        rank_zero_info(f"Seed journal: {self.path}" + (f"; {what}." if recorded > 0 else "."))

    def _header(self, trainer: Any) -> Header:
        strategy = trainer.strategy
        evolution = strategy.evolution
        groups = [group for optimizer in strategy.optimizers for group in optimizer.param_groups]
        number = {id(parameter): i for i, group in enumerate(groups) for parameter in group["params"]}
        return Header(
            run=int.from_bytes(os.urandom(8), "little"),
            generation=evolution.state.generation,
            population=len(evolution.population),
            algorithm=describe_algorithm(evolution.algorithm),
            start=weights_checksum(evolution.space),
            conditions=Conditions(
                seed=evolution.state.seed,
                parameters=describe_parameters(evolution.space, lambda tensor: number.get(id(tensor), 0)),
                accumulate=trainer.accumulate_grad_batches,
            ),
            summation=strategy.summation,
        )

    def _folder(self, trainer: Any) -> str | Path:
        if self.dirpath is not None:
            return self.dirpath
        folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
        return next((folder for folder in folders if folder), trainer.default_root_dir)  # type: ignore[no-any-return]
