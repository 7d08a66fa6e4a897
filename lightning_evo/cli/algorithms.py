"""``lightning-evo algorithms``: the registry as a table."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from lightning_evo import algorithms

__all__ = ["SUMMARY", "algorithms_table", "parser", "run"]

SUMMARY = "every algorithm with its defaults"


def parser() -> argparse.ArgumentParser:
    """There are no options."""
    return argparse.ArgumentParser("lightning-evo algorithms", description="List every algorithm with its defaults.")


def run(options: argparse.Namespace) -> None:
    """Prints the table."""
    Console().print(algorithms_table())


def algorithms_table() -> Table:
    """Each algorithm's name, one line about it, its paper and its defaults."""
    table = Table(title="Algorithms: EvoStrategy(name, …)", show_lines=True)
    for heading in ("name", "what it is", "paper", "defaults"):
        table.add_column(heading, overflow="fold")
    for name in algorithms.available():
        factory = algorithms.get(name)
        defaults = ", ".join(f"{option}={value}" for option, value in factory.defaults.items())
        table.add_row(f"[bold]{name}[/bold]", factory.summary, factory.paper, defaults)
    return table
