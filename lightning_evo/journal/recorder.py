"""Records a run: each generation's fitness is on the disk before the weights move, and recorded ones are recalled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_evo.generation.evolution import Evolution
from lightning_evo.generation.step import Step
from lightning_evo.generation.update import Update
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
from lightning_evo.journal.records import meddled, parameter_names, recorded_step, same_parameters
from lightning_evo.journal.resume import is_restart, open_journal
from lightning_evo.spaces.search_space import SearchSpace

__all__ = ["Processes", "Recorder"]


class Processes(Protocol):
    """What a recorder needs to know of the processes of a run; Lightning's strategies give it."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that reads and writes the journal."""

    def broadcast(self, obj: Any) -> Any:
        """What the first process gives."""

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        """Whether any process says so (or all do)."""


@dataclass(frozen=True)
class _Opened:
    """What all processes need to know about the journal that the first one has opened."""

    run: int
    path: str
    start: int
    end: int
    evaluation: dict[str, Any]


class Recorder:
    """Writes a run's generations to its journal, and takes from there those that it holds already.

    Opens the journal: continues that of the run, or begins one. All processes must make one together.

    Args:
        evolution: Set up.
        processes: Those of the run.
        folder: Where a new journal lies.
        filename: Its name without ``.evoj``.
        optimizers: Whose learning rates count.
        accumulate: Training steps for the first step of the optimizer.
        resumed: What the checkpoint that is resumed says of its journal.
        checkpoint: The path of that checkpoint.

    Attributes:
        path: The journal.

    Raises:
        JournalError: If the checkpoint is of another run than the folder's journals, or the run's journal was written
            with other options or weights, or is damaged.
        OSError: If it can't be written.
    """

    def __init__(
        self,
        evolution: Evolution,
        processes: Processes,
        folder: str | Path,
        filename: str,
        *,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        accumulate: int = 1,
        resumed: Mapping[str, Any] | None = None,
        checkpoint: Any = None,
    ) -> None:
        self._evolution, self._processes, self._accumulate = evolution, processes, accumulate
        self._recalled: tuple[Record, Conditions] | None = None
        self._batches = int((resumed or {}).get("batches", 0))  # training steps of the current generation so far
        self._parameters: tuple[RecordedParameter, ...] = ()
        self._signature: tuple[tuple[int, int], ...] = ()
        self._space: SearchSpace | None = None  # of the last generation that was recorded or recalled
        self._warned: set[str] = set()
        self._journal, self._opened = self._open(folder, filename, tuple(optimizers), resumed, checkpoint)
        self.path = Path(self._opened.path)
        self._weights: WeightsCheck | None = None  # of the process that writes, and those with parts of the weights
        if evolution.space.is_sharded:
            self._weights = WeightsCheck(self._journal, self._weights_differ, processes.broadcast)
        elif self._journal is not None:
            self._weights = WeightsCheck(self._journal, self._weights_differ)

    # --- generations ---

    def recall(self, accumulate: int = 1) -> bool:
        """Take the fitness of the coming batch's generation from the journal, if it is there.

        Args:
            accumulate: Training steps for the coming step of the optimizer.

        Returns:
            Whether it is, so that nothing need be evaluated on this batch.

        Raises:
            JournalError: If it was recorded with another number of batches.
        """
        self._batches, self._accumulate = self._batches + 1, accumulate
        generation = self._evolution.state.generation
        if generation >= self._opened.end:
            return False
        if self._recalled is None:
            found = None
            if self._journal is not None:
                found = (self._journal.read(generation), self._journal.conditions_at(generation))
            self._recalled = self._processes.broadcast(found)
            assert self._recalled is not None
        record, conditions = self._recalled
        if conditions.accumulate != accumulate:
            there, here = (f"accumulate_grad_batches={number}" for number in (conditions.accumulate, accumulate))
            self._refuse_other_batches(record, there, here)
        if self._batches >= record.batches:
            if record.sigma != self._evolution.sigma:
                self._differs("sigma", record.sigma, self._evolution.sigma)
            self._evolution.recall(torch.tensor(record.fitness, dtype=torch.float64), record.sigma)
        return True

    def record(self, update: Update, step: Step) -> Step:
        """Write a generation that was evaluated, before its update moves the weights.

        Args:
            update: From the generation's fitness.
            step: How it would move the weights.

        Returns:
            How it does: for a recalled generation as the journal says.

        Raises:
            JournalError: If a recalled generation had other batches or parameters.
            OSError: If it can't be written.
        """
        before, self._space = self._space or update.space, update.space
        self._describe(update.space, step)
        if self._weights is not None:
            self._weights.before(update.population.generation, before)
        if self._recalled is not None:
            record, conditions = self._recalled
            if record.batches != self._batches:
                self._refuse_other_batches(record, f"{record.batches} training steps", f"{self._batches}")
            self._compare(record, conditions, step, check_of(update))
            step = recorded_step(record, conditions)
        elif self._journal is not None:
            self._journal.append(*self._described(update, step))
        self._recalled, self._batches = None, 0
        return step

    def _described(self, update: Update, step: Step) -> tuple[Record, Conditions]:
        clipping = step.clipping
        record = Record(
            update.population.generation,
            tuple(update.fitness.tolist()),
            update.population.sigma,
            step.rates,
            # Where a GPU has clipped by norm it is waited for here: the record precedes the move.
            1.0 if clipping is None or clipping.coefficient is None else float(clipping.coefficient),
            self._batches,
            check_of(update),
        )
        conditions = Conditions(
            seed=update.population.seed,
            parameters=self._parameters,
            clipping=None if clipping is None else (clipping.limit, clipping.by),
            evaluation=tuple(sorted(self._evolution.evaluation.state_dict().items())),
            accumulate=self._accumulate,
            decays=step.decays,
        )
        return record, conditions

    def saved(self) -> dict[str, Any]:
        """What a checkpoint stores about the journal, as plain data."""
        saved = {"run": self._opened.run, "path": self._opened.path, "batches": self._batches}
        if self._space is not None and self._weights is not None:
            saved["weights"] = weights_checksum(self._space)
        return saved

    def finish(self) -> None:
        """Write the checksum of the run's last weights. Not after an error, which may have interrupted a move."""
        if self._weights is not None and self._space is not None:
            self._weights.at_the_end(self._evolution.state.generation, self._space)

    def close(self) -> None:
        """Close the file."""
        if self._journal is not None:
            self._journal.close()

    # --- differences between what is recorded and this run ---

    def _describe(self, space: SearchSpace, step: Step) -> None:
        """Describe the evolving parameters, if they are not those of the generation before."""
        signature = tuple((parameter.index, step.groups.get(parameter.index, 0)) for parameter in space)
        if signature != self._signature:
            self._signature = signature
            self._parameters = describe_parameters(space, step.groups)

    def _compare(self, record: Record, conditions: Conditions, step: Step, check: int) -> None:
        """Report where a recalled generation differs from what this process makes of its fitness."""
        if not same_parameters(conditions.parameters, self._parameters):
            raise JournalError(
                f"Generation {record.generation} of {self.path} evolved {parameter_names(conditions.parameters)}; now "
                f"{parameter_names(self._parameters)} would evolve. Use the same module, `evolve` and freezing "
                "callbacks, or resume without a journal (journal=False)."
            )
        if step.rates != record.learning_rates:
            self._differs("learning rate", record.learning_rates, step.rates)
        if step.decays != conditions.decays:
            self._differs("weight decay", conditions.decays, step.decays)
        given = None if step.clipping is None else (step.clipping.limit, step.clipping.by)
        if given != conditions.clipping:
            self._differs("clipping", conditions.clipping, given)
        if check != record.check:
            self._warn_once(
                "check",
                f"Generation {record.generation} of {self.path}: its fitness gives another update here than when it "
                "was written, by another version of lightning-evo or torch, or on another processor"
                f"{meddled(self._evolution.algorithm.owns_center)}. The weights will not be those of the run that "
                "wrote it, bit for bit.",
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
            "without a journal (journal=False)."
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

    def _open(
        self,
        folder: str | Path,
        filename: str,
        optimizers: tuple[torch.optim.Optimizer, ...],
        resumed: Mapping[str, Any] | None,
        checkpoint: Any,
    ) -> tuple[Journal | None, _Opened]:
        evolution, processes = self._evolution, self._processes
        journal: Journal | None = None
        outcome: _Opened | Exception | None = None
        # torchrun counts failures by host: where one host's workers fail, others restart theirs without counting it.
        restarted = processes.reduce_boolean_decision(is_restart(), all=False)
        header = self._header(optimizers) if processes.is_global_zero or evolution.space.is_sharded else None
        if header is not None and processes.is_global_zero:
            try:
                journal = open_journal(
                    header, Path(folder), filename, resumed=resumed, checkpoint=checkpoint, restarted=restarted
                )
                outcome = _Opened(
                    run=journal.header.run,
                    path=str(journal.path.resolve()),
                    start=evolution.state.generation,
                    end=journal.end,
                    evaluation=dict(journal.conditions.evaluation),
                )
            except (JournalError, OSError) as error:
                outcome = error
        outcome = processes.broadcast(outcome)  # an error, too, so that no process waits for another
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        if outcome.evaluation and not evolution.evaluation.state_dict():
            evolution.load_evaluation(outcome.evaluation)
        recorded = outcome.end - outcome.start
        what = f"generations {outcome.start} to {outcome.end - 1} are taken from it, not evaluated"
        rank_zero_info(f"Seed journal: {outcome.path}" + (f"; {what}." if recorded > 0 else "."))
        return journal, outcome

    def _header(self, optimizers: tuple[torch.optim.Optimizer, ...]) -> Header:
        evolution = self._evolution
        groups = Step.of(optimizers, evolution.space, default=0.0).groups
        return Header(
            run=int.from_bytes(os.urandom(8), "little"),
            generation=evolution.state.generation,
            algorithm=describe_algorithm(evolution.algorithm),
            start=weights_checksum(evolution.space),
            conditions=Conditions(
                seed=evolution.state.seed,
                parameters=describe_parameters(evolution.space, groups),
                accumulate=self._accumulate,
            ),
            anchor=None if evolution.start is None else evolution.start.recorded(evolution.space),
        )
