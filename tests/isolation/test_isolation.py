"""Members see the same world, and leave none of it changed."""

import copy
import itertools
import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque

import numpy
import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision

from lightning_evo.isolation import Isolation
from lightning_evo.utils.random_state import RandomState

CPU = torch.device("cpu")


def run(module, act, members=3):
    """What ``act(member)`` returned, member by member."""
    results = []
    with Isolation(module, CPU) as isolation:
        for member in range(members):
            isolation.start_member()
            results.append(act(member))
    return results


# --- random numbers -------------------------------------------------------------------------------------------------


def draws():
    # An odd number of normal draws leaves half a pair in the generators, which is part of their state.
    return (
        torch.rand(3).tolist(),
        torch.randn(1).item(),
        numpy.random.normal(),
        numpy.random.randint(1 << 30),
        random.gauss(0, 1),
        random.random(),
    )


def test_every_member_draws_the_same_random_numbers_and_the_rest_of_the_run_none_of_them():
    for warm_up in (0, 1):  # with and without half a pair pending
        torch.manual_seed(3), numpy.random.seed(3), random.seed(3)
        for _ in range(warm_up):
            draws()
        expected = [draws() for _ in range(2)]
        torch.manual_seed(3), numpy.random.seed(3), random.seed(3)
        for _ in range(warm_up):
            draws()
        members = run(nn.Identity(), lambda member: [draws() for _ in range(member + 1)][0])
        assert members == [expected[0]] * 3
        assert [draws() for _ in range(2)] == expected


@pytest.mark.parametrize("warm_up", [0, 1, 1000])
def test_random_state_round_trips_through_a_checkpoint(warm_up, tmp_path):
    for _ in range(warm_up):
        draws()
    torch.save(RandomState(CPU).state_dict(), tmp_path / "state.pt")
    expected = [draws() for _ in range(3)]
    torch.manual_seed(99), numpy.random.seed(99), random.seed(99)
    RandomState(CPU).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draws() for _ in range(3)] == expected


def test_a_random_state_of_another_machine_restores_what_exists_here():
    saved = RandomState(CPU).state_dict()
    expected = draws()
    saved["cuda"] = torch.zeros(16, dtype=torch.uint8)
    del saved["numpy"]
    numpy.random.seed(8)
    RandomState(CPU).load_state_dict(saved)
    numpy.random.seed(8)
    again = draws()
    assert again[:2] + again[4:] == expected[:2] + expected[4:]


# --- buffers --------------------------------------------------------------------------------------------------------


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_batch_norm_starts_every_member_with_the_same_statistics():
    module = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, momentum=None))
    module(torch.randn(16, 4))
    before, data = snapshot(module), torch.randn(16, 4)

    def act(member):
        seen = snapshot(module)
        for _ in range(member + 1):
            module(data)
        return seen

    for seen in run(module, act):
        assert all(torch.equal(seen[name], before[name]) for name in before)
    assert unchanged(module, before)
    module(data)  # the one logged forward counts once
    assert module[0].num_batches_tracked == 2


def test_buffers_written_replaced_added_and_filled_in():
    module = nn.Module()
    module.register_buffer("written", torch.tensor([1.0, -0.0, float("nan")]))
    module.register_buffer("through_data", torch.ones(2))
    module.register_buffer("replaced", torch.zeros(3))
    module.register_buffer("lazy", None)
    module.register_buffer("emptied", torch.ones(1))
    module.register_buffer("hidden", torch.ones(1), persistent=False)
    objects = dict(module._buffers)
    bits = {name: buffer.view(torch.int32).clone() for name, buffer in objects.items() if buffer is not None}

    def act(member):
        assert module._buffers.keys() == objects.keys()
        assert all(module._buffers[name] is buffer for name, buffer in objects.items())
        assert all(torch.equal(module._buffers[name].view(torch.int32), expected) for name, expected in bits.items())
        assert module.lazy is None
        module.written.add_(1)
        module.through_data.data.add_(1)  # as many vector quantisers do; does not show in the tensor's version
        module.replaced = torch.full((5,), 7.0)
        module.lazy = torch.ones(3)
        module.emptied = None
        module.hidden.zero_()
        module.register_buffer(f"new_{member}", torch.ones(1))
        return True

    run(module, act)
    assert act(0)  # afterwards, too, everything is as before


