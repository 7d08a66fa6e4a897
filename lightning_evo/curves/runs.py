"""A run as a logger's folder has it: the values of its metrics by step, and its settings."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_evo.utils.files import written_file
from lightning_evo.utils.messages import did_you_mean, preview

__all__ = ["FITNESS", "Curve", "Run", "metric_names", "read_run", "write_run"]

FITNESS = "evo/fitness_mean"
"""The name under which strategies log the mean fitness of a population."""

Curve = list[tuple[int, float]]
"""(step, value), by step."""

_SETTINGS = ("hparams.yaml", "config.yaml", "learning_curve.yaml")
_VALUES = ("metrics.csv", "learning_curve.csv")


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
        folder: Where it was logged.
        curves: The values of each metric, by its name.
        settings: Hyperparameters, configuration and options of the strategy as plain values, by dotted names.
    """

    folder: Path
    curves: Mapping[str, Curve]
    settings: Mapping[str, Any]

    @property
    def evolves(self) -> bool:
        """Whether it was trained by evolution, as far as its log shows."""
        return any(curve and name.startswith(("evo/", "evo_")) for name, curve in self.curves.items())

    def curve(self, metric: str) -> Curve:
        """The values of one metric; empty if it was never logged."""
        return self.curves.get(metric, [])


def read_run(folder: str | Path) -> Run:
    r"""A run from the folder of CSVLogger, TensorBoardLogger or EvolutionMonitor.

    Args:
        folder: Such as ``lightning_logs/version_0``; or the file ``metrics.csv`` in it.

    Raises:
        ValueError: If there is no log. The message says what was found, and what to name.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "metrics.csv").write_text("step,val_acc\n4,0.25\n8,0.5\n")
        >>> _ = (folder / "hparams.yaml").write_text("lr: 0.1\n")
        >>> run = read_run(folder)
        >>> run.curve("val_acc"), run.settings
        ([(4, 0.25), (8, 0.5)], {'lr': 0.1})
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() else [folder / name for name in _VALUES if (folder / name).is_file()]
    folder = folder.parent if folder.is_file() else folder
    if files:
        curves = _read_csv(files[0])
    elif events := sorted(folder.glob("events.out.tfevents.*")):
        curves = _read_events(events)
    else:
        raise ValueError(_not_a_run(folder))
    if not any(curves.values()):
        raise ValueError(f"{folder} holds no values yet: nothing was logged. Wait for the run, or name another.")
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        if (folder / name).is_file():
            settings.update(_flat(_read_yaml(folder / name)))
    return Run(folder, curves, settings)


def write_run(folder: Path, curves: Mapping[str, Curve], settings: Mapping[str, Any]) -> None:
    """Writes ``learning_curve.csv`` and ``learning_curve.yaml``, for :func:`read_run`.

    Args:
        folder: Where to; it must exist. Files of these names are replaced.
        curves: The values of each metric.
        settings: Plain values, also in dictionaries.
    """
    steps: dict[int, dict[str, float]] = {}
    for metric, curve in curves.items():
        for step, value in curve:
            steps.setdefault(step, {})[metric] = value
    with written_file(folder / "learning_curve.csv", overwrite=True) as new, open(new, "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *curves])
        writer.writeheader()
        writer.writerows({"step": step, **values} for step, values in sorted(steps.items()))
    with written_file(folder / "learning_curve.yaml", overwrite=True) as new:
        plain = json.loads(json.dumps(dict(settings), default=str))  # no NumPy scalars, and the like
        new.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def metric_names(runs: Iterable[Run], asked_for: Iterable[str] = ()) -> list[str]:
    """Which metrics to show of several runs.

    Args:
        runs: The runs.
        asked_for: Names that the user gives; none to choose: validation metrics that all runs have, else the
            mean fitness, else whatever all runs have.

    Raises:
        ValueError: If no run logged a metric that was asked for, or the runs have none in common.
    """
    runs = list(runs)
    known = list(dict.fromkeys(name for run in runs for name, curve in run.curves.items() if curve))
    asked_for = list(dict.fromkeys(asked_for))
    for name in asked_for:
        if name not in known:
            raise ValueError(f"No run logged {name!r}.{did_you_mean(name, known)} They logged: {preview(known)}.")
    if asked_for:
        return asked_for
    common = [name for name in known if all(run.curve(name) for run in runs)]
    validation = [name for name in common if name.lower().startswith(("val", "valid", "test", "eval"))]
    own = [name for name in common if not name.startswith(("evo/", "evo_"))]
    chosen = validation or ([FITNESS] if FITNESS in common else own)
    if not chosen:
        raise ValueError(f"The runs have no metric in common. Name what to show by --metric: {preview(known)}.")
    return chosen[:4]


def _read_csv(file: Path) -> dict[str, Curve]:
    curves: dict[str, dict[int, float]] = {}
    with open(file, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames is None or "step" not in reader.fieldnames:
            raise ValueError(f"{file} has no column 'step', as the files of CSVLogger and EvolutionMonitor have.")
        names = [name for name in reader.fieldnames if name not in ("step", "epoch")]
        curves = {name: {} for name in names}
        for row in reader:
            step = _number(row["step"])
            for name in names if step is not None else ():
                value = _number(row[name])
                if value is not None and step is not None:
                    curves[name][int(step)] = value  # of a step that was logged twice the last one counts
    return {name: sorted(values.items()) for name, values in curves.items()}


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _read_events(files: list[Path]) -> dict[str, Curve]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{files[0].parent} was logged for TensorBoard, which is needed to read it: pip install tensorboard. "
            "Or log with CSVLogger, too."
        ) from error
    curves: dict[str, dict[int, float]] = {}
    for file in files:
        events: Any = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            if name not in ("epoch", "hp_metric"):
                curves.setdefault(name, {}).update((event.step, event.value) for event in events.Scalars(name))
    return {name: sorted(values.items()) for name, values in curves.items()}


def _not_a_run(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist. Name a folder of CSVLogger, such as lightning_logs/version_0."
    within = [path.parent for name in _VALUES for path in folder.glob(f"*/{name}")]
    if within:
        names = preview(sorted({str(path) for path in within}), limit=5)
        return f"{folder} is not a run, but holds some: name {names}."
    return (
        f"{folder} holds neither metrics.csv (of CSVLogger) nor learning_curve.csv (of EvolutionMonitor) nor events of "
        "TensorBoard. Name the folder of a run, such as lightning_logs/version_0."
    )


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads what Lightning saves, tuples and the like, as plain values."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value or suffix.rpartition(":")[2]


for _tag in ("tag:yaml.org,2002:python/", "!"):
    _Loader.add_multi_constructor(_tag, _plain)


def _read_yaml(file: Path) -> Mapping[Any, Any]:
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError:  # settings only tell runs apart
        return {}
    return found if isinstance(found, Mapping) else {}


def _flat(settings: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted names; a class of a configuration is one setting, and so is a schedule."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{above}.{name}" if above else str(name)
        if str(name).startswith("_"):
            continue
        if name == "init_args" and above:
            key = above
        if name == "class_path" and above:
            flat[above] = str(value).rpartition(".")[2]
        elif isinstance(value, Mapping) and value:
            schedule = value.get("schedule", value)
            if isinstance(schedule, Mapping) and {"kind", "start", "end"} <= schedule.keys():
                flat[key] = f"{schedule['kind']} {_short(schedule['start'])} to {_short(schedule['end'])}"
            else:
                flat.update(_flat(value, key))
        else:
            flat[key] = value if not isinstance(value, float) or math.isfinite(value) else str(value)
    return flat


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
