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

from tests.rewards.training import SETTINGS, train_all
from tests.strategies.test_ddp import only

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

pytestmark = pytest.mark.slow


def test_one_and_two_processes_give_the_same_weights(world):
    alone, together = (world(count).run(train_all, timeout=250) for count in (1, 2))
    for number, (*_, timeout, _) in enumerate(SETTINGS):
        by_process = [results[number] for results in (*alone, *together)]
        assert only([weights for weights, *_ in by_process])
        assert len({round(reward, 6) for _, _, reward, _ in by_process}) == 1
        (_, texts, _, timed_out), (_, of_first, *_), _ = by_process
        assert of_first == texts  # of all members, on the first process
        assert len(texts) == 8
        assert {len(member) for member in texts} == {4}
        assert timed_out == (None if timeout is None else 0.0)


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
module = RewardModule(llama(), tokenizer(), judge, max_completion_length=4, temperature=temperature)
last = f"{folder}/last.ckpt"
trainer = L.Trainer(
    strategy=EvoStrategy("eggroll", population=4, sigma=0.1, learning_rate=0.3, seed=0, evaluation="in_forward"),
    max_epochs=2, accelerator="cpu", logger=False, default_root_dir=folder, num_sanity_val_steps=0,
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
    # A step has five calls: of four members and the center. The third one of the last step but one:
    before = run(tmp_path / "killed", stop_at=len(whole) - 7)
    assert before == whole[: len(before)]
    after = run(tmp_path / "killed")[len(before) :]
    expected, found = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name
    interrupted = before[-1][0]
    assert interrupted > 3  # steps of an epoch
    assert [step for step, *_ in after if step < interrupted] == list(range(3, interrupted))  # the center, for the logs
    assert [call for call in after if call[0] > interrupted] == [call for call in whole if call[0] > interrupted]
