"""`anchor=` on several processes: the weights are those of one, whether each holds all of them or a part."""

import functools
import importlib.util
import os

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_evo import Anchor, EvoDDPStrategy
from lightning_evo.journal import Journal
from lightning_evo.journal.replay import replay
from tests.strategies.processes import Failed, processes
from tests.strategies.sharded import Classifier
from tests.strategies.test_ddp import Model, data, digest, only, quietly, trainer
from tests.strategies.test_fsdp import alone, assert_same, together

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness"),
    # Of DeepSpeed's own:
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute on the instance:DeprecationWarning"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs a torch with torch.distributed"),
]

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")


@pytest.fixture(scope="module")
def one():
    with processes(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def two():
    with processes(2) as pool:
        yield pool


# --- each process holds all weights ---


def train(folder, epochs=2, ckpt_path=None, seeds=(3, 3), **options):
    """Six generations in each epoch; the processes build their modules with seeds of their own."""
    quietly()
    torch.manual_seed(seeds[int(os.environ["RANK"])])
    module = Model(width=2000, dropout=0.0)  # a tensor large enough to be summed by all processes together
    torch.manual_seed(5)
    strategy = EvoDDPStrategy(
        **{"population": 6, "seed": 5, "sigma": 0.1, "update": "in_place", "evaluation": "plain", "anchor": 5.0},
        **options,
    )
    run = trainer(
        strategy, -1, max_epochs=epochs, enable_checkpointing=True,
        callbacks=[ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")],
    )  # fmt: skip
    run.fit(module, DataLoader(data(), 8, shuffle=True), ckpt_path=ckpt_path)
    return digest(module), float(run.callback_metrics["evo/drift"])


def test_two_processes_are_one_and_resume(one, two, tmp_path):
    expected = one.run(train, tmp_path / "one")
    for name in ("replicated", "sharded"):
        folder = tmp_path / name
        found = two.run(functools.partial(train, update_sync=name), folder)
        assert only([weights for weights, _ in (*expected, *found)])
        assert [drift for _, drift in found] == pytest.approx([expected[0][1]] * 2, rel=1e-6)
        two.run(functools.partial(train, update_sync=name), folder / "part", 1)
        again = two.run(functools.partial(train, update_sync=name), folder / "part", 2, folder / "part/epoch=0.ckpt")
        assert only([weights for weights, _ in (*expected, *again)])


def test_processes_that_build_other_weights_are_anchored_to_the_firsts(two, tmp_path):
    different = functools.partial(train, seeds=(3, 4))
    found = two.run(different, tmp_path)
    two.run(different, tmp_path / "part", 1)
    again = two.run(different, tmp_path / "part", 2, tmp_path / "part/epoch=0.ckpt")
    assert only([weights for weights, _ in (*found, *again)])
    with pytest.raises(Failed, match="starting weights are not those"):
        two.run(functools.partial(train, seeds=(4, 3)), tmp_path / "part", 2, tmp_path / "part/epoch=0.ckpt")


# --- each process holds a part of them ---


class Elsewhere(Classifier):
    """The same layers with other weights."""

    def configure_model(self):
        built = self.net is not None
        super().configure_model()
        if not built:
            with torch.no_grad():
                self.net[3].bias += 1


class Partitioned(Classifier):
    """Never sharded by itself: DeepSpeed does it, while ``configure_model`` makes the layers."""

    def shard(self):
        raise AssertionError("there is no device mesh")


@pytest.mark.parametrize(
    ("precision", "anchor"), [("32-true", 2.0), ("bf16-true", Anchor(0.05, "l1", device="cpu"))], ids=["l2", "l1"]
)
def test_shards_are_drawn_back_as_the_whole_is(two, anchor, precision):
    options = {"arguments": {"update": "in_place", "anchor": anchor}, "precision": precision}
    expected, found = alone(**options), together(two, **options)
    assert_same(expected, *found)
    assert found[0]["metrics"]["evo/drift"] == pytest.approx(expected["metrics"]["evo/drift"], rel=1e-5)
    free = alone(arguments={"update": "in_place"}, precision=precision)
    assert max(abs(free["weights"][name] - expected["weights"][name]).max() for name in free["weights"]) > 1e-3


@pytest.mark.parametrize("distributed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_shards_resume(two, distributed, tmp_path):
    arguments = {"update": "in_place", "anchor": 2.0}
    expected = alone(arguments=arguments, max_epochs=2)
    arguments["save_distributed_checkpoint"] = distributed
    together(two, arguments=arguments, max_epochs=1, save=str(tmp_path / "half"))
    assert_same(expected, *together(two, arguments=arguments, max_epochs=2, ckpt_path=str(tmp_path / "half")))
    with pytest.raises(Failed, match=r"starting weights are not those .*net\.3\.bias"):
        together(two, Elsewhere(), arguments=arguments, max_epochs=2, ckpt_path=str(tmp_path / "half"))


def test_a_file_of_one_process_goes_on_in_shards(two, tmp_path):
    arguments = {"update": "in_place", "anchor": 2.0}
    expected = alone(arguments=arguments, max_epochs=2)
    alone(arguments=arguments, max_epochs=1, save=str(tmp_path / "one.ckpt"))
    assert_same(expected, *together(two, arguments=arguments, max_epochs=2, ckpt_path=str(tmp_path / "one.ckpt")))


def test_the_journal_of_shards_is_replayed(two, tmp_path):
    options = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path)], "precision": "bf16-true"}
    found = together(two, arguments={"update": "in_place", "anchor": 2.0}, **options)
    start = Classifier()
    start._device_mesh = None
    start.configure_model()
    replayed = replay(start.bfloat16().state_dict(), tmp_path / "evolution.evoj")
    assert replayed["lightning_evo"]["compared"] == 12
    with Journal.open(tmp_path / "evolution.evoj") as journal:
        assert journal.header.anchor["strength"] == 2.0
    assert abs(found[0]["weights"]["net.0.weight"] - replayed["state_dict"]["net.0.weight"].double().numpy()).max() == 0


@needs_deepspeed
@pytest.mark.slow
def test_partitions_of_deepspeed(two, tmp_path):
    arguments = {"update": "in_place", "anchor": 2.0}
    expected = alone(arguments=arguments, max_epochs=2)
    run = functools.partial(together, two, strategy="EvoDeepSpeedStrategy", timeout=240.0)
    assert_same(expected, *run(Partitioned(), arguments={"anchor": 2.0}, max_epochs=2))
    run(Partitioned(), arguments={"anchor": 2.0}, max_epochs=1, save=str(tmp_path / "half.ckpt"))
    found = run(Partitioned(), arguments={"anchor": 2.0}, max_epochs=2, ckpt_path=str(tmp_path / "half.ckpt"))
    assert_same(expected, *found)
    assert found[0]["metrics"]["evo/drift"] == pytest.approx(expected["metrics"]["evo/drift"], rel=1e-5)
