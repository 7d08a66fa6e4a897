"""Sections of :mod:`benchmarks.gpu` about language models: members' evaluations, texts, and memory."""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _roofline as roofline
from benchmarks._gpu import Machine, Row
from benchmarks._measure import peak, reset_peak, seconds, show
from benchmarks._models import Likelihood, parameters, tokens
from benchmarks.generation import PROMPTS, Characters, Generations, Writing, limit
from lightning_evo.generation.evolution import Evolution
from lightning_evo.utils.messages import first_line

# --- members --------------------------------------------------------------------------------------------------------


class Timed:
    """Generations of ours, whose evaluation and update are timed apart."""

    def __init__(self, model: nn.Module, batch: Tensor, algorithm: str, members: int, **options: Any) -> None:
        self.evolution = Evolution(algorithm, population=members, seed=0, sigma=1e-3, **options)
        self.evolution.setup(model)
        self.fitness, self.batch = Likelihood(model), batch
        self.updates: list[float] = []

    def __call__(self) -> None:
        """Evaluate; the update that follows is timed here, and not part of the call."""
        self.evolution.evaluate(self.fitness, self.batch)

    def update(self) -> None:
        """Learn from what was evaluated, and move the weights."""
        self.updates.append(seconds(lambda: self.evolution.conclude().apply()))

    @property
    def how(self) -> str:
        """How the members were evaluated, and whether what was asked for was possible."""
        return self.evolution.evaluation.summary


