"""A summary and a learning curve at the end of a run, alone or beside earlier ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_warn
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from lightning_evo.curves.groups import grouped
from lightning_evo.curves.picture import draw_groups, draw_run, pyplot
from lightning_evo.curves.runs import FITNESS, Curve, metric_names, read_run, write_run
from lightning_evo.journal import describe_algorithm

__all__ = ["EvolutionMonitor"]


class EvolutionMonitor(Callback):
    """Records fitness and one validation metric, and at the end prints a table and draws the learning curve.

    The picture is ``learning_curve.png``. Beside it ``learning_curve.csv`` and ``learning_curve.yaml`` hold the values
    and options of the run, so that ``lightning-evo compare`` can draw it among others, whatever the logger.

    Args:
        metric: Name of a validation metric that the module logs, such as ``"val_acc"``; ``None`` for fitness only.
        output_dir: Folder for these files; ``None`` takes the logger's folder, or the Trainer's ``default_root_dir``.
        compare_with: Folders of earlier runs, as ``lightning-evo compare`` takes them, to draw in the same picture.

    Raises:
        ModuleNotFoundError: At the start of fit, if matplotlib is not installed.
        ValueError: At the start of fit, if a folder of ``compare_with`` holds no run.

    Example:
        >>> from lightning_evo.callbacks import EvolutionMonitor
        >>> monitor = EvolutionMonitor(metric="val_acc")
    """

    def __init__(
        self,
        metric: str | None = None,
        output_dir: str | Path | None = None,
        compare_with: Sequence[str | Path] = (),
    ) -> None:
        self.metric = metric
        self.output_dir = output_dir
        self.compare_with = [compare_with] if isinstance(compare_with, str | Path) else list(compare_with)
        self.fitness: Curve = []
        """(generation, mean fitness of the population) for every generation."""
        self.validation: Curve = []
        """(generation, value of ``metric``) for every validation run."""
        self._members_per_second: list[float] = []
        self._start = 0.0

    @override
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pyplot("EvolutionMonitor")  # say at the start, not at the end, that it is missing
        for folder in self.compare_with:
            read_run(folder)
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
        curves = {
            name: curve for name, curve in ((FITNESS, self.fitness), (self.metric, self.validation)) if name and curve
        }
        write_run(folder, curves, _settings(trainer, pl_module))
        if not (self.compare_with and curves and self._draw_beside_others(folder, picture)):
            draw_run(self.fitness, self.validation, self.metric, picture, "EvolutionMonitor")
        table = Table(title="Evolution", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for name, value in self._summary(trainer, pl_module).items():
            table.add_row(name, value)
        Console().print(table)
        print(f"Learning curve: {picture}")
        if trainer.logger is not None and trainer.log_dir:
            print(f"Log: {trainer.log_dir}")

    def _draw_beside_others(self, folder: Path, picture: Path) -> bool:
        """Whether the run could be drawn with those that it is compared with; if not, a warning says why."""
        try:
            runs = [read_run(folder / "learning_curve.csv"), *map(read_run, self.compare_with)]
            draw_groups(grouped(runs), metric_names(runs), picture, "EvolutionMonitor")
        except ValueError as error:  # a run that has ended must not fail of a picture
            rank_zero_warn(f"EvolutionMonitor draws this run alone: {error}")
            return False
        return True

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


def _settings(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """What tells this run from others, as plain values: options of the algorithm, and hyperparameters."""
    evolution = getattr(trainer.strategy, "evolution", None)
    options: dict[str, Any] = {}
    if evolution is not None:
        options = {**describe_algorithm(evolution.algorithm), "seed": evolution.state.seed}
        options["algorithm"] = options.pop("name")
        options.pop("class")
    datamodule = getattr(trainer, "datamodule", None)
    own = {}
    for part in (datamodule, pl_module):
        given = {} if part is None else dict(part.hparams)
        own.update({str(name): value for name, value in given.items() if isinstance(value, bool | int | float | str)})
    return {**own, "strategy": options} if options else own


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB on the GPU"
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return "not measured on this system"
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:,.0f} MiB (whole process)"
