"""A language model, its data and its rewards from a configuration of LightningCLI."""

import json
import sys

import pytest
import yaml

from lightning_evo.cli.command import EvoCLI
from lightning_evo.rewards import PromptData, RewardModule
from tests.rewards.models import ROWS, llama, tokenizer, vowels

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what transformers imports to load models
    pytest.mark.filterwarnings("ignore:No seed found, seed set to"),
]


@pytest.mark.parametrize("functions", [1, 2])
def test_from_a_configuration(tmp_path, monkeypatch, functions):
    llama().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    name = "tests.rewards.models.vowels"
    module = {
        "model": str(tmp_path),
        "reward_funcs": name if functions == 1 else [name, name],
        "temperature": 0.5,
        "generation_kwargs": {"top_k": 5},
    }
    data = {"rows": str(tmp_path / "rows.jsonl"), "batch_size": 2, "validation": 0.5}
    trainer = {"accelerator": "cpu", "devices": 1, "logger": False, "strategy": "evo"}
    configuration = {
        "model": {"class_path": "lightning_evo.rewards.RewardModule", "init_args": module},
        "data": {"class_path": "lightning_evo.rewards.PromptData", "init_args": data},
        "trainer": trainer,
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration))
    monkeypatch.setattr(sys, "argv", ["lightning-evo"])
    cli = EvoCLI(args=["--config", str(file)], run=False, save_config_callback=None)
    assert isinstance(cli.model, RewardModule)
    assert [function.__name__ for function in cli.model.reward_functions.functions] == [vowels.__name__] * functions
    assert cli.model.writer.temperature == 0.5
    assert isinstance(cli.datamodule, PromptData)
    assert len(cli.datamodule.validation_rows) == 2
