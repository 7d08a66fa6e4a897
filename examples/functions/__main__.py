"""``python -m examples.functions``: searches on classical functions, and a picture of where their members go.

Each search trains :class:`.functions.Point`, a module of two weights, by ``Trainer(strategy=EvoStrategy(...))``. A
panel shows the members of a few generations over the function's contours, and the way of the center.
"""

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from examples.functions.functions import FUNCTIONS, Point
from lightning_evo import EvoStrategy
from lightning_evo.curves.picture import pyplot

COLOURS = ("#d7301f", "#fc8d59", "#2b8cbe", "#08306b")
"""From the first generation that is drawn to the last."""


class Watch(Callback):
    """Remembers the center of all generations, and the members of some.

    Args:
        shown: The generations whose members are remembered.

    Attributes:
        centers: Of the generations so far, each ``[2]``.
        members: By generation, ``[members, 2]``.
    """

    def __init__(self, shown: list[int]) -> None:
        self.shown = shown
        self.centers: list[Tensor] = []
        self.members: dict[int, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, module: Point, batch: Tensor, batch_idx: int) -> None:
        if len(self.centers) in self.shown:
            evolution = trainer.strategy.evolution  # the next population is a function of the state
            self.members[len(self.centers)] = evolution.algorithm.ask(evolution.state).vectors()
        self.centers.append(module.point.detach().clone())


def search(function: str, algorithm: str, population: int, shown: list[int], seed: int) -> tuple[Watch, float]:
    """Train a point by one search.

    Returns:
        What happened on the way, and the height at the end.
    """
    module, watch = Point(function, generations=max(shown) + 1), Watch(shown)
    trainer = Trainer(
        strategy=EvoStrategy(algorithm, population=population, sigma=FUNCTIONS[function].sigma, seed=seed),
        callbacks=[watch], max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    return watch, float(module.height(module.point.detach()))


def draw(panel: Any, function: str, watch: Watch) -> None:
    """One search over the contours of its function."""
    case = FUNCTIONS[function]
    across, up = torch.linspace(-3.5, 3.5, 201), torch.linspace(-2.5, 4.0, 201)
    x, y = torch.meshgrid(across, up, indexing="xy")
    heights = case.height(torch.stack([x, y], dim=-1))
    shares = heights.flatten().argsort().argsort().view_as(heights) / heights.numel()  # of the points that are lower
    panel.contourf(across, up, shares, levels=14, cmap="Greys", vmin=0, vmax=2)
    panel.contour(across, up, shares, levels=14, colors="white", linewidths=0.5)
    panel.plot(*torch.stack(watch.centers).T, color="black", linewidth=0.8, alpha=0.6, zorder=2)
    for colour, (generation, members) in zip(COLOURS, watch.members.items(), strict=False):
        panel.scatter(*members.T, s=14, color=colour, alpha=0.8, linewidths=0, zorder=3)
        panel.plot(*watch.centers[generation], "P", color=colour, markersize=9, markeredgecolor="white", zorder=4)
    panel.plot(case.optimum, case.optimum, "*", color="gold", markersize=13, markeredgecolor="black", zorder=2.5)
    panel.set(xlim=(-3.5, 3.5), ylim=(-2.5, 4.0), xticks=[], yticks=[])


def main(arguments: list[str] | None = None) -> None:
    """Search, print the heights, draw the picture."""
    parser = argparse.ArgumentParser("python -m examples.functions", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=["ellipsoid", "rosenbrock", "rastrigin"])
    parser.add_argument("--algorithms", nargs="+", default=["cma_es", "snes", "particle_swarm"])
    parser.add_argument("--generations", nargs="+", type=int, default=[0, 5, 15, 40], help="at most four, to draw")
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("functions.png"))
    options = parser.parse_args(arguments)
    shown = sorted(set(options.generations))
    if len(shown) > len(COLOURS) or shown[0] < 0:
        parser.error(f"--generations takes at most {len(COLOURS)} numbers from 0 on, got {options.generations}")
    plot = pyplot("python -m examples.functions")
    size = (3.4 * len(options.algorithms), 3.3 * len(options.functions) + 0.4)
    figure, panels = plot.subplots(
        len(options.functions), len(options.algorithms), figsize=size, squeeze=False, layout="constrained"
    )
    for row, function in zip(panels, options.functions, strict=True):
        for panel, algorithm in zip(row, options.algorithms, strict=True):
            watch, height = search(function, algorithm, options.population, shown, options.seed)
            draw(panel, function, watch)
            said = f"{function}, {algorithm}: height {height:.2g} after {len(watch.centers)} generations"
            print(said, flush=True)
            panel.set_title(f"{algorithm}: height {height:.1g}", fontsize=10)
        row[0].set_ylabel(function)
    handles = [
        plot.Line2D([], [], color=colour, marker="o", linestyle="", label=f"generation {generation}")
        for colour, generation in zip(COLOURS, shown, strict=False)
    ]
    handles += [
        plot.Line2D([], [], color="grey", marker="P", label="center and its way"),
        plot.Line2D([], [], color="gold", marker="*", markeredgecolor="black", linestyle="", label="optimum"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(options.output, dpi=130)
    plot.close(figure)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning_evo"):
        logging.getLogger(name).setLevel(logging.WARNING)
    main()
