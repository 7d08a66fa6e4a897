"""``lightning-evo``: its help, its tools, and LightningCLI for everything else.

Lightning takes seconds to import, with all that it imports, so only what trains does so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import lightning_evo
from lightning_evo.cli.tools import SUMMARIES, run_tool

__all__ = ["TRAINING", "help_text", "main"]

TRAINING = {
    "fit": "train, by LightningCLI",
    "validate": "one pass over the validation data",
    "test": "one pass over the test data",
    "predict": "predictions of a trained module",
}
"""LightningCLI's commands, and what each does in a few words."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``lightning-evo``.

    Args:
        arguments: Command line without the program's name; ``None`` takes the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments in ([], ["-h"], ["--help"]):
        print(help_text())
    elif arguments == ["--version"]:
        print(f"lightning-evo {lightning_evo.__version__}")
    elif arguments[0] in SUMMARIES:
        run_tool(arguments[0], arguments[1:])
    else:
        from lightning_evo.cli import command

        command.main(arguments)


def help_text() -> str:
    """Every command with what it does.

    Example:
        >>> help_text().splitlines()[0]
        'usage: lightning-evo COMMAND [options]'
    """
    width = max(map(len, [*TRAINING, *SUMMARIES]))

    def lines(commands: dict[str, str]) -> str:
        return "\n".join(f"  {name:{width}}  {summary}" for name, summary in commands.items())

    return (
        "usage: lightning-evo COMMAND [options]\n\n"
        'Trains LightningModules by evolution: LightningCLI with strategy "evo", and tools.\n\n'
        f"training:\n{lines(TRAINING)}\n\ntools:\n{lines(SUMMARIES)}\n\n"
        "lightning-evo COMMAND --help lists the options of a command, lightning-evo --version the version."
    )