def test_expanded_buffers_are_left_alone():
    module = nn.Module()
    module.register_buffer("positions", torch.arange(5).expand(3, 5))
    run(module, lambda member: None)
    assert torch.equal(module.positions, torch.arange(5).expand(3, 5))


def test_a_buffer_in_place_of_another_keeps_identity():
    module = nn.BatchNorm1d(2)
    mean = module.running_mean
    run(module, lambda member: setattr(module, "running_mean", torch.ones(2)))
    assert module.running_mean is mean
    assert torch.equal(mean, torch.zeros(2))


# --- metrics --------------------------------------------------------------------------------------------------------


def batch(seed, n=32):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(n, 3, generator=generator), torch.randint(3, (n,), generator=generator)
    return logits, labels


def collection():
    return torchmetrics.MetricCollection(
        {
            "accuracy": MulticlassAccuracy(3),
            "precision": MulticlassPrecision(3),  # these two share their states: one compute group
            "f1": MulticlassF1Score(3, average=None),
            "auroc": torchmetrics.AUROC("multiclass", num_classes=3),
        }
    )


METRICS = {
    "single": lambda: MulticlassAccuracy(3),
    "list_states": lambda: torchmetrics.AUROC("multiclass", num_classes=3),
    "collection": collection,
    "without_groups": lambda: torchmetrics.MetricCollection([MulticlassAccuracy(3)], compute_groups=False),
    "wrapped": lambda: torchmetrics.MinMaxMetric(MulticlassAccuracy(3)),
}


def plain(value):
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return torch.as_tensor(value).tolist()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("use", "batches_before"),
    [*itertools.product(["update", "forward", "reset"], [0, 1, 2]), ("compute", 1), ("compute", 2)],
)
def test_metrics_are_right_inside_and_untouched_afterwards(name, batches_before, use):
    """Against a twin that lives through the same batches, copied instead of isolated."""
    module, twin = nn.Module(), METRICS[name]()
    module.metric = METRICS[name]()
    for metric in (module.metric, twin):
        for seed in range(batches_before):
            metric.update(*batch(seed))

    def used(metric, member):
        if use == "update":
            metric.update(*batch(10 + member))
            return plain(metric.compute())
        if use == "forward":
            seen = plain(metric(*batch(10 + member)))
            return seen, plain(metric.compute())
        if use == "compute":
            return plain(metric.compute())
        metric.reset()
        metric.update(*batch(10 + member))
        metric.update(*batch(20 + member))
        return plain(metric.compute())

    inside = run(module, lambda member: used(module.metric, member))
    assert inside == [used(copy.deepcopy(twin), member) for member in range(3)]
    # The run goes on with a forward, as `self.log("acc", self.metric)` does it, and an epoch's end.
    for seed in (40, 41):
        assert plain(module.metric(*batch(seed))) == plain(twin(*batch(seed)))
    assert plain(module.metric.compute()) == plain(twin.compute())
    module.metric.reset(), twin.reset()
    module.metric.update(*batch(50)), twin.update(*batch(50))
    assert plain(module.metric.compute()) == plain(twin.compute())


@pytest.mark.parametrize("batches_before", [0, 1])
def test_aggregated_metrics(batches_before):
    module = nn.Module()
    module.mean, module.cat = torchmetrics.MeanMetric(), torchmetrics.CatMetric()
    for _ in range(batches_before):
        module.mean.update(5.0), module.cat.update(torch.tensor([1.0, 2.0]))
    states = (module.mean.mean_value, module.cat.value)
    entries = list(module.cat.value)

    def act(member):
        module.mean.update(float(member))
        module.cat.update(torch.tensor([float(member)]))
        return module.mean.compute().item(), module.cat.compute().tolist()

    before = 5.0 * batches_before, [1.0, 2.0] * batches_before
    expected = [((before[0] + member) / (1 + batches_before), [*before[1], float(member)]) for member in range(3)]
    assert [(mean, cat if isinstance(cat, list) else [cat]) for mean, cat in run(module, act)] == expected
    assert module.mean.mean_value is states[0]
    assert module.cat.value is states[1]
    assert all(a is b for a, b in zip(module.cat.value, entries, strict=True))
    assert module.mean.update_count == module.cat.update_count == batches_before


