"""What members leave in objects, globals and closures is put back, or named."""

import dataclasses
import functools
import itertools
import random
import threading
import types
import warnings
from collections import Counter, deque

import numpy
import pytest
import torch
import torchmetrics
from torch import nn

import lightning_evo
from lightning_evo import isolation
from lightning_evo.isolation import Isolation, Traces, register, shared
from lightning_evo.isolation.reach import reach

CPU = torch.device("cpu")


def generation(module, act, traces=None, members=3, evolving=()):
    """What ``act(member)`` returned, member by member."""
    with Isolation(module, CPU, evolving, traces) as isolation:
        results = []
        for member in range(members):
            isolation.start_member()
            results.append(act(member))
    return results


class Meter:
    count = 0

    def __init__(self):
        self.total = 0.0
        self.values = []

    def update(self, value):
        self.count += 1
        self.total = self.total + value
        self.values.append(value)


class Slotted:
    __slots__ = ("left", "value")

    def __init__(self):
        self.value = 1


@dataclasses.dataclass
class State:
    step: int = 0
    by_name: dict = dataclasses.field(default_factory=dict)


class Generator(numpy.random.Generator):
    """As gym's, whose ``get_state`` is not NumPy's."""

    def __init__(self):
        super().__init__(numpy.random.PCG64(0))

    def get_state(self):
        raise AttributeError("use `bit_generator.state`")


class Closure:
    """A function with variables of its own."""

    def __init__(self):
        count, seen = 0, []

        def step(value):
            nonlocal count
            count += 1
            seen.append(value)
            return count, len(seen)

        self.step = step


class Holding(nn.Module):
    pass


def holding(**attributes):
    module = Holding()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    return scheduler


def write_slots(slotted):
    slotted.value += 1
    slotted.left = 3


def accumulate(metric):
    metric.update(torch.tensor([0.2, 0.8]), torch.tensor([1, 1]))


def train_list(module):
    module[0](torch.ones(3, 2))


