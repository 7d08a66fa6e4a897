"""The tools of ``lightning-evo``, by name. Each is imported when it is asked for: most need PyTorch, none Lightning."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from lightning_evo.cli.tool import Tool, ToolError

__all__ = ["SUMMARIES", "TOOLS", "run_tool"]

SUMMARIES = {
    "algorithms": "every algorithm with its defaults",
    "compare": "learning curves of several runs in one picture",
    "journal": "what a seed journal holds, and whether a run's weights are what it gives",
    "replay": "the weights of any generation, from a checkpoint and a journal",
}
"""What each tool does, in a few words: a file of its name in this folder."""


class _Tools(Mapping[str, Tool]):
    """Every tool by its name on the command line."""

    def __getitem__(self, name: str) -> Tool:
        if name not in SUMMARIES:
            raise KeyError(name)
        return cast(Tool, importlib.import_module(f"lightning_evo.cli.{name}"))

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)


TOOLS = _Tools()


def run_tool(name: str, arguments: Sequence[str]) -> None:
    """Runs a tool. What is wrong with its arguments or files ends the program with a line that says so.

    Args:
        name: Of the tool.
        arguments: The command line after it.
    """
    options = TOOLS[name].parser().parse_args(arguments)
    try:
        TOOLS[name].run(options)
    except (FileNotFoundError, IsADirectoryError) as error:
        given = "does not exist" if isinstance(error, FileNotFoundError) else "is a folder"
        sys.exit(f"lightning-evo {name}: {error.filename} {given}. Name a file (journals end with .evoj).")
    except (ToolError, OSError) as error:
        sys.exit(f"lightning-evo {name}: {error}")
