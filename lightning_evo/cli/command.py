"""``lightning-evo``: LightningCLI with the strategies registered, plus tools.

``lightning-evo fit --config config.yaml`` (and ``validate``, ``test``, ``predict``) is LightningCLI; the current
folder is importable, so that ``class_path: my_file.MyModule`` finds your code. ``lightning-evo algorithms`` lists the
algorithms, ``lightning-evo journal`` says what a seed journal holds, and ``lightning-evo replay`` rebuilds weights from
one.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import lightning_evo
from lightning_evo import algorithms
from lightning_evo.journal import VERSION, Journal, JournalError
from lightning_evo.journal.replay import replay
from lightning_evo.utils.files import written_file
from lightning_evo.utils.messages import did_you_mean

__all__ = ["EvoCLI", "main"]

_TOOLS = {
    "algorithms": "every algorithm with its defaults",
    "journal": "what a seed journal holds",
    "replay": "the weights of any generation, from a checkpoint and a journal",
}


class EvoCLI(LightningCLI):
    """LightningCLI for evolution: the strategy is ``evo`` unless the configuration says otherwise.

    Takes the arguments of :class:`lightning.pytorch.cli.LightningCLI`. Options of the strategy go under
    ``trainer.strategy``::

        trainer:
          strategy:
            class_path: lightning_evo.EvoStrategy
            init_args: {algorithm: mezo, sigma: 1e-3}
    """

    def __init__(self, *args: Any, trainer_defaults: dict[str, Any] | None = None, **kwargs: Any) -> None:
        kwargs["trainer_defaults"] = {"strategy": "evo", **(trainer_defaults or {})}
        super().__init__(*args, **kwargs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``lightning-evo``.

    Args:
        arguments: Command line without the program's name; ``None`` takes the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    commands = [*EvoCLI.subcommands(), *_TOOLS]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        hint = did_you_mean(arguments[0], commands)
        sys.exit(f"lightning-evo has no command {arguments[0]!r}.{hint} Commands: {', '.join(commands)}.")
    if arguments[:1] == ["algorithms"]:
        if len(arguments) > 1:
            sys.exit(f"`lightning-evo algorithms` takes no arguments, got {' '.join(arguments[1:])}.")
        Console().print(algorithms_table())
        return
    if arguments[:1] in (["journal"], ["replay"]):
        options = tool_parser(arguments[0]).parse_args(arguments[1:])
        try:
            (_journal if arguments[0] == "journal" else _replay)(options)
        except (FileNotFoundError, IsADirectoryError) as error:
            given = "does not exist" if isinstance(error, FileNotFoundError) else "is a folder"
            sys.exit(f"lightning-evo {arguments[0]}: {error.filename} {given}. Name a file (journals end with .evoj).")
        except (JournalError, OSError, ModuleNotFoundError) as error:
            sys.exit(f"lightning-evo {arguments[0]}: {error}")
        return
    if arguments[:1] == ["--version"]:
        print(f"lightning-evo {lightning_evo.__version__}")
        return
    # As `python -m` does: class paths in the configuration may name files in this folder. (Not "": while jsonargparse
    # reads a configuration, the current folder is the configuration's.)
    sys.path.insert(0, os.getcwd())
    sys.argv[:] = ["lightning-evo", *arguments]  # where LightningCLI reads them
    tools = "; ".join(f"{name}: {what}" for name, what in _TOOLS.items())
    EvoCLI(parser_kwargs={"epilog": f"Further commands: {tools}."})


def algorithms_table() -> Table:
    """The registry as a table: name, one line, paper, defaults."""
    table = Table(title="Algorithms: EvoStrategy(name, …)", show_lines=True)
    for heading in ("name", "what it is", "paper", "defaults"):
        table.add_column(heading, overflow="fold")
    for name in algorithms.available():
        factory = algorithms.get(name)
        defaults = ", ".join(f"{option}={value}" for option, value in factory.defaults.items())
        table.add_row(f"[bold]{name}[/bold]", factory.summary, factory.paper, defaults)
    return table


# --- seed journals ---


def tool_parser(name: str) -> argparse.ArgumentParser:
    """The options of ``lightning-evo journal`` and ``lightning-evo replay``."""
    if name == "journal":
        parser = argparse.ArgumentParser("lightning-evo journal", description="Say what a seed journal holds.")
        parser.add_argument("journal", type=Path, help="the file, *.evoj; it is only read, also while a run goes on")
        parser.add_argument("--plot", type=Path, metavar="FILE", help="draw fitness as a picture (.png, .pdf, .svg)")
        overwritten = "--plot"
    else:
        parser = argparse.ArgumentParser(
            "lightning-evo replay",
            description="Rebuild the weights that a run had after some generation, bit for bit, from a checkpoint and "
            "its journal. Neither the module's code nor data is needed. Buffers and frozen weights stay as the "
            "checkpoint has them.",
        )
        parser.add_argument(
            "--checkpoint",
            type=Path,
            required=True,
            help="a checkpoint of the run at or before that generation; for its first generation a file of weights is "
            "enough",
        )
        parser.add_argument("--journal", type=Path, required=True, help="the run's journal, *.evoj; it is only read")
        parser.add_argument(
            "--to-step",
            type=int,
            metavar="N",
            help="stop after N generations, counted from the run's first (default: all that are recorded)",
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
            help="go on, with a warning, where this machine rounds "
            "otherwise than the run's did, or the run's weights were moved by more than evolution",
        )
        overwritten = "--output"
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help=f"replace the file of {overwritten} if it exists; without this it is an error. Either way the file "
        "appears complete or not at all",
    )
    return parser


def _replay(options: argparse.Namespace) -> None:
    with written_file(options.output, overwrite=options.overwrite) as new, Journal.open(options.journal) as journal:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Replaying")
            replayed = replay(
                options.checkpoint,
                journal,
                to=options.to_step,
                device=options.device,
                exact=not options.inexact,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        torch.save(replayed, new)
        compared = _compared(journal, replayed["lightning_evo"])
    print(f"{options.output}: the weights after generation {replayed['lightning_evo']['generation']:,}. {compared}")


def _compared(journal: Journal, replayed: dict[str, Any]) -> str:
    """How far it is certain that a replay has the run's weights."""
    generation, agreed = replayed["generation"], replayed["compared"]
    if agreed == generation:
        return "The run's had the same checksum."
    later = min((checksum for checksum in journal.weights if checksum > generation), default=None)
    return ("They were not compared with the run's" if agreed is None else f"The run's were the same at {agreed:,}") + (
        ", and there is no later checksum." if later is None else f"; the next checksum of those is at {later:,}."
    )


def _journal(options: argparse.Namespace) -> None:
    if options.plot is not None and not options.plot.suffix:
        sys.exit(
            f"lightning-evo journal: {options.plot} does not say which kind of picture it is: name it "
            f"{options.plot}.png, say."
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
    rows["members"] = f"{header.population:,}"
    rows["generations"] = f"{len(journal):,}"
    if fitness:
        first, last = journal.read(header.generation), journal.read(journal.end - 1)
        rows["generations"] = f"{header.generation:,} to {journal.end - 1:,} ({len(journal):,})"
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
    there, here = (", ".join(f"{value:g}" for value in values) for values in (first, last))
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
        raise ModuleNotFoundError("--plot draws with matplotlib: pip install 'lightning-evo[plot]'.") from error
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
            sys.exit(
                f"lightning-evo journal: matplotlib draws no {picture.suffix} files. Name the picture .png, .pdf or "
                f".svg (or {', '.join(f'.{kind}' for kind in sorted(kinds) if kind not in ('png', 'pdf', 'svg'))})."
            )
        figure.savefig(picture, dpi=150)
    finally:
        pyplot.close(figure)