# --- attributes -----------------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.counter = 3
        self.outputs = [1, 2]
        self.by_name = {"a": 1}
        self.seen = {1}
        self.recent = deque([1, 2], maxlen=3)
        self.counts = Counter(a=2, b=0, c=-1)
        self.grouped = defaultdict(list, {"train": [1]})
        self.nested = {"deep": [{"deeper": [1]}]}
        self.layer = nn.Linear(2, 2)


def values(module):
    return (
        module.counter,
        list(module.outputs),
        dict(module.by_name),
        set(module.seen),
        list(module.recent),
        dict(module.counts),
        copy.deepcopy(dict(module.grouped)),
        copy.deepcopy(module.nested),
        hasattr(module, "new"),
        module.training,
        module.layer.training,
    )


def test_attributes_start_the_same_for_every_member_and_come_back():
    module = Stateful()
    before = values(module)
    containers = [module.outputs, module.by_name, module.seen, module.recent, module.counts, module.grouped]

    def act(member):
        seen = values(module)
        module.counter += 1
        module.outputs.append(member)
        module.by_name["b"] = member
        module.seen.add(member + 5)
        module.recent.append(member)
        module.counts["a"] += 1
        module.grouped["train"].append(member)
        module.grouped["new"].append(member)
        module.nested["deep"][0]["deeper"].append(member)
        module.nested["deep"].append(member)
        module.new = member
        module.eval()
        if member == 1:
            module.outputs = "replaced"
            del module.by_name
        return seen

    assert run(module, act) == [before] * 3
    assert values(module) == before
    after = [module.outputs, module.by_name, module.seen, module.recent, module.counts, module.grouped]
    assert all(a is b for a, b in zip(containers, after, strict=True))  # someone else may hold on to them
    assert module.recent.maxlen == 3


def test_containers_that_hold_themselves():
    module = Stateful()
    module.outputs[:] = [module.outputs]
    run(module, lambda member: module.outputs.append(member))
    assert len(module.outputs) == 1
    assert module.outputs[0] is module.outputs


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


def test_attributes_of_submodules_of_the_users_own():
    inner = Stateful()
    run(nn.Sequential(Wrapper(inner)), lambda member: inner.outputs.append(member))
    assert inner.outputs == [1, 2]


# --- logging --------------------------------------------------------------------------------------------------------


class Logging(nn.Module):
    def __init__(self):
        super().__init__()
        self.logged = []

    def log(self, name, value):
        self.logged.append((name, value))

    def log_dict(self, values):
        self.logged += values.items()


def test_nothing_is_logged_while_members_run():
    module = Wrapper(Logging())
    inner, calls = module.inner, []
    inner.logged = calls = type("CallRecorder", (list,), {})()

    def act(member):
        inner.log("loss", member)
        inner.log_dict({"a": 1})
        return len(calls)

    assert run(module, act) == [0, 0, 0]
    inner.log("loss", 1)
    inner.log_dict({"a": 2})
    assert calls == [("loss", 1), ("a", 2)]
    assert not {"log", "log_dict"} & vars(inner).keys()


def test_a_log_method_of_the_instances_own_comes_back():
    module = Logging()
    module.log = own = lambda name, value: None
    run(module, lambda member: module.log("x", 1))
    assert vars(module)["log"] is own


def test_everything_comes_back_after_an_exception():
    module = nn.Sequential(Stateful(), nn.BatchNorm1d(2), Logging(), MulticlassAccuracy(3))
    module[3].update(*batch(0))
    before, attributes, accuracy = snapshot(module), values(module[0]), module[3].tp
    state = torch.get_rng_state()

    def fail(member):
        torch.rand(3)
        module[0].outputs.append(1)
        module[1](torch.randn(4, 2))
        module[3].update(*batch(1))
        if member == 1:
            raise RuntimeError("member 1 fails")

    with pytest.raises(RuntimeError, match="member 1 fails"):
        run(module, fail)
    assert torch.equal(torch.get_rng_state(), state)
    assert unchanged(module, before)
    assert values(module[0]) == attributes
    assert module[3].tp is accuracy
    assert "log" not in vars(module[2])


