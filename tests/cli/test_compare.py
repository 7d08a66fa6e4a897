"""``lightning-evo compare``: several runs in one table and one picture."""

import sys

import pytest

from lightning_evo.cli.main import main


@pytest.fixture
def logs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for number, (strategy, ends) in enumerate(
        [
            ("{algorithm: mezo, sigma: 0.1, seed: 1}", (0.5, 0.7, 0.6)),
            ("{algorithm: mezo, sigma: 0.1, seed: 2}", (0.4, 0.5, 0.8)),
            ("{algorithm: mezo, sigma: 0.2, seed: 1}", (0.3, 0.2, 0.1)),
            (None, (0.9, 0.95, 0.9)),
        ]
    ):
        folder = tmp_path / f"version_{number}"
        folder.mkdir()
        fitness = "" if strategy is None else "-1"
        rows = [f"{step},{end},{1 - end},{fitness}" for step, end in zip((4, 8, 12), ends, strict=True)]
        (folder / "metrics.csv").write_text("\n".join(["step,val_acc,val_loss,evo/fitness_mean", *rows]))
        (folder / "hparams.yaml").write_text("lr: 0.1\n" + ("" if strategy is None else f"strategy: {strategy}\n"))
    return tmp_path


def words(text):
    return " ".join(text.replace("│", " ").split())


def test_table_and_picture(logs, capsys):
    pytest.importorskip("matplotlib")
    main(["compare", *(str(logs / f"version_{number}") for number in range(4))])
    text = words(capsys.readouterr().out)
    assert "run ┃ runs ┃ steps ┃ last ┃ highest (at step)" in text
    assert "mezo, sigma=0.1 2 12 0.7 [0.6 to 0.8] 0.75 [0.7 to 0.8] (10)" in text
    assert "mezo, sigma=0.2 1 12 0.1 0.3 (4)" in text
    assert "backpropagation 1 12 0.9 0.95 (8)" in text
    assert "run ┃ runs ┃ steps ┃ last ┃ lowest (at step)" in text  # of the loss
    assert "backpropagation 1 12 0.1 0.05 (8)" in text
    assert text.endswith("Picture: comparison.png")
    assert (logs / "comparison.png").read_bytes().startswith(b"\x89PNG")
    main(["compare", str(logs / "version_0")])  # replaces its own picture


def test_each_run_counts_once_and_answers_are_no_word_error_rates(logs, capsys):
    pytest.importorskip("matplotlib")
    rows = (logs / "version_0" / "metrics.csv").read_text().replace("val_acc", "val_answer_acc")
    (logs / "version_0" / "metrics.csv").write_text(rows)
    main(["compare", str(logs / "version_0"), str(logs / "version_0"), "--metric=val_answer_acc"])
    text = words(capsys.readouterr().out)
    assert "highest (at step)" in text
    assert " 1 12 0.6 0.7 (8)" in text


def test_metric_and_output(logs, capsys):
    pytest.importorskip("matplotlib")
    command = [
        "compare",
        *map(str, logs.glob("version_*")),
        "--metric=evo/fitness_mean",
        "--output",
        str(logs / "a.svg"),
    ]
    main(command)
    text = words(capsys.readouterr().out)
    assert "backpropagation 1 not logged" in text
    assert "val_acc" not in text
    assert (logs / "a.svg").read_text().startswith("<?xml")
    with pytest.raises(SystemExit, match="lightning-evo compare: .* not overwritten without --overwrite"):
        main(command)
    main([*command, "--overwrite"])


def test_what_compare_refuses(logs, monkeypatch):
    folder = str(logs / "version_0")
    for arguments, message in (
        ([str(logs)], "is not a run, but holds some: name .*version_0, .*version_1"),
        ([folder, "--metric=val_ac"], "Did you mean 'val_acc'"),
        ([folder, "--output=picture"], r"Add the kind: picture\.png"),
        ([folder, "--output=a.xyz"], "matplotlib draws no .xyz"),
    ):
        with pytest.raises(SystemExit, match=f"lightning-evo compare: .*{message}"):
            main(["compare", *arguments])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"draws with matplotlib: pip install 'lightning-evo\[plot\]'"):
        main(["compare", folder])
    assert not (logs / "comparison.png").exists()
