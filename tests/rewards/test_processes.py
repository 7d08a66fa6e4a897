"""Rewards in several processes, and after a kill in the middle of a generation: the weights of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import suppress

import pytest
import torch

from tests.rewards.training import train
from tests.strategies.test_ddp import only

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

pytestmark = pytest.mark.slow


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
    (alone,), (first, _) = found[1], found[2]
    assert first[1] == alone[1]  # of all members, on the first process
    assert len(alone[1]) == 8
    assert {len(member) for member in alone[1]} == {4}
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


def judge(prompts, completions, trainer_state, **columns):
    with open(f"{folder}/calls.jsonl", "a") as file:
        file.write(json.dumps([trainer_state.global_step, prompts, completions]) + "\\n")
    if stop_at and len(open(f"{folder}/calls.jsonl").readlines()) == stop_at:  # a global would be put back
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


def test_killed_while_members_are_judged(tmp_path):
    """In a generation after the first epoch's checkpoint; its members are judged again, those before it are not."""
    whole = run(tmp_path / "whole")
    before = run(tmp_path / "killed", stop_at=len(whole) // 2)
    assert before == whole[: len(before)]
    after = run(tmp_path / "killed")[len(before) :]
    expected, found = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name
    interrupted = before[-1][0]
    assert interrupted > 3  # steps of an epoch
    assert [step for step, *_ in after if step < interrupted] == list(range(3, interrupted))  # the center, for the logs
    assert [call for call in after if call[0] > interrupted] == [call for call in whole if call[0] > interrupted]


@pytest.mark.parametrize("evaluation", ["in_forward", "rows"])
def test_what_hangs_is_missing_and_counted(evaluation):
    """The model says nothing twice, so members differ in what hangs; the run goes on."""
    import lightning as L

    from lightning_evo import EvoStrategy
    from lightning_evo.rewards import PromptData, RewardModule
    from tests.rewards.models import llama, tokenizer

    def hangs_of_some(completions, **columns):  # local, so that workers get its code
        while any("n" in text for text in completions):
            time.sleep(0.01)
        return [float(len(text)) for text in completions]

    module = RewardModule(llama(), tokenizer(), hangs_of_some, max_completion_length=3, reward_timeout=2.0)
    strategy = EvoStrategy("eggroll", population=4, sigma=0.1, learning_rate=0.3, seed=2, evaluation=evaluation)
    strategy.evolution.wants_details = lambda generation: True
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(strategy=strategy, max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    rows = [{"prompt": letter} for letter in "abcdefghij"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=PromptData(rows, batch_size=10))
    samples = [sample for member in strategy.evolution.details for sample in member]
    assert len(samples) == 40
    late = ["n" in sample["completion"] for sample in samples]
    assert any(late)
    assert [sample["timed_out"] for sample in samples] == late
    assert [sample["reward"] is None for sample in samples] == late
    assert float(trainer.callback_metrics["evo/timed_out_rewards"]) >= sum(late)
    assert sum("took longer than reward_timeout=2.0 s" in str(each.message) for each in caught) == 1
    assert module.reward_functions.timed_out_rewards >= sum(late)
