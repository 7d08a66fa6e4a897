"""How a language model writes: one call of ``generate`` for all rows, greedy or by noise that members share.

The settings are those of the model's own generation configuration, but for what would make samples depend on each other
or on how members are grouped, and for the sampling: its ``temperature``, ``top_k`` and the like don't count.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.rewards.prompts import padded, positions_of, text_of, tokens_of
from lightning_evo.rewards.sampling import GumbelNoise, prompt_ids
from lightning_evo.utils.messages import did_you_mean
from lightning_evo.utils.options import number, whole

__all__ = ["Writer", "Written"]

_WARPERS = {"top_k": "TopKLogitsWarper", "top_p": "TopPLogitsWarper", "min_p": "MinPLogitsWarper"}
_ARGUMENTS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")  # of `generate`, not its settings
_OURS = {
    "max_new_tokens": "give max_completion_length to RewardModule",
    "max_length": "give max_completion_length to RewardModule",
    "temperature": "give temperature to RewardModule",
    "do_sample": "give temperature=… to RewardModule: above 0 it samples, by noise that members share",
    "num_return_sequences": "repeat prompts in the data: each copy has noise of its own",
    "return_dict_in_generate": "rewards are given texts and token ids",
    "generation_config": "give its settings one by one",
    "pad_token_id": "give a tokenizer that has it",
} | dict.fromkeys(
    ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"), "use top_k, top_p or min_p, which work with shared noise"
)
_OF_THE_PROMPT = "a prompt that ends with the assistant's message is gone on with, any other is answered"
_OURS_IN_TEMPLATES = dict.fromkeys(("add_generation_prompt", "continue_final_message"), _OF_THE_PROMPT) | dict.fromkeys(
    (
        "conversation", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs",
    ),
    "RewardModule has the template give a text, and makes tokens of it itself",
)  # fmt: skip
_NEUTRAL = {  # the model's own sampling: without effect, and without transformers' advice about it
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "top_h": None,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "num_return_sequences": 1, "return_dict_in_generate": False,
    "penalty_alpha": None, "max_length": None,
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        prompts: Each row's prompt, as the model read it.
        texts: Each row's completion, without special tokens.
        token_ids: Its tokens, without padding; the end-of-sequence token is the last one, if it was written.
        truncated: Whether ``max_completion_length`` ended it.
    """

    prompts: list[str]
    texts: list[str]
    token_ids: list[list[int]]
    truncated: list[bool]


