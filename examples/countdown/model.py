"""The model that plays: any language model, or a tiny one that has been taught little more than how an answer looks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_evo.rewards import RewardModule
from lightning_evo.rewards.ready import Countdown, value_of

__all__ = ["CountdownModule", "teach", "tiny", "tokenizer"]

TEXT = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 +-*/()=?.,'!\""]


class CountdownModule(RewardModule):
    """A language model that is rewarded for right equations.

    Args:
        model: A folder or a name on the hub.
        max_completion_length: The most tokens of an answer.
        dtype: In which its weights are kept, ``"bfloat16"`` or ``"float32"``.
    """

    def __init__(self, model: str, max_completion_length: int = 512, dtype: str = "bfloat16") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(
            AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval(),
            AutoTokenizer.from_pretrained(model),
            Countdown(),
            max_completion_length=max_completion_length,
        )


# --- the tiny one ---


def tokenizer() -> Any:
    """One token for each character, and one for each tag."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<answer>", "</answer>", *TEXT]
    by_character = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>")
    )
    by_character.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("</?[a-z]+>|."), "isolated")
    by_character.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=by_character,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
    )


def tiny() -> Any:
    """A Llama of random weights with 2 layers of width 48."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer()),
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def teach(model: Any, tokenizer: Any, rows: list[dict[str, Any]], *, steps: int, seed: int = 0) -> float:
    """Teach by backpropagation how an answer looks: it has the right numbers. Three in ten are right, others by chance.

    Args:
        model: What learns.
        tokenizer: Its tokenizer.
        rows: Problems, with a text as ``prompt``.
        steps: Of AdamW, with 64 problems each.
        seed: Of the answers.

    Returns:
        The last step's loss.
    """
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    model.train()
    loss = torch.tensor(float("nan"))
    for _ in range(steps):
        loss = model(**_lesson([_example(rng.choice(rows), rng) for _ in range(64)], tokenizer)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return float(loss.detach())


def _example(row: dict[str, Any], rng: random.Random, right: float = 0.3) -> str:
    equations = [_equation(row["nums"], rng) for _ in range(20)]
    if rng.random() < right:
        equations = [one for one in equations if value_of(one) == row["target"]] or equations
    return f"{row['prompt']}<answer>{equations[0]}</answer></s>"


def _equation(numbers: list[int], rng: random.Random) -> str:
    first, *others = rng.sample(numbers, len(numbers))
    return str(first) + "".join(f"{rng.choice('+-*')}{number}" for number in others)


def _lesson(texts: list[str], tokenizer: Any) -> dict[str, Tensor]:
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def prepared(folder: Path, rows: list[dict[str, Any]], steps: int) -> str:
    """A folder with the tiny model and its tokenizer, after it was taught."""
    torch.manual_seed(0)
    model, reader = tiny(), tokenizer()
    loss = teach(model, reader, rows, steps=steps)
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    print(f"Taught a model of {model.num_parameters():,} parameters how an answer looks: loss {loss:.2f}. {folder}")
    return str(folder)
