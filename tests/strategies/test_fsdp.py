"""Models sharded by FSDP2: the weights of a single process, bit for bit, in processes on the loopback interface."""

import functools
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_evo import EvoFSDPStrategy
from lightning_evo.journal import Journal, JournalError
from lightning_evo.journal import checksums as journal_checksums
from lightning_evo.journal.replay import replay
from tests.strategies.processes import Failed, processes, run_script
from tests.strategies.sharded import Classifier, fit, samples, weights_after, whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs a torch with torch.distributed"),
]

OPTIONS = {"population": 8, "sigma": 0.1, "seed": 3}


@pytest.fixture(scope="module")
def two():
    with processes(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def four():
    with processes(4) as pool:
        yield pool


def alone(module=None, **options):
    """The run of one process with whole weights, by the same loop."""
    options = {"use_distributed_sampler": False, **options}
    arguments = {**OPTIONS, "evaluation": "plain", **options.pop("arguments", {})}
    start = Start()
    found = weights_after("EvoStrategy", arguments, module, callbacks=[start], **options)
    moved = [abs(found["weights"][name] - values).max() for name, values in start.weights.items()]
    assert max(moved) > 1e-3, "nothing was learnt, so equal weights would show nothing"
    return found


class Start(L.Callback):
    """The weights with which training began."""

    def on_train_start(self, trainer, module):
        self.weights = {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def together(pool, module=None, strategy="EvoFSDPStrategy", timeout=120.0, **options):
    """The same run of several processes, on the same data; what each of them has then."""
    options = {"devices": pool.count, "use_distributed_sampler": False, **options}
    arguments = {**OPTIONS, **options.pop("arguments", {})}
    return pool.run(functools.partial(weights_after, strategy, arguments, module, **options), timeout=timeout)


def assert_same(expected, *found):
    for other in found:
        assert expected["weights"].keys() == other["weights"].keys()
        for name, values in expected["weights"].items():
            numpy.testing.assert_array_equal(other["weights"][name], values, err_msg=name)


def assert_close(expected, *found, tolerance):
    for other in found:
        for name, values in expected["weights"].items():
            numpy.testing.assert_allclose(other["weights"][name], values, rtol=0, atol=tolerance, err_msg=name)


CASES = {
    "openai_es": {},
    "eggroll": {"algorithm": "eggroll"},
    "lozo": {"algorithm": "lozo", "population": 2, "momentum": 0.9, "basis_reuse": 4},
    "fzoo": {"algorithm": "fzoo"},
    "decay": {"weight_decay": 0.01},
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES.keys())
def test_in_place_gives_the_weights_of_one_process(two, arguments, precision):
    options = {"arguments": {"update": "in_place", **arguments}, "precision": precision}
    expected, found = alone(**options), together(two, **options)
    assert_same(expected, *found)
    assert found[0]["history"] == expected["history"]
    for name in ("evo/fitness_mean", "evo/fitness_best", "val_loss"):
        assert found[0]["metrics"][name] == expected["metrics"][name]
    assert found[0]["metrics"]["evo/update_norm"] == pytest.approx(expected["metrics"]["evo/update_norm"], rel=1e-5)
    reason = "weights are sharded over processes, and each writes its own part"
    assert found[0]["summary"] == f"evaluation: plain; {reason}"


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_users_optimizer_gives_the_weights_of_one_process(two, optimizer):
    """SGD to the bit; Adam's vectorised kernels may round the ends of a memory block differently from its middle."""
    expected = alone(Classifier(optimizer))
    found = together(two, Classifier(optimizer))
    if optimizer == "SGD":
        assert_same(expected, *found)
    else:
        assert_close(expected, *found, tolerance=1e-6)


@pytest.mark.parametrize("update", ["in_place", "optimizer"])
def test_clipping_by_norm(two, update):
    """The norm is of the whole weights. It is added up shard by shard, so its last bits are other ones."""
    options = {"arguments": {"update": update}, "gradient_clip_val": 0.05}
    expected, found = alone(**options), together(two, **options)
    assert_close(expected, *found, tolerance=1e-6)
    assert_same(found[0], found[1])
    unclipped = alone(arguments={"update": update})
    assert abs(unclipped["weights"]["net.0.weight"] - expected["weights"]["net.0.weight"]).max() > 1e-2


def test_accumulated_batches(two):
    options = {"arguments": {"update": "in_place"}, "accumulate_grad_batches": 3}
    assert_same(alone(**options), *together(two, **options))


class Distance(Classifier):
    """Its fitness is one value per sample, from another method than training_step."""

    def fitness_step(self, batch, batch_idx):
        x, y = batch
        return -(self.net(x).squeeze(1).sigmoid() - y).abs()


def test_fitness_step(two):
    """The weights of FSDP2's root would stay gathered without care, and all members be the first one."""
    options = {"arguments": {"update": "in_place"}}
    expected, found = alone(Distance(), **options), together(two, Distance(), **options)
    assert_same(expected, *found)
    assert found[0]["metrics"]["evo/fitness_std"] > 0


class OnlyDistance(Distance):
    training_step = L.LightningModule.training_step
    configure_optimizers = L.LightningModule.configure_optimizers

    def fitness_step(self, batch, batch_idx):
        fitness = super().fitness_step(batch, batch_idx)
        self.log("distance", fitness.mean())
        return fitness


def test_fitness_step_alone(two):
    options = {"arguments": {"update": "in_place", "learning_rate": 0.1}}
    expected, found = alone(OnlyDistance(), **options), together(two, OnlyDistance(), **options)
    assert_same(expected, *found)
    assert found[0]["metrics"]["distance"] == found[1]["metrics"]["distance"] == expected["metrics"]["distance"]


class NeverResharded(Classifier):
    """Asks FSDP2 to keep weights gathered; freezes a layer; has an embedding with a padding row."""

    def configure_model(self):
        if self.net is None:
            torch.manual_seed(1)
            layers = nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)
            self.net = nn.Sequential(*layers)
            self.embedding = nn.Embedding(5, 7, padding_idx=3)
            self.net[2].bias.requires_grad = False
            if self.device_mesh is not None:
                self.shard()

    def shard(self):
        from torch.distributed.fsdp import fully_shard

        for layer in (self.net, self.embedding):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"], reshard_after_forward=False)

    def loss(self, batch):
        x, y = batch
        return (self.net(x).squeeze(1) + self.embedding((x[:, 0] * 7).long() % 5).sum(1) - y).square().mean()


def test_what_is_asked_to_stay_gathered_is_given_up(two):
    options = {"arguments": {"update": "in_place"}}
    expected = alone(NeverResharded(), **options)
    start = whole_at_start(NeverResharded())
    found = together(two, NeverResharded(), **options)
    assert_same(expected, *found)
    for name in ("net.2.bias",):
        numpy.testing.assert_array_equal(found[0]["weights"][name], start[name])
    numpy.testing.assert_array_equal(found[0]["weights"]["embedding.weight"][3], start["embedding.weight"][3])
    assert abs(found[0]["weights"]["embedding.weight"][0] - start["embedding.weight"][0]).max() > 1e-3


def whole_at_start(module):
    module.configure_model()
    return {name: value.double().numpy() for name, value in whole(module).items()}


def test_sharded_data(two):
    """Two processes with 10 samples each see the batches of one with 20; means of means round differently.

    (Without BatchNorm, whose statistics are those of a process's own batch, as in backpropagation.)
    """
    expected = alone(NeverResharded(batch_size=20), arguments={"update": "in_place"})
    found = together(two, NeverResharded(batch_size=10, replicas=2), arguments={"update": "in_place"})
    assert_same(found[0], found[1])
    assert_close(expected, found[0], tolerance=1e-5)


def untouched(update):
    trainer, module = fit("EvoFSDPStrategy", {**OPTIONS, "update": update}, Tied(), devices=2, max_epochs=1)
    return {name: value.double().numpy() for name, value in whole(module).items()}


class Tied(Classifier):
    """All members are equally good: nothing is learnt."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).detach() * 0


@pytest.mark.parametrize("update", ["in_place", "optimizer"])
def test_a_generation_that_learns_nothing_leaves_every_bit(two, update):
    start = whole_at_start(Classifier())
    for found in two.run(functools.partial(untouched, update)):
        for name, values in start.items():
            if "running" not in name and "batches" not in name:
                numpy.testing.assert_array_equal(found[name], values, err_msg=name)


# --- the mesh of population and shards ---


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_groups_divide_the_population(four, shards):
    options = {"arguments": {"update": "in_place"}}
    expected = alone(**options)
    options["arguments"]["shards"] = shards
    assert_same(expected, *together(four, **options))


@pytest.mark.slow
def test_groups_with_an_optimizer_and_sharded_data(four):
    expected = alone(NeverResharded("Adam", batch_size=20))
    found = together(four, NeverResharded("Adam", batch_size=10, replicas=2), arguments={"shards": 2})
    assert_same(found[0], *found[1:])
    assert_close(expected, found[0], tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("distributed", [True, False], ids=["folder", "file"])
def test_groups_resume(four, distributed, tmp_path):
    arguments = {"update": "in_place", "shards": 2, "save_distributed_checkpoint": distributed}
    expected = alone(arguments={"update": "in_place"}, max_epochs=3)
    together(four, arguments=arguments, max_epochs=1, save=str(tmp_path / "one.ckpt"))
    found = together(four, arguments=arguments, max_epochs=3, ckpt_path=str(tmp_path / "one.ckpt"))
    assert_same(expected, *found)


# --- checkpoints ---


@pytest.mark.parametrize("update", ["in_place", "optimizer"])
@pytest.mark.parametrize("distributed", [True, False], ids=["folder", "file"])
def test_resume_gives_the_uninterrupted_weights(two, update, distributed, tmp_path):
    path = str(tmp_path / "one.ckpt")
    arguments = {"update": update, "save_distributed_checkpoint": distributed}
    expected = together(two, Classifier("Adam"), arguments=arguments, max_epochs=3)
    together(two, Classifier("Adam"), arguments=arguments, max_epochs=1, save=path)
    assert os.path.isdir(path) == distributed
    found = together(two, Classifier("Adam"), arguments=arguments, max_epochs=3, ckpt_path=path)
    assert_same(expected[0], *found)


@pytest.mark.parametrize("update", ["in_place", "optimizer"])
def test_a_file_goes_from_one_process_to_two_and_back(two, update, tmp_path):
    arguments = {"update": update}
    expected = alone(arguments=arguments, max_epochs=4)
    alone(arguments=arguments, max_epochs=1, save=str(tmp_path / "one.ckpt"))
    arguments["save_distributed_checkpoint"] = False
    options = {"arguments": arguments, "max_epochs": 2}
    together(two, **options, ckpt_path=str(tmp_path / "one.ckpt"), save=str(tmp_path / "two.ckpt"))
    checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert checkpoint["lightning_evo"]["state"]["generation"] == checkpoint["global_step"] == 12
    found = alone(arguments={"update": update}, max_epochs=4, ckpt_path=str(tmp_path / "two.ckpt"))
    assert_same(expected, found)


@pytest.mark.slow
def test_a_folder_of_two_processes_is_resumed_by_one(two, tmp_path):
    path = str(tmp_path / "two.ckpt")
    arguments = {"update": "in_place"}
    together(two, arguments=arguments, max_epochs=1, save=path)
    with processes(1) as one:
        found = together(one, arguments=arguments, max_epochs=3, ckpt_path=path)
    assert_same(alone(arguments=arguments, max_epochs=3), *found)


def state_sizes(update, save):
    trainer, _ = fit("EvoFSDPStrategy", {**OPTIONS, "update": update}, Classifier("Adam"), devices=2, save=save)
    return [len(optimizer.state) for optimizer in trainer.optimizers]


def test_in_place_no_optimizer_has_a_state_not_even_after_saving(two, tmp_path):
    assert two.run(functools.partial(state_sizes, "in_place", str(tmp_path / "x.ckpt"))) == [[0], [0]]
    assert two.run(functools.partial(state_sizes, "optimizer", str(tmp_path / "y.ckpt"))) != [[0], [0]]


def example(number):
    page = Path(__file__).parents[2] / "docs" / "sharded.md"
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[number]


@pytest.mark.slow
def test_the_example_in_the_documentation(tmp_path):
    """By Lightning's own launcher, which starts the second process."""
    assert "All distributed processes registered. Starting with 2 processes" in run_script(example(0), tmp_path)


# --- what is refused ---


class Unsharded(Classifier):
    def shard(self):
        pass


class OverAllProcesses(Classifier):
    def shard(self):
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net)


