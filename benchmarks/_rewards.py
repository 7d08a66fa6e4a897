"""Ways to shorter right answers that :mod:`benchmarks.rewards` compares: evolution, and others in the same time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from examples.rewards.questions import Row
from examples.rewards.run import (
    GENERATIONS,
    LEARNING_RATE,
    NORMS,
    POPULATION,
    PROMPTS,
    SIGMA,
    Marks,
    build,
    chats,
    marks,
)
from lightning_evo import EvoStrategy, Schedule
from lightning_evo.rewards import PromptData, RewardModule

SYSTEM = "Answer in one word."


@dataclass(frozen=True)
class Setting:
    """What all ways share.

    Attributes:
        model: The one that all begin with; each takes a copy.
        tokenizer: Its tokenizer.
        training: Questions to learn from.
        held_out: Questions that are asked after it.
        generations: Of evolution.
        population: Of each generation.
        prompts: Of each generation.
        sigma: Of evolution.
        learning_rate: Of evolution's first steps; it falls to 0 like a cosine.
        evolve: Which parameters evolve, as a regular expression; ``None`` for all.
        fine_tuning_rate: AdamW's learning rate in supervised fine-tuning.
    """

    model: nn.Module
    tokenizer: Any
    training: list[Row]
    held_out: list[Row]
    generations: int = GENERATIONS
    population: int = POPULATION
    prompts: int = PROMPTS
    sigma: float = SIGMA
    learning_rate: float = LEARNING_RATE
    evolve: str | None = NORMS
    fine_tuning_rate: float = 3e-5

    def module(self) -> RewardModule:
        """A copy to work with."""
        return build(copy.deepcopy(self.model), self.tokenizer)


@dataclass(frozen=True)
class Outcome:
    """What a way came to.

    Attributes:
        marks: Of the held-out questions.
        seconds: Of processor time that it took, without the questions at the end.
        notes: What else is to be known, as plain values.
    """

    marks: Marks
    seconds: float
    notes: dict[str, Any]


def trainer(seed: int, steps: int, setting: Setting, *callbacks: pl.Callback) -> pl.Trainer:
    """One that evolves and writes nothing."""
    return pl.Trainer(
        strategy=EvoStrategy(
            "eggroll",
            population=setting.population,
            rank=1,
            sigma=setting.sigma,
            learning_rate=Schedule("cosine", setting.learning_rate, 0.0, setting.generations),
            evolve=setting.evolve,
            evaluation="rows",
            seed=seed,
        ),
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _Rewards(pl.Callback):
    """The members' mean reward of each generation."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.means.append(round(float(trainer.callback_metrics["evo/fitness_mean"]), 4))


def evolution(setting: Setting, seed: int) -> Outcome:
    """Ours. The time is that of the whole fit, the check of the way of evaluating included."""
    pl.seed_everything(seed, verbose=False)
    module, rewards = setting.module(), _Rewards()
    start = time.process_time()
    data = PromptData(chats(setting.training), batch_size=setting.prompts)
    trainer(seed, setting.generations, setting, rewards).fit(module, data)
    seconds = time.process_time() - start
    return Outcome(marks(module, chats(setting.held_out)), seconds, {"fitness": rewards.means})


def system_prompt(setting: Setting) -> Outcome:
    """The unchanged model, told to be brief."""
    return Outcome(marks(setting.module(), chats(setting.held_out, SYSTEM)), 0.0, {"system": SYSTEM})


def sampled(module: RewardModule, rows: list[Row], seed: int, batch_size: int = 64) -> Marks:
    """One answer at temperature 1 to each question, and how good it is."""
    torch.manual_seed(seed)
    whole = copy.copy(module.writer)
    module.writer = _Sampling(whole)
    try:
        return marks(module, chats(rows), batch_size)
    finally:
        module.writer = whole


class _Sampling:
    """A writer that draws tokens from torch's generator, so that each call gives others."""

    def __init__(self, writer: Any) -> None:
        self.writer = copy.copy(writer)
        self.writer.config = copy.deepcopy(writer.config)
        self.writer.config.update(do_sample=True, temperature=1.0, top_k=0)

    def write(self, *args: Any, **options: Any) -> Any:
        """As the writer's."""
        return self.writer.write(*args, **options)


def best_of_n(setting: Setting, seed: int, seconds: float) -> Outcome:
    """The unchanged model answers held-out questions as often as there is time for, at least once.

    The best answer by the reward counts, which looks at the right word: an upper bound of what choosing can give, not
    something that could be used where the answer is not known.
    """
    module = setting.module()
    start, tries = time.process_time(), 0
    best: Marks | None = None
    took = 0.0
    while best is None or time.process_time() - start + took <= seconds:
        began = time.process_time()
        new = sampled(module, setting.held_out, seed * 1000 + tries)
        best = new if best is None else better(best, new)
        took, tries = time.process_time() - began, tries + 1
    return Outcome(best, time.process_time() - start, {"n": tries})


def better(one: Marks, other: Marks) -> Marks:
    """Of each question the answer with the higher reward."""
    picked = [
        a if a[3] >= b[3] else b
        for a, b in zip(
            zip(one.texts, one.right, one.surplus, one.rewards, strict=True),
            zip(other.texts, other.right, other.surplus, other.rewards, strict=True),
            strict=True,
        )
    ]
    return Marks([p[0] for p in picked], [p[1] for p in picked], [p[2] for p in picked])


def fine_tuning(setting: Setting, seed: int, seconds: float) -> Outcome:
    """Half of the time samples answers to training questions, the other half fine-tunes on the best right ones."""
    module = setting.module()
    start, tries = time.process_time(), 0
    best: Marks | None = None
    while best is None or time.process_time() - start < seconds / 2:
        new = sampled(module, setting.training, seed * 1000 + 500 + tries)
        best, tries = new if best is None else better(best, new), tries + 1
    found = [
        (row, text)
        for row, text, right in zip(setting.training, best.texts, best.right, strict=True)
        if right and text.strip()
    ]
    steps = 0
    if found:
        steps = _imitate(module.model, setting, found, seed, lambda: time.process_time() - start < seconds)
    took = time.process_time() - start
    kept = [text for _, text in found]
    notes = {
        "samples_for_each": tries,
        "answers": len(found),
        "characters_of_answers": sum(map(len, kept)) / max(1, len(kept)),
        "steps": steps,
        "epochs": steps * setting.prompts / max(1, len(found)),
    }
    return Outcome(marks(module, chats(setting.held_out)), took, notes)


def _imitate(
    model: Any, setting: Setting, found: list[tuple[Row, str]], seed: int, has_time: Callable[[], bool]
) -> int:
    """AdamW on the answers' tokens, the end of the text included; gives the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.fine_tuning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    steps = 0
    with torch.enable_grad():
        while has_time():
            order = torch.randint(len(found), (setting.prompts,), generator=generator)
            batch = _batch([found[int(i)] for i in order], setting.tokenizer)
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    model.eval()
    return steps


def _batch(pairs: list[tuple[Row, str]], tokenizer: Any) -> dict[str, Tensor]:
    """Questions with their answers, padded on the right; only tokens of answers count."""
    ids, labels = [], []
    for row in chats([row for row, _ in pairs]):
        ids.append(
            tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)[
                "input_ids"
            ]
        )
    for prompt, (_, text) in zip(ids, pairs, strict=True):
        answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        labels.append([-100] * len(prompt) + answer)
        prompt += answer
    length = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [tokenizer.pad_token_id or 0] * (length - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids]),
        "labels": torch.tensor([row + [-100] * (length - len(row)) for row in labels]),
    }
