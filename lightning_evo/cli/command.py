"""LightningCLI with the strategies registered.

``lightning-evo fit --config config.yaml`` (and ``validate``, ``test``, ``predict``) is LightningCLI; the current
folder is importable, so that ``class_path: my_file.MyModule`` finds your code. :mod:`~lightning_evo.cli.main` comes
before it, and runs tools without importing Lightning.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from lightning_evo.cli.errors import ConfigurationError, reason
from lightning_evo.cli.tools import SUMMARIES
from lightning_evo.utils.messages import did_you_mean

__all__ = ["EvoCLI", "main"]


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

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's, whose errors end with what is wrong."""
        parser = super().init_parser(**kwargs)
        error = parser.error
        self._parsers = [*getattr(self, "_parsers", []), parser]  # that of each subcommand is made here, too

        def explained(message: str, *rest: Any, **kwargs: Any) -> Any:
            known = {option for each in self._parsers for option in re.findall(r"--[\w.]+", each.format_usage())}
            why = reason(str(message), sorted(known))
            return error(message if why is None else f"{message}\n{why}", *rest, **kwargs)

        vars(parser)["error"] = explained
        return parser

    @override
    def instantiate_classes(self) -> None:
        """Make what the configuration describes.

        Raises:
            ConfigurationError: If an option of a class of ours has a wrong value.
        """
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            ours = "Given value: Namespace(class_path='lightning_evo." in str(error)
            why = reason(str(error)) if ours else None
            if why is None:
                raise
            raise ConfigurationError(why) from error


def main(arguments: Sequence[str]) -> None:
    """Run LightningCLI.

    Args:
        arguments: Command line without the program's name.
    """
    commands = [*EvoCLI.subcommands(), *SUMMARIES]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        hint = did_you_mean(arguments[0], commands)
        sys.exit(f"lightning-evo has no command {arguments[0]!r}.{hint} Commands: {', '.join(commands)}.")
    # As `python -m` does: class paths in the configuration may name files in this folder. (Not "": while jsonargparse
    # reads a configuration, the current folder is the configuration's.)
    sys.path.insert(0, os.getcwd())
    sys.argv[:] = ["lightning-evo", *arguments]  # where LightningCLI reads them
    tools = "; ".join(f"{name}: {summary}" for name, summary in SUMMARIES.items())
    try:
        EvoCLI(parser_kwargs={"epilog": f"Further commands: {tools}."})
    except ConfigurationError as error:
        sys.exit(f"lightning-evo: {error}")