KINDS = {
    "meter": (Meter, lambda x: x.update(2.0), lambda x: (x.count, x.total, list(x.values))),
    "slots": (Slotted, write_slots, lambda x: (x.value, hasattr(x, "left"))),
    "dataclass": (State, lambda x: (setattr(x, "step", 5), x.by_name.update(a=1)), dataclasses.asdict),
    "meters by name": (
        lambda: {"train": [Meter()]}, lambda x: x["train"][0].update(1.0), lambda x: (x["train"][0].count, len(x)),
    ),
    "array": (lambda: numpy.zeros((2, 3)), lambda x: x.__iadd__(1), lambda x: x.tolist()),
    "array of another order": (lambda: numpy.zeros((2, 3), order="F"), lambda x: x.fill(2), lambda x: x.tolist()),
    "generator": (
        lambda: torch.Generator().manual_seed(0), lambda x: torch.randn(3, generator=x),
        lambda x: x.get_state().tolist(),
    ),
    "numpy's generator": (lambda: numpy.random.default_rng(0), lambda x: x.normal(), lambda x: x.bit_generator.state),
    "gym's generator": (Generator, lambda x: x.normal(), lambda x: x.bit_generator.state),
    "namespace": (
        lambda: types.SimpleNamespace(step=0, names=["a"]), lambda x: (setattr(x, "step", 1), x.names.append("b")),
        lambda x: (x.step, list(x.names)),
    ),
    "numpy's old generator": (
        lambda: numpy.random.RandomState(0), lambda x: x.normal(), lambda x: str(x.get_state(legacy=False))
    ),
    "python's generator": (lambda: random.Random(0), lambda x: x.gauss(0, 1), lambda x: x.getstate()),
    "scheduler": (scheduler, lambda x: x.step(), lambda x: (x.last_epoch, x.optimizer.param_groups[0]["lr"])),
    "metric in a list": (
        lambda: [torchmetrics.classification.BinaryAccuracy()], lambda x: accumulate(x[0]),
        lambda x: (x[0].tp.item(), x[0].update_count),
    ),
    "modules in a list": (
        lambda: [nn.BatchNorm1d(2)], train_list, lambda x: (x[0].running_mean.tolist(), x[0].num_batches_tracked.item())
    ),
    "closure": (lambda: Closure().step, lambda x: x(1), lambda x: [cell.cell_contents for cell in x.__closure__]),
    "bound method": (lambda: Meter().update, lambda x: x(1.0), lambda x: x.__self__.count),
    "partial": (lambda: functools.partial(Meter().update, 1.0), lambda x: x(), lambda x: x.func.__self__.count),
    "deque and counter": (
        lambda: (deque([1], maxlen=2), Counter(a=1)), lambda x: (x[0].append(5), x[1].update("ab")),
        lambda x: (list(x[0]), dict(x[1])),
    ),
    "tensor written by data": (lambda: torch.zeros(2), lambda x: x.data.add_(1), lambda x: x.tolist()),
    "tensor of other memory": (
        lambda: torch.zeros(2), lambda x: setattr(x, "data", torch.ones(5)), lambda x: x.tolist()
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["near", "far"])
def test_state_of_every_kind_is_put_back(kind, where):
    """Near: an attribute. Far: behind so many other objects that it is only found by comparing all of them."""
    make, change, look = KINDS[kind]
    value = make()
    module = holding(held=value if where == "near" else [[i] for i in range(100)] + [value])
    before, traces = look(value), Traces()
    for _ in range(5):  # of which the fourth compares nothing
        seen = generation(module, lambda member: (look(value), change(value))[0], traces)
        assert seen[1:] == [before] * 2
        assert seen[0] == before
        assert look(value) == before


history, counts = [], {"calls": 0}
total = 0.0


class WithGlobals(nn.Module):
    recent: list = []  # noqa: RUF012
    calls = 0

    def forward(self, value):
        global total
        total += value
        history.append(value)
        self.recent.append(value)
        type(self).calls += 1
        return helper(value)


def helper(value):
    counts["calls"] += 1
    return value


def test_globals_and_data_of_classes_that_code_names():
    module, traces = WithGlobals(), Traces()

    def look():
        return total, list(history), dict(counts), list(WithGlobals.recent), WithGlobals.calls

    before = look()
    for _ in range(6):
        seen = generation(module, lambda member: (look(), module(1.0))[0], traces)
        assert seen == [before] * 3
        assert look() == before


# --- parameters that do not evolve ----------------------------------------------------------------------------------

WRITES = {
    "in place": lambda w: w.mul_(0.5),
    "by data": lambda w: w.data.mul_(0.5),
    "other memory": lambda w: setattr(w, "data", w.data * 0.5),
    "by a list of tensors": lambda w: torch._foreach_mul_([w], 0.5),
    "by numpy": lambda w: numpy.multiply(w.numpy(), 0.5, out=w.numpy()),
    "in a view": lambda w: w[0].fill_(0),
}


@pytest.mark.parametrize("how", WRITES)
def test_parameters_that_do_not_evolve(how):
    module = holding(net=nn.Linear(3, 2), teacher=nn.Linear(3, 2).requires_grad_(False))
    weight, before, traces = module.teacher.weight, module.teacher.weight.clone(), Traces()
    for _ in range(6):
        seen = generation(
            module, lambda member: (weight.clone(), WRITES[how](weight))[0], traces, evolving=module.net.parameters()
        )
        assert all(torch.equal(each, before) for each in seen)
        assert torch.equal(weight, before)
        assert module.teacher.weight is weight


def test_what_is_too_large_for_a_copy_is_copied_once_it_was_written_to(monkeypatch):
    monkeypatch.setattr("lightning_evo.isolation.traces.LARGEST_COPY", 100)
    module, traces = holding(teacher=nn.Linear(50, 50).requires_grad_(False), other=torch.zeros(50, 50)), Traces()
    weight, other = module.teacher.weight, module.other
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match=r"teacher\.weight is written to by a member and, for want") as caught,
    ):
        generation(module, lambda member: weight.data.add_(1), traces)
    assert len(caught) == 1
    after = weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            generation(module, lambda member: weight.data.add_(1), traces)
            assert torch.equal(weight, after)
    assert torch.equal(other, torch.zeros(50, 50))


# --- what is left alone ---------------------------------------------------------------------------------------------


class Pool:
    def __init__(self):
        self.lock, self.requests, self.answers = threading.Lock(), 0, []

    def ask(self):
        with self.lock:
            self.requests += 1
            self.answers.append(self.requests)


