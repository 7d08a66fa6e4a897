"""A file of rewards as users of TRL have them: nothing here knows of lightning_evo."""

import asyncio
import re


def format_reward(completions, **kwargs):
    """1 where a conversational completion thinks before it answers."""
    pattern = r"^<think>.*?</think>\s*<answer>.*?</answer>$"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, content, re.DOTALL) else 0.0 for content in contents]


def correctness_reward(prompts, completions, answer, **kwargs) -> list[float]:
    """2 where the answer is that of the data."""
    responses = [completion[0]["content"] for completion in completions]
    extracted = [response.split("<answer>")[-1].split("</answer>")[0].strip() for response in responses]
    return [2.0 if found == expected else 0.0 for found, expected in zip(extracted, answer)]  # noqa: B905


def math_only_reward(completions, task, **kwargs):
    """None for tasks that are none of mathematics."""
    return [
        float("42" in completion[0]["content"]) if kind == "math" else None
        for completion, kind in zip(completions, task)  # noqa: B905
    ]


def length_reward(completion_ids, trainer_state, log_metric, log_extra, **kwargs):
    """Shorter is better, more so later in the training."""
    lengths = [len(ids) for ids in completion_ids]
    log_metric("mean_length", sum(lengths) / len(lengths))
    log_extra("length", lengths)
    return [-length * (1 + trainer_state.global_step) / 100 for length in lengths]


async def judge_reward(prompts, completions, **kwargs):
    """Asks a service about each completion, all at once."""

    async def ask(prompt, completion):
        await asyncio.sleep(0.01)
        return 0.5 if prompt[-1]["content"] in completion[0]["content"] else 0.0

    return await asyncio.gather(*(ask(p, c) for p, c in zip(prompts, completions)))  # noqa: B905