class BySecondDimension(Classifier):
    def shard(self):
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import Shard

        mesh = self.device_mesh["data_parallel"]
        self.net = nn.Linear(6, 1)
        fully_shard(self.net, mesh=mesh, shard_placement_fn=lambda p: Shard(1) if p.dim() == 2 else None)


class NoHook(Classifier):
    configure_model = None


class FailsOnOne(Classifier):
    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and batch_idx == 2:
            raise ArithmeticError("from the user's code")
        return super().training_step(batch, batch_idx)


# --- the seed journal ---


COUNTED = Counter()


class Counting(Classifier):
    """Counts calls of its step, those of members included."""

    evolution_shared = {"COUNTED"}

    def training_step(self, batch, batch_idx):
        COUNTED["steps"] += 1
        return super().training_step(batch, batch_idx)


def journaled(strategy, arguments, folder, module=None, **options):
    """As :func:`weights_after`, with a journal and a checkpoint of every epoch in a folder."""
    COUNTED.clear()
    checkpoints = ModelCheckpoint(folder, every_n_train_steps=6, save_top_k=-1, filename="{step}")
    options = {"enable_checkpointing": True, "callbacks": [checkpoints, *options.pop("callbacks", ())], **options}
    return {**weights_after(strategy, arguments, module or Counting(), **options), **COUNTED}


