"""What tests of the module share: a tiny one, a short training, and what one generation gives."""

import torch

from lightning_evo import EvoStrategy, shared
from lightning_evo.evaluation.sharing import for_members
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.rewards import PromptData, RewardModule
from tests.rewards.models import ROWS, llama, tokenizer, vowels
from tests.strategies.models import trainer

USER = {"role": "user", "content": "hi"}
LENGTH = 4
"""The most tokens of a completion."""
KEY = NoiseKey(seed=0, generation=5)


def module(rewards=vowels, model=llama, **options):
    kind = options.pop("kind", RewardModule)
    return kind(model(), tokenizer(), rewards, **{"max_completion_length": LENGTH, **options})


def strategy(evaluation="auto", **options):
    defaults = {"population": 8, "sigma": 0.1, "learning_rate": 0.3, "seed": 0, "update": "in_place"}
    return EvoStrategy("eggroll", **{**defaults, "evaluation": evaluation, **options})


def fit(made, evaluation="auto", steps=2, rows=ROWS, batch_size=4, run=None, **options):
    t = trainer(strategy(evaluation, **options), max_steps=steps, **(run or {}))
    torch.manual_seed(1)  # the order of rows
    t.fit(made, datamodule=PromptData(rows, batch_size=batch_size, validation=rows))
    return t


def flat(made):
    return torch.cat([parameter.detach().float().flatten() for parameter in made.parameters()])


def written(made, prompts):
    """What a module writes, with its tokens."""
    return made.writer.write(made.model, made.processing_class, prompts, key=KEY)


def judged(made, rows, members=1):
    """``fitness_step`` within a generation."""
    t = trainer(strategy(), max_steps=1)
    t.strategy.evolution.setup(made)
    t.strategy._lightning_module = made
    made.trainer = t
    with for_members(members):
        return made.fitness_step(rows * members, 0)


@shared
class Calls(list):
    """What members leave here stays."""


class Record:
    """A reward function that notes its calls."""

    __name__ = "record"
    calls = Calls()

    def __call__(self, **given):
        given["log_extra"]("shout", [str(text).upper() for text in given["completions"]])
        given["log_metric"]("samples", len(given["completions"]))
        Record.calls.append(given)
        return vowels(given["completions"])
