"""What a tool of ``lightning-evo`` is: a file with a parser and a function that runs it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

__all__ = ["Tool", "ToolError", "add_overwrite", "add_start"]


class Tool(Protocol):
    """A tool, such as ``lightning-evo journal``: each is a module with these names, listed in ``tools.SUMMARIES``."""

    def parser(self) -> argparse.ArgumentParser:
        """The tool's options."""

    def run(self, options: argparse.Namespace) -> None:
        """Does the work and prints the result.

        Args:
            options: What :meth:`parser` made of the command line.

        Raises:
            ToolError: The options don't fit each other or the files. Shown without a traceback, as ``OSError`` is.
        """


class ToolError(Exception):
    """Something is wrong with what the user gave: the message says what, and what to do."""


def add_overwrite(parser: argparse.ArgumentParser, option: str) -> None:
    """Adds ``--overwrite``.

    Args:
        parser: The tool's parser.
        option: The option that names the file to be replaced, ``--output``.
    """
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help=f"replace the file of {option} if it exists; without this it is an error. In both cases the file appears "
        "complete or not at all",
    )


def add_start(parser: argparse.ArgumentParser, where: str = "") -> None:
    """Adds ``--start``.

    Args:
        parser: The tool's parser.
        where: What it is for, if not for all that the tool does.
    """
    parser.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help=f"{where}of a run with an anchor: the weights that its script built, to which it was drawn back (default: "
        "those of the first checkpoint)",
    )