def journal_alone(folder, **options):
    return journaled("EvoStrategy", {**OPTIONS, "update": "in_place", "evaluation": "plain"}, folder,
                     use_distributed_sampler=False, **options)  # fmt: skip


def journal_together(pool, folder, strategy="EvoFSDPStrategy", arguments=None, timeout=120.0, **options):
    arguments = {**OPTIONS, "update": "in_place", **(arguments or {})}
    options = {"devices": pool.count, "use_distributed_sampler": False, **options}
    return pool.run(functools.partial(journaled, strategy, arguments, folder, **options), timeout=timeout)


def assert_same_journal(folder, *others):
    """But for their runs' names and for how members were evaluated."""

    def content(folder):
        with Journal.open(folder / "evolution.evoj") as journal:
            header = replace(journal.header, run=0)
            conditions = [replace(journal.conditions_at(record.generation), evaluation=()) for record in journal]
            return header, list(journal), conditions, dict(journal.weights)

    assert all(content(other) == content(folder) for other in others)


@pytest.mark.parametrize("arguments", [{}, {"shards": 1}], ids=["one copy", "two copies"])
def test_the_journal_is_that_of_one_process(two, arguments, tmp_path, monkeypatch):
    every = functools.partial(monkeypatch.setattr, journal_checksums)
    every("_EVERY", 3), every("_SHARE", 1e9)
    expected = journal_alone(tmp_path / "alone")
    assert two.run(functools.partial(checksums_every, 3)) == [None, None]
    found = journal_together(two, tmp_path / "together", arguments=arguments)
    assert two.run(functools.partial(checksums_every, 100)) == [None, None]
    assert_same(expected, *found)
    assert_same_journal(tmp_path / "alone", tmp_path / "together")
    start = Classifier()
    start._device_mesh = None
    start.configure_model()
    replayed = replay(start.state_dict(), tmp_path / "together" / "evolution.evoj")
    assert replayed["lightning_evo"]["compared"] == 12
    for name, value in replayed["state_dict"].items():
        if "1." not in name:  # BatchNorm's statistics, which don't evolve
            numpy.testing.assert_array_equal(value.numpy(), expected["weights"][name], err_msg=name)


