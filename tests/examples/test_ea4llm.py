"""EA4LLM on the tiny preset: what it computes, and that it learns."""

import math
import re
import shlex
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

pytest.importorskip("transformers")

from transformers import Qwen3ForCausalLM

from examples.ea4llm import PRESETS, ByteTokenizer, CausalLM, TextDataModule
from examples.ea4llm.data import TokenizedLines
from examples.ea4llm.run import Result, command_line, main

POEMS = Path(__file__).parents[2] / "examples" / "ea4llm" / "poems.txt"

# Added up by hand from the paper's table, not with `Preset.parameter_count`: per layer attention + MLP + norms.
EXPECTED_PARAMETERS = {
    "tiny": 258 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + 160) + 64,
    "0.5B": 151_936 * 1024 + 24 * (2 * 1024 * 1024 + 2 * 1024 * 512 + 3 * 1024 * 4096 + 2304) + 1024,
    "1.7B": 151_936 * 2048 + 28 * (2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 6144 + 4352) + 2048,
    "4B": 151_936 * 4096 + 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 9728 + 8448) + 4096,
    "8B": 2 * 151_936 * 4096 + 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 8448) + 4096,
    "14B": 2 * 151_936 * 5120 + 40 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 17408 + 10496) + 5120,
    "32B": 2 * 151_936 * 8192 + 64 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 25600 + 16640) + 8192,
}


@pytest.fixture
def model() -> CausalLM:
    model = CausalLM(max_length=32)
    model.configure_model()
    return model


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    lines = TokenizedLines(["Half sunk, a shattered visage lies\n", "Tyger\n", "dark, é\n"], max_length=16)
    return {"tokens": lines.tokens, "mask": lines.mask}


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ea4llm"])  # LightningCLI warns of arguments that come from two places
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of how LightningCLI itself uses it


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    quiet(monkeypatch)
    return main([f"--data.path={POEMS}", *arguments])


# --- bytes ---


@pytest.mark.parametrize(
    "text", ["", "Tyger Tyger, burning bright,\n", "naïve 東京 🐯\t\0", "".join(map(chr, range(256)))]
)
def test_tokenizer_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert bytes(tokens) == text.encode("utf-8")
    assert tokenizer.decode([ByteTokenizer.BOS, *tokens, ByteTokenizer.PAD]) == text


def test_lines_are_cut_and_padded_without_losing_a_byte() -> None:
    text = ["a line of twenty-six bytes\n", "short\n", "exactly 7\n"]
    data = TokenizedLines(text, max_length=10)
    assert data.tokens.shape == (3 + 1 + 2, 10)
    assert (data.tokens[:, 0] == ByteTokenizer.BOS).all()
    assert torch.equal(data.mask, data.tokens != ByteTokenizer.PAD)
    assert ByteTokenizer().decode(data.tokens.flatten().tolist()) == "".join(text)


def test_rows_are_no_wider_than_the_longest_line() -> None:
    assert TokenizedLines(["abc\n"], max_length=256).tokens.shape == (1, 5)


def test_split_by_position() -> None:
    lines = [line for line in POEMS.read_text().splitlines(keepends=True) if line.strip()]
    data = TextDataModule(str(POEMS), max_lines=50, validation_lines=10)
    data.setup("fit")
    decode = ByteTokenizer().decode
    assert decode(data.train_set.tokens.flatten().tolist()) == "".join(lines[:50])
    assert decode(data.validation_set.tokens.flatten().tolist()) == "".join(lines[-10:])


def test_byte_frequency_loss(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abb\n" * 1000)  # frequencies 1/4, 1/2, 1/4 (newline)
    data = TextDataModule(str(path))
    data.setup("fit")
    # The one added to each of 256 counts makes it slightly worse than the entropy, 1.5 bits.
    assert 1.5 * math.log(2) < data.byte_frequency_loss() < 1.5 * math.log(2) + 0.1


def test_too_little_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one line\n\n\nand another\n")
    with pytest.raises(ValueError, match="2 non-empty lines"):
        TextDataModule(str(path)).setup("fit")


# --- models ---


@pytest.mark.parametrize("size", PRESETS)
def test_preset_sizes(size: str) -> None:
    with torch.device("meta"):
        network = Qwen3ForCausalLM(PRESETS[size].config(max_length=256))
    assert sum(parameter.numel() for parameter in network.parameters()) == EXPECTED_PARAMETERS[size]
    assert PRESETS[size].parameter_count() == EXPECTED_PARAMETERS[size]
    assert (network.lm_head.weight is network.model.embed_tokens.weight) == (size in ("tiny", "0.5B", "1.7B", "4B"))
    assert PRESETS[size].vocab >= ByteTokenizer.VOCAB


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match=r"'7B' is not a preset.*tiny, 0\.5B"):
        CausalLM(size="7B")


