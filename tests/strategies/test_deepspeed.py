"""Models partitioned by DeepSpeed's ZeRO stage 3, on CPUs: the weights of a single process, bit for bit."""

import functools
import importlib.util
import json
import re

import pytest
import torch

import lightning_evo
from lightning_evo.journal import Journal
from lightning_evo.journal.replay import replay
from tests.strategies.processes import Failed, processes, run_script
from tests.strategies.sharded import Classifier, fit
from tests.strategies.test_fsdp import (
    Distance,
    FailsOnOne,
    NeverResharded,
    alone,
    assert_close,
    assert_same,
    example,
    journal_alone,
    journal_together,
)
from tests.strategies.test_fsdp import together as _together

installed = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not installed, reason="needs DeepSpeed: pip install 'lightning-evo[deepspeed]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    # Of DeepSpeed's own:
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute on the instance:DeprecationWarning"),
]

OPTIONS = {"population": 8, "sigma": 0.1, "seed": 3}


class Partitioned(Classifier):
    """Never sharded by itself: DeepSpeed does it, while ``configure_model`` makes the layers."""

    def shard(self):
        raise AssertionError("there is no device mesh")


@pytest.fixture(scope="module")
def two():
    with processes(2) as pool:
        yield pool


together = functools.partial(_together, strategy="EvoDeepSpeedStrategy", timeout=240.0)


@needs_deepspeed
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("arguments", [{}, {"algorithm": "eggroll"}, {"weight_decay": 0.01}], ids=str)
def test_two_processes_give_the_weights_of_one(two, arguments, precision):
    expected = alone(arguments={"update": "in_place", **arguments}, precision=precision)
    found = together(two, Partitioned(), arguments=arguments, precision=precision)
    assert_same(expected, *found)
    assert found[0]["history"] == expected["history"]
    assert found[0]["metrics"]["val_loss"] == expected["metrics"]["val_loss"]
    assert found[0]["metrics"]["evo/update_norm"] == pytest.approx(expected["metrics"]["evo/update_norm"], rel=1e-5)
    assert "weights are sharded over processes" in found[0]["summary"]


@needs_deepspeed
def test_one_process(tmp_path):
    with processes(1) as one:
        found = together(one, Partitioned(), save=str(tmp_path / "one.ckpt"))
    assert_same(alone(arguments={"update": "in_place"}), *found)


@needs_deepspeed
def test_fitness_step_and_padding(two):
    for module in (Distance, NeverResharded):
        expected = alone(module(), arguments={"update": "in_place"}, accumulate_grad_batches=2, gradient_clip_val=0.5)
        found = together(two, module(), accumulate_grad_batches=2, gradient_clip_val=0.5)
        assert_same(*found)
        assert_close(expected, *found, tolerance=1e-6)  # the norm is added up part by part


@needs_deepspeed
def test_sharded_data(two):
    expected = alone(NeverResharded(batch_size=20), arguments={"update": "in_place"})
    found = together(two, NeverResharded(batch_size=10, replicas=2))
    assert_same(*found)
    assert_close(expected, found[0], tolerance=1e-5)


@needs_deepspeed
def test_clipping_by_value_and_offloading(two):
    options = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    expected = alone(arguments={"update": "in_place"}, **options)
    assert_same(expected, *together(two, Partitioned(), arguments={"offload_parameters": True}, **options))


@needs_deepspeed
def test_checkpoints_are_ordinary_files(two, tmp_path):
    """Two processes go on from one with whole weights, and it from them, as if nothing had happened."""
    expected = alone(Classifier("Adam"), arguments={"update": "in_place"}, max_epochs=4)
    alone(Classifier("Adam"), arguments={"update": "in_place"}, max_epochs=1, save=str(tmp_path / "one.ckpt"))
    options = {"ckpt_path": str(tmp_path / "one.ckpt"), "save": str(tmp_path / "two.ckpt")}
    together(two, Partitioned("Adam"), max_epochs=2, **options)
    checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert checkpoint["lightning_evo"]["state"]["generation"] == checkpoint["global_step"] == 12
    assert checkpoint["state_dict"]["net.0.weight"].shape == (7, 5)
    assert checkpoint["optimizer_states"][0]["state"] == {}
    found = together(two, Partitioned("Adam"), max_epochs=4, ckpt_path=str(tmp_path / "two.ckpt"))
    assert_same(expected, *found)
    found = alone(
        Classifier("Adam"), arguments={"update": "in_place"}, max_epochs=4, ckpt_path=str(tmp_path / "two.ckpt")
    )
    assert_same(expected, found)


def kept(ckpt_path=None):
    """What there is of optimizers and whole weights after training."""
    trainer, module = fit("EvoDeepSpeedStrategy", OPTIONS, Partitioned("Adam"), devices=2, ckpt_path=ckpt_path)
    parameters = list(module.parameters())
    return {
        "optimizer": type(trainer.strategy.deepspeed_engine.optimizer).__name__,
        "states": sum(len(optimizer.state) for optimizer in trainer.optimizers),
        "gathered": sum(parameter.numel() for parameter in parameters),
        "held": sum(parameter.ds_tensor.numel() for parameter in parameters),
        "persistent": sum(parameter.ds_persist for parameter in parameters),
        "weights": sum(parameter.ds_numel for parameter in parameters),
    }


@needs_deepspeed
def test_nothing_but_partitions_is_kept(two):
    for found in two.run(kept, timeout=120.0):
        assert found["optimizer"] == "DeepSpeedZeRoOffload"  # which has no state and no master weights
        assert (found["states"], found["gathered"], found["persistent"]) == (0, 0, 0)
        assert found["weights"] / 2 <= found["held"] <= found["weights"] / 2 + 8  # padded


