"""A summary and a learning curve at the end of a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from typing_extensions import override

__all__ = ["EvolutionMonitor"]


class EvolutionMonitor(Callback):
    """Records fitness and one validation metric, and at the end prints a table and draws the learning curve.

    Args:
        metric: Name of a validation metric that the module logs, such as ``"val_acc"``; ``None`` for fitness only.
        output_dir: Folder for ``learning_curve.png``; ``None`` takes the logger's folder, or the Trainer's
            ``default_root_dir``.

    Raises:
        ModuleNotFoundError: At the start of fit, if matplotlib is not installed.

    Example:
        >>> from lightning_evo.callbacks import EvolutionMonitor
        >>> monitor = EvolutionMonitor(metric="val_acc")
    """

    def __init__(self, metric: str | None = None, output_dir: str | Path | None = None) -> None:
        self.metric = metric
        self.output_dir = output_dir
        self.fitness: list[tuple[int, float]] = []
        """(generation, mean fitness of the population) for every generation."""
        self.validation: list[tuple[int, float]] = []
        """(generation, value of ``metric``) for every validation run."""
        self._members_per_second: list[float] = []
        self._start = 0.0

    @override
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        _pyplot()  # say at the start, not at the end, that it is missing
        self.fitness, self.validation, self._members_per_second = [], [], []
        self._start = time.perf_counter()

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = trainer.callback_metrics
        if "evo/update_norm" not in metrics or (self.fitness and self.fitness[-1][0] == trainer.global_step):
            return  # the generation goes on with the next batch
        self.fitness.append((trainer.global_step, float(metrics["evo/fitness_mean"])))
        self._members_per_second.append(float(metrics["evo/members_per_second"]))

    @override
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.metric is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.metric not in trainer.callback_metrics:
            raise KeyError(
                f"EvolutionMonitor(metric={self.metric!r}): the module logs no such validation metric. It logs: "
                f"{', '.join(sorted(trainer.callback_metrics))}."
            )
        self.validation.append((trainer.global_step, float(trainer.callback_metrics[self.metric])))

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # Not on_fit_end: by now a progress bar is finished, too.
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = Path(self.output_dir or trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        picture = folder / "learning_curve.png"
        self._draw(picture)
        table = Table(title="Evolution", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for name, value in self._summary(trainer, pl_module).items():
            table.add_row(name, value)
        Console().print(table)
        print(f"Learning curve: {picture}")
        if trainer.logger is not None and trainer.log_dir:
            print(f"Log: {trainer.log_dir}")

    def _summary(self, trainer: Any, pl_module: Any) -> dict[str, str]:
        summary = {}
        if self.validation:
            generation, value = self.validation[-1]
            summary[f"{self.metric} (held out), generation {generation:,}"] = f"{value:.4f}"
        if self.fitness:
            summary["mean fitness of the last population"] = f"{self.fitness[-1][1]:.4f}"
        summary["generations"] = f"{trainer.global_step:,}"
        if self._members_per_second:
            summary["members per second (median)"] = (
                f"{sorted(self._members_per_second)[len(self._members_per_second) // 2]:,.0f}"
            )
        summary["time"] = f"{time.perf_counter() - self._start:.1f} s"
        summary["peak memory"] = _peak_memory(pl_module.device)
        return summary

    def _draw(self, picture: Path) -> None:
        pyplot = _pyplot()
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        if self.fitness:
            axes.plot(
                *zip(*self.fitness, strict=True),
                color="C0",
                alpha=0.5,
                linewidth=1,
                label="mean fitness of the population",
            )
        if self.validation:
            right = axes if self._same_scale() else axes.twinx()
            right.plot(*zip(*self.validation, strict=True), color="C3", linewidth=2, label=f"{self.metric} (held out)")
            right.set_ylabel(self.metric)
        shared = self.validation and self._same_scale()
        axes.set(
            xlabel="generation", ylabel=f"fitness and {self.metric}" if shared else "fitness", title="Learning curve"
        )
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2)
        figure.savefig(picture, dpi=150)
        pyplot.close(figure)

    def _same_scale(self) -> bool:
        """Whether fitness and metric can share an axis: both within [0, 1], as accuracies are."""
        return all(0 <= value <= 1 for _, value in [*self.fitness, *self.validation])


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB on the GPU"
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return "not measured on this system"
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:,.0f} MiB (whole process)"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "EvolutionMonitor draws with matplotlib: pip install 'lightning-evo[plot]', or leave the callback out."
        ) from error
    matplotlib.use("agg", force=False)
    from matplotlib import pyplot

    return pyplot
