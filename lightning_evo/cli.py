"""``lightning-evo``: LightningCLI with the strategies registered, plus tools.

``lightning-evo fit --config config.yaml`` (and ``validate``, ``test``, ``predict``) is LightningCLI; the current
folder is importable, so that ``class_path: my_file.MyModule`` finds your code. ``lightning-evo algorithms`` lists the
algorithms.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table

import lightning_evo
from lightning_evo import algorithms

__all__ = ["EvoCLI", "main"]


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
    if arguments[:1] == ["algorithms"]:
        if len(arguments) > 1:
            sys.exit(f"`lightning-evo algorithms` takes no arguments, got {' '.join(arguments[1:])}.")
        Console().print(algorithms_table())
        return
    if arguments[:1] == ["--version"]:
        print(f"lightning-evo {lightning_evo.__version__}")
        return
    # As `python -m` does: class paths in the configuration may name files in this folder. (Not "": while jsonargparse
    # reads a configuration, the current folder is the configuration's.)
    sys.path.insert(0, os.getcwd())
    sys.argv[:] = ["lightning-evo", *arguments]  # where LightningCLI reads them
    EvoCLI()


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
