"""The seed journal under Lightning: its folder, and when it is opened and closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_evo.generation.step import Step
from lightning_evo.generation.update import Update
from lightning_evo.journal.recorder import Recorder

__all__ = ["SeedJournal"]


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
        self._recorder: Recorder | None = None

    @classmethod
    def of(cls, trainer: Any, wanted: bool | None = None) -> SeedJournal | None:
        """The Trainer's journal; where one is wanted, or by default checkpoints are written, one is added.

        Raises:
            ValueError: If there is one, and none is wanted.
        """
        journal = next((callback for callback in trainer.callbacks if isinstance(callback, SeedJournal)), None)
        if journal is not None and wanted is False:
            raise ValueError("journal=False and the callback SeedJournal contradict each other; leave one of them out.")
        if wanted is None:
            folders = [str(getattr(callback, "dirpath", None)) for callback in trainer.checkpoint_callbacks]
            wanted = bool(folders) and not trainer.fast_dev_run and "://" not in folders[0]
        if journal is None and wanted:
            journal = cls()
            journal.setup(trainer, trainer.lightning_module, "fit")
            trainer.callbacks.insert(0, journal)
        return journal

    # --- Lightning's hooks ---

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        self._close()
        self._recorder = None
        if any(isinstance(callback, SeedJournal) and callback is not self for callback in trainer.callbacks):
            raise ValueError(
                "The Trainer has several SeedJournal callbacks, but a run writes one journal. Leave all but one out."
            )
        strategy = trainer.strategy
        if not hasattr(strategy, "evolution"):
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
        folder = self._folder(trainer)
        if "://" in str(folder):
            raise ValueError(
                f"SeedJournal appends to a file on a local disk, and {folder} is not on one. Give it a folder: "
                "SeedJournal(dirpath=…)."
            )

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._recorder is not None:
            self._recorder.finish()

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()

    # --- what the strategy calls ---

    def recall(self, trainer: Any) -> bool:
        """Take the fitness of the coming batch's generation from the journal, if it is there; opens it at first."""
        if self._is_tuned(trainer):
            return False
        if self._recorder is None:
            strategy = trainer.strategy
            self._recorder = Recorder(
                strategy.evolution,
                strategy,
                self._folder(trainer),
                self.filename,
                optimizers=strategy.optimizers,
                accumulate=trainer.accumulate_grad_batches,
                resumed=strategy.resumed_journal,
                checkpoint=trainer.ckpt_path,
            )
            self.path = self._recorder.path
        return self._recorder.recall(trainer.accumulate_grad_batches)

    def record(self, trainer: Any, update: Update, step: Step) -> Step:
        """Write a generation before its update moves the weights; gives the step to move them with."""
        return step if self._recorder is None or self._is_tuned(trainer) else self._recorder.record(update, step)

    def saved(self, trainer: Any) -> dict[str, Any] | None:
        """What a checkpoint stores about the journal, as plain data; ``None`` before a new fit's first batch."""
        if self._recorder is not None:
            return self._recorder.saved()
        resumed: dict[str, Any] | None = trainer.strategy.resumed_journal  # whose tuner saves and restores, too
        return resumed

    def _is_tuned(self, trainer: Any) -> bool:
        """Whether one of Lightning's tuners runs, which will undo its steps: it removes the Trainer's callbacks."""
        return all(callback is not self for callback in trainer.callbacks)

    def _folder(self, trainer: Any) -> str | Path:
        if self.dirpath is not None:
            return self.dirpath
        folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
        return next((folder for folder in folders if folder), trainer.default_root_dir)  # type: ignore[no-any-return]