@torch.no_grad()
def test_fitness_and_loss_against_a_plain_loop(model: CausalLM, batch: dict[str, torch.Tensor]) -> None:
    """The fitness weighs every sample alike, the loss every token: they differ, as in the paper."""
    samples = []
    for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
        row = tokens[mask]  # alone and without its padding
        log_probabilities = torch.log_softmax(model(row[None])[0], dim=-1)
        samples.append([float(log_probabilities[t, row[t + 1]]) for t in range(len(row) - 1)])
    fitness = model.fitness_step(batch, 0)
    assert fitness.tolist() == pytest.approx([sum(values) / len(values) for values in samples], abs=1e-5)
    loss, count = model._next_token_loss(batch)
    tokens = [value for values in samples for value in values]
    assert count == len(tokens)
    assert float(loss) == pytest.approx(-sum(tokens) / len(tokens), abs=1e-5)
    assert abs(float(loss) + float(fitness.mean())) > 1e-4


@torch.no_grad()
def test_a_model_of_zeros_gives_the_uniform_distribution(model: CausalLM, batch: dict[str, torch.Tensor]) -> None:
    for parameter in model.parameters():
        parameter.data.zero_()
    assert model.fitness_step(batch, 0).tolist() == pytest.approx([-math.log(258)] * len(batch["tokens"]))


@torch.no_grad()
def test_masked_tokens_do_not_count(model: CausalLM, batch: dict[str, torch.Tensor]) -> None:
    fitness = model.fitness_step(batch, 0)
    other_padding = torch.where(batch["mask"], batch["tokens"], 65)
    changed = model.fitness_step({"tokens": other_padding, "mask": batch["mask"]}, 0)
    torch.testing.assert_close(changed, fitness, rtol=0, atol=1e-6)

    another_byte = batch["tokens"].clone()
    another_byte[:, 2] = 65
    assert ((model.fitness_step({"tokens": another_byte, "mask": batch["mask"]}, 0) - fitness).abs() > 1e-4).all()


def test_held_out_loss_is_the_mean_over_all_bytes(model: CausalLM) -> None:
    data = TextDataModule(str(POEMS), max_length=32)
    data.setup("fit")
    data.val_dataloader = lambda: torch.utils.data.DataLoader(data.validation_set, batch_size=5)  # the last one smaller
    with torch.no_grad():
        everything = {"tokens": data.validation_set.tokens, "mask": data.validation_set.mask}
        expected, count = model._next_token_loss(everything)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0
    )
    (metrics,) = trainer.validate(model, data, verbose=False)
    assert count == len(
        "".join(line for line in POEMS.read_text().splitlines(keepends=True) if line.strip()[:1])
    ) - sum(int(mask[1:].sum()) for mask in data.train_set.mask)
    assert metrics["val_loss"] == pytest.approx(float(expected), abs=1e-5)
    assert metrics["val_bits_per_byte"] == pytest.approx(float(expected) / math.log(2), abs=1e-5)


def test_continuation_is_reproducible_and_only_bytes(model: CausalLM) -> None:
    state = torch.get_rng_state()
    first, second = (model.continue_text("Thy ", length=40, seed=seed) for seed in (1, 1))
    assert first == second != model.continue_text("Thy ", length=40, seed=2)
    assert first.startswith("Thy ")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.continue_text("Thy ", length=3, temperature=0) == model.continue_text("Thy ", length=3, temperature=0)


# --- learning ---


def commands_of_the_readme() -> list[str]:
    text = (POEMS.parent / "README.md").read_text()
    return re.findall(r"^python -m examples\.ea4llm\b((?:.*\\\n)*.*)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("command", commands_of_the_readme())
def test_commands_of_the_readme_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but run: everything is built except the network."""
    quiet(monkeypatch)
    arguments = shlex.split(command.replace("\\\n", " "), comments=True)
    cli = command_line(arguments)
    for name, value in (argument.split("=", 1) for argument in arguments):
        if name == "--model.size":
            assert cli.model.size == value
        if name == "--trainer.max_steps":
            assert cli.trainer.max_steps == int(value)
    assert cli.model.max_length == cli.datamodule.max_length


@pytest.mark.slow
def test_learns_by_evolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the uniform distribution's ln 258 = 5.55 nats down by more than 1, in 50 generations as shipped."""
    result = run(monkeypatch, "--trainer.max_steps=50", "--trainer.val_check_interval=50")
    assert result.generations == 50
    assert result.initial_loss == pytest.approx(math.log(258), abs=0.03)
    assert result.final_loss < 4.5
    assert result.final_bits == pytest.approx(result.final_loss / math.log(2), rel=1e-4)
    assert result.continuation.startswith("The ")


def test_micro_batches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The paper's arrangement in small: a generation is several micro-batches, and a paper-sized step hardly moves."""
    result = run(
        monkeypatch,
        "--trainer.max_steps=2",
        "--trainer.accumulate_grad_batches=3",
        "--trainer.val_check_interval=3",
        "--trainer.strategy.init_args.samples_per_generation=40",
        "--trainer.strategy.init_args.sigma=1e-3",
        "--model.learning_rate=5e-4",
    )
    assert result.generations == 2
    assert 0 < abs(result.final_loss - result.initial_loss) < 0.01
    printed = capsys.readouterr().out
    assert "115,200 parameters" in printed
    assert "generation     2: held-out loss 5.5" in printed
