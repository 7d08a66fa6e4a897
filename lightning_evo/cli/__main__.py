"""``python -m lightning_evo.cli`` is ``lightning-evo``."""

from lightning_evo.cli.main import main

main()
