"""What users name: a language model and its tokenizer, a judge, and in configurations a reward function."""

from __future__ import annotations

import importlib
import os
from typing import Any

from torch import nn

from lightning_evo.rewards.classifier import ClassifierReward
from lightning_evo.utils.messages import did_you_mean, first_line, preview, shown

__all__ = ["judge_named", "language_model", "tokenizer_of"]


def language_model(model: Any) -> nn.Module:
    """A model that goes on from a prompt.

    Args:
        model: A folder, a name on the hub, or the model, of transformers or peft.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        TypeError: If it is something else, or has an encoder.
    """
    transformers = _transformers()
    if isinstance(model, str | os.PathLike):
        model = transformers.AutoModelForCausalLM.from_pretrained(model)
    if not isinstance(model, nn.Module) or not hasattr(model, "generate"):
        raise TypeError(
            f"model must be a folder, a name on the hub, or a model of transformers or peft that can `generate`; got "
            f"{shown(model)}."
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise TypeError(
            f"model must go on from its prompt; {type(model).__name__} has an encoder for the prompt, and writes a "
            "text of its own. Give a decoder, as AutoModelForCausalLM loads it."
        )
    return model


def tokenizer_of(model: nn.Module, given: Any) -> Any:
    """A model's tokenizer.

    Args:
        model: The model.
        given: The tokenizer; ``None`` loads it from where the model came from.

    Raises:
        TypeError: If what is given is none.
        ValueError: If none is given, and the model does not say where it came from.
    """
    if given is not None:
        if not hasattr(given, "batch_decode") or not hasattr(given, "eos_token_id"):
            raise TypeError(
                f"processing_class must be the model's tokenizer, got {shown(given)}. (Reward functions come after it, "
                "or by name: reward_funcs=….)"
            )
        return given
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise ValueError(
            "The model does not say where it was loaded from, so its tokenizer is not known. Give it as "
            "processing_class=AutoTokenizer.from_pretrained(…)."
        )
    return _transformers().AutoTokenizer.from_pretrained(name)


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'RewardModule needs transformers: pip install "lightning-evo[rewards]".', name="transformers"
        ) from error
    return transformers


def judge_named(name: str) -> ClassifierReward:
    """The model of that name or in that folder, as a reward function.

    In a configuration a function is given by its name, too, ``my_rewards.accuracy``. LightningCLI imports it; what it
    can't import comes here as a text.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        ValueError: If it names neither a model nor a function, or names a function.
    """
    if os.path.isdir(name):
        return ClassifierReward(name)
    no_function, is_certain = _why_no_function(name)
    said = f"reward_funcs has {name!r}, which names neither a function nor a model."
    if is_certain:
        raise ValueError(f"{said} {no_function} (A model is named by its folder, or its name on the hub.)")
    try:
        return ClassifierReward(name)
    except OSError as error:
        raise ValueError(f"{said} As a function: {no_function} As a model: {first_line(error)}") from error


def _why_no_function(name: str) -> tuple[str, bool]:
    """Why a name is none of a function, and whether it can only be meant as one: its module is there."""
    module_name, _, attribute = name.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in name.split(".")):
        return "it has no module and name, as my_rewards.accuracy.", False
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # of the user's code, too
        return f"{module_name} can't be imported ({type(error).__name__}: {first_line(error)}).", False
    if hasattr(module, attribute):
        return f"Give {attribute!r} of {module_name} itself, not its name: {shown(getattr(module, attribute))}.", True
    known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
    own = [each for each in known if getattr(vars(module)[each], "__module__", "") == module_name]
    there_is = f"has {preview(own or known)}" if known else "has no functions"
    return f"{module_name} has no {attribute!r}. It {there_is}.{did_you_mean(attribute, own or known)}", True
