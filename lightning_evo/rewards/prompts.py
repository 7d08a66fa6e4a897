"""Prompts as people write them, text or messages, and as a model reads them: token ids, padded on the left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_evo.rewards.calling import RESERVED
from lightning_evo.utils.messages import shown

__all__ = [
    "check_prompt",
    "columns_of",
    "is_conversation",
    "padded",
    "positions_of",
    "prefix_of",
    "rows_of",
    "text_of",
    "tokens_of",
]


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a list of messages and not a text.

    Example:
        >>> is_conversation([{"role": "user", "content": "Hello"}]), is_conversation("Hello")
        (True, False)
    """
    return not isinstance(prompt, str)


def check_prompt(prompt: Any, where: str) -> None:
    """Refuse what is neither a text nor a list of messages.

    Args:
        prompt: What was given.
        where: For the message: ``"row 3"``.

    Raises:
        TypeError: If it is something else, or a message lacks role or content.
        ValueError: If there is no message.

    Example:
        >>> check_prompt([{"role": "user"}], "row 3")
        Traceback (most recent call last):
        ...
        TypeError: The prompt of row 3 has a message without text as its "content": {'role': 'user'}. Write messages as
        {"role": "user", "content": "…"}.
    """
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, list | tuple):
        raise TypeError(
            f"The prompt of {where} is {shown(prompt)}. Give a text, or a list of messages: "
            '[{"role": "user", "content": "…"}].'
        )
    if not prompt:
        raise ValueError(f"The prompt of {where} has no messages. Give at least one, or a text.")
    for message in prompt:
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise TypeError(
                    f'The prompt of {where} has a message without text as its "{key}": {shown(message)}. Write '
                    'messages as {"role": "user", "content": "…"}.'
                )


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """A batch as one dictionary for each sample.

    Args:
        batch: A list of dictionaries, or a dictionary of lists and tensors with an entry for each sample.

    Raises:
        TypeError: If it is nothing of these.
        ValueError: If it is empty, there is no ``"prompt"``, or columns differ in length.

    Example:
        >>> rows_of({"prompt": ["1 + 1 =", "1 + 2 ="], "answer": torch.tensor([2, 3])})
        [{'prompt': '1 + 1 =', 'answer': 2}, {'prompt': '1 + 2 =', 'answer': 3}]
    """
    if isinstance(batch, Mapping):
        batch = _transposed(batch)
    if not isinstance(batch, list | tuple) or not all(isinstance(row, Mapping) for row in batch):
        raise TypeError(
            f"A batch of prompts must be a list with one dictionary for each sample, got {shown(batch)}. Use "
            "PromptData, or DataLoader(rows, collate_fn=list)."
        )
    if not batch:
        raise ValueError("A batch of prompts is empty; give at least one row.")
    for number, row in enumerate(batch):
        if "prompt" not in row:
            raise ValueError(
                f'Row {number} of a batch has no "prompt", only {", ".join(map(str, row)) or "nothing"}. Name the '
                'column with the prompts "prompt".'
            )
        check_prompt(row["prompt"], f"row {number} of a batch")
    return [dict(row) for row in batch]