def test_an_object_with_a_lock_is_left_alone_as_a_whole_and_named_once():
    module, traces = holding(pool=Pool()), Traces()
    with pytest.warns(UserWarning, match="not put back") as caught:
        generation(module, lambda member: module.pool.ask(), traces)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generation(module, lambda member: module.pool.ask(), traces)
    assert [str(warning.message) for warning in caught] == [
        "pool (tests.isolation.test_reach.Pool) is changed by members and not put back, for there is pool.lock, a "
        "_thread.lock: each sees what others left in it, and so does the run. Keep it out of the fitness, or name it "
        "in the module's `evolution_shared` if members are meant to share it."
    ]
    assert (module.pool.requests, module.pool.answers) == (6, [1, 2, 3, 4, 5, 6])


def test_objects_that_are_left_alone_and_unchanged_are_not_named():
    module = holding(pool=Pool(), lock=threading.Lock(), numbers=iter([1, 2]), trained=Meter())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generation(module, lambda member: module.trained.update(1))
    assert module.trained.count == 0


class Taking(nn.Module):
    def __init__(self):
        super().__init__()
        self.endless, self.generator, self.listed = itertools.cycle([1, 2]), (i for i in range(99)), iter(range(99))
        self.untouched, self.unnamed = iter(range(9)), itertools.cycle([1])

    def forward(self):
        assert self.untouched is not None
        return next(self.endless), next(self.generator), next(self.listed)


def test_iterators_that_members_take_from_are_named():
    module = Taking()
    with pytest.warns(UserWarning, match=r"can't be gone through again") as caught:
        assert generation(module, lambda member: module()) == [(1, 0, 0), (2, 1, 1), (1, 2, 2)]
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith(
        "endless (itertools.cycle), generator (generator), listed (range_iterator) are changed by members and not put "
        "back, for there is a place"
    )


class Sharing(nn.Module):
    evolution_shared = {"pool", "calls", "cache", "queue"}

    def __init__(self):
        super().__init__()
        self.pool, self.meter = Pool(), Meter()
        self.cache = nn.BatchNorm1d(2)
        self.register_buffer("queue", torch.zeros(1))

    def forward(self):
        calls.append(1)
        others.append(1)
        self.pool.ask()
        self.meter.update(1)
        self.cache(torch.ones(3, 2))
        self.queue += 1


calls, others = [], []


def test_what_members_are_meant_to_share():
    module, traces = Sharing(), Traces()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            generation(module, lambda member: module(), traces)
    assert (len(calls), module.pool.requests, module.cache.num_batches_tracked, module.queue.item()) == (6, 6, 6, 6)
    assert (len(others), module.meter.count) == (0, 0)


class Misspelled(Sharing):
    evolution_shared = {"pool", "poll"}


def test_names_that_are_shared_in_vain_are_named():
    with pytest.warns(UserWarning, match="'poll' is neither held by the module nor named in its methods"):
        generation(Misspelled(), lambda member: None)


def test_names_that_are_shared_are_a_collection():
    module = holding(evolution_shared="pool")
    with pytest.raises(TypeError, match=r"must be a set of names, such as \{'pool'\}; got 'pool'"):
        generation(module, lambda member: None)


@shared
class Recorder(list):
    pass


class Simulator:
    """As if its state lay in a library."""

    states = itertools.count()

    def __init__(self):
        self.lock, self.state = threading.Lock(), 0


@dataclasses.dataclass
class SimulatorState:
    simulator: Simulator
    state: int

    def changed(self):
        return self.simulator.state != self.state

    def restore(self):
        self.simulator.state = self.state


def test_classes_with_a_handler_of_their_own():
    register(Simulator, lambda simulator: SimulatorState(simulator, simulator.state))
    module = holding(recorder=Recorder(), simulator=Simulator())

    def act(member):
        module.recorder.append(module.simulator.state)
        module.simulator.state += 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generation(module, act)
    assert (module.recorder, module.simulator.state) == ([0, 0, 0], 0)


def test_what_begins_to_change_later_is_named():
    meters = [Meter() for _ in range(100)]
    module, traces = holding(meters=meters), Traces()
    for _ in range(5):
        generation(module, lambda member: None, traces)
    for _ in range(3):
        generation(module, lambda member: meters[70].update(1), traces)
    assert meters[70].count == 9
    with pytest.warns(
        UserWarning, match=r"meters\[70\].values are first seen to change in generation 8, and .* after generation 4"
    ):
        generation(module, lambda member: meters[70].update(1), traces)
    generation(module, lambda member: meters[70].update(1), traces)
    assert meters[70].count == 9