@needs_deepspeed
def test_an_exception_of_one_process_ends_all(two):
    with pytest.raises(Failed, match="ArithmeticError: from the user's code|Connection closed|died"):
        together(two, FailsOnOne())


@needs_deepspeed
def test_a_checkpoint_of_another_module_or_a_folder(two, tmp_path):
    alone(NeverResharded(), arguments={"update": "in_place"}, save=str(tmp_path / "other.ckpt"))
    with pytest.raises(Failed, match="does not fit Partitioned: missing .*net.3.weight.*unexpected .*embedding.weight"):
        together(two, Partitioned(), ckpt_path=str(tmp_path / "other.ckpt"))
    with pytest.raises(Failed, match="is a folder, as DeepSpeed and FSDP2 write them"):
        together(two, Partitioned(), ckpt_path=str(tmp_path))


@needs_deepspeed
def test_the_example_in_the_documentation(tmp_path):
    assert "`Trainer.fit` stopped: `max_epochs=2` reached" in run_script(example(1), tmp_path)


# --- what is refused, before any process starts ---


@needs_deepspeed
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": 2}, "needs ZeRO stage 3, got stage 2.*use strategy='evo_ddp'"),
        ({"stage": 1}, "needs ZeRO stage 3, got stage 1.*use strategy='evo_ddp'"),
        ({"update": "optimizer"}, "works with update='in_place' only.*use strategy='evo_fsdp'"),
        ({"config": {"zero_optimization": {"stage": 2}}}, "needs ZeRO stage 3, got stage 2"),
        ({"config": {}}, "needs ZeRO stage 3, got stage 0"),
        (
            {"config": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100}}},
            "stage3_param_persistence_threshold must be 0, got 100.*perturbations would be ignored",
        ),
        ({"config": {"zero_optimization": {"stage": 3}, "optimizer": {}}}, "'optimizer' in DeepSpeed's .*no effect"),
        ({"config": {"zero_optimization": {"stage": 3}, "gradient_clipping": 1}}, "use Trainer.gradient_clip_val"),
        ({"config": {"zero_optimization": {"stage": 3, "offload_optimizer": {}}}}, "'offload_optimizer' has no effect"),
        (
            {"config": {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}},
            "device='nvme' does not work.*Use device='cpu'",
        ),
        (
            {"config": {"zero_optimization": {"stage": 3}}, "offload_parameters": True},
            "has no effect together with `config`",
        ),
    ],
    ids=str,
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        lightning_evo.EvoDeepSpeedStrategy(**arguments)


@needs_deepspeed
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("offload_optimizer", "there is no optimizer's state"),
        ("reduce_bucket_size", "there are no gradients to reduce"),
        ("loss_scale", "there is no backward pass"),
        ("cpu_checkpointing", "no activations are kept"),
        ("load_full_weights", "checkpoints are ordinary files"),
        ("nvme_path", "the CPU's with offload_parameters=True"),
        ("zero_optimization", "use strategy='evo_ddp'"),
    ],
)
def test_options_of_lightnings_own_strategy(option, message):
    with pytest.raises(TypeError, match=f"^{option} is no option of this strategy: .*{message}"):
        lightning_evo.EvoDeepSpeedStrategy(**{option: 1})


@needs_deepspeed
def test_options_of_the_connection():
    with pytest.raises(ValueError, match="timeout must be a positive"):
        lightning_evo.EvoDeepSpeedStrategy(timeout=5)
    with pytest.raises(ValueError, match="Unknown process_group_backend 'nccll'. Did you mean 'nccl'"):
        lightning_evo.EvoDeepSpeedStrategy(process_group_backend="nccll")


@needs_deepspeed
def test_a_configuration_in_a_file(tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    strategy = lightning_evo.EvoDeepSpeedStrategy(config=str(path))
    assert strategy.config["zero_optimization"] == {"stage": 3, "stage3_param_persistence_threshold": 0}


@needs_deepspeed
def test_tools_that_are_missing(monkeypatch):
    from lightning_evo.strategies import deepspeed

    monkeypatch.setattr(deepspeed.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match=r"needs g\+\+ and ninja. Install a C\+\+ compiler"):
        deepspeed._check_device(torch.device("cpu"))


def test_without_deepspeed(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "deepspeed" else find_spec(name)
    )
    with pytest.raises(ModuleNotFoundError, match=r"needs DeepSpeed. Install it: .*lightning-evo\[deepspeed\]"):
        lightning_evo.EvoDeepSpeedStrategy()


@needs_deepspeed
def test_the_journal_is_that_of_one_process(two, tmp_path):
    """A run goes on from a checkpoint of generation 6 and a journal of 9; a replay takes its checkpoint as it is."""
    expected = journal_alone(tmp_path / "alone")
    run = functools.partial(journal_together, two, tmp_path, strategy="EvoDeepSpeedStrategy", timeout=240.0)
    assert run(max_steps=9)[0]["steps"] == 9 * (8 + 1)  # members and the center
    found = run(ckpt_path=str(tmp_path / "step=6.ckpt"))
    assert_same(expected, *found)
    assert [process["steps"] for process in found] == [3 * 1 + 3 * (8 + 1)] * 2
    with Journal.open(tmp_path / "alone" / "evolution.evoj") as one, Journal.open(tmp_path / "evolution.evoj") as many:
        assert list(one) == list(many)
        assert one.header.start == many.header.start
    replayed = replay(tmp_path / "step=6.ckpt", tmp_path / "evolution.evoj")
    assert replayed["lightning_evo"]["compared"] == 12
    for name in ("net.0.weight", "net.3.bias", "net.4.weight"):
        assert (replayed["state_dict"][name].numpy() == expected["weights"][name]).all()
