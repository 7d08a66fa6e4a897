"""A model that classifies sequences as a reward function: its one logit is the reward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evo.rewards.prompts import is_conversation, positions_of

__all__ = ["ClassifierReward", "is_model"]


def is_model(value: object) -> bool:
    """Whether a value is a model of transformers, and no function: a module with a configuration."""
    return isinstance(value, nn.Module) and hasattr(value, "config")


class ClassifierReward:
    """A model that classifies sequences as a reward function; in the literature a *reward model*.

    It reads prompt and completion as one text, by its own tokenizer; messages by its own chat template. It is no part
    of the module that is trained, so it doesn't evolve and lies in no checkpoint.

    Args:
        model: Its name or folder, which is loaded now, or the model (``PreTrainedModel``); with one label.
        tokenizer: The model's own; loaded from where the model came from by default.

    Attributes:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.

    Raises:
        ValueError: If the model has more than one label, or its configuration names no tokenizer; when called, if
            messages come to a tokenizer without a chat template, or a text is longer than what the model reads.
        ImportError: If transformers is not installed.

    Example:
        >>> from lightning_evo.rewards import ClassifierReward
        >>> judge = ClassifierReward("OpenAssistant/reward-model-deberta-v3-base")  # doctest: +SKIP
        >>> judge(prompts=["2+2="], completions=["4"])  # doctest: +SKIP
        [0.73]
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        try:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError as error:
            raise ImportError("Reward models need transformers: pip install 'lightning-evo[rewards]'.") from error
        source = model if isinstance(model, str) else str(getattr(model.config, "_name_or_path", ""))
        self.__name__ = source.rstrip("/").split("/")[-1] or type(model).__name__
        if isinstance(model, str):
            model = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        self.model = _checked(model, self.__name__)
        if tokenizer is None and not source:
            raise ValueError(
                f"Reward model {self.__name__!r} does not say where its tokenizer is. Load it by `from_pretrained`, or "
                "give lightning_evo.rewards.ClassifierReward(model, tokenizer) as the reward function."
            )
        self.tokenizer = AutoTokenizer.from_pretrained(source) if tokenizer is None else tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # The model finds each text's last token by it.
        if getattr(self.model.config, "pad_token_id", None) is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def to(self, device: torch.device | str) -> ClassifierReward:
        """Have it compute on a device."""
        if self.model.device != torch.device(device):
            self.model.to(device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ClassifierReward:
        """Share the model's weights, which nothing changes."""
        memo[id(self)] = other = copy.copy(self)
        return other

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
        """The model's logit for each prompt with its completion; texts and conversations may come together."""
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        tokens = [
            self.tokenizer(text, add_special_tokens=not is_conversation(prompt))  # a template writes them itself
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        self._check_lengths([len(each["input_ids"]) for each in tokens])
        inputs = self.tokenizer.pad(tokens, padding_side="right", return_tensors="pt")
        logits: Tensor = self.model(**inputs.to(self.model.device)).logits
        rewards: list[float] = logits[:, 0].float().tolist()
        return rewards

    def _text(self, prompt: Any, completion: Any) -> str:
        if not is_conversation(prompt):
            return str(prompt) + str(completion)
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"A prompt is a list of messages, and the tokenizer of reward model {self.__name__!r} has no chat "
                "template. Give prompts as text, or wrap the model in a function that makes the text."
            )
        return str(self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        most = positions_of(self.model)
        if most is not None and max(lengths) > most:
            raise ValueError(
                f"Reward model {self.__name__!r} reads at most {most} tokens, and a prompt with its completion has "
                f"{max(lengths)}. Give shorter prompts or a smaller max_completion_length, or wrap the model in a "
                "function that shortens the text."
            )


def _checked(model: Any, name: str) -> Any:
    labels = getattr(model.config, "num_labels", 1)
    if labels != 1:
        raise ValueError(
            f"Reward model {name!r} has {labels} labels; a reward is one number. Load it with num_labels=1, or write a "
            "function that makes one number of its logits."
        )
    return model.eval()
