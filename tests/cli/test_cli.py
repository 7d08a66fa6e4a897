"""The command line: every option of the strategy, checked, and the list of algorithms."""

import logging
import re
import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_evo import EvoStrategy, algorithms
from lightning_evo.cli import command as cli
from lightning_evo.journal import Journal

STRATEGY = "--trainer.strategy.init_args."
BASE = [
    "fit", "--seed_everything=0", "--model=lightning.pytorch.demos.boring_classes.BoringModel", "--trainer.max_steps=2",
    "--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # LightningCLI saves its configuration here
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))


@pytest.fixture
def run(monkeypatch):
    """Runs the command line and returns the Trainer."""
    made = []

    class Recorded(cli.EvoCLI):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, save_config_kwargs={"overwrite": True}, **kwargs)
            made.append(self.trainer)

    monkeypatch.setattr(cli, "EvoCLI", Recorded)

    def run(*arguments):
        cli.main([*BASE, *arguments])
        return made.pop()

    return run


def test_evo_is_the_default_strategy(run):
    trainer = run()
    assert type(trainer.strategy).__name__ == "EvoStrategy"
    assert trainer.global_step == 2


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
    ("option", "message"),
    [
        ("population=many", "population"),
        ("update=sideways", "sideways"),
        ("popluation=8", "popluation"),
        ("sigma=-1", "sigma must be a number > 0"),
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
        cli.main(["fit", "--trainer.strategy.help=lightning_evo.EvoStrategy"])
    text = capsys.readouterr().out
    for option in ("population", "sigma", "shaping", "scaling", "evolve", "update", "samples_per_generation"):
        assert f"--trainer.strategy.{option}" in text
    assert "Members per generation" in text


def test_algorithms(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    cli.main(["algorithms"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in algorithms.available():
        factory = algorithms.get(name)
        assert name in text
        assert factory.summary in text
        assert factory.paper in text
    assert "samples_per_generation=5000" in text
    with pytest.raises(SystemExit, match="takes no arguments"):
        cli.main(["algorithms", "mezo"])


def test_version(capsys):
    cli.main(["--version"])
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


# --- seed journals ---


@pytest.fixture(scope="module")
def journaled(tmp_path_factory):
    """A folder with a run's journal, its first checkpoint, and the weights at its end."""
    folder = tmp_path_factory.mktemp("journaled")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(0)
    module = BoringModel()
    trainer = L.Trainer(
        strategy=EvoStrategy("mezo", sigma=0.01, update="in_place", seed=1), max_steps=12, accelerator="cpu",
        devices=1, logger=False, callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4,
        save_top_k=-1)], limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    torch.save(module.state_dict(), folder / "end.pt")
    return folder


def replay(folder, *arguments):
    base, journal = folder / "step=4.ckpt", folder / "evolution.evoj"
    cli.main(["replay", f"--checkpoint={base}", f"--journal={journal}", *arguments])


@pytest.mark.parametrize("step", [None, 4, 7, 8, 12])
def test_replay(journaled, tmp_path, capsys, step):
    output = tmp_path / "folder" / "out.ckpt"
    replay(journaled, f"--output={output}", *([] if step is None else [f"--to-step={step}"]))
    assert f"out.ckpt: the weights after generation {step or 12}" in capsys.readouterr().out
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
    assert torch.load(output, weights_only=True)["lightning_evo"]["generation"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to-step=3"], "a replay only goes forward: 3 is before it"),
        (["--to-step=13"], "ends at generation 12"),
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


def test_what_replay_and_journal_say_of_themselves(capsys):
    for arguments, words in (
        (
            ["replay", "--help"],
            ("--checkpoint", "--to-step", "--overwrite", "Neither the module's code"),
        ),
        (["journal", "--help"], ("--plot", "only read", "--overwrite")),
    ):
        with pytest.raises(SystemExit, match="0"):
            cli.main(arguments)
        text = " ".join(capsys.readouterr().out.split())
        assert all(word in text for word in words)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["replay"])
    assert "the following arguments are required: --checkpoint, --journal, --output" in capsys.readouterr().err


def test_journal(journaled, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    cli.main(["journal", str(journaled / "evolution.evoj")])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    with Journal.open(journaled / "evolution.evoj") as journal:
        best = max(max(record.fitness) for record in journal)
        rate = journal.read(0).learning_rates[0]
    for words in (
        "algorithm mezo", "members 2", "generations 0 to 11 (12)", "sigma 0.01", f"learning rate {rate:g}",
        "clipping none", "seed 1", "evolving 66 elements in 2 tensors", "tail complete", f"{best:.6g}",
        f"size {(journaled / 'evolution.evoj').stat().st_size:,} bytes", f"run {journal.header.run:016x} (format 1)",
    ):  # fmt: skip
        assert words in text


def test_journal_that_is_torn_or_empty(journaled, tmp_path, capsys):
    content = (journaled / "evolution.evoj").read_bytes()
    torn = tmp_path / "torn.evoj"
    torn.write_bytes(content[:-3])
    cli.main(["journal", str(torn)])
    text = capsys.readouterr().out
    assert "torn: 25 bytes, which resuming cuts off" in text
    assert "0 to 11 (12)" in text
    assert torn.read_bytes() == content[:-3]
    with Journal.open(torn) as journal:
        Journal.create(tmp_path / "empty.evoj", journal.header).close()
    cli.main(["journal", str(tmp_path / "empty.evoj")])
    assert "Fitness" not in capsys.readouterr().out
    torn.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"lightning-evo journal: .*torn.evoj is empty"):
        cli.main(["journal", str(torn)])


def test_plot(journaled, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    command = ["journal", str(journaled / "evolution.evoj"), "--plot", str(tmp_path / "fitness.png")]
    cli.main(command)
    assert (tmp_path / "fitness.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="not overwritten without --overwrite"):
        cli.main(command)
    cli.main([*command, "--overwrite"])
    for name, message in (("noext", "name it .*noext.png"), ("x.xyz", r"no .xyz files. Name the picture .png")):
        with pytest.raises(SystemExit, match=f"lightning-evo journal: .*{message}"):
            cli.main([*command[:-1], str(tmp_path / name)])
    assert [path.name for path in tmp_path.iterdir()] == ["fitness.png"]


def test_plot_without_matplotlib(journaled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"--plot draws with matplotlib: pip install 'lightning-evo\[plot\]'"):
        cli.main(["journal", str(journaled / "evolution.evoj"), "--plot", str(tmp_path / "fitness.png")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algorithm"], r"no command 'algorithm'\. Did you mean 'algorithms'\? Commands: fit, .*journal, replay"),
        (["repaly"], r"no command 'repaly'\. Did you mean 'replay'\?"),
    ],
)
def test_unknown_commands(arguments, message):
    with pytest.raises(SystemExit, match=message):
        cli.main(arguments)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "algorithms", "journal", "replay"):
        assert command in shown