def test_small_tensors_in_attributes_are_put_back_but_not_those_that_are_weights():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.alias = self.weight.data
            self.total = torch.zeros(1)
            self.history = {"losses": [torch.zeros(2)]}

    model = Model()
    with Isolation(model, torch.device("cpu")) as isolation:
        for _ in range(3):
            isolation.start_member()
            assert float(model.total) == 0
            model.total += 1
            model.history["losses"][0] += 1
            model.weight.data += 1
    assert float(model.total) == 0
    assert torch.equal(model.history["losses"][0], torch.zeros(2))
    assert torch.equal(model.alias, torch.full((3,), 3.0))  # weights are the evaluation's to restore


def test_unusual_modules_and_tensors():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph = torch.eye(3).to_sparse_csr()
            self.scripted = torch.jit.trace(nn.BatchNorm1d(3), torch.randn(4, 3))
            self.lazy = nn.LazyBatchNorm1d(affine=False)
            self.state = (torch.zeros(1), torch.zeros(1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        model = Model()
    batches = int(dict(model.scripted.named_buffers())["num_batches_tracked"])
    with Isolation(model, torch.device("cpu")) as isolation:
        for _ in range(3):
            isolation.start_member()
            model.scripted(torch.randn(4, 3))
            model.state[0].add_(1)
    assert float(model.state[0]) == 0
    assert int(dict(model.scripted.named_buffers())["num_batches_tracked"]) == batches


def test_logging_comes_back_if_the_snapshot_fails(monkeypatch):
    class Model(nn.Module):
        def log_dict(self, *args):
            raise AssertionError

    model = Model()
    monkeypatch.setattr(Isolation, "_take_snapshot", lambda self, modules: 1 / 0)
    with pytest.raises(ZeroDivisionError), Isolation(model, torch.device("cpu")):
        pass
    assert "log" not in vars(model)
    assert "log_dict" not in vars(model)


class ReadOnly(OrderedDict):
    """As configurations of diffusers and outputs of transformers are."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.frozen = True

    def __setitem__(self, key, value):
        if hasattr(self, "frozen"):
            raise TypeError("read only")
        super().__setitem__(key, value)

    def update(self, *args, **kwargs):
        raise TypeError("read only")


def test_containers_that_refuse_to_be_written_to_keep_what_they_hold():
    module = Wrapper(nn.ReLU())
    module.config = ReadOnly(b=1, a=[2])
    module.outputs = None

    def act(member):
        assert (list(module.config.items()), module.outputs) == ([("b", 1), ("a", [2])], None)
        OrderedDict.__setitem__(module.config, "c", 3)
        module.config["a"].append(4)
        module.outputs = ReadOnly(c=5)

    run(module, act)
    assert list(module.config.items()) == [("b", 1), ("a", [2])]
    assert list(reversed(module.config)) == ["a", "b"]
    assert module.outputs is None


def test_a_parameter_that_a_forward_replaces_comes_back():
    module = nn.Linear(2, 1)
    weight = module.weight

    def act(member):
        assert module.weight is weight
        module.weight = nn.Parameter(torch.zeros(1, 2))
        module.scale = nn.Parameter(torch.ones(1))
        del module.bias

    run(module, act)
    assert module.weight is weight
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]


def test_a_buffer_next_to_a_weight_in_the_same_memory_is_put_back():
    memory = torch.zeros(6)
    module = nn.Module()
    module.weight = nn.Parameter(memory[:3])
    module.register_buffer("count", memory[3:])
    module.register_buffer("alias", memory[1:2])

    def act(member):
        assert module.count.tolist() == [0, 0, 0]
        memory.add_(1)

    run(module, act)
    assert memory.tolist() == [3, 3, 3, 0, 0, 0]  # weights are the evaluation's to restore
