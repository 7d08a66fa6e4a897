"""``lightning-evo replay``: a run's weights again, bit for bit, and what it refuses."""

import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_evo import EvoStrategy
from lightning_evo.cli.main import main


def replay(folder, *arguments):
    base, journal = folder / "step=4.ckpt", folder / "evolution.evoj"
    main(["replay", f"--checkpoint={base}", f"--journal={journal}", *arguments])


@pytest.mark.parametrize("step", [None, 4, 7, 8, 12])
def test_replay(journaled, tmp_path, capsys, step):
    output = tmp_path / "folder" / "out.ckpt"
    replay(journaled, f"--output={output}", *([] if step is None else [f"--to-generation={step}"]))
    assert f"out.ckpt: the weights after {step or 12} generations" in capsys.readouterr().out
    replayed = torch.load(output, weights_only=True)
    if step == 7:
        replay(journaled, f"--output={tmp_path / 'next.ckpt'}", f"--checkpoint={output}")
        replayed, step = torch.load(tmp_path / "next.ckpt", weights_only=True), None
    expected = torch.load(journaled / "end.pt", weights_only=True)
    if step is not None and step < 12:
        expected = torch.load(journaled / f"step={step}.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(replayed["state_dict"][name], expected[name]) for name in expected)
    module = BoringModel.load_from_checkpoint(output)
    if step is not None:
        assert torch.equal(module.layer.weight, expected["layer.weight"])
    assert [path.name for path in output.parent.iterdir()] == ["out.ckpt"]


def test_a_replayed_checkpoint_is_not_resumed_by_mistake(journaled, tmp_path):
    replay(journaled, f"--output={tmp_path / 'out.ckpt'}")
    trainer = L.Trainer(strategy="evo", max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(KeyError, match="checkpoint contains only the model"):
        trainer.fit(BoringModel(), ckpt_path=tmp_path / "out.ckpt")


def test_replay_overwrites_only_when_told(journaled, tmp_path):
    output = tmp_path / "out.ckpt"
    output.write_text("mine")
    with pytest.raises(SystemExit, match="lightning-evo replay: .* exists, and is not overwritten"):
        replay(journaled, f"--output={output}")
    assert output.read_text() == "mine"
    replay(journaled, f"--output={output}", "--overwrite")
    assert torch.load(output, weights_only=True)["lightning_evo"]["state"]["generation"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to-generation=3"], "a replay only goes forward: 3 is before it"),
        (["--to-generation=13"], "ends at generation 12"),
        (["--journal=nowhere.evoj"], "nowhere.evoj does not exist. Name a file"),
        (["--checkpoint=nowhere.ckpt"], "nowhere.ckpt does not exist. Name a file"),
        (["--journal={folder}/step=4.ckpt"], "is not a seed journal"),
        (["--checkpoint={folder}/evolution.evoj"], "can't be read as plain data"),
        (["--checkpoint={folder}/end.pt"], "weights have the checksum"),
        (["--checkpoint={folder}/note.txt"], "note.txt can't be read as plain data: it is not a file of torch.save."),
        (["--checkpoint={folder}/empty.ckpt"], "empty.ckpt can't be read as plain data"),
        (["--device=foo"], "There is no device 'foo' here"),
        (["--device=meta"], "There is no device 'meta' here"),
    ],
)
def test_what_replay_refuses(journaled, tmp_path, arguments, message):
    (journaled / "note.txt").write_text("hello, this is a note\n")
    (journaled / "empty.ckpt").touch()
    output = tmp_path / "out.ckpt"
    with pytest.raises(SystemExit, match=f"lightning-evo replay: .*{re.escape(message)}"):
        replay(journaled, f"--output={output}", *(argument.format(folder=journaled) for argument in arguments))
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["replay", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("--checkpoint", "--to-generation", "--overwrite", "Neither the module's code"):
        assert words in text


def test_files_are_required(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["replay"])
    assert "the following arguments are required: --checkpoint, --journal, --output" in capsys.readouterr().err


def test_a_run_with_an_anchor(tmp_path, capsys, monkeypatch):
    """It is replayed from any checkpoint, with the weights that its script built."""
    monkeypatch.setenv("COLUMNS", "200")
    module = BoringModel()
    built = {name: value.clone() for name, value in module.state_dict().items()}
    strategy = EvoStrategy("mezo", sigma=0.01, update="in_place", seed=1, anchor=2.0)
    trainer = L.Trainer(
        strategy=strategy, max_steps=8, accelerator="cpu", devices=1, logger=False, limit_val_batches=0,
        callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    torch.save(built, tmp_path / "start.pt")
    journal, start, output = (str(tmp_path / name) for name in ("evolution.evoj", "start.pt", "new.ckpt"))
    command = ["replay", "--checkpoint", str(tmp_path / "step=4.ckpt"), "--journal", journal, "--output", output]
    with pytest.raises(SystemExit, match="lightning-evo replay: .*or --start FILE"):
        main(command)
    main([*command, "--start", start])
    assert "They are the run's" in capsys.readouterr().out
    replayed = torch.load(output, weights_only=True)["state_dict"]
    assert all(torch.equal(replayed[name], value) for name, value in module.state_dict().items())
    main(["journal", journal])
    assert "strength 2 (l2), to weights" in capsys.readouterr().out
    main(["journal", journal, "--verify", "--start", start])
    assert "Verified: after 4 to 8 generations" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--start is for --verify"):
        main(["journal", journal, "--start", start])
