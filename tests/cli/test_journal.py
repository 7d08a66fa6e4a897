"""``lightning-evo journal``: tables and a picture of what a journal holds."""

import sys

import pytest
import torch

from lightning_evo.cli.main import main
from lightning_evo.journal import Journal


def test_journal(journaled, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    main(["journal", str(journaled / "evolution.evoj")])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    with Journal.open(journaled / "evolution.evoj") as journal:
        best = max(max(record.fitness) for record in journal)
        rate = journal.read(0).learning_rates[0]
    for words in (
        "algorithm mezo", "members 2", "generations 0 to 11 (12)", "sigma 0.01", f"learning rate {rate:g}",
        "clipping none", "seed 1", "evolving 66 elements in 2 tensors", "tail complete", f"{best:.6g}",
        f"size {(journaled / 'evolution.evoj').stat().st_size:,} bytes", f"run {journal.header.run:016x} (format 2)",
    ):  # fmt: skip
        assert words in text


def test_journal_that_is_torn_or_empty(journaled, tmp_path, capsys):
    content = (journaled / "evolution.evoj").read_bytes()
    torn = tmp_path / "torn.evoj"
    torn.write_bytes(content[:-3])
    main(["journal", str(torn)])
    text = capsys.readouterr().out
    assert "torn: 25 bytes, which resuming cuts off" in text
    assert "0 to 11 (12)" in text
    assert torn.read_bytes() == content[:-3]
    with Journal.open(torn) as journal:
        Journal.create(tmp_path / "empty.evoj", journal.header).close()
    main(["journal", str(tmp_path / "empty.evoj")])
    assert "Fitness" not in capsys.readouterr().out
    torn.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"lightning-evo journal: .*torn.evoj is empty"):
        main(["journal", str(torn)])


def test_plot(journaled, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    command = ["journal", str(journaled / "evolution.evoj"), "--plot", str(tmp_path / "fitness.png")]
    main(command)
    assert (tmp_path / "fitness.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="not overwritten without --overwrite"):
        main(command)
    main([*command, "--overwrite"])
    for name, message in (
        ("noext", r"Add the kind: .*noext.png\."),
        ("x.xyz", r"no .xyz files. Name the picture .png"),
    ):
        with pytest.raises(SystemExit, match=f"lightning-evo journal: .*{message}"):
            main([*command[:-1], str(tmp_path / name)])
    assert [path.name for path in tmp_path.iterdir()] == ["fitness.png"]


def test_plot_without_matplotlib(journaled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"--plot draws with matplotlib: pip install 'lightning-evo\[plot\]'"):
        main(["journal", str(journaled / "evolution.evoj"), "--plot", str(tmp_path / "fitness.png")])
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["journal", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(words in text for words in ("--plot", "only read", "--overwrite", "--verify", "exit code 0"))


def verify(folder, *arguments):
    main(["journal", "--verify", str(folder / "evolution.evoj"), *arguments])


def test_verify(journaled, capsys):
    verify(journaled)
    out = capsys.readouterr().out
    assert out == (
        "Verified: after 4 to 12 generations the run's weights are what its journal gives, bit for bit (1 checksum and "
        "2 later checkpoints agree).\n"
    )
    verify(journaled, f"--checkpoint={journaled / 'step=8.ckpt'}", f"--checkpoint={journaled / 'step=4.ckpt'}")
    assert "(1 checksum and 1 later checkpoint agree)" in capsys.readouterr().out


def test_what_was_not_replayed_is_not_verified(journaled, tmp_path, capsys):
    for name in ("evolution.evoj", "step=12.ckpt"):
        (tmp_path / name).write_bytes((journaled / name).read_bytes())
    with pytest.raises(SystemExit):
        verify(tmp_path)
    assert capsys.readouterr().out.startswith("Not verified: the checkpoint is that of the journal's end, after 12 gen")


def test_verify_finds_changed_weights(journaled, tmp_path, capsys):
    for name in ("evolution.evoj", "step=4.ckpt", "step=12.ckpt"):
        (tmp_path / name).write_bytes((journaled / name).read_bytes())
    changed = torch.load(tmp_path / "step=12.ckpt", weights_only=True)
    changed["state_dict"]["layer.bias"][1] += 1e-3
    torch.save(changed, tmp_path / "step=12.ckpt")
    with pytest.raises(SystemExit) as ended:
        verify(tmp_path)
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith(
        "Not verified: between 4 and 12 generations the run's weights (layer.bias of step=12.ckpt) departed from what"
    )


def test_what_verify_refuses(journaled, tmp_path):
    (tmp_path / "evolution.evoj").write_bytes((journaled / "evolution.evoj").read_bytes())
    for arguments, message in (
        ([], "No checkpoint of this run lies beside .*evolution.evoj. Name one: --checkpoint FILE"),
        ([f"--checkpoint={journaled / 'nowhere.ckpt'}"], "nowhere.ckpt does not exist"),
        ([f"--checkpoint={journaled / 'end.pt'}"], "weights have the checksum"),
        (["--device=foo", f"--checkpoint={journaled / 'step=4.ckpt'}"], "There is no device 'foo' here"),
    ):
        with pytest.raises(SystemExit, match=f"lightning-evo journal: .*{message}"):
            verify(tmp_path, *arguments)
    with pytest.raises(SystemExit, match="--verify compares weights and draws nothing"):
        verify(tmp_path, "--plot=a.png")
    with pytest.raises(SystemExit, match="--overwrite is for --plot"):
        verify(tmp_path, "--overwrite")
    with pytest.raises(SystemExit, match="--checkpoint is for --verify"):
        main(["journal", str(journaled / "evolution.evoj"), "--checkpoint=x.ckpt"])
