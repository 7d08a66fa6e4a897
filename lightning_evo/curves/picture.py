"""Pictures of learning curves, by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_evo.curves.groups import Group
from lightning_evo.curves.runs import Curve

__all__ = ["draw_fitness", "draw_groups", "draw_run", "pyplot"]

_PANEL = (7.0, 4.0)  # inches


def pyplot(who: str) -> Any:
    """The ``pyplot`` of matplotlib, drawing into files.

    Args:
        who: What draws, for the message.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{who} draws with matplotlib: pip install 'lightning-evo[plot]'.") from error
    matplotlib.use("agg", force=False)
    from matplotlib import pyplot

    return pyplot


@contextmanager
def _figure(file: Path, who: str, panels: int = 1) -> Iterator[Any]:
    """A figure that is written to a file.

    Raises:
        ValueError: If matplotlib draws no such files.
    """
    plot = pyplot(who)
    width, height = _PANEL
    across = min(panels, 2)
    figure = plot.figure(figsize=(width * (1 if panels == 1 else 0.8 * across), height * -(-panels // 2)))
    figure.set_layout_engine("constrained")
    try:
        kinds = figure.canvas.get_supported_filetypes()
        if file.suffix[1:].lower() not in kinds:
            raise ValueError(
                f"matplotlib draws no {file.suffix} files. Name the picture .png, .pdf or .svg (or "
                f"{', '.join(f'.{kind}' for kind in sorted(kinds) if kind not in ('png', 'pdf', 'svg'))})."
            )
        yield figure
        figure.savefig(file, dpi=150)
    finally:
        plot.close(figure)


def draw_groups(
    groups: Sequence[Group], metrics: Sequence[str], file: Path, who: str = "This", logarithmic: Sequence[str] = ()
) -> None:
    """Several runs in one picture: a panel for each metric, a colour for each group.

    Runs that differ in their seeds only are drawn thin, with their median thick and the spread between the lowest and
    the highest as a band.

    Args:
        groups: The runs.
        metrics: Names of what is drawn.
        file: Where to, ``.png``, ``.pdf`` or ``.svg``; replaced if it exists.
        who: What draws, for messages.
        logarithmic: Metrics that are drawn on a logarithmic scale.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If matplotlib draws no such files.
    """
    with _figure(file, who, len(metrics)) as figure:
        across = min(len(metrics), 2)
        panels = [figure.add_subplot(-(-len(metrics) // 2), across, number + 1) for number in range(len(metrics))]
        for axes, metric in zip(panels, metrics, strict=True):
            for number, group in enumerate(groups):
                _draw_group(axes, group, metric, f"C{number % 10}", "-" if number < 10 else "--")
            axes.set(xlabel="step", ylabel=metric, yscale="log" if metric in logarithmic else "linear")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        lines: dict[str, Any] = {}
        for axes in panels:
            for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
                lines.setdefault(label, line)
        columns = 1 if max(map(len, lines), default=0) > 40 else 2
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns)


def _draw_group(axes: Any, group: Group, metric: str, color: str, style: str) -> None:
    curves, band = group.curves(metric), group.band(metric)
    many = f" ({len(group.runs)} runs)" if len(group.runs) > 1 else ""
    if band is None:
        for curve in curves:
            _line(axes, curve, color=color, linestyle=style, linewidth=1.5, label=f"{group.label}{many}")
        return
    for curve in curves:
        _line(axes, curve, color=color, linestyle=style, linewidth=0.6, alpha=0.4)
    axes.fill_between(band.steps, band.lowest, band.highest, color=color, alpha=0.2, linewidth=0)
    median = list(zip(band.steps, band.median, strict=True))
    _line(axes, median, color=color, linestyle=style, linewidth=2, label=f"{group.label}{many}")


def _line(axes: Any, curve: Curve, **style: Any) -> None:
    axes.plot(*zip(*curve, strict=True), marker="o" if len(curve) == 1 else None, **style)


def draw_run(fitness: Curve, validation: Curve, metric: str | None, file: Path, who: str = "This") -> None:
    """One run: the population's mean fitness and a validation metric, on one scale if both lie in [0, 1].

    Args:
        fitness: The mean fitness of each generation.
        validation: Values of the metric.
        metric: Its name.
        file: Where to; replaced if it exists.
        who: What draws, for messages.
    """
    # As accuracies do.
    shared = bool(validation) and all(0 <= value <= 1 for _, value in [*fitness, *validation])
    with _figure(file, who) as figure:
        axes = figure.add_subplot()
        if fitness:
            _line(axes, fitness, color="C0", alpha=0.5, linewidth=1, label="mean fitness of the population")
        if validation:
            right = axes if shared else axes.twinx()
            _line(right, validation, color="C3", linewidth=2, label=f"{metric} (held out)")
            right.set_ylabel(metric)
        label = f"fitness and {metric}" if shared else "fitness"
        axes.set(xlabel="generation", ylabel=label, title="Learning curve")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2)


def draw_fitness(generations: Sequence[int], means: Sequence[float], bests: Sequence[float], file: Path) -> None:
    """The fitness that a journal has recorded.

    Args:
        generations: Their numbers.
        means: The mean fitness of each.
        bests: The best member's of each.
        file: Where to; replaced if it exists.
    """
    with _figure(file, "--plot") as figure:
        axes = figure.add_subplot()
        axes.plot(generations, means, linewidth=1, label="mean of the population")
        axes.plot(generations, bests, linewidth=1, alpha=0.5, label="best member")
        axes.set(xlabel="generation", ylabel="fitness")
        axes.grid(alpha=0.3)
        axes.legend()
