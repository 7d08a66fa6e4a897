"""``lightning-evo journal``: what a seed journal holds, as tables and as a picture."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_evo.cli.tool import ToolError, add_overwrite
from lightning_evo.journal import VERSION, Journal
from lightning_evo.utils.files import written_file

__all__ = ["SUMMARY", "journal_tables", "parser", "run"]

SUMMARY = "what a seed journal holds"


def parser() -> argparse.ArgumentParser:
    """The journal, and where to draw it."""
    parser = argparse.ArgumentParser("lightning-evo journal", description="Say what a seed journal holds.")
    parser.add_argument("journal", type=Path, help="the file, *.evoj; it is only read, also during a run")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw fitness as a picture (.png, .pdf, .svg)")
    add_overwrite(parser, "--plot")
    return parser


def run(options: argparse.Namespace) -> None:
    """Prints the tables and draws the picture if one is asked for."""
    if options.plot is not None and not options.plot.suffix:
        raise ToolError(
            f"The name {options.plot} does not say which kind of picture it is. Add the kind: {options.plot}.png."
        )
    with Journal.open(options.journal) as journal:
        fitness = _fitness(journal)
        for table in journal_tables(journal, fitness):
            Console().print(table)
        if options.plot is not None:
            with written_file(options.plot, overwrite=options.overwrite) as picture:
                _draw(fitness, picture)
            print(f"Fitness: {options.plot}")


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
    if journal.weights:
        rows["checksums"] = f"{len(journal.weights):,} of weights, the last at generation {max(journal.weights):,}"
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


def _draw(fitness: _Fitness, picture: Path) -> None:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ToolError("--plot draws with matplotlib: pip install 'lightning-evo[plot]'.") from error
    matplotlib.use("agg", force=False)
    from matplotlib import pyplot

    generations, means, bests, _ = zip(*fitness, strict=True) if fitness else ((), (), (), ())
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(generations, means, linewidth=1, label="mean of the population")
    axes.plot(generations, bests, linewidth=1, alpha=0.5, label="best member")
    axes.set(xlabel="generation", ylabel="fitness")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        if picture.suffix[1:].lower() not in (kinds := figure.canvas.get_supported_filetypes()):
            raise ToolError(
                f"matplotlib draws no {picture.suffix} files. Name the picture .png, .pdf or .svg (or "
                f"{', '.join(f'.{kind}' for kind in sorted(kinds) if kind not in ('png', 'pdf', 'svg'))})."
            )
        figure.savefig(picture, dpi=150)
    finally:
        pyplot.close(figure)