def checksums_every(generations):
    journal_checksums._EVERY = generations
    journal_checksums._SHARE = 1e9 if generations < 100 else 0.01


def test_recorded_generations_are_not_evaluated_again(two, four, tmp_path):
    """A run of two processes goes on with four, from a checkpoint of generation 6 and a journal of 9."""
    expected = journal_alone(tmp_path / "alone")
    assert journal_together(two, tmp_path, max_steps=9)[0]["steps"] == 9 * (8 + 1)  # members and the center
    found = journal_together(four, tmp_path, ckpt_path=str(tmp_path / "step=6.ckpt"))
    assert_same(expected, *found)
    assert [process["steps"] for process in found] == [3 * 1 + 3 * (8 + 1)] * 4
    with Journal.open(tmp_path / "evolution.evoj") as journal:
        assert [record.generation for record in journal] == list(range(12))


def test_a_replay_from_a_checkpoint_of_shards(two, tmp_path):
    expected = journal_together(two, tmp_path)[0]
    folder, whole, journal = tmp_path / "step=6.ckpt", tmp_path / "whole.ckpt", tmp_path / "evolution.evoj"
    with pytest.raises(JournalError, match="is a folder.*consolidate_checkpoint"):
        replay(folder, journal)
    command = [sys.executable, "-m", "lightning.fabric.utilities.consolidate_checkpoint", folder]
    subprocess.run([*command, "--output_file", whole], check=True, timeout=120, capture_output=True)
    replayed = replay(torch.load(whole, weights_only=True), journal)
    assert replayed["lightning_evo"]["compared"] == 12
    for name in ("net.0.weight", "net.3.bias", "net.4.weight"):
        numpy.testing.assert_array_equal(replayed["state_dict"][name].numpy(), expected["weights"][name], err_msg=name)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (Unsharded, {}, r"configure_model shards nothing.*fully_shard\(layer, mesh=self.device_mesh"),
        (BySecondDimension, {}, r"net.weight is laid out as .*along their first dimension"),
        (Classifier, {"sparsity": 0.5}, "sparsity needs each tensor whole, and no process has one"),
        (Classifier, {"sigma_scale": "rms"}, "sigma_scale='rms' needs each tensor whole"),
        (Classifier, {"algorithm": "csa_es"}, "algorithm='csa_es' needs each tensor whole"),
        (Classifier, {"member_timeout": 5.0}, "member_timeout can't be used.*Leave it out"),
        (Classifier, {"shards": 3}, "shards=3 does not divide the 2 processes"),
        (OverAllProcesses, {"shards": 1}, r"sharded over 2 processes, but shards=1. Give `fully_shard` the mesh"),
    ],
    ids=str,
)
def test_what_is_refused(two, module, arguments, message):
    (error, _) = two.run(functools.partial(refusal, module, arguments))

    assert re.search(message, error, re.DOTALL), error


