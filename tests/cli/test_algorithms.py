"""``lightning-evo algorithms``: the whole registry."""

import pytest

from lightning_evo import algorithms
from lightning_evo.cli.main import main


def test_algorithms(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    main(["algorithms"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in algorithms.available():
        factory = algorithms.get(name)
        assert name in text
        assert factory.summary in text
        assert factory.paper in text
    assert "samples_per_generation=5000" in text


def test_algorithms_takes_no_arguments(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["algorithms", "mezo"])
    assert "lightning-evo algorithms: error: unrecognized arguments: mezo" in capsys.readouterr().err