# --- unusual tensors ------------------------------------------------------------------------------------------------


def jagged():
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


def test_jagged_tensors_are_put_back():
    module = holding(ragged=jagged())
    generation(module, lambda member: module.ragged.values().add_(1))
    assert module.ragged.values().tolist() == [0.0] * 5


def freed():
    """As FSDP frees gathered weights."""
    tensor = torch.zeros(1000)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.zeros(2, device="meta"),
        lambda: torch.zeros(()).expand(3),
        lambda: nn.UninitializedParameter(),
        lambda: torch.zeros(0, 3),
        freed,
        lambda: torch.zeros(2, dtype=torch.complex64).conj(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    ],
    ids=["coo", "csr", "strided nested", "meta", "expanded", "lazy", "empty", "freed", "conjugate", "quantised"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["attribute", "buffer", "parameter", "list"])
@pytest.mark.filterwarnings("ignore")  # torch's, of prototypes
def test_unusual_tensors_are_no_reason_to_fail(make, where):
    value = make()
    module = Holding()
    if where == "buffer":
        module.register_buffer("held", value)
    elif where == "parameter":
        module.held = nn.Parameter(value, requires_grad=False) if type(value) is torch.Tensor else value
    else:
        module.held = [value] * 80 if where == "list" else value
    before = module.held
    generation(module, lambda member: None)
    assert module.held is before


def test_a_sparse_tensor_that_is_written_to_is_named():
    module = holding(graph=torch.eye(3).to_sparse())
    with pytest.warns(
        UserWarning, match=r"graph \(a sparse_coo tensor\) is changed by members and not put back: each sees"
    ):
        generation(module, lambda member: module.graph.mul_(2))


# --- odd objects ----------------------------------------------------------------------------------------------------


class Permissive(dict):
    __getattr__ = dict.__getitem__


class Doubling(list):
    """Gives other things than it holds."""

    def __iter__(self):
        return iter([[each] for each in list.__iter__(self)])

    def __len__(self):
        return 0


class Refusing:
    __slots__ = ("value",)

    def __getattr__(self, name):
        raise KeyError(name)


class Incomparable:
    def __eq__(self, other):
        raise AssertionError

    __hash__ = None


class Odd(nn.Module):
    configuration = Permissive(lr=1)

    def __init__(self, value):
        super().__init__()
        self.value, self.others = value, [[i] for i in range(80)] + [value]

    def forward(self):
        return self.configuration["lr"]


def read_only():
    return numpy.frombuffer(bytes(32), dtype=numpy.float32)


def mapped():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not writeable
        return torch.from_numpy(read_only())


@pytest.mark.parametrize(
    "make",
    [
        read_only, mapped, random.SystemRandom, Refusing, Incomparable, Permissive, lambda: Doubling([[1], [2]]),
        lambda: numpy.array([{}, None], dtype=object), lambda: numpy.ma.masked_array([1, 2], [0, 1]),
        lambda: torch.distributions.Normal(torch.zeros(2), 1.0), lambda: functools.lru_cache(len), lambda: Holding,
        lambda: types.MappingProxyType({"a": [1]}), lambda: bytearray(b"ab"), lambda: super(Odd, Odd),
    ],
    ids=lambda make: getattr(make, "__name__", "other"),
)  # fmt: skip
def test_odd_objects_are_no_reason_to_fail(make):
    value = make()
    held = list(list.__iter__(value)) if isinstance(value, list) else None
    module, traces = Odd(value), Traces()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            generation(module, lambda member: module(), traces)
    assert module.value is value
    assert module.others[-1] is value
    if held is not None:
        assert all(a is b for a, b in zip(list.__iter__(value), held, strict=True))


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts, self.drop = nn.ParameterList([nn.Parameter(torch.zeros(2))]), nn.Dropout(0.5)
        self.frozen, self.memory = nn.Parameter(torch.zeros(2), requires_grad=False), bytearray(b"ab")

    def forward(self):
        global made_by_a_member
        made_by_a_member = 1
        type(self).calls = getattr(type(self), "calls", 0) + 1
        self.parts.append(nn.Parameter(torch.ones(2)))
        self.drop.p *= 0.9
        self.drop.seen = getattr(self.drop, "seen", 0) + 1
        self.frozen.requires_grad_(not self.frozen.requires_grad)
        self.memory.append(0)


