"""``lightning-evo journal``: what a seed journal holds, in tables and a picture, and whether its run is so."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lightning_evo.cli.tool import ToolError, add_overwrite, add_start
from lightning_evo.curves.picture import draw_fitness
from lightning_evo.journal import VERSION, Journal, JournalError
from lightning_evo.journal.replay import load_checkpoint
from lightning_evo.journal.verify import verify
from lightning_evo.utils.files import written_file

__all__ = ["journal_tables", "parser", "run"]


def parser() -> argparse.ArgumentParser:
    """The journal, and where to draw it."""
    parser = argparse.ArgumentParser(
        "lightning-evo journal",
        description="Say what a seed journal holds; or, with --verify, in one sentence whether the weights of its run "
        "are what it gives, with exit code 0 if they are.",
    )
    parser.add_argument("journal", type=Path, help="the file, *.evoj; it is only read, also during a run")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw fitness as a picture (.png, .pdf, .svg)")
    add_overwrite(parser, "--plot")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="replay the run from its first checkpoint, and compare with all others and with the journal's checksums "
        "of the weights",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="for --verify: a checkpoint of the run, or the weights that it began with; may be given several times "
        "(default: those of the run that lie beside the journal)",
    )
    add_start(parser, "for --verify, ")
    parser.add_argument("--device", default="cpu", help="for --verify: where to compute (default: cpu)")
    return parser


def run(options: argparse.Namespace) -> None:
    """Prints the tables and draws the picture if one is asked for."""
    if options.plot is not None and not options.plot.suffix:
        raise ToolError(
            f"The name {options.plot} does not say which kind of picture it is. Add the kind: {options.plot}.png."
        )
    if options.verify and options.plot is not None:
        raise ToolError("--verify compares weights and draws nothing. Leave out --verify or --plot.")
    if options.overwrite and options.plot is None:
        raise ToolError("--overwrite is for --plot, and nothing is drawn. Add --plot FILE, or leave it out.")
    if options.checkpoint and not options.verify:
        raise ToolError("--checkpoint is for --verify, which compares checkpoints with the journal. Add --verify.")
    if options.start is not None and not options.verify:
        raise ToolError("--start is for --verify, which replays the run from there. Add --verify.")
    try:
        _run(options)
    except JournalError as error:
        raise ToolError(str(error)) from error


def _run(options: argparse.Namespace) -> None:
    with Journal.open(options.journal) as journal:
        if options.verify:
            _verify(journal, options.checkpoint, options.device, options.start)
            return
        fitness = _fitness(journal)
        for table in journal_tables(journal, fitness):
            Console().print(table)
        if options.plot is not None:
            generations, means, bests, _ = zip(*fitness, strict=True) if fitness else ((), (), (), ())
            try:
                with written_file(options.plot, overwrite=options.overwrite) as picture:
                    draw_fitness(generations, means, bests, picture)
            except (ValueError, ModuleNotFoundError) as error:
                raise ToolError(str(error)) from error
            print(f"Fitness: {options.plot}")


def _verify(journal: Journal, checkpoints: list[Path], device: str, start: Path | None) -> None:
    """Prints the sentence; the exit code is 1 unless the run is verified."""
    checkpoints = checkpoints or _beside(journal)
    if not checkpoints:
        raise ToolError(
            f"No checkpoint of this run lies beside {journal.path}. Name one: --checkpoint FILE (the weights that the "
            "run began with will do)."
        )
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Replaying")
        found = verify(
            journal,
            checkpoints,
            device=device,
            start=start,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(found.sentence)
    if not found.holds:
        sys.exit(1)


def _beside(journal: Journal) -> list[Path]:
    """Checkpoints in the journal's folder that name its run."""
    found = []
    for path in sorted(journal.path.parent.glob("*.ckpt")):
        if path.is_file():
            named = load_checkpoint(path).get("lightning_evo", {}).get("journal") or {}
            found += [path] if named.get("run") == journal.header.run else []
    return found


_Fitness = list[tuple[int, float, float, int]]
"""Generation, mean and best fitness over the members that did not fail, and how many did."""


def _fitness(journal: Journal) -> _Fitness:
    found = []
    for record in journal:
        finite = [value for value in record.fitness if math.isfinite(value)]
        mean = math.fsum(finite) / len(finite) if finite else math.nan
        best = max(finite, default=math.nan)
        found.append((record.generation, mean, best, len(record.fitness) - len(finite)))
    return found


def journal_tables(journal: Journal, fitness: _Fitness | None = None) -> list[Table]:
    """What a journal holds, as two tables: the run, and its fitness over time."""
    fitness = _fitness(journal) if fitness is None else fitness
    header, conditions = journal.header, journal.conditions
    parameters = conditions.parameters
    run = Table(title=str(journal.path), show_header=False)
    run.add_column(style="bold")
    run.add_column(overflow="fold")
    rows: dict[str, object] = {"run": f"{header.run:016x} (format {VERSION})"}
    rows["algorithm"] = header.algorithm["name"]
    rows["generations"] = f"{len(journal):,}"
    if fitness:
        first, last = journal.read(header.generation), journal.read(journal.end - 1)
        rows["generations"] = f"{header.generation:,} to {journal.end - 1:,} ({len(journal):,})"
        rows["members"] = _first_and_last((len(first.fitness),), (len(last.fitness),))
        rows["sigma"] = _first_and_last((first.sigma,), (last.sigma,))
        rows["learning rate"] = _first_and_last(first.learning_rates, last.learning_rates)
    rows["clipping"] = "none" if conditions.clipping is None else "by {1}, {0:g}".format(*conditions.clipping)
    rows["seed"] = conditions.seed
    elements = sum(math.prod(parameter.shape) for parameter in parameters)
    rows["evolving"] = f"{elements:,} elements in {len(parameters):,} tensors"
    rows["start weights"] = header.start
    if header.anchor is not None:
        rows["anchor"] = "strength {strength:g} ({by}), to weights {start}".format(**header.anchor)
    if journal.weights:
        rows["checksums"] = f"{len(journal.weights):,} of weights, the last after {max(journal.weights):,} generations"
    rows["size"] = f"{journal.size:,} bytes"
    rows["tail"] = f"torn: {journal.torn} bytes, which resuming cuts off" if journal.torn else "complete"
    for name, value in rows.items():
        run.add_row(name, str(value))
    return [run, _fitness_table(fitness)] if fitness else [run]


def _first_and_last(first: tuple[float, ...], last: tuple[float, ...]) -> str:
    there, here = (", ".join(f"{value:,.6g}" for value in values) for values in (first, last))
    return here if there == here else f"{there} to {here}"


def _fitness_table(fitness: _Fitness, rows: int = 10) -> Table:
    table = Table(title="Fitness")
    for heading in ("generations", "mean", "best", "failed"):
        table.add_column(heading, justify="right")
    size = -(-len(fitness) // rows)
    for start in range(0, len(fitness), size):
        part = fitness[start : start + size]
        means = [mean for _, mean, _, _ in part if not math.isnan(mean)]
        table.add_row(
            f"{part[0][0]:,} to {part[-1][0]:,}" if len(part) > 1 else f"{part[0][0]:,}",
            f"{math.fsum(means) / len(means):.6g}" if means else "none",
            f"{max((best for _, _, best, _ in part if not math.isnan(best)), default=math.nan):.6g}",
            f"{sum(failed for _, _, _, failed in part):,}",
        )
    return table
