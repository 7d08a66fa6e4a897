"""A training that processes run, in a file that they can import."""

import os

import torch

from tests.rewards.fitting import LENGTH
from tests.rewards.models import ROWS
from tests.strategies.test_ddp import digest, quietly

SETTINGS = (
    ("in_forward", 0.0, None, None),
    ("in_forward", 1.0, 60, None),
    ("rows", 0.0, None, 4),
    ("rows", 1.0, None, 4),
)
"""Evaluation, temperature, seconds for a reward, members that run together."""


def train_all():
    """A training with each of the settings, one after the other, so that processes start once."""
    return [train(*setting) for setting in SETTINGS]


def train(evaluation, temperature, timeout, members_per_forward):
    """A training on this process; its weights, and what was said of members' texts."""
    import lightning as L

    from lightning_evo import EvoDDPStrategy
    from lightning_evo.rewards import PromptData, RewardModule
    from tests.rewards.models import llama, tokenizer, vowels

    quietly()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it was used before this process was forked
    options = {"max_completion_length": LENGTH, "temperature": temperature, "reward_timeout": timeout}
    module = RewardModule(llama(), tokenizer(), vowels, **options)
    start = digest(module)
    together = {} if members_per_forward is None else {"members_per_forward": members_per_forward}
    trainer = L.Trainer(
        strategy=EvoDDPStrategy(
            "eggroll", population=8, sigma=0.1, learning_rate=0.3, seed=0, evaluation=evaluation, **together
        ),
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.evolution.wants_details = lambda generation: True
    torch.manual_seed(1)
    trainer.fit(module, datamodule=PromptData(ROWS * 2, batch_size=4, validation=ROWS))
    assert digest(module) != start
    details = trainer.strategy.evolution.details
    texts = [[sample["completion"] for sample in member] for member in details]
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return digest(module), texts, metrics["val/reward"], metrics.get("evo/timed_out_rewards")
