"""``lightning-evo replay``: the weights of any generation, rebuilt from a checkpoint and a seed journal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from lightning_evo.cli.tool import ToolError, add_overwrite, add_start
from lightning_evo.journal import Journal, JournalError
from lightning_evo.journal.replay import replay
from lightning_evo.utils.files import written_file

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """A checkpoint, a journal, how far to go, and where to write."""
    parser = argparse.ArgumentParser(
        "lightning-evo replay",
        description="Rebuild the weights that a run had after some generations, bit for bit, from a checkpoint and "
        "its journal. Neither the module's code nor data is needed. Buffers and frozen weights stay as the "
        "checkpoint has them.",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a checkpoint of the run from before or then; for the run's start a file of weights is enough",
    )
    parser.add_argument("--journal", type=Path, required=True, help="the run's journal, *.evoj; it is only read")
    add_start(parser)
    parser.add_argument(
        "--to-generation",
        type=int,
        metavar="N",
        help="give the weights after N generations, counted from the run's first (default: all that are recorded)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="where to write a checkpoint of weights only: load_from_checkpoint takes it, fit(ckpt_path=…) does "
        "not, because the states of dataloaders and schedulers are not in a journal",
    )
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    parser.add_argument(
        "--inexact",
        action="store_true",
        help="go on, with a warning, where this machine rounds differently from the run's, or where something other "
        "than evolution moved the run's weights",
    )
    add_overwrite(parser, "--output")
    return parser


def run(options: argparse.Namespace) -> None:
    """Writes the checkpoint and says how far its weights were compared with the run's."""
    try:
        _run(options)
    except JournalError as error:
        raise ToolError(str(error)) from error


def _run(options: argparse.Namespace) -> None:
    with written_file(options.output, overwrite=options.overwrite) as new, Journal.open(options.journal) as journal:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Replaying")
            replayed = replay(
                options.checkpoint,
                journal,
                to=options.to_generation,
                device=options.device,
                exact=not options.inexact,
                start=options.start,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        torch.save(replayed, new)
        compared = _compared(journal, replayed["lightning_evo"])
    generation = replayed["lightning_evo"]["state"]["generation"]
    print(f"{options.output}: the weights after {generation:,} generations. {compared}")


def _compared(journal: Journal, replayed: dict[str, Any]) -> str:
    """How far it is certain that a replay has the run's weights."""
    generation, agreed = replayed["state"]["generation"], replayed["compared"]
    if agreed == generation:
        return "They are the run's: its checksum is the same."
    later = min((checksum for checksum in journal.weights if checksum > generation), default=None)
    found = "They were not compared with the run's" if agreed is None else f"After {agreed:,} they were the run's"
    if later is None:
        return f"{found}; the journal has no later checksum to compare with."
    return f"{found}; the next checksum to compare with is after {later:,} (--to-generation {later})."
