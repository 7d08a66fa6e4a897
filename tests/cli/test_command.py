"""``lightning-evo``: every option of the strategy, checked, and what is said of a wrong command."""

import pytest
import torch

from lightning_evo import Anchor, algorithms
from lightning_evo.cli import command
from lightning_evo.cli.command import EvoCLI
from lightning_evo.cli.main import main
from lightning_evo.cli.tools import TOOLS

STRATEGY = "--trainer.strategy.init_args."
BASE = [
    "fit", "--seed_everything=0", "--model=lightning.pytorch.demos.boring_classes.BoringModel", "--trainer.max_steps=2",
    "--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
]  # fmt: skip


@pytest.fixture
def run(monkeypatch):
    """Runs the command line and returns the Trainer."""
    made = []

    class Recorded(EvoCLI):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, save_config_kwargs={"overwrite": True}, **kwargs)
            made.append(self.trainer)

    monkeypatch.setattr(command, "EvoCLI", Recorded)

    def run(*arguments):
        main([*BASE, *arguments])
        return made.pop()

    return run


def test_evo_is_the_default_strategy(run):
    trainer = run()
    assert type(trainer.strategy).__name__ == "EvoStrategy"
    assert trainer.global_step == 2


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning")  # Lightning's
def test_a_search_from_the_command_line(run):
    trainer = run(
        *("--model=examples.functions.functions.Point", "--model.function=sphere", "--trainer.max_steps=40"),
        *("--trainer.strategy=lightning_evo.EvoStrategy", "--trainer.strategy.algorithm=cma_es"),
        *("--trainer.strategy.sigma=0.5", "--trainer.strategy.seed=1", "--trainer.strategy.restarts=ipop"),
        "--trainer.strategy.dict_kwargs.maxiter=200",
    )
    assert trainer.strategy.evolution.algorithm == algorithms.get("cma_es")(sigma=0.5, restarts="ipop", maxiter=200)
    assert trainer.global_step == 40
    assert float(trainer.lightning_module.point.detach().norm()) < 1e-2  # 2.8 at the start


def test_every_option_from_the_command_line(run):
    trainer = run(
        "--trainer.strategy=lightning_evo.EvoStrategy",
        f"{STRATEGY}algorithm=ars",
        f"{STRATEGY}population=8",
        f"{STRATEGY}sigma=0.5",
        f"{STRATEGY}noise=rademacher",
        f"{STRATEGY}shaping=top_k",
        f"{STRATEGY}top_k=2",
        f"{STRATEGY}antithetic=true",
        f"{STRATEGY}scaling=sigma",
        f"{STRATEGY}weight_decay=0.1",
        f"{STRATEGY}samples_per_generation=3",
        f"{STRATEGY}rank=2",
        f"{STRATEGY}noise_reuse=2",
        f"{STRATEGY}basis_reuse=4",
        f"{STRATEGY}momentum=0.9",
        f"{STRATEGY}sigma_scale=rms",
        f"{STRATEGY}evolve=[weight]",
        f"{STRATEGY}update=in_place",
        f"{STRATEGY}journal=false",
        f"{STRATEGY}evaluation=batched",
        f"{STRATEGY}members_per_forward=4",
        f"{STRATEGY}seed=5",
    )
    evolution = trainer.strategy.evolution
    expected = algorithms.get("ars")(
        population=8,
        sigma=0.5,
        noise="rademacher",
        top_k=2,
        scaling="sigma",
        weight_decay=0.1,
        samples_per_generation=3,
        rank=2,
        noise_reuse=2,
        basis_reuse=4,
        momentum=0.9,
        sigma_scale="rms",
    )
    assert evolution.algorithm == expected
    assert evolution.state.seed == 5
    assert evolution.evaluation.summary == "evaluation: batched, 4 members per forward"
    assert [parameter.name for parameter in evolution.space] == ["layer.weight"]
    assert trainer.optimizers[0].state_dict()["state"] == {}


