"""Runs are read as loggers left them, and what is no run is named."""

import sys

import numpy
import pytest
import yaml

from lightning_evo.curves.runs import FITNESS, Run, metric_names, read_run, write_run


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,evo/fitness_mean,step,val_acc,val_loss\n0,-2.5,0,,\n0,-1.5,1,,\n0,,1,0.25,1.5\n1,-1,2,,\n1,,2,0.5,nan\n1,,2,0.75,\n"
    )
    return tmp_path


def test_a_folder_of_csv_logger(folder):
    run = read_run(folder)
    assert run.curves["evo/fitness_mean"] == [(0, -2.5), (1, -1.5), (2, -1.0)]
    assert run.curve("val_acc") == [(1, 0.25), (2, 0.75)]  # of a step the last value counts
    assert run.curve("val_loss")[0] == (1, 1.5)
    assert run.curve("val_loss")[1][1] != run.curve("val_loss")[1][1]
    assert run.curve("nothing") == []
    assert set(run.curves) == {"evo/fitness_mean", "val_acc", "val_loss"}
    assert run.evolves
    assert run.settings == {}
    assert read_run(folder / "metrics.csv").curves.keys() == run.curves.keys()


def test_settings_of_hyperparameters_and_configuration(folder):
    (folder / "hparams.yaml").write_text(
        "lr: 0.1\nlayers: !!python/tuple [2, 3]\nkind: !!python/object:a.B {x: 1}\n_instantiator: x\n"
        "data: {n: 3, m: {k: 1}}\n"
    )
    (folder / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "seed_everything": 3,
                "trainer": {
                    "max_epochs": 2,
                    "strategy": {
                        "class_path": "lightning_evo.EvoStrategy",
                        "init_args": {
                            "population": 8,
                            "sigma": {"kind": "cosine", "start": 0.1, "end": 0.01, "generations": 9},
                        },
                    },
                },
                "model": {"class_path": "mine.Model"},
            }
        )
    )
    (folder / "learning_curve.yaml").write_text(
        "strategy: {learning_rate: {schedule: {kind: linear, start: 1, end: 0}}}\n"
    )
    assert read_run(folder).settings == {
        "lr": 0.1,
        "layers": [2, 3],
        "kind.x": 1,
        "data.n": 3,
        "data.m.k": 1,
        "seed_everything": 3,
        "trainer.max_epochs": 2,
        "trainer.strategy": "EvoStrategy",
        "trainer.strategy.population": 8,
        "trainer.strategy.sigma": "cosine 0.1 to 0.01",
        "model": "Model",
        "strategy.learning_rate": "linear 1 to 0",
    }


def test_settings_that_can_not_be_read_are_left_out(folder):
    (folder / "hparams.yaml").write_text("a: [\n")
    (folder / "config.yaml").write_text("- a list\n")
    assert read_run(folder).settings == {}


def test_what_the_monitor_writes_is_read_again(tmp_path):
    curves = {FITNESS: [(1, -2.0), (2, -1.0)], "val_acc": [(2, 0.5)]}
    write_run(tmp_path, curves, {"lr": numpy.float64(0.1), "n": numpy.int64(3), "strategy": {"sigma": 0.02}})
    run = read_run(tmp_path)
    assert run.curves == curves
    assert run.settings == {"lr": 0.1, "n": "3", "strategy.sigma": 0.02}


def test_tensorboard(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1.host").touch()
    with monkeypatch.context() as patch:
        for name in ("tensorboard", "tensorboard.backend.event_processing.event_accumulator"):
            patch.setitem(sys.modules, name, None)
        with pytest.raises(
            ValueError, match="was logged for TensorBoard, which is needed to read it: pip install tens"
        ):
            read_run(tmp_path)
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path / "run")
    for step in range(3):
        writer.add_scalar("val_acc", step / 4, step)
    writer.close()
    assert read_run(tmp_path / "run").curve("val_acc") == [(0, 0.0), (1, 0.25), (2, 0.5)]


def test_what_is_no_run(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text("step,val_acc\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name, message in (
        ("nowhere", "nowhere does not exist. Name a folder of CSVLogger"),
        ("empty", "empty holds neither metrics.csv"),
        ("logs", r"logs is not a run, but holds some: name .*version_0\."),
        ("logs/version_0", "version_0 holds no values yet"),
        ("other.csv", "other.csv has no column 'step'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path / name)


def run_of(*names):
    return Run(None, {name: [(0, 1.0)] for name in names}, {})


@pytest.mark.parametrize(
    ("runs", "asked_for", "chosen"),
    [
        ([run_of("val_acc", "val_loss", FITNESS), run_of("val_loss", "train_loss")], [], ["val_loss"]),
        ([run_of(FITNESS, "train_loss"), run_of(FITNESS, "evo/sigma")], [], [FITNESS]),
        ([run_of(FITNESS, "train_loss"), run_of("train_loss")], [], ["train_loss"]),
        ([run_of(FITNESS, "val_acc")], [FITNESS, "val_acc", FITNESS], [FITNESS, "val_acc"]),
        ([run_of("a"), run_of("b")], ["b"], ["b"]),
        ([run_of(*(f"val_{number}" for number in range(9)))], [], ["val_0", "val_1", "val_2", "val_3"]),
    ],
)
def test_which_metrics_are_shown(runs, asked_for, chosen):
    assert metric_names(runs, asked_for) == chosen


def test_metrics_that_are_not_there():
    with pytest.raises(ValueError, match=r"No run logged 'val_ac'\. Did you mean 'val_acc'\? They logged: val_acc"):
        metric_names([run_of("val_acc")], ["val_ac"])
    with pytest.raises(ValueError, match="no metric in common. Name what to show by --metric: a, b"):
        metric_names([run_of("a"), run_of("b")])
