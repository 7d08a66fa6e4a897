"""The last line of a command-line error says what is wrong and what to do."""

import sys

import pytest

from lightning_evo.cli import EvoCLI
from lightning_evo.cli.errors import ConfigurationError, reason
from lightning_evo.cli.main import main
from tests.cli.test_command import BASE

STRATEGY = "--trainer.strategy=lightning_evo.EvoStrategy"


def last_line(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*BASE, *arguments])
    assert caught.value.code not in (0, None)
    printed = caught.value.code if isinstance(caught.value.code, str) else capsys.readouterr().err
    return printed.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([STRATEGY, "--trainer.strategy.rnak=1"],
         "lightning_evo.EvoStrategy has no option 'rnak'. Did you mean 'rank'?"),
        ([STRATEGY, "--trainer.strategy.init_args.lr=1"], "lightning_evo.EvoStrategy has no option 'lr'. Did you mean "
         "'learning_rate'? Its options: population, sigma, learning_rate, "),
        (["--trainer.strategy=lightning_evo.EvoDDPStrategy", "--trainer.strategy.shards=2"],
         "lightning_evo.EvoDDPStrategy has no option 'shards'. Did you mean 'shard'?"),
        (["--config", "evolve.yaml"], "lightning_evo.EvoStrategy has no option 'sgima'. Did you mean 'sigma'?"),
        ([STRATEGY, "--trainer.strategy.noise=normal"],
         "Unknown noise 'normal'. Did you mean 'gaussian'? Choose one of gaussian, rademacher, uniform."),
        ([STRATEGY, "--trainer.strategy.population=many"], "population must be of type int, got 'many'."),
        ([STRATEGY, "--trainer.strategy.population=7"],
         "lightning-evo: population=7 is odd, but antithetic members come in pairs. Use 8, or antithetic=False."),
        ([STRATEGY, "--trainer.strategy.sigma=-1"], "lightning-evo: sigma must be a number > 0, got -1.0."),
        ([STRATEGY, "--trainer.strategy.sigma={kind: lin, begin: 1}"],
         "Unknown kind 'lin'. Did you mean 'linear'? Choose one of linear, cosine, exponential."),
        ([STRATEGY, "--trainer.strategy.sigma=small"], "sigma must be of type float or Schedule, got 'small'."),
        ([STRATEGY, "--trainer.strategy.algorithm=eggrol"],
         "lightning-evo: Unknown algorithm 'eggrol'. Did you mean 'eggroll'?"),
        (["--trainer.callbacks=lightning_evo.callbacks.EvolutionMonitor", "--trainer.callbacks.metrc=x"],
         "lightning_evo.callbacks.EvolutionMonitor has no option 'metrc'. Did you mean 'metric'? Its options: metric"),
        (["--modle=x"], "There is no option --modle. Did you mean '--model'?"),
        (["--trainer.max_eposhs=3"], "There is no option --trainer.max_eposhs. Did you mean '--trainer.max_epochs'?"),
        (["--trainer.max_epochs=many"], "trainer.max_epochs must be of type int, got 'many'."),
        (["--model=nowhere.Model"], "nowhere.Model: No module named 'nowhere'"),
    ],
)  # fmt: skip
def test_the_last_line(arguments, line, tmp_path, capsys):
    (tmp_path / "evolve.yaml").write_text(
        "trainer: {strategy: {class_path: lightning_evo.EvoStrategy, init_args: {algorithm: mezo, sgima: 1.0}}}"
    )
    found = last_line(arguments, capsys)
    assert found[: len(line)] == line


def test_a_strategys_name_on_the_command_line():
    with pytest.raises(ValueError, match="Did you mean 'evo'"):
        main([*BASE, "--trainer.strategy=evoo"])


def test_a_program_of_the_users_gets_the_line_as_an_error(monkeypatch):
    from lightning.pytorch.demos.boring_classes import BoringModel

    arguments = ["--seed_everything=0", "--trainer.accelerator=cpu", STRATEGY, "--trainer.strategy.init_args.top_k=3"]
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ConfigurationError, match=r"^shaping='top_k' and top_k .* go together"):
        EvoCLI(BoringModel, args=arguments, run=False)


def test_errors_of_the_users_own_code_stay_as_they_are(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import lightning as L\n"
        "class Mine(L.LightningModule):\n"
        "    def __init__(self, width: int = 1):\n"
        "        super().__init__()\n"
        "        raise ValueError('of the user')\n"
    )
    with pytest.raises(ValueError, match="of the user"):
        main(["fit", "--seed_everything=0", "--model=mine.Mine", "--trainer.accelerator=cpu"])


@pytest.mark.parametrize("message", ["", "something else", "line one\nline two", 'Parser key "x":\n  no value'])
def test_what_is_not_understood_is_left_alone(message):
    assert reason(message) is None