def test_yaml(run, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        """
trainer:
  strategy:
    class_path: lightning_evo.EvoStrategy
    init_args:
      algorithm: openai_es
      population: 4
      evaluation: batched
      members_per_forward: auto
      sigma: {kind: exponential, start: 0.1, end: 0.01, generations: 100}
"""
    )
    trainer = run("--config", str(config))
    assert trainer.strategy.evolution.evaluation.summary == "evaluation: batched, 4 members per forward"
    assert trainer.strategy.evolution.algorithm.sigma == algorithms.Schedule("exponential", 0.1, 0.01, 100)
    assert trainer.strategy.sigma == pytest.approx(0.1 * 0.1 ** (2 / 100))


@pytest.mark.parametrize(
    ("given", "anchor"), [("0.5", Anchor(0.5)), ("{strength: 0.5, by: l1, device: cpu}", Anchor(0.5, "l1", "cpu"))]
)
def test_an_anchor(run, given, anchor, tmp_path):
    options = [f"--trainer.strategy.{option}" for option in ("update=in_place", f"anchor={given}")]
    trainer = run("--trainer.strategy=lightning_evo.EvoStrategy", *options)
    assert trainer.strategy.evolution.start.anchor == anchor
    assert trainer.callback_metrics["evo/drift"] > 0
    config = tmp_path / "anchor.yaml"
    options = f"{{update: in_place, anchor: {given}}}"
    config.write_text(f"trainer: {{strategy: {{class_path: lightning_evo.EvoStrategy, init_args: {options}}}}}")
    assert run("--config", str(config)).strategy.evolution.start.anchor == anchor


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("population=many", "population"),
        ("update=sideways", "sideways"),
        ("popluation=8", "popluation"),
        ("sigma=-1", "sigma must be a number > 0"),
        ("anchor=-1", "anchor must be an Anchor, or its strength, a number > 0, got -1"),
        ("anchor={strength: 1, by: l3}", "l3"),
        ("sparsity=2", "sparsity must be a number in (0, 1)"),
        ("sigma_scale=big", "sigma_scale"),
        ("evaluation=fast", "fast"),
        ("members_per_forward=0", "members_per_forward must be 'auto' or a whole number >= 1, got 0"),
        ("algorithm=openai", "Did you mean 'openai_es'"),
    ],
)
def test_bad_options(run, capsys, option, message):
    with pytest.raises((SystemExit, ValueError)) as raised:
        run("--trainer.strategy=lightning_evo.EvoStrategy", STRATEGY + option)
    assert message in capsys.readouterr().err + str(raised.value)


def test_help_is_readable(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--trainer.strategy.help=lightning_evo.EvoStrategy"])
    text = capsys.readouterr().out
    for option in ("population", "sigma", "shaping", "scaling", "evolve", "update", "samples_per_generation"):
        assert f"--trainer.strategy.{option}" in text
    assert "Members per generation" in text


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out.startswith("lightning-evo 0.")


def test_both_ways_of_naming_the_strategy_give_the_same(run):
    by_name, by_class = run("--trainer.strategy=evo"), run("--trainer.strategy.class_path=lightning_evo.EvoStrategy")
    assert type(by_name.strategy) is type(by_class.strategy)
    assert torch.is_tensor(by_name.callback_metrics["evo/fitness_mean"])


def test_modules_of_the_current_folder_are_found(run, tmp_path):
    (tmp_path / "my_models.py").write_text(
        "from lightning.pytorch.demos.boring_classes import BoringModel\nclass Mine(BoringModel):\n    pass\n"
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("model:\n  class_path: my_models.Mine\n")
    assert type(run("--config", "configs/mine.yaml").lightning_module).__name__ == "Mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algorithm"], r"no command 'algorithm'\. Did you mean 'algorithms'\? Commands: fit, .*journal, replay"),
        (["repaly"], r"no command 'repaly'\. Did you mean 'replay'\?"),
    ],
)
def test_unknown_commands(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])  # LightningCLI's own
    shown = capsys.readouterr().out
    for name in ("fit", "validate", "test", "predict", *TOOLS):
        assert name in shown