def _transposed(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = {name: column.tolist() if hasattr(column, "tolist") else column for name, column in columns.items()}
    lengths = {name: len(column) for name, column in lists.items() if isinstance(column, list | tuple)}
    if len(lengths) < len(lists) or len(set(lengths.values())) > 1:
        raise ValueError(
            "The columns of a batch must have one entry for each sample, got "
            + ", ".join(f"{name}: {lengths.get(name, type(column).__name__)}" for name, column in lists.items())
            + ". (Messages can't be collated by default: use PromptData, or DataLoader(rows, collate_fn=list).)"
        )
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What reward functions are given besides prompts and completions: every other column, one entry for each row.

    A row that lacks a column has ``None`` there.

    Example:
        >>> columns_of([{"prompt": "1 + 1 =", "answer": 2}, {"prompt": "?"}])
        {'answer': [2, None]}
    """
    # A column of such a name would stand in the way of what was written; TRL leaves it out, too.
    ours = ("prompt", "completion", *RESERVED)
    names = dict.fromkeys(name for row in rows for name in row if name not in ours)
    return {name: [row.get(name) for row in rows] for name in names}


def prefix_of(prompt: Any) -> str:
    """What a completion begins with: the last message, if it is the assistant's own, which the model goes on with.

    Example:
        >>> prefix_of([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "It is "}])
        'It is '
    """
    return prompt[-1]["content"] if is_conversation(prompt) and prompt[-1]["role"] == "assistant" else ""


def text_of(prompt: Any, tokenizer: Any, **chat_template_kwargs: Any) -> str:
    """A prompt as the text that the model reads.

    Args:
        prompt: A text, which stays as it is, or messages, to which the tokenizer's chat template is applied.
        tokenizer: Of transformers.
        **chat_template_kwargs: For the template, such as ``enable_thinking=False``.

    Raises:
        ValueError: If messages come to a tokenizer without a chat template.
    """
    if not is_conversation(prompt):
        return str(prompt)
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "A prompt is a list of messages, and the tokenizer has no chat template. Use a model that was tuned to "
            "instructions, set `tokenizer.chat_template`, or give prompts as text."
        )
    goes_on = bool(prefix_of(prompt))
    options = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on, **chat_template_kwargs}
    return str(tokenizer.apply_chat_template([dict(message) for message in prompt], tokenize=False, **options))


def tokens_of(prompts: Sequence[Any], texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of prompts, without padding.

    A template writes the special tokens of messages itself; to texts the tokenizer adds its own.

    Args:
        prompts: Texts or messages.
        texts: What :func:`text_of` made of them.
        tokenizer: Of transformers.

    Raises:
        ValueError: If a prompt has no tokens.
    """
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(text, add_special_tokens=not is_conversation(prompt))["input_ids"]
        if not ids:
            raise ValueError(
                f"The prompt {shown(prompt)} has no tokens, so the model has nothing to go on from. Leave such rows "
                "out, or let prompts begin with the tokenizer's first special token."
            )
        found.append(list(ids))
    return found


def padded(tokens: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Prompts of any lengths as one tensor, padded on the left, where a model that writes must not be disturbed.

    Args:
        tokens: Each prompt's token ids.
        pad: The token to pad with.
        device: Where to put the tensors.

    Returns:
        Token ids and their mask (1 for tokens, 0 for padding), int64 ``[prompts, longest]``.

    Example:
        >>> padded([[5], [6, 7]], pad=0)
        (tensor([[0, 5],
                [6, 7]]), tensor([[0, 1],
                [1, 1]]))
    """
    longest = max(map(len, tokens))
    missing = [longest - len(prompt) for prompt in tokens]
    ids = [[pad] * gap + list(prompt) for gap, prompt in zip(missing, tokens, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in missing]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def positions_of(model: Any) -> int | None:
    """How many tokens a model of transformers reads at most; ``None`` if its configuration names no limit.

    It names none that counts where attention has no positions of its own (ALiBi, relative attention alone), or where
    rotary positions are scaled to go further than the model was trained.

    Example:
        >>> from types import SimpleNamespace
        >>> positions_of(SimpleNamespace(config=SimpleNamespace(max_position_embeddings=1024)))
        1024
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):  # of what reads pictures, too
        config = config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    goes_further = getattr(config, "alibi", False) or not getattr(config, "position_biased_input", True)
    return most if isinstance(most, int) and most > 0 and not goes_further and not _scales_positions(config) else None


def _scales_positions(config: Any) -> bool:
    # By transformers 5 it has the first name, before it had the second one, with a type only where it scales.
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_layer = [each for each in rotary.values() if isinstance(each, Mapping)]
    kinds = {each.get("rope_type", each.get("type", "default")) for each in (by_layer or [rotary])}
    return bool(kinds - {"default"})
