"""``lightning-evo``: its help names every command, and tools do without Lightning."""

import subprocess
import sys

import pytest

from lightning_evo.cli import command
from lightning_evo.cli.main import TRAINING, main
from lightning_evo.cli.tools import SUMMARIES, TOOLS


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help(capsys, arguments):
    main(arguments)
    text = capsys.readouterr().out
    for name, summary in {**TRAINING, **SUMMARIES}.items():
        assert f"  {name} " in text
        assert summary in text


def test_training_is_all_that_lightning_cli_does():
    assert list(TRAINING) == list(command.EvoCLI.subcommands())


def test_every_tool_has_its_file():
    assert list(TOOLS) == list(SUMMARIES)
    for name, tool in TOOLS.items():
        assert tool.parser().prog == f"lightning-evo {name}"
    with pytest.raises(KeyError):
        TOOLS["repaly"]


def test_other_commands_are_lightnings(monkeypatch):
    given = []
    monkeypatch.setattr(command, "main", given.append)
    main(["fit", "--help"])
    main(["--print_config"])
    assert given == [["fit", "--help"], ["--print_config"]]


# Lightning takes seconds to import; PyTorch does, too, so what needs no tensors goes without.
@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], ("lightning", "torch", "matplotlib")),
        (["--version"], ("lightning", "torch", "matplotlib")),
        (["compare", "--help"], ("lightning", "torch", "matplotlib")),
        (["algorithms"], ("lightning", "lightning_fabric", "torchmetrics", "matplotlib")),
        (["journal", "--help"], ("lightning", "lightning_fabric", "torchmetrics", "matplotlib")),
        (["replay", "--help"], ("lightning", "lightning_fabric", "torchmetrics", "matplotlib")),
    ],
    ids=" ".join,
)
def test_what_is_not_imported(arguments, absent):
    code = (
        "import sys\n"
        "from lightning_evo.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"assert not [name for name in {absent!r} if name in sys.modules], sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