def test_what_members_add_to_modules_classes_and_files():
    module, traces = Growing(), Traces()
    for _ in range(6):
        generation(module, lambda member: module(), traces)
        assert (len(module.parts), len(list(module.parts)), module.drop.p, bytes(module.memory)) == (1, 1, 0.5, b"ab")
        assert not hasattr(module.drop, "seen")
        assert not hasattr(Growing, "calls")
        assert not module.frozen.requires_grad
        assert "made_by_a_member" not in globals()


def test_a_second_run_compares_all_again():
    module, traces = holding(), Traces()
    for _ in range(6):
        generation(module, lambda member: None, traces)
    module.meters = [Meter() for _ in range(100)]
    traces.begin()
    for _ in range(3):
        generation(module, lambda member: module.meters[70].update(1), traces)
    assert module.meters[70].count == 0


def test_logs_come_back_if_nothing_can_be_put_back(monkeypatch):
    class Model(nn.Module):
        def log_dict(self, *args):
            raise AssertionError

    model = Model()
    monkeypatch.setattr(Isolation, "start_member", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError), Isolation(model, CPU):
        pass
    assert "log" not in vars(model)


def test_hooks_that_members_register_are_taken_back():
    module, calls = holding(layer=nn.Linear(2, 2)), []

    def act(member):
        module.layer.register_forward_hook(lambda *args: calls.append(member))
        module.layer(torch.zeros(1, 2))

    generation(module, act)
    module.layer(torch.zeros(1, 2))
    assert calls == [0, 1, 2]


def test_arrays_in_the_memory_of_weights_are_left_to_the_evaluation():
    module = holding(layers=nn.ModuleList(nn.Linear(2, 2) for _ in range(20)))
    weight = module.layers[7].weight
    module.seen = weight.detach().numpy()
    generation(module, lambda member: weight.data.add_(1), evolving=list(module.parameters()))
    assert numpy.shares_memory(module.seen, weight.detach().numpy())
    module.seen -= weight.detach().numpy()
    before = torch.stack([layer.weight.detach() for layer in module.layers])
    assert before[7].eq(0).all()
    assert before[6].ne(0).any()


# --- cost -----------------------------------------------------------------------------------------------------------

LARGE = {
    "vocabulary": lambda: {f"token{i}": i for i in range(1000)},
    "rows": lambda: [(i, i + 1, float(i)) for i in range(1000)],
    "tensors": lambda: [torch.zeros(2) for _ in range(1000)],
    "records": lambda: [{"text": "a", "label": 1} for _ in range(1000)],
}


@pytest.mark.parametrize("kind", LARGE)
def test_data_in_attributes_is_only_looked_at_in_some_generations(kind, monkeypatch):
    from lightning_evo.isolation import isolation

    looked = []
    near, reach = isolation.near, isolation.reach
    monkeypatch.setattr(isolation, "near", lambda roots: looked.append(near(roots)) or looked[-1])
    monkeypatch.setattr(isolation, "reach", lambda roots: looked.append("all") or reach(roots))
    module, traces = holding(data=LARGE[kind]()), Traces()
    for _ in range(10):
        generation(module, lambda member: None, traces)
    assert [position for position, each in enumerate(each for each in looked if each != "all")] == list(range(10))
    assert all(len(each) <= 1 for each in looked if each != "all")
    numbers = [i for i, each in enumerate(looked) if each == "all"]
    assert [number - 1 - i for i, number in enumerate(numbers)] == [0, 1, 2, 4, 8]


def test_the_code_of_this_package_is_not_the_users_wherever_it_lies():
    """It keeps caches in globals, by class, from which entries go as classes do."""

    class Model(lightning_evo.EvolutionMixin, nn.Module):
        def training_step(self, batch):
            return self.evolve(batch), isolation.snapshots.handler_of(nn.Module)

    names = [found.name for found in reach({"": Model()})]
    assert not [name for name in names if "_FOUND" in name or "lightning_evo" in name]
