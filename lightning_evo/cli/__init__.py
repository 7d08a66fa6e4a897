"""The command ``lightning-evo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_evo.cli.main import main

if TYPE_CHECKING:
    from lightning_evo.cli.command import EvoCLI

__all__ = ["EvoCLI", "main"]


def __getattr__(name: str) -> Any:
    if name != "EvoCLI":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_evo.cli.command import EvoCLI  # which imports Lightning

    return EvoCLI
