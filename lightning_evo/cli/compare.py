"""``lightning-evo compare``: several runs in one picture and one table."""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_evo.cli.tool import ToolError, add_overwrite
from lightning_evo.curves.groups import Group, grouped
from lightning_evo.curves.picture import draw_groups
from lightning_evo.curves.runs import metric_names, read_run
from lightning_evo.utils.files import written_file

__all__ = ["compare_table", "parser", "run"]

_DEFAULT = Path("comparison.png")
_LOWER_IS_BETTER = re.compile(
    r"(?<![^\W_])(loss|error|perplexity|ppl|nll|mse|mae|rmse|wer|cer|bits|distance)(?![^\W_])", re.IGNORECASE
)


def parser() -> argparse.ArgumentParser:
    """The runs, what to show of them, and where to draw it."""
    parser = argparse.ArgumentParser(
        "lightning-evo compare",
        description="Draw learning curves of several runs in one picture, and print where they ended. Runs by "
        "backpropagation may be among them. Labels name the hyperparameters and options in which runs differ; those "
        "that differ in their seeds only become one curve, the median, with their spread as a band.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a folder of CSVLogger (lightning_logs/version_0), TensorBoardLogger or EvolutionMonitor",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="what to show; may be given several times (default: validation metrics that all runs have, else the mean "
        "fitness)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"the picture (.png, .pdf, .svg; default: {_DEFAULT}, which is replaced)",
    )
    add_overwrite(parser, "--output")
    return parser


def run(options: argparse.Namespace) -> None:
    """Prints the table and draws the picture."""
    output = _DEFAULT if options.output is None else options.output
    if not output.suffix:
        raise ToolError(f"The name {output} does not say which kind of picture it is. Add the kind: {output}.png.")
    try:
        folders = {folder.resolve(): folder for folder in options.runs}  # each run once
        runs = [read_run(folder) for folder in folders.values()]
        metrics = metric_names(runs, options.metric)
        groups = grouped(runs)
        for metric in metrics:
            Console().print(compare_table(groups, metric))
        with written_file(output, overwrite=options.overwrite or options.output is None) as picture:
            draw_groups(groups, metrics, picture, "lightning-evo compare")
    except (ValueError, ModuleNotFoundError) as error:
        raise ToolError(str(error)) from error
    print(f"Picture: {output}")


def compare_table(groups: Sequence[Group], metric: str) -> Table:
    """Where runs ended and how good they were at best, a line for each group.

    Of several runs that differ in their seeds only, it is the median, with the lowest and the highest.
    """
    lower = bool(_LOWER_IS_BETTER.search(metric))
    table = Table(title=metric)
    table.add_column("run", overflow="fold")
    for heading in ("runs", "steps", "last", f"{'lowest' if lower else 'highest'} (at step)"):
        table.add_column(heading, justify="right")
    for group in groups:
        curves = [finite for curve in group.curves(metric) if (finite := [p for p in curve if math.isfinite(p[1])])]
        if not curves:
            table.add_row(group.label, str(len(group.runs)), "", "not logged", "")
            continue
        best = [min(curve, key=lambda point: point[1] if lower else -point[1]) for curve in curves]
        at = statistics.median(step for step, _ in best)
        table.add_row(
            group.label,
            str(len(group.runs)),
            f"{max(curve[-1][0] for curve in curves):,}",
            _middle([curve[-1][1] for curve in curves]),
            f"{_middle([value for _, value in best])} ({at:,.0f})",
        )
    return table


def _middle(values: Sequence[float]) -> str:
    middle = f"{statistics.median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} [{min(values):.4g} to {max(values):.4g}]"
