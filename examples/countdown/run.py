"""A tiny model is taught how an answer looks, by backpropagation, and then learns Countdown by evolution."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from examples.countdown.data import CountdownData
from examples.countdown.model import prepared
from lightning_evo.cli.main import main as lightning_evo

__all__ = ["main"]

CONFIG = Path(__file__).with_name("tiny.yaml")


def main(arguments: list[str], *, folder: Path = Path("runs/countdown/model"), steps: int = 400) -> None:
    """Teach, then run ``lightning-evo fit --config tiny.yaml`` with further arguments.

    Args:
        arguments: Of LightningCLI; they override ``tiny.yaml``.
        folder: Where the model that was taught is kept.
        steps: Of backpropagation.
    """
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # from Lightning about torch, nothing to act on
    torch.set_num_threads(1)  # so small a model is slower with more
    data = CountdownData(train=160, held_out=32, numbers=2, largest=12, operations="+-*", chat=False)
    rows = [data.train_rows[number] for number in range(len(data.train_rows))]  # type: ignore[arg-type]
    where = prepared(folder, rows, steps)
    lightning_evo(["fit", "--config", str(CONFIG), f"--model.init_args.model={where}", *arguments])
