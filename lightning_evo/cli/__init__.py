"""The command ``lightning-evo``."""

from lightning_evo.cli.command import EvoCLI, main

__all__ = ["EvoCLI", "main"]
