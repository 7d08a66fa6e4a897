"""Whether a run's weights are what its journal gives: a replay, compared with its checkpoints and checksums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_evo.algorithms import Algorithm
from lightning_evo.generation.evolution import CHECKPOINT_KEY
from lightning_evo.journal.file import Journal
from lightning_evo.journal.records import JournalError
from lightning_evo.journal.replay import Departed, OtherUpdate, load_checkpoint, replay
from lightning_evo.utils.messages import preview

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        holds: Whether the run's weights are what its journal gives, as far as there is something to compare with.
        sentence: The same in one sentence.
        first: Generations that had passed at the checkpoint from which the replay began.
        last: Generations up to which weights were compared and found the same.
    """

    holds: bool
    sentence: str
    first: int
    last: int


def verify(
    journal: Journal,
    checkpoints: Sequence[str | Path],
    *,
    algorithm: Algorithm[Any] | None = None,
    device: str | torch.device = "cpu",
    start: str | Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Verification:
    """Replay a journal from the first of a run's checkpoints, and compare with the others and with recorded checksums.

    Weights are compared bit for bit: those that evolve. Buffers and frozen weights are not in a journal.

    Args:
        journal: The run's journal.
        checkpoints: Of this run, in any order; the weights that it began with will do for one.
        algorithm: The run's algorithm, if the journal can't hold it.
        device: Where to compute.
        start: Of a run with an anchor: the weights that its script built; ``None`` if the first checkpoint holds them.
        progress: Called with the generations replayed and their total.

    Raises:
        JournalError: If a checkpoint is of another run or can't be read, or the journal can't be replayed at all.
        ValueError: If there are no checkpoints.

    Example:
        >>> import tempfile, lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_evo import EvoStrategy
        >>> folder = Path(tempfile.mkdtemp())
        >>> model = BoringModel()
        >>> torch.save(model.state_dict(), folder / "start.pt")
        >>> strategy = EvoStrategy("mezo", update="in_place", journal=True)
        >>> trainer = L.Trainer(
        ...     strategy=strategy, max_steps=3, accelerator="cpu", default_root_dir=folder, barebones=True
        ... )
        >>> trainer.fit(model)
        >>> with Journal.open(folder / "evolution.evoj") as journal:
        ...     print(verify(journal, [folder / "start.pt"]).sentence)
        Verified: after 0 to 3 generations the run's weights are what its journal gives, bit for bit (2 checksums
        agree).
    """
    points = sorted(((_generation(load_checkpoint(path), journal), Path(path)) for path in checkpoints), key=_by_number)
    if not points:
        raise ValueError(
            "There is no checkpoint to begin with. Name one of the run, or the weights that it began with."
        )
    first, total = points[0][0], max(journal.end - points[0][0], 1)
    base: Mapping[str, Any] = load_checkpoint(points[0][1])
    origin = base if start is None else load_checkpoint(start)
    reached = first
    try:
        for generation, path in [*points[1:], (journal.end, None)]:

            def advance(done: int, _: int, start: int = reached - first) -> None:
                if progress is not None:
                    progress(start + done, total)

            options: dict[str, Any] = {"algorithm": algorithm, "device": device, "start": origin}
            base = replay(base, journal, to=generation, progress=advance, **options)
            if path is not None:
                names = _different(base, load_checkpoint(path), journal, first, generation)
                if names:
                    since = _last(journal, points, first, generation - 1)
                    return _departed(first, since, generation, f" ({preview(names, 3)} of {path.name})")
            reached = generation
    except Departed as departed:
        return _departed(first, departed.since, departed.generation)
    except OtherUpdate as other:
        sentence = (
            f"Not verified: the fitness of generation {other.generation:,} gives another update here than when it was "
            "recorded, so verify the run on its own kind of processor, with its versions of lightning-evo and torch."
        )
        return Verification(False, sentence, first, _last(journal, points, first, other.generation))
    return _found(journal, first, _last(journal, points, first, journal.end), len(points) - 1)


def _departed(first: int, since: int, generation: int, what: str = "") -> Verification:
    between = (
        f"between {since:,} and {generation:,} generations" if since < generation else f"before generation {since:,}"
    )
    sentence = (
        f"Not verified: {between} the run's weights{what} departed from what its journal gives, most likely because a "
        "callback or your own code moved them, or another kind of processor."
    )
    return Verification(False, sentence, first, since)


def _by_number(point: tuple[int, Path]) -> int:
    return point[0]


def _found(journal: Journal, first: int, last: int, checkpoints: int) -> Verification:
    checksums = sum(first <= at <= journal.end for at in journal.weights) + (first == journal.header.generation)
    if first == journal.end:
        sentence = (
            f"Not verified: the checkpoint is that of the journal's end, after {first:,} generations, so nothing was "
            "replayed; name an earlier one, or the weights that the run began with, by --checkpoint FILE."
        )
        return Verification(False, sentence, first, last)
    if not checksums + checkpoints:
        sentence = (
            f"Not verified: there is one checkpoint, after {first:,} generations, and from there on the journal has no "
            "checksum to compare with."
        )
        return Verification(False, sentence, first, last)
    counted = [(checksums, "checksum"), (checkpoints, "later checkpoint")]
    counts = " and ".join(f"{number:,} {name}{'' if number == 1 else 's'}" for number, name in counted if number)
    agree = f" ({counts} {'agrees' if checksums + checkpoints == 1 else 'agree'})" if counts else ""
    rest = journal.end - last
    beyond = f", and there is nothing to compare the {rest:,} after those with" if rest else ""
    sentence = (
        f"Verified: after {first:,} to {last:,} generations the run's weights are what its journal gives, bit for bit"
        f"{agree}{beyond}."
    )
    return Verification(True, sentence, first, last)


def _last(journal: Journal, points: Iterable[tuple[int, Path]], first: int, end: int) -> int:
    """Where up to ``end`` weights were last compared."""
    known = [first, *journal.weights, *(generation for generation, _ in points)]
    return max(generation for generation in known if first <= generation <= end)


def _generation(checkpoint: Mapping[str, Any], journal: Journal) -> int:
    saved = checkpoint.get(CHECKPOINT_KEY)
    if not saved:
        return journal.header.generation
    named = saved.get("journal")
    if named is None or named["run"] != journal.header.run:
        of = "names no journal" if named is None else f"is of the run {named['run']:016x}"
        raise JournalError(f"A checkpoint {of}, and {journal.path} is of the run {journal.header.run:016x}.")
    return int(saved["state"]["generation"])


def _different(
    replayed: Mapping[str, Any], checkpoint: Mapping[str, Any], journal: Journal, first: int, generation: int
) -> list[str]:
    """Names of tensors that evolved between two generations and are not the same in both."""
    there = checkpoint.get("current_model_state", checkpoint.get("state_dict", checkpoint))
    here, different = replayed["state_dict"], []
    evolved = {
        parameter.names: None
        for number in range(first, generation)
        for parameter in journal.conditions_at(number).parameters
    }
    for names in evolved:
        name = next((name for name in names if name in here), names[0])
        if not _same(here.get(name), there.get(name)):
            different.append(name)
    return different


def _same(one: object, other: object) -> bool:
    """Whether two tensors hold the same bits."""
    if (
        not isinstance(one, Tensor)
        or not isinstance(other, Tensor)
        or one.shape != other.shape
        or one.dtype != other.dtype
    ):
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
