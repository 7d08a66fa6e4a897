"""Which journal a run continues: the checkpoint's, that of the run a launcher has started again, or a new one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_evo.journal import SUFFIX, Header, Journal, JournalError, next_free
from lightning_evo.journal.records import parameter_names, same_parameters
from lightning_evo.utils.messages import preview

__all__ = ["is_restart", "open_journal"]

_WITHOUT = "without a journal (journal=False)"

_appended_here: set[Path] = set()
"""Journals that this process has appended to. They belong to its own fits, so a restart does not continue them."""

_fits_started = itertools.count()
"""Counts the fits of this process that have reached their first batch."""


def is_restart() -> bool:
    """Whether a launcher (torchrun or Slurm) has started this fit again after a failure. Ask once in each fit.

    Only a process's first fit can be the interrupted one: later ones (folds, seeds) may begin in the same way.
    """
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return next(_fits_started) == 0 and any(os.environ.get(name, "0") not in ("", "0") for name in names)


def open_journal(
    header: Header,
    folder: Path,
    filename: str,
    *,
    resumed: Mapping[str, Any] | None = None,
    checkpoint: Any = None,
    restarted: bool = False,
) -> Journal:
    """Continue the run's journal, or begin one; open to append.

    Args:
        header: Of the journal that this run would begin.
        folder: Where it would lie.
        filename: Its name without ``.evoj``.
        resumed: What the checkpoint that is resumed says of its journal: ``run``, ``path``.
        checkpoint: The path of that checkpoint.
        restarted: Whether a launcher has started this run again after a failure.

    Raises:
        JournalError: If the journals next to the checkpoint are of other runs, or its own can't be continued.
        OSError: If the file can't be written, for example because the disk is full.
    """
    journal = _continued(header, folder, resumed, checkpoint, restarted)
    if journal is None:
        journal = _begun(header, folder, filename)
    _appended_here.add(journal.path.resolve())
    return journal


def _continued(
    header: Header,
    folder: Path,
    resumed: Mapping[str, Any] | None,
    checkpoint: Any,
    restarted: bool,
) -> Journal | None:
    if resumed is not None:
        path = _journal_of(int(resumed["run"]), _places(folder, checkpoint, resumed.get("path")))
    else:
        path = _journal_from(header, folder) if restarted else None
    if path is not None:
        journal = Journal.open(path, append=True)
        try:
            if _continues(journal, header):
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
    if path is not None and restarted:  # the interrupted fit may have begun a new one
        again = _journal_from(header, folder)
        if again is not None and again != path:
            return Journal.open(again, append=True)
    return None


def _begun(header: Header, folder: Path, filename: str) -> Journal:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file of that name, or a folder that can't be written to
        raise JournalError(
            f"The journal's folder {folder} can't be made ({error.strerror}). Give it another one: "
            "SeedJournal(dirpath=…)."
        ) from error
    for _ in range(1000):
        try:
            return Journal.create(next_free(folder, filename), header)
        except FileExistsError:  # another process was faster
            continue
    raise JournalError(
        f"No free name was found for a journal in {folder}: other processes had taken each one that was tried. "
        "Give it another folder: SeedJournal(dirpath=…)."
    )


def _continues(journal: Journal, header: Header) -> bool:
    """Whether the run that ``header`` would begin continues this journal; ``False`` if it should begin a new one.

    Raises:
        JournalError: If it holds generations that this run would have to take over, and can't.
    """
    first, options = header.generation, _option_differences(journal.header, header)
    if first < journal.header.generation:
        raise JournalError(
            f"The checkpoint is of generation {first}, but its journal {journal.path} begins with generation "
            f"{journal.header.generation}. Resume {_WITHOUT}."
        )
    if first == journal.header.generation and header.start != journal.header.start:
        raise JournalError(
            f"{journal.path} begins with weights of the checksum {journal.header.start}, but the module's have "
            f"{header.start}. They are of another run: resume from the checkpoint that the journal belongs to, "
            f"or {_WITHOUT}."
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
    there, here = journal.conditions_at(first), header.conditions
    if there.seed != here.seed:
        options.append(f"seed: {there.seed} there, {here.seed} here")
    if not same_parameters(there.parameters, here.parameters):
        options.append(
            f"parameters: {parameter_names(there.parameters)} there, {parameter_names(here.parameters)} here"
        )
    if options:
        raise JournalError(
            f"{journal.path} holds generations {first} to {journal.end - 1} of this run, but was written with "
            f"other options: {'; '.join(options)}. Nothing was changed. Resume with the same options; or, to go "
            f"on from the checkpoint with these, {_WITHOUT}."
        )
    return True


# --- finding it ---


def _journal_of(run: int, places: list[Path]) -> Path | None:
    """The journal of a checkpoint's run."""
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
            f"Several journals are of the run {_run(run)}: {', '.join(map(str, found))}. It is not clear "
            "which of them to continue; keep one of them there."
        )
    if others and not found:
        raise JournalError(
            f"The checkpoint is of the run {_run(run)}, and the journals next to it are of other runs: "
            f"{preview(others, 5)}. Nothing was changed. Bring the run's journal there, or resume {_WITHOUT}."
        )
    return found[0] if found else None


def _journal_from(header: Header, folder: Path) -> Path | None:
    """For a restart: the one journal that began as this run does and that this process has not appended to."""
    places = [folder]
    if folder.name == "checkpoints" and folder.parent.name.startswith("version_"):
        places += sorted(folder.parent.parent.glob("version_*/checkpoints"))  # a logger's: one for each start
    found = []
    for path in _journals(places):
        if path.resolve() in _appended_here:
            continue
        try:
            there = Journal.peek(path)
        except JournalError:
            continue
        if replace(there, run=header.run) == header:
            found.append(path)
    if len(found) > 1:  # for example folds of a cross-validation, which differ in data only
        rank_zero_warn(
            f"{preview([str(path) for path in found], 5)} all began as this run does, so it is not clear which of them "
            "to continue after the launcher's restart. A new journal begins."
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
    old, new = ({**header.algorithm, "anchor": _anchor(header)} for header in (there, here))
    return [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _anchor(header: Header) -> str | None:
    """Strength and kind. That the starting weights are the same, too, is found when the checkpoint is loaded."""
    return None if header.anchor is None else "{strength:g} ({by})".format(**header.anchor)


def _run(run: int) -> str:
    return f"{run:016x}"
