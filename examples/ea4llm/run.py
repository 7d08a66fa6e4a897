"""Pretrains a language model by evolution and reports what came of it; run by ``python -m examples.ea4llm``.

Every setting is in ``config.yaml`` and on the command line, e.g. ``--data.path=novel.txt --trainer.max_steps=1000``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningArgumentParser

from examples.ea4llm.data import TextDataModule
from examples.ea4llm.model import CausalLM
from lightning_evo.cli.command import EvoCLI

__all__ = ["EA4LLMCLI", "HeldOutLoss", "Result", "command_line", "main"]

CONFIG = Path(__file__).with_name("config.yaml")
PROMPT = "The "


@dataclass(frozen=True)
class Result:
    """What a run achieved; losses are in nats per byte, on text that the model was not trained on.

    Attributes:
        generations: How many updates were made.
        initial_loss: Held-out loss of the randomly initialised model.
        final_loss: Held-out loss after training.
        initial_bits: Bits per byte at the start; text encoded by a model of equal probabilities takes about 8.
        final_bits: Bits per byte at the end.
        continuation: What the trained model wrote.
    """

    generations: int
    initial_loss: float
    final_loss: float
    initial_bits: float
    final_bits: float
    continuation: str


class HeldOutLoss(pl.Callback):
    """Prints one line per validation, which reads well in a log file, too."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":  # the validations before and after go into the result instead
            return
        metrics = trainer.callback_metrics
        fitness = f", fitness {metrics['evo/fitness_mean']:.3f}" if "evo/fitness_mean" in metrics else ""
        trainer.print(
            f"  generation {trainer.global_step:5d}: held-out loss {metrics['val_loss']:.3f} "
            f"({metrics['val_bits_per_byte']:.2f} bits per byte){fitness}, {time.perf_counter() - self._start:.0f} s"
        )


class EA4LLMCLI(EvoCLI):
    """One place for what model and data must agree on."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.max_length", "model.max_length")


def command_line(args: list[str] | None = None) -> EA4LLMCLI:
    """Trainer, model and data as ``config.yaml`` and the arguments say; ``None`` takes the process's own."""
    return EA4LLMCLI(
        CausalLM,
        TextDataModule,
        args=args,
        run=False,
        save_config_callback=None,
        parser_kwargs={"default_config_files": [str(CONFIG)]},
    )


def main(args: list[str] | None = None) -> Result:
    """Trains, measures held-out loss before and after, prints the result and returns it."""
    cli = command_line(args)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if model.size == "tiny":
        # Its tensors are too small to share among cores. Two idle cores made it a little faster than one, but threads
        # wait for each other: with another program on the same cores it became twenty times slower.
        torch.set_num_threads(1)
    trainer.print(f"Text: {data.path.name}. Model: {model.size}, {model.preset.parameter_count():,} parameters.")

    before = _validate(trainer, model, data)
    trainer.fit(model, data)
    after = _validate(trainer, model, data)
    result = Result(
        generations=trainer.global_step,
        initial_loss=before["val_loss"],
        final_loss=after["val_loss"],
        initial_bits=before["val_bits_per_byte"],
        final_bits=after["val_bits_per_byte"],
        continuation=model.continue_text(PROMPT),
    )
    trainer.print(
        f"{result.generations} generations: held-out loss {result.initial_loss:.3f} -> {result.final_loss:.3f} nats "
        f"per byte, {result.initial_bits:.2f} -> {result.final_bits:.2f} bits per byte.\n"
        f"For comparison, knowing only how frequent each byte is gives {data.byte_frequency_loss():.3f} nats.\n"
        f"Sample at temperature 0.8: {result.continuation!r}"
    )
    return result


def _validate(trainer: pl.Trainer, model: CausalLM, data: TextDataModule) -> dict[str, Any]:
    (metrics,) = trainer.validate(model, data, verbose=False)
    return dict(metrics)
