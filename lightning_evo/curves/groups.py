"""Which runs differ in their seeds only, and what to call each: by what tells it from the others."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_evo.curves.runs import Curve, Run

__all__ = ["Band", "Group", "grouped"]

_SEEDS = frozenset({"seed", "seed_everything", "random_seed", "random_state"})
_PLACES = frozenset({"ckpt_path", "default_root_dir", "dirpath", "log_dir", "output_dir", "save_dir", "version"})
_WITHOUT_EFFECT = (  # on what is learnt
    "trainer.callbacks", "trainer.logger", "trainer.enable_", "trainer.log_every_n_steps", "trainer.detect_anomaly",
)  # fmt: skip


@dataclass(frozen=True)
class Band:
    """The curves of several runs of the same settings, as one.

    Attributes:
        steps: Where all of them have values, or lie between two.
        median: At each step.
        lowest: At each step.
        highest: At each step.
    """

    steps: list[int]
    median: list[float]
    lowest: list[float]
    highest: list[float]


@dataclass
class Group:
    """Runs of the same settings.

    Attributes:
        label: What tells them from the others.
        runs: Their seeds differ, or nothing does.
    """

    label: str
    runs: list[Run] = field(default_factory=list)

    def curves(self, metric: str) -> list[Curve]:
        """Those of the runs that logged the metric."""
        return [curve for run in self.runs if (curve := run.curve(metric))]

    def band(self, metric: str) -> Band | None:
        """Median and spread of several runs, as far as all of them go; ``None`` if fewer than two logged the metric.

        Between its steps a run's curve is a straight line.
        """
        curves = self.curves(metric)
        if len(curves) < 2:
            return None
        first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
        steps = sorted({step for curve in curves for step, _ in curve if first <= step <= last})
        if not steps:
            return None
        values = [[_at(curve, step) for curve in curves] for step in steps]
        return Band(steps, [statistics.median(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs, those that differ in their seeds only together, each group with a label.

    A label names the settings in which groups differ: options that only runs by evolution (or only runs by
    backpropagation) have are compared among these. A run without any settings stands for itself, under its
    folder's name.

    Example:
        >>> from pathlib import Path
        >>> values = {"val_acc": [(1, 0.5)]}
        >>> some = [Run(Path(f"version_{seed}"), values, {"lr": 0.1, "seed": seed}) for seed in (1, 2)]
        >>> [(group.label, len(group.runs)) for group in grouped([*some, Run(Path("v"), values, {"lr": 0.2})])]
        [('lr=0.1', 2), ('lr=0.2', 1)]
    """
    groups: dict[Any, Group] = {}
    for number, run in enumerate(runs):
        settings = {name: value for name, value in run.settings.items() if _counts(name)}
        key = (run.evolves, repr(sorted(settings.items()))) if settings else number
        groups.setdefault(key, Group("")).runs.append(run)
    found = list(groups.values())
    _label(found)
    return found


def _counts(name: str) -> bool:
    """Whether a setting makes another run of it than a seed would."""
    last = _last(name)
    return last not in _SEEDS and last not in _PLACES and not name.startswith(_WITHOUT_EFFECT)


def _label(groups: list[Group]) -> None:
    settings = [{name: value for name, value in group.runs[0].settings.items() if _counts(name)} for group in groups]
    evolve = [group.runs[0].evolves for group in groups]
    mixed = len(set(evolve)) == 2
    names = _telling(settings, evolve)
    short = {name: _last(name) for name in names}
    short = {name: last if list(short.values()).count(last) == 1 else name for name, last in short.items()}
    for group, own, evolves in zip(groups, settings, evolve, strict=True):
        named = [name for name in own if _last(name) == "algorithm" and isinstance(own[name], str)]
        parts = [f"{short[name]}={_shown(own[name])}" for name in names if name in own and name not in named]
        if mixed and not evolves:
            parts = ["backpropagation", *parts]
        elif named and (mixed or any(name in names for name in named)):
            parts = [str(own[named[0]]), *parts]
        elif mixed:
            parts = ["evolution", *parts]
        group.label = ", ".join(parts) or group.runs[0].folder.name
    labels = [group.label for group in groups]
    for group in groups:
        if labels.count(group.label) > 1:
            group.label = f"{group.label} ({'/'.join(group.runs[0].folder.parts[-2:])})"


def _telling(settings: list[dict[str, Any]], evolve: list[bool]) -> list[str]:
    """The settings that tell groups apart, each once, however many files name it."""
    seen: dict[tuple[str, ...], str] = {}
    for name in dict.fromkeys(name for own in settings for name in own):
        have = [name in own for own in settings]
        values = {repr(own[name]) for own in settings if name in own}
        kinds = {kind for kind, has in zip(evolve, have, strict=True) if has}
        missing = any(not has for kind, has in zip(evolve, have, strict=True) if kind in kinds)
        # What one kind alone has says nothing about the other; and what a file of one run alone has, little.
        if len(values) > 1 or (missing and values != {"None"}):
            pattern = tuple(repr(own.get(name)) for own in settings)
            known = seen.get((_last(name), *pattern))
            if known is None or len(name) < len(known):
                seen[(_last(name), *pattern)] = name
    return list(seen.values())


def _last(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 30 else f"{text[:29]}…"


def _at(curve: Curve, step: int) -> float:
    """A curve's value at a step between its first and its last."""
    before = next((s, v) for s, v in reversed(curve) if s <= step)
    after = next((s, v) for s, v in curve if s >= step)
    if before[0] == after[0]:
        return before[1]
    share = (step - before[0]) / (after[0] - before[0])
    return before[1] + share * (after[1] - before[1])
