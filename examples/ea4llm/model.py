"""Qwen3-shaped causal language models at the paper's sizes, and the LightningModule that trains one.

EA4LLM: "Pretraining LLMs with evolutionary algorithms", https://arxiv.org/abs/2510.10603 (v2). The fitness of a member
is the log-probability that it gives to the next token, averaged over the tokens of a sample (under the padding mask)
and then over the samples of the generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional

from examples.ea4llm.data import ByteTokenizer
from lightning_evo.evaluation.fitness import token_log_probability

if TYPE_CHECKING:
    from transformers import Qwen3Config, Qwen3ForCausalLM

__all__ = ["PRESETS", "CausalLM", "Preset"]


@dataclass(frozen=True)
class Preset:
    """The shape of one Qwen3-style model.

    Attributes:
        layers: number of transformer blocks.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads (grouped-query attention).
        ffn: inner width of the gated MLP.
        head_dim: width of one head.
        vocab: rows of the embedding; the byte tokenizer uses the first 258.
        tied: whether the output layer is the embedding transposed.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    head_dim: int = 128
    vocab: int = 151_936
    tied: bool = True

    def parameter_count(self) -> int:
        """Number of parameters in closed form, each tensor counted once.

        >>> f"{PRESETS['0.5B'].parameter_count():,}"
        '533,126,144'
        """
        embedding = self.vocab * self.hidden
        attention = 2 * self.hidden * self.heads * self.head_dim + 2 * self.hidden * self.kv_heads * self.head_dim
        norms = 2 * self.hidden + 2 * self.head_dim  # before attention and MLP; of queries and keys
        block = attention + 3 * self.hidden * self.ffn + norms
        return embedding * (1 if self.tied else 2) + self.layers * block + self.hidden

    def config(self, max_length: int) -> Qwen3Config:
        """The Hugging Face configuration; ``Qwen3ForCausalLM(preset.config(256))`` is a freshly initialised model."""
        try:
            from transformers import Qwen3Config
        except ImportError as error:
            raise ImportError(
                "The EA4LLM example builds its model with Hugging Face transformers: pip install transformers"
            ) from error

        return Qwen3Config(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=max_length,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # Qwen3's own base
            tie_word_embeddings=self.tied,
            use_cache=False,
            bos_token_id=ByteTokenizer.BOS,
            pad_token_id=None,  # a pad id would zero one embedding row and exclude it from training without need
        )


PRESETS: dict[str, Preset] = {
    # Ours: small enough for two CPU cores, with a vocabulary of just the byte tokenizer.
    "tiny": Preset(layers=2, hidden=64, heads=4, kv_heads=2, ffn=192, head_dim=16, vocab=ByteTokenizer.VOCAB),
    # The paper's, as printed. The names are the paper's too: its "4B" counts to 6.4B and its "32B" to 52.4B.
    "0.5B": Preset(layers=24, hidden=1024, heads=8, kv_heads=4, ffn=4096),
    "1.7B": Preset(layers=28, hidden=2048, heads=16, kv_heads=8, ffn=6144),
    "4B": Preset(layers=36, hidden=4096, heads=32, kv_heads=8, ffn=9728),
    "8B": Preset(layers=36, hidden=4096, heads=32, kv_heads=8, ffn=12288, tied=False),
    "14B": Preset(layers=40, hidden=5120, heads=40, kv_heads=8, ffn=17408, tied=False),
    "32B": Preset(layers=64, hidden=8192, heads=64, kv_heads=8, ffn=25600, tied=False),
}


class CausalLM(pl.LightningModule):
    """A randomly initialised Qwen3-style language model, trainable by backpropagation and by evolution.

    Batches are dictionaries with ``tokens`` and ``mask``, both ``[samples, length]``; ``mask`` is true where a token is
    real. Samples are padded on the right, so under causal attention no real token ever sees padding: the mask is needed
    for the loss and the fitness only, and attention keeps its fast causal path.

    Args:
        size: a key of `PRESETS`.
        learning_rate: the step alpha of ``center <- center + alpha * estimate``.
        max_length: the longest sample, in tokens.
    """

    def __init__(self, size: str = "tiny", learning_rate: float = 5e-4, max_length: int = 256) -> None:
        super().__init__()
        if size not in PRESETS:
            raise ValueError(f"size={size!r} is not a preset; choose one of {', '.join(PRESETS)}")
        self.save_hyperparameters()
        self.size = size
        self.preset = PRESETS[size]
        self.learning_rate = learning_rate
        self.max_length = max_length
        self.language_model: Qwen3ForCausalLM | None = None

    def configure_model(self) -> None:
        """Builds the network where the strategy wants it: on its device, in its dtype, possibly sharded."""
        if self.language_model is None:
            from transformers import Qwen3ForCausalLM

            self.language_model = Qwen3ForCausalLM(self.preset.config(self.max_length))

    def forward(self, tokens: Tensor) -> Tensor:
        """Next-token logits ``[samples, length, vocab]`` of ``tokens`` ``[samples, length]``."""
        assert self.language_model is not None, "configure_model() has not run yet"
        logits: Tensor = self.language_model(input_ids=tokens, use_cache=False).logits
        return logits

    def fitness_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean log-probability of the next token, one value per sample: higher is better."""
        return token_log_probability(self(batch["tokens"]), batch["tokens"], batch["mask"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, count = self._next_token_loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=count)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss, count = self._next_token_loss(batch)
        # Weighted by the number of predicted tokens, so that the epoch's value is the mean over all held-out tokens.
        self.log("val_loss", loss, prog_bar=True, batch_size=count)
        # Every predicted token is one byte of the text (the start token is never predicted), so this is exact.
        self.log("val_bits_per_byte", loss / torch.log(loss.new_tensor(2.0)), batch_size=count)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD: ``center <- center + learning_rate * estimate``, with no optimizer state, as in the paper."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def _next_token_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Mean cross-entropy over the real target tokens, in nats, and how many they are."""
        logits = self(batch["tokens"])[:, :-1]
        targets = batch["tokens"][:, 1:]
        mask = batch["mask"][:, 1:]
        loss = functional.cross_entropy(logits[mask].float(), targets[mask])
        return loss, int(mask.sum())

    @torch.no_grad()
    def continue_text(self, prompt: str, length: int = 80, temperature: float = 0.8, seed: int = 0) -> str:
        """Samples ``length`` more bytes after ``prompt``.

        Args:
            prompt: the text to continue.
            length: how many bytes to add.
            temperature: 0 takes the most probable byte each time.
            seed: of the sampling, which leaves the global random state alone.
        """
        tokenizer = ByteTokenizer()
        tokens: list[int] = [ByteTokenizer.BOS, *tokenizer.encode(prompt)]
        generator = torch.Generator().manual_seed(seed)
        for _ in range(length):
            context = torch.tensor([tokens[-self.max_length :]], device=self.device)
            # Only bytes: neither the special tokens nor the unused rest of a large vocabulary can be text.
            logits = self(context)[0, -1, : ByteTokenizer.BYTES].float().cpu()
            if temperature == 0:
                tokens.append(int(logits.argmax()))
            else:
                probabilities = torch.softmax(logits / temperature, dim=0)
                tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
        return tokenizer.decode(tokens)
