"""Rewards in several processes, and after a kill in the middle of a generation: the weights of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import pytest
import torch

from tests.rewards.models import ROWS
from tests.strategies.test_ddp import digest, only, quietly

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

pytestmark = pytest.mark.slow


def train(evaluation, temperature, timeout=None, members_per_forward=None):
    """A training on this process; its weights, and what was said of members' texts."""
    import lightning as L

    from lightning_evo import EvoDDPStrategy
    from lightning_evo.rewards import PromptData, RewardModule
    from tests.rewards.models import llama, tokenizer, vowels

    quietly()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it was used before this process was forked
    options = {"max_completion_length": 6, "temperature": temperature, "reward_timeout": timeout}
    module = RewardModule(llama(), tokenizer(), vowels, **options)
    start = digest(module)
    together = {} if members_per_forward is None else {"members_per_forward": members_per_forward}
    trainer = L.Trainer(
        strategy=EvoDDPStrategy(
            "eggroll", population=8, sigma=0.1, learning_rate=0.3, seed=0, evaluation=evaluation, **together
        ),
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.evolution.wants_details = lambda generation: True
    torch.manual_seed(1)
    trainer.fit(module, datamodule=PromptData(ROWS * 2, batch_size=4, validation=ROWS))
    assert digest(module) != start
    details = trainer.strategy.evolution.details
    texts = [[sample["completion"] for sample in member] for member in details]
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return digest(module), texts, metrics["val/reward"], metrics.get("evo/timed_out_rewards")


@pytest.mark.parametrize(
    ("evaluation", "temperature", "timeout", "together"),
    [("in_forward", 0.0, None, None), ("in_forward", 1.0, 60, None), ("rows", 0.0, None, 4), ("rows", 1.0, None, 4)],
)
def test_one_and_two_processes_give_the_same_weights(world, evaluation, temperature, timeout, together):
    found = {
        count: world(count).run(train, evaluation, temperature, timeout, together, timeout=200) for count in (1, 2)
    }
    assert only([weights for results in found.values() for weights, *_ in results])
    assert len({round(reward, 6) for results in found.values() for _, _, reward, _ in results}) == 1
    (alone,), (first, second) = found[1], found[2]
    assert first[1] == alone[1]  # of all members, on the first process
    assert len(alone[1]) == 8
    assert {len(member) for member in alone[1]} == {4}
    assert not second[1]
    assert alone[3] == (None if timeout is None else 0.0)


# It says which samples it judges; then, if it is told to, it waits in the middle of a generation to be killed.
SCRIPT = """
import json, logging, os, sys, time, warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_evo import EvoStrategy
from lightning_evo.rewards import PromptData, RewardModule
from tests.rewards.models import llama, tokenizer, vowels

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
folder, stop_at, temperature = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)
os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
calls = 0


def judge(prompts, completions, trainer_state, **columns):
    global calls
    calls += 1
    with open(f"{folder}/calls.jsonl", "a") as file:
        file.write(json.dumps([trainer_state.global_step, prompts, completions]) + "\\n")
    if calls == stop_at:
        open(f"{folder}/now", "w").close()
        time.sleep(600)
    return vowels(completions)


L.seed_everything(7, verbose=False)
rows = [{"prompt": letter * length} for letter in "abcd" for length in (1, 2, 3)]
module = RewardModule(llama(), tokenizer(), judge, max_completion_length=6, temperature=temperature)
last = f"{folder}/last.ckpt"
trainer = L.Trainer(
    strategy=EvoStrategy("eggroll", population=4, sigma=0.1, learning_rate=0.3, seed=0, evaluation="in_forward"),
    max_epochs=4, accelerator="cpu", logger=False, default_root_dir=folder, num_sanity_val_steps=0,
    callbacks=[ModelCheckpoint(folder, save_last=True)], enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, datamodule=PromptData(rows, batch_size=4), ckpt_path=last if os.path.exists(last) else None)
torch.save(module.state_dict(), f"{folder}/final.pt")
"""


def run(folder, stop_at=0, temperature=1.0):
    """The script until it ends or waits to be killed; then it is."""
    folder.mkdir(exist_ok=True)
    script = folder / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), str(stop_at), str(temperature)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            end = time.monotonic() + 200
            while process.poll() is None and not (folder / "now").exists() and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        errors = process.stderr.read()
    if stop_at:
        (folder / "now").unlink()
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0, errors[-3000:]
    lines = (folder / "calls.jsonl").read_text().splitlines()
    return list(map(json.loads, lines))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_killed_while_members_are_judged(tmp_path, temperature):
    """After the first epoch's checkpoint, and two generations on; the third one's members are asked again."""
    whole = run(tmp_path / "whole", temperature=temperature)
    each = 6  # of 4 members, the center and, in the first generation, the check
    before = run(tmp_path / "killed", stop_at=len(whole) // 2, temperature=temperature)
    assert before == whole[: len(before)]
    both = run(tmp_path / "killed", temperature=temperature)
    after = both[len(before) :]
    expected, found = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name
    interrupted = before[-1][0]
    recorded = [step for step, *_ in before if step < interrupted]
    assert len(recorded) > each
    # Members' samples of generations that were recorded are not asked for again: only the center's, for the logs.
    again = [step for step, *_ in after if step < interrupted]
    assert len(again) == len(set(again))
    assert [call for call in after if call[0] > interrupted] == [call for call in whole if call[0] > interrupted]
