"""``lightning-evo algorithms``: the registry as a table."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from lightning_evo import algorithms

__all__ = ["algorithms_table", "parser", "run"]


def parser() -> argparse.ArgumentParser:
    """There are no options."""
    return argparse.ArgumentParser("lightning-evo algorithms", description="List every algorithm with its defaults.")


def run(options: argparse.Namespace) -> None:
    """Prints the table."""
    Console().print(algorithms_table())


def algorithms_table() -> Table:
    """Each algorithm's name, one line about it, its paper and its defaults, each of which stays on one line."""
    table = Table(title="Algorithms: EvoStrategy(name, …)", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is, and its paper", overflow="fold")
    table.add_column("defaults", no_wrap=True)
    for name in algorithms.available():
        factory = algorithms.get(name)
        defaults = "\n".join(f"{option}={value}" for option, value in factory.defaults.items())
        table.add_row(f"[bold]{name}[/bold]", f"{factory.summary}\n[dim]{factory.paper}[/dim]", defaults)
    return table
