"""The seed journal under Lightning: every generation's fitness on the disk before the weights move."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from typing_extensions import override

from lightning_evo._messages import preview
from lightning_evo.algorithms import EvolutionStrategy
from lightning_evo.journal import (
    SUFFIX,
    Conditions,
    Header,
    Journal,
    JournalError,
    Record,
    RecordedParameter,
    check_of,
    describe_algorithm,
    describe_parameters,
    next_free,
    weights_checksum,
)
from lightning_evo.search_space import SearchSpace
from lightning_evo.update import Clipping, Update

__all__ = ["SeedJournal"]


_had: set[Path] = set()
"""Journals that this process has appended to: of its own fits, so not what a restart goes on with."""

_starts = itertools.count()
"""How many fits of this process have come to their first batch."""


@dataclass(frozen=True)
class _Opened:
    """What all processes need to know of the journal that the first one has opened."""

    run: int
    path: str
    start: int
    end: int
    evaluation: dict[str, Any]


class SeedJournal(Callback):
    """Writes each generation's fitness to a file before the weights move, so that a kill loses nothing.

    With ``EvoStrategy(update="in_place")`` a training that writes checkpoints has one without being asked; switch that
    off by ``EvoStrategy(journal=False)``. A resumed fit takes the generations that the journal holds from there instead
    of evaluating them. See docs/journal.md. Only the first process reads and writes it.

    Args:
        dirpath: Folder of the journal; ``None`` takes that of the first ``ModelCheckpoint``, or the Trainer's
            ``default_root_dir`` without one.
        filename: Its name without ``.evoj``. A new fit in the same folder appends ``-v1``, ``-v2``, ….

    Raises:
        ValueError: At the start of fit, if the strategy is not one of ours with ``update="in_place"``, the module is
            optimized manually, or the folder is not on a local disk.
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
        """The file, once the first batch has come."""
        self._forget()

    def _forget(self) -> None:
        self._journal: Journal | None = None
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
                "step does besides `evolve` is not in a generation's fitness. Leave the callback out."
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
                f"SeedJournal appends to a file on a local disk, and {folder} is none. Give it a folder: "
                "SeedJournal(dirpath=…)."
            )

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
            self._other_rhythm(record, f"accumulate_grad_batches={conditions.accumulate}",
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
        self._space = update.space
        self._describe(update, number)
        double = any(parameter.tensor.dtype == torch.float64 for parameter in update.space)
        check = check_of(update.weights, torch.float64 if double else torch.float32)
        if self._recalled is not None:
            record, conditions = self._recalled
            if record.batches != self._batches:
                self._other_rhythm(record, f"{record.batches} training steps", f"{self._batches}")
            self._compare(record, conditions, rates, clipping, check)
            rates, clipping = record.learning_rates, None
            if conditions.clipping is not None:
                limit, by = conditions.clipping
                clipping = Clipping(limit, by, record.coefficient)  # type: ignore[arg-type]
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
        """What a checkpoint says of the journal: plain numbers and strings; ``None`` before a new fit's first batch."""
        if self._opened is None:  # a resumed fit's tuner saves and restores, too
            return None if self._strategy is None else self._strategy.resumed_journal
        saved = {"run": self._opened.run, "path": self._opened.path, "batches": self._batches}
        if self._space is not None and self._journal is not None:  # the process that writes
            saved["weights"] = weights_checksum(self._space)
        return saved

    def _is_tuned(self, trainer: Any) -> bool:
        """Whether a tuner of Lightning takes steps that it will undo: it leaves the Trainer none of its callbacks."""
        return all(callback is not self for callback in trainer.callbacks)

    # --- generations ---

    def _describe(self, update: Update, number: Mapping[int, int]) -> None:
        """Describe the evolving parameters, if they are others than in the generation before."""
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
        """Say where a recalled generation differs from what this process would have made of its fitness."""
        if _without_groups(conditions.parameters) != _without_groups(self._parameters):
            raise JournalError(
                f"Generation {record.generation} of {self.path} evolved {_names(conditions.parameters)}; now "
                f"{_names(self._parameters)} would evolve. Use the same module, `evolve` and freezing callbacks, or "
                "resume in another folder."
            )
        if rates != record.learning_rates:
            self._differs("learning rate", record.learning_rates, rates)
        given = None if clipping is None else (clipping.limit, clipping.by)
        if given != conditions.clipping:
            self._differs("clipping", conditions.clipping, given)
        if check != record.check and "check" not in self._warned:
            self._warned.add("check")
            rank_zero_warn(
                f"Generation {record.generation} of {self.path}: its fitness gives another update here than when it "
                "was written, by another version of lightning-evo or torch, or on another processor. The weights will "
                "not be those of the run that wrote it, bit for bit. This is said once."
            )

    def _other_rhythm(self, record: Record, recorded: str, here: str) -> NoReturn:
        """Recorded fitness is that of certain batches: it must not be repeated on others."""
        raise JournalError(
            f"Generation {record.generation} of {self.path} was recorded with {recorded}; this run has {here}. Resume "
            "with the same accumulate_grad_batches, batch size and data; or, to go on from the checkpoint with these, "
            "without a journal (EvoStrategy(journal=False))."
        )

    def _differs(self, what: str, recorded: object, here: object) -> None:
        if what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(
                f"The journal {self.path} has another {what} ({recorded}) than this run ({here}). Recorded generations "
                "are repeated as they were; then this run's own counts. This is said once."
            )

    # --- opening ---

    def _start(self, trainer: Any) -> None:
        strategy = trainer.strategy
        outcome: _Opened | Exception | None = None
        resumed = strategy.resumed_journal
        # torchrun counts failures by host: where one host's workers fail, those of another are started anew, uncounted.
        # Only a process's first fit is what was broken off: later ones (folds, seeds) may begin in just the same way.
        restarted = strategy.reduce_boolean_decision(next(_starts) == 0 and _restarted(), all=False)
        if trainer.is_global_zero:
            try:
                self._journal = self._open(trainer, resumed, restarted)
                _had.add(self._journal.path.resolve())
                outcome = _Opened(
                    run=self._journal.header.run,
                    path=str(self._journal.path.resolve()),
                    start=strategy.evolution.state.generation,
                    end=self._journal.end,
                    evaluation=dict(self._journal.conditions.evaluation),
                )
            except (JournalError, OSError) as error:
                outcome = error
        outcome = strategy.broadcast(outcome)  # also an error, so that no process waits for another
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        self._opened, self.path = outcome, Path(outcome.path)
        self._batches = int((resumed or {}).get("batches", 0))
        evaluation = strategy.evolution.evaluation
        if outcome.evaluation and not evaluation.state_dict():
            evaluation.load_state_dict(outcome.evaluation)
        recorded = outcome.end - outcome.start
        what = f"generations {outcome.start} to {outcome.end - 1} are taken from it, not evaluated"
        rank_zero_info(f"Seed journal: {self.path}" + (f"; {what}." if recorded > 0 else "."))

    def _open(self, trainer: Any, resumed: Mapping[str, Any] | None, restarted: bool) -> Journal:
        """Continue the run's journal, or begin one."""
        header = self._header(trainer)
        folder = Path(self._folder(trainer))
        if resumed is not None:
            path = self._journal_of(int(resumed["run"]), _places(folder, trainer.ckpt_path, resumed.get("path")))
        else:
            path = _journal_from(header, folder) if restarted else None
        if path is not None:
            journal = Journal.open(path, append=True)
            try:
                if self._continues(journal, header):
                    return journal
            except BaseException:
                journal.close()
                raise
            journal.close()
        if path is None and resumed is not None:
            rank_zero_warn(
                f"The journal of the checkpoint's run {_run(int(resumed['run']))} was not found (it was "
                f"{resumed.get('path')}). A new one begins at generation {header.generation}."
            )
        if path is not None and restarted:  # of a fit that had begun a new one, too
            again = _journal_from(header, folder)
            if again is not None and again != path:
                return Journal.open(again, append=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a file of that name, or a folder that can't be written to
            raise JournalError(
                f"The journal's folder {folder} can't be made ({error.strerror}). Give it another one: "
                "SeedJournal(dirpath=…)."
            ) from error
        for _ in range(1000):
            try:
                return Journal.create(next_free(folder, self.filename), header)
            except FileExistsError:  # another process was faster
                continue
        raise JournalError(
            f"No free name was found for a journal in {folder}: each one that was tried had been taken by then. Give "
            "it another folder: SeedJournal(dirpath=…)."
        )

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

    def _journal_of(self, run: int, places: list[Path]) -> Path | None:
        found, others = [], []
        for path in _journals(places):
            try:
                there = Journal.peek(path).run
            except JournalError as error:
                others.append(f"{path} ({error})")
                continue
            if there == run:
                found.append(path)
            else:
                others.append(f"{path} (run {_run(there)})")
        if len(found) > 1:
            raise JournalError(
                f"Several journals are of the run {_run(run)}: {', '.join(map(str, found))}. Which of them goes on is "
                "not clear; leave one of them there."
            )
        if others and not found:
            raise JournalError(
                f"The checkpoint is of the run {_run(run)}, and the journals beside it are of others: "
                f"{preview(others, 5)}. Nothing was changed. Bring the run's journal there, resume in another folder "
                "(SeedJournal(dirpath=…)), or without a journal (EvoStrategy(journal=False))."
            )
        return found[0] if found else None

    def _continues(self, journal: Journal, header: Header) -> bool:
        """Whether the journal goes on with the run that ``header`` would begin; ``False`` if a new one should.

        Raises:
            JournalError: If it holds generations that this run would have to take over, and can't.
        """
        first, options = header.generation, _option_differences(journal.header, header)
        if first < journal.header.generation:
            raise JournalError(
                f"The checkpoint is of generation {first}, but its journal {journal.path} begins with generation "
                f"{journal.header.generation}. Resume in another folder (SeedJournal(dirpath=…))."
            )
        known = first == journal.header.generation and header.start and journal.header.start
        if known and header.start != journal.header.start:
            raise JournalError(
                f"{journal.path} begins with weights of the checksum {journal.header.start}, but the module's have "
                f"{header.start}. They are of another run: resume from the checkpoint that the journal belongs to, "
                "or in another folder (SeedJournal(dirpath=…))."
            )
        if first > journal.end:
            rank_zero_warn(
                f"{journal.path} ends with generation {journal.end - 1}, and the checkpoint is of generation {first}. "
                "A journal has no gaps, so a new one begins here."
            )
            return False
        if first == journal.end:
            if options:
                rank_zero_info(f"Other options than in {journal.path} ({'; '.join(options)}): a new journal begins.")
            return not options
        there = journal.conditions_at(first)
        if there.seed != header.conditions.seed:
            options.append(f"seed: {there.seed} there, {header.conditions.seed} here")
        if _without_groups(there.parameters) != _without_groups(header.conditions.parameters):
            options.append(f"parameters: {_names(there.parameters)} there, {_names(header.conditions.parameters)} here")
        if options:
            raise JournalError(
                f"{journal.path} holds generations {first} to {journal.end - 1} of this run, but was written with "
                f"other options: {'; '.join(options)}. Nothing was changed. Resume with the same options; or, to go "
                "on from the checkpoint with these, in another folder (SeedJournal(dirpath=…))."
            )
        return True

    def _folder(self, trainer: Any) -> str | Path:
        if self.dirpath is not None:
            return self.dirpath
        folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
        return next((folder for folder in folders if folder), trainer.default_root_dir)  # type: ignore[no-any-return]


def _restarted() -> bool:
    """Whether a launcher has started this training again after a failure: torchrun or Slurm."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in names)


def _journal_from(header: Header, folder: Path) -> Path | None:
    """The one journal that began just as this run does and that this process has not had, for a restart."""
    places = [folder]
    if folder.name == "checkpoints" and folder.parent.name.startswith("version_"):
        places += sorted(folder.parent.parent.glob("version_*/checkpoints"))  # a logger's: each start has its own
    found = []
    for path in _journals(places):
        if path.resolve() in _had:
            continue
        try:
            there = Journal.peek(path)
        except JournalError:
            continue
        if header.start and replace(there, run=header.run) == header:
            found.append(path)
    if len(found) > 1:  # folds of a cross-validation, say, that differ in data only
        rank_zero_warn(
            f"{preview([str(path) for path in found], 5)} all began just as this run does, so which of them it would "
            "go on with after the launcher's restart is not clear. It begins a new one."
        )
        return None
    return found[0] if found else None


def _places(folder: Path, checkpoint: Any, recorded: str | None) -> list[Path]:
    """Where the journal of a checkpoint may be."""
    places = [folder]
    if checkpoint and "://" not in str(checkpoint):
        places.append(Path(checkpoint).parent)
    if recorded:
        places.append(Path(recorded).parent)
    return places


def _journals(places: Iterable[Path]) -> list[Path]:
    found = {path.resolve(): path for place in places if place.is_dir() for path in sorted(place.glob(f"*{SUFFIX}"))}
    return list(found)


def _option_differences(there: Header, here: Header) -> list[str]:
    old, new = ({**header.algorithm, "update_sync": header.summation} for header in (there, here))
    return [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _without_groups(parameters: tuple[RecordedParameter, ...]) -> list[RecordedParameter]:
    return [replace(parameter, group=0) for parameter in parameters]


def _names(parameters: tuple[RecordedParameter, ...]) -> str:
    return preview([f"{p.names[0]} {p.dtype} {list(p.shape)}" for p in parameters], 5)


def _run(run: int) -> str:
    return f"{run:016x}"