class Writer:
    """Writes completions with a model of transformers.

    Args:
        model: With ``generate``. In eval mode while it writes.
        tokenizer: Its tokenizer.
        max_completion_length: The most tokens of a completion, the end-of-sequence token included.
        temperature: 0 for the likeliest token each time; above 0 tokens are sampled.
        generation_kwargs: Further settings and arguments of ``generate``.
        chat_template_kwargs: For the tokenizer's chat template.

    Raises:
        TypeError: If ``generation_kwargs`` has a name that ``generate`` doesn't know.
        ValueError: If a setting contradicts the others or is set by us, or a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        max_completion_length: int = 256,
        temperature: float = 0.0,
        generation_kwargs: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.max_completion_length = whole("max_completion_length", max_completion_length)
        self.temperature = number("temperature", temperature, minimum=0)
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        for name in self._chat_template_kwargs.keys() & _OURS_IN_TEMPLATES.keys():
            _refuse("chat_template_kwargs", name, self._chat_template_kwargs[name], _OURS_IN_TEMPLATES)
        settings = dict(generation_kwargs or {})
        _check_settings(settings, self.temperature)
        self._arguments = {name: settings.pop(name) for name in _ARGUMENTS if settings.get(name) is not None}
        self._sampling = _sampling(self.temperature, {name: settings.pop(name, None) for name in _WARPERS})
        self._own_processors = list(self._arguments.pop("logits_processor", ()))
        self.config = _configured(model, tokenizer, self.max_completion_length, settings)
        if settings.get("stop_strings") is not None:
            self._arguments["tokenizer"] = tokenizer
        eos = self.config.eos_token_id
        self._ends = frozenset([eos] if isinstance(eos, int) else eos or ())

    def write(
        self,
        model: nn.Module,
        tokenizer: Any,
        prompts: Sequence[Any],
        *,
        key: NoiseKey,
        members: int = 1,
        device: torch.device | str = "cpu",
    ) -> Written:
        """A completion for each prompt of each member.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            prompts: Of one member: texts or messages.
            key: Of the noise, if tokens are sampled.
            members: How many write at once, each all prompts: rows are those of the first one, then of the next.
            device: Where the model is.

        Returns:
            ``members * len(prompts)`` completions.

        Raises:
            ValueError: If a prompt and its completion may be longer than what the model reads.
        """
        read = [text_of(prompt, tokenizer, **self._chat_template_kwargs) for prompt in prompts]
        tokens = tokens_of(prompts, read, tokenizer)
        self._check_lengths(model, [len(prompt) for prompt in tokens])
        ids, mask = padded(tokens, self.config.pad_token_id, device)
        inputs = {"input_ids": ids.repeat(members, 1), "attention_mask": mask.repeat(members, 1)}
        processors = [*self._own_processors]
        if self.temperature > 0:
            processors += [*self._sampling, GumbelNoise(key, prompt_ids(tokens), ids.shape[1])]
        with _evaluating(model):
            output = model.generate(  # type: ignore[operator]
                **inputs, generation_config=self.config, logits_processor=processors, **self._arguments
            )
        new = output[:, ids.shape[1] :].tolist()
        cut = [self._without_padding(row) for row in new]
        texts = tokenizer.batch_decode(cut, skip_special_tokens=True)
        return Written(read * members, list(texts), cut, [self._is_truncated(row) for row in cut])

    def _check_lengths(self, model: nn.Module, lengths: Sequence[int]) -> None:
        """Before anything is written: it would end deep within the model, on a GPU with the whole process."""
        most, longest = positions_of(model), max(lengths)
        room = 0 if most is None else most - longest + 1  # the last token is written, and never read
        if most is None or self.max_completion_length <= room:
            return
        advice = f"Give max_completion_length={room} or less, or shorten" if room > 0 else "Shorten"
        raise ValueError(
            f"The model reads at most {most} tokens; prompt number {lengths.index(longest)} has {longest}, and "
            f"max_completion_length={self.max_completion_length} would go on beyond that. {advice} the prompts (or "
            "leave the longest ones out of the data)."
        )

    def _without_padding(self, row: list[int]) -> list[int]:
        """Tokens up to the first one that ends a text, that one included; or without padding at the end."""
        for length, token in enumerate(row, start=1):
            if token in self._ends:
                return row[:length]
        length = len(row)
        if length < self.max_completion_length or self._arguments:  # something else has ended it
            while length and row[length - 1] == self.config.pad_token_id:
                length -= 1
        return row[:length]

    def _is_truncated(self, row: list[int]) -> bool:
        return len(row) >= self.max_completion_length and row[-1] not in self._ends


def _sampling(temperature: float, limits: Mapping[str, Any]) -> list[Any]:
    """Processors of transformers before the noise: the temperature, then what may be chosen at all."""
    from transformers.generation import logits_process

    on = {name: value for name, value in limits.items() if value is not None and (name, value) != ("top_k", 0)}
    made = [] if temperature in (0, 1) else [logits_process.TemperatureLogitsWarper(temperature)]
    return made + [getattr(logits_process, _WARPERS[name])(value) for name, value in on.items()]


def _refuse(option: str, name: str, value: Any, ours: Mapping[str, str]) -> NoReturn:
    raise ValueError(f"{option} has {name}={value!r}, which is not taken: {ours[name]}.")


def _check_settings(settings: Mapping[str, Any], temperature: float) -> None:
    from transformers import GenerationConfig

    known = [*_ARGUMENTS, *_WARPERS, *vars(GenerationConfig())]  # type: ignore[no-untyped-call]
    for name, value in settings.items():
        if name in _OURS:
            _refuse("generation_kwargs", name, value, _OURS)
        if name not in known:
            raise TypeError(
                f"generation_kwargs has {name!r}, which is no setting of transformers' generate."
                f"{did_you_mean(name, known)}"
            )
        if name in _WARPERS and value is not None and not temperature:
            raise ValueError(
                f"generation_kwargs has {name}={value!r}, which has no effect at temperature=0, where the likeliest "
                "token is taken. Give a temperature above 0, or leave it out."
            )
    if temperature and settings.get("num_beams") not in (None, 1):
        raise ValueError(
            f"num_beams={settings['num_beams']} searches for likely texts, and temperature={temperature:g} samples "
            "them. Give temperature=0, or leave num_beams out."
        )


def _configured(model: nn.Module, tokenizer: Any, length: int, settings: Mapping[str, Any]) -> Any:
    """The model's generation configuration, changed as needed, as a copy."""
    config: Any = copy.deepcopy(model.generation_config)
    ends = [settings["eos_token_id"]] if "eos_token_id" in settings else [config.eos_token_id, tokenizer.eos_token_id]
    ends = [token for each in ends for token in (each if isinstance(each, list | tuple) else [each])]
    eos = list(dict.fromkeys(token for token in ends if token is not None))
    pad = next((token for token in (tokenizer.pad_token_id, config.pad_token_id, *eos) if token is not None), 0)
    for name, value in _NEUTRAL.items():
        setattr(config, name, value)
    config.update(**{**settings, "max_new_tokens": length, "pad_token_id": pad, "eos_token_id": eos or None})
    return config


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model write without dropout, and then leave each of its parts in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
