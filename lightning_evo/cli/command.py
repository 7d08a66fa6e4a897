"""``lightning-evo``: LightningCLI with the strategies registered, plus tools.

``lightning-evo fit --config config.yaml`` (and ``validate``, ``test``, ``predict``) is LightningCLI; the current
folder is importable, so that ``class_path: my_file.MyModule`` finds your code. :mod:`~lightning_evo.cli.main` comes
before it, and runs tools without importing Lightning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI

import lightning_evo
from lightning_evo.cli.tools import SUMMARIES, TOOLS, run_tool
from lightning_evo.utils.messages import did_you_mean

__all__ = ["TOOLS", "EvoCLI", "main"]


class EvoCLI(LightningCLI):
    """LightningCLI for evolution: the strategy is ``evo`` unless the configuration names another.

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
    commands = [*EvoCLI.subcommands(), *TOOLS]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        hint = did_you_mean(arguments[0], commands)
        sys.exit(f"lightning-evo has no command {arguments[0]!r}.{hint} Commands: {', '.join(commands)}.")
    if arguments and arguments[0] in TOOLS:
        run_tool(arguments[0], arguments[1:])
    elif arguments[:1] == ["--version"]:
        print(f"lightning-evo {lightning_evo.__version__}")
    else:
        _run_lightning(arguments)


def _run_lightning(arguments: Sequence[str]) -> None:
    # As `python -m` does: class paths in the configuration may name files in this folder. (Not "": while jsonargparse
    # reads a configuration, the current folder is the configuration's.)
    sys.path.insert(0, os.getcwd())
    sys.argv[:] = ["lightning-evo", *arguments]  # where LightningCLI reads them
    tools = "; ".join(f"{name}: {summary}" for name, summary in SUMMARIES.items())
    EvoCLI(parser_kwargs={"epilog": f"Further commands: {tools}."})