def members(machine: Machine, size: str) -> dict[str, Any]:
    """Shares of plain forward passes, and of what is left of them on paper."""
    shape = machine.shape(size)
    machine.require(2 * 2 * shape.weights + 2**34)
    many, rows, updates = 4 if machine.tiny else 16, [], []
    with machine.model(size) as model:
        for count in (16, 64) if machine.tiny else (512, 2048):
            batch = tokens(4, count // 4, shape.vocabulary, machine.device)
            likelihood = Likelihood(model)

            @torch.inference_mode()
            def plain(likelihood: Likelihood = likelihood, batch: Tensor = batch) -> None:
                float(likelihood(batch))

            evaluated = {
                "dense, a pair": (Timed(model, batch, "openai_es", 2, evaluation="in_forward"), 2),
                f"dense, {many} members": (Timed(model, batch, "openai_es", many, evaluation="in_forward"), many),
                "rank 1, a pair": (Timed(model, batch, "openai_es", 2, rank=1, evaluation="batched"), 2),
                f"rank 1, {many} members": (Timed(model, batch, "openai_es", many, rank=1, evaluation="batched"), many),
            }
            times: dict[str, list[float]] = {name: [] for name in evaluated}
            forwards: list[float] = []
            broken: dict[str, str] = {}
            for turn in range(2 if machine.tiny else 5):
                if turn > 1 and time.monotonic() > machine.section:
                    break
                for name, (call, _) in evaluated.items():
                    if name in broken:
                        continue
                    try:
                        before, elapsed = seconds(plain), seconds(call)
                        call.update()
                    except Exception as error:  # it must not take the others with it
                        broken[name] = f"{type(error).__name__}: {first_line(error)}"
                        continue
                    if turn:  # the first round proves the way, and compiles
                        times[name].append(elapsed)
                        forwards.append(before)
            forward = statistics.median(forwards) if forwards else float("nan")
            for name, (call, number) in evaluated.items():
                low_rank = name.startswith("rank")
                extra = roofline.rank_one(shape, count) if low_rank else roofline.dense(shape)
                least = machine.gpu.seconds(extra)
                row: Row = {"row": f"{count:,} tokens, {name}", "seconds": times[name], "how": call.how}
                if name in broken or not times[name]:
                    rows.append({**row, "value": None, "limit": None, "failed": broken.get(name, "no time")})
                    continue
                share = number * forward / statistics.median(times[name])
                rows.append({**row, "value": share, "limit": forward / (forward + least), "forward_seconds": forwards})
                if not low_rank and count in (16, 512):
                    work = roofline.update(number // 2) * shape.weights
                    elapsed = statistics.median(call.updates[1:])
                    updates.append(
                        {
                            "row": f"update, {number // 2} direction{'s' * (number > 2)}",
                            "seconds": call.updates[1:],
                            "value": shape.weights / elapsed,
                            "limit": shape.weights / machine.gpu.seconds(work),
                        }
                    )
        count = parameters(model)
    show(
        f"{size}: {count / 1e9:.2f}B weights",
        ("row", "of a plain forward", "limit", "of the limit"),
        [
            (row["row"], *["-"] * 3)
            if row["value"] is None
            else (row["row"], f"{row['value']:.3f}", f"{row['limit']:.3f}", f"{row['value'] / row['limit']:.2f}")
            for row in rows
        ],
    )
    show(
        f"{size}: updates",
        ("row", "10^9 weights/s", "limit", "of the limit"),
        [
            (row["row"], f"{row['value'] / 1e9:.1f}", f"{row['limit'] / 1e9:.0f}", f"{row['value'] / row['limit']:.2f}")
            for row in updates
        ],
    )
    for row in rows:
        if ";" in row["how"] or row.get("failed"):  # a way did not work, and another took its place
            print(f"  {row['row']}: {row.get('failed') or row['how']}")
    return {"weights": count, "rows": rows + updates}


# --- rows -----------------------------------------------------------------------------------------------------------


def written(machine: Machine, size: str) -> dict[str, Any]:
    """Tokens a second of members as rows, as a share of plain ``generate``'s."""
    many, new, prompted = (4, 3, 2) if machine.tiny else (16, 32, 4)
    machine.require(2 * 2 * machine.shape(size).weights + 2**33)
    with machine.model(size) as model, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Generation .* members that should be compared have the same fitness")
        model.config.use_cache = model.generation_config.use_cache = True  # type: ignore[union-attr]
        model.generation_config.pad_token_id = 0  # type: ignore[union-attr]
        writing = Writing(model, Characters(), new)
        prompts = {name: each.to(machine.device) for name, each in Characters()(PROMPTS[:prompted]).items()}
        ours = Generations("rows", writing, prompts, many, sigma=1e-3)
        plain = limit(writing, prompts, many)
        for _ in range(1 if machine.tiny else 2):
            ours()  # generations 1 and 2 follow rows, and prove that they need not be
        times = machine.timed({"plain generate": plain, "16 members as rows": ours}, repeats=5)
        how = ours.how
    rates = {name: many * prompted * new / statistics.median(each) for name, each in times.items() if each}
    rows = [
        {
            "row": name,
            "seconds": times[name],
            "value": rate,
            "limit": rates.get("plain generate"),
            "of_limit": rate / rates.get("plain generate", float("nan")),
        }
        for name, rate in rates.items()
    ]
    show(
        f"{size}: {many * prompted} texts of {new} tokens; {how}",
        ("row", "tokens/s", "of plain generate"),
        [(row["row"], f"{row['value']:,.0f}", f"{row['of_limit']:.2f}") for row in rows],
    )
    return {"texts": many * prompted, "new_tokens": new, "how": how, "rows": rows}


# --- memory ---------------------------------------------------------------------------------------------------------


def memory(machine: Machine, size: str) -> dict[str, Any]:
    """Peak memory and seconds of a plain forward pass, then of a generation of rank 1."""
    shape = machine.shape(size)
    machine.require(1.15 * 2 * shape.weights + 2**33)
    rows: list[Row] = []
    with machine.model(size) as model:
        batch = tokens(4, 8 if machine.tiny else 128, shape.vocabulary, machine.device)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        likelihood = Likelihood(model)

        @torch.inference_mode()
        def plain() -> None:
            float(likelihood(batch))

        generation = Timed(model, batch, "openai_es", 2, rank=1, evaluation="batched")

        def ours() -> None:
            generation()
            generation.update()

        calls = {"plain forward": plain, "a generation, rank 1": ours}
        for name, call in calls.items():
            reset_peak()
            first = seconds(call)  # ours proves its way
            proving = peak()
            reset_peak()
            elapsed = seconds(call)
            rows.append({"row": name, "seconds": [elapsed], "value": peak(), "first": proving, "first_seconds": first})
        how = generation.how
    for row in rows:
        row["limit"] = rows[0]["value"]
    show(
        f"{size}: weights {weights / 2**30:.1f} GiB; {how}",
        ("row", "peak GiB", "of a plain forward", "while it is proven", "seconds"),
        [
            (
                row["row"],
                f"{row['value'] / 2**30:.1f}",
                f"{row['value'] / row['limit']:.3f}",
                f"{row['first'] / 2**30:.1f}",
                f"{row['seconds'][0]:.2f}",
            )
            for row in rows
        ],
    )
    return {"weights": weights, "how": how, "rows": rows}