def refusal(module, arguments):
    try:
        fit("EvoFSDPStrategy", {**OPTIONS, **arguments}, module(), devices=2, max_steps=1)
    except (ValueError, TypeError) as error:
        return str(error)
    return "nothing was refused"


@pytest.mark.parametrize("shards", [0, -1, 1.5, True, "all"])
def test_shards_that_are_no_number(shards):
    with pytest.raises(ValueError, match="shards must be 'auto' or a whole number >= 1"):
        EvoFSDPStrategy(shards=shards)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 60}, ValueError, "timeout must be a positive datetime.timedelta"),
        (
            {"process_group_backend": "gluu"},
            ValueError,
            "Unknown process_group_backend 'gluu'",
        ),
        ({"data_parallel_size": 2}, TypeError, "data_parallel_size is no option of this strategy: shards=… says"),
        ({"tensor_parallel_size": 2}, TypeError, "there is no tensor parallelism"),
        ({"auto_wrap_policy": None}, TypeError, "by calls of fully_shard in `configure_model`"),
        ({"mixed_precision": None}, TypeError, r"use Trainer\(precision=…\)"),
    ],
    ids=str,
)
def test_options_of_the_connection_and_of_lightnings_own_strategies(options, error, message):
    with pytest.raises(error, match=message):
        EvoFSDPStrategy(**options)


class Uneven(torch.utils.data.IterableDataset):
    def __iter__(self):
        x, y = samples(40).tensors
        for _ in range(5 - torch.distributed.get_rank()):
            yield x[:8], y[:8]


class OnUnevenData(Classifier):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(Uneven(), None)


def test_processes_with_different_numbers_of_batches(two):
    """Before one waits for the other's part of the weights."""
    with pytest.raises(Failed, match="this is the last one of processes 1, but not of the others"):
        together(two, OnUnevenData())


def test_the_other_ways_of_evaluating_say_why_not(two):
    found = together(two, arguments={"evaluation": "batched", "update": "in_place"}, max_steps=1)
    assert "weights are sharded over processes" in found[0]["summary"]


def test_an_exception_of_one_process_ends_all(two):
    """It is not a failed member: the others wait for its part of the weights. They end by its leaving, not by time."""
    with pytest.raises(Failed, match="ArithmeticError: from the user's code|Connection closed|died"):
        together(two, FailsOnOne(), arguments={"minimum_evaluated": 0.0})


@pytest.mark.slow
def test_lightning_divides_the_data_of_a_group(four):
    assert four.run(functools.partial(divided, 2)) == [
        ((2, 0), (4, 0)),
        ((2, 1), (4, 1)),
        ((2, 0), (4, 2)),
        ((2, 1), (4, 3)),
    ]


def divided(shards):
    """Number of processes that divide the data, and this one's number, in training and in validation."""
    trainer, _ = fit("EvoFSDPStrategy", {**OPTIONS, "shards": shards}, devices=4, max_epochs=1)
    samplers = trainer.train_dataloader.sampler, trainer.val_dataloaders.sampler
    return tuple((sampler.num_replicas, sampler.rank) for sampler in samplers)
