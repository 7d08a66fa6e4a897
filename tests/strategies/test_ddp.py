"""`evo_ddp`: the weights are those of one process, whichever process evaluates what."""

import hashlib
import os
from collections import Counter
from datetime import timedelta
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import EvoDDPStrategy, Fitness
from lightning_evo.processes.checksums import checksum, dense_parts
from lightning_evo.strategies import ddp
from tests.strategies.processes import Failed, run_script

GENERATIONS = 50


def data(samples=48):
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > x[:, 1]).long())


class Model(L.LightningModule):
    def __init__(self, width=16, dropout=0.1):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, width), nn.Dropout(dropout), nn.Tanh(), nn.Linear(width, 2))
        self.validated = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x.to(self.dtype)).float(), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.validated += len(batch[1])
        self.log("validation", self.net(batch[0].to(self.dtype)).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Judged(Model):
    """Right or wrong, where the two scores are not too far apart; the loss breaks ties."""

    def fitness_step(self, batch, batch_idx):
        x, y = batch
        scores = self.net(x)
        loss = nn.functional.cross_entropy(scores, y, reduction="none")
        return Fitness(scores.argmax(1) == y, -loss, missing=scores.diff()[:, 0].abs() > 0.5)


def digest(module):
    bits = b"".join(p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in module.parameters())
    return hashlib.sha256(bits).hexdigest()


def flat(module):
    return torch.cat([p.detach().float().flatten() for p in module.parameters()])


def trainer(strategy, generations=GENERATIONS, **options):
    defaults = {
        "accelerator": "cpu", "devices": int(os.environ["WORLD_SIZE"]), "strategy": strategy, "logger": False,
        "max_steps": generations, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "limit_val_batches": 0,
    }  # fmt: skip
    return L.Trainer(**{**defaults, **options})


def quietly():
    import logging
    import warnings

    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def train(
    strategy=None,
    generations=GENERATIONS,
    seed=3,
    width=16,
    dropout=0.1,
    shuffle=True,
    batch=8,
    callback=None,
    model=Model,
    **options,
):
    """A training on this process; what became of it."""
    quietly()
    torch.manual_seed(seed)
    module = model(width, dropout)
    start = flat(module)
    run = trainer(
        EvoDDPStrategy(**{"population": 10, "seed": 5, **(strategy or {})}),
        generations,
        callbacks=[callback()] if callback else [],
        **options,
    )
    run.fit(module, DataLoader(data(), batch, shuffle=shuffle), DataLoader(data(), 8))
    moved = flat(module) - start.to(module.dtype).float()
    assert moved.norm() > 1e-3, "nothing was learnt, so equal weights would show nothing"
    return {
        "digest": digest(module),
        "weights": flat(module).tolist(),
        "moved": moved.tolist(),
        "loss": float(run.callback_metrics["loss"]),
        "fitness": float(run.callback_metrics["evo/fitness_mean"]),
        "tie_breaker": float(run.callback_metrics.get("evo/tie_breaker_mean", 0)),
        "validated": module.validated,
        "summary": run.strategy.evolution.evaluation.summary,
        "rng": torch.get_rng_state().sum().item(),
    }


def only(values):
    """The one value that all are."""
    assert len(set(values)) == 1, values
    return values[0]


# --- the population -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("precision", "algorithm", "update"),
    [("32-true", "openai_es", "optimizer"), ("bf16-true", "openai_es", "in_place"), ("bf16-true", "csa_es", None)],
)
@pytest.mark.parametrize("evaluation", ["plain", "in_forward", "batched"])
def test_any_number_of_processes_gives_the_same_bits(world, precision, algorithm, evaluation, update):
    strategy = {"algorithm": algorithm, "evaluation": evaluation, "update": update}
    if evaluation == "batched":
        strategy["members_per_forward"] = 4
    found = {}
    for count in (1, 2, 3, 4):
        results = world(count).run(partial(train, precision=precision), strategy, timeout=120)
        found[count] = only([result["digest"] for result in results])
        assert results[0]["summary"].startswith(f"evaluation: {evaluation}")
    assert only(list(found.values()))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_that_restarts_with_more_members_is_the_same_on_all_processes(world):
    """One set of bits on all processes of a run; of runs with other numbers of them alike but for rounding."""
    strategy = {"algorithm": "cma_es", "restarts": "ipop", "maxiter": 4, "sigma": 0.1, "evaluation": "plain"}
    found = []
    for count in (1, 2, 3):
        results = world(count).run(partial(train, generations=11), strategy, timeout=120)
        only([result["digest"] for result in results])
        found.append(results[0]["weights"])
    for weights in found[1:]:
        assert weights == pytest.approx(found[0], abs=1e-5)


def train_and_go_on(folder, strategies, generations, save=""):
    """By one strategy after the other, each from where the one before has stopped."""
    import lightning_evo

    quietly()
    torch.manual_seed(3)
    module = Model(dropout=0.0)
    name, options = strategies
    strategy = getattr(lightning_evo, name)(population=10, seed=5, update="in_place", journal=False, **options)
    run = trainer(strategy, generations)
    checkpoint = f"{folder}/last.ckpt"
    run.fit(module, DataLoader(data(), 16, shuffle=True), ckpt_path=None if save else checkpoint)
    if save:
        run.save_checkpoint(checkpoint)
    return digest(module), run.strategy.evolution.evaluation.summary


def test_fewer_processes_go_on_with_the_same_groups(world, tmp_path):
    """What batched chose for two processes, six members at once, one of them runs, too: to the same bits."""
    go_on = partial(train_and_go_on, str(tmp_path), ("EvoDDPStrategy", {"evaluation": "batched"}))
    started = world(2).run(go_on, 3, "save")
    found = [*world(2).run(go_on, 9), *world(1).run(go_on, 9)]
    assert only([summary for _, summary in (*started, *found)]) == "evaluation: batched, 6 members per forward"
    assert only([weights for weights, _ in found])
    more = world(3).run(go_on, 9)  # smaller groups, so that none of them stands idle: alike but for rounding
    assert only([summary for _, summary in more]) == "evaluation: batched, 4 members per forward"


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_train_on_what_the_dataloader_gives(world, shuffle):
    """In its order: from one strategy to the other nothing changes."""
    alone = world(1).run(partial(train_with_evo, shuffle))
    assert only([*alone, *world(1).run(partial(train_with_evo, shuffle, "EvoDDPStrategy")),
                 *world(2).run(partial(train_with_evo, shuffle, "EvoDDPStrategy"))])  # fmt: skip


def train_with_evo(shuffle, name="EvoStrategy"):
    import lightning_evo

    quietly()
    torch.manual_seed(3)
    module = Model()
    strategy = getattr(lightning_evo, name)(population=10, seed=5, evaluation="plain")
    trainer(strategy, 9).fit(module, DataLoader(data(), 8, shuffle=shuffle))
    return digest(module)


def test_two_processes_are_one(world):
    strategy = {"update": "in_place", "population": 6}
    found = [world(count).run(train, strategy, 10) for count in (1, 2)]
    assert only([result["digest"] for results in found for result in results])
    assert only([result["rng"] for results in found for result in results])


def test_missing_samples_and_ties_are_those_of_one_process(world):
    """Of a window of two batches."""
    found = [world(count).run(partial(train, model=Judged, accumulate_grad_batches=2), {}, 6) for count in (1, 2)]
    assert only([result["digest"] for results in found for result in results])
    assert only([result["tie_breaker"] for results in found for result in results]) < 0


def test_more_processes_than_pairs(world):
    found = [world(count).run(train, {"population": 2}, 5) for count in (1, 2)]
    assert only([result["digest"] for results in found for result in results])


def test_processes_that_start_differently_become_equal(world):
    assert only([result["digest"] for result in world(2).run(train_differently)])


def train_differently():
    return train({"seed": None, "checksum_every": 1}, generations=5, seed=int(os.environ["RANK"]))


def test_validation_stays_divided(world):
    results = world(2).run(partial(train, limit_val_batches=1.0, num_sanity_val_steps=0, max_epochs=1), {}, -1)
    assert [result["validated"] for result in results] == [24, 24]


# --- the data -------------------------------------------------------------------------------------------------------


OPTIONS = {"shaping": "raw", "population": 8, "evaluation": "plain"}


@pytest.mark.parametrize(("shard", "model"), [("data", Model), ((1, 2), Model), ("data", Judged)])
def test_divided_data_gives_the_mean_fitness(world, shard, model):
    run = partial(train, dropout=0.0, shuffle=False, model=model)
    whole = world(1).run(partial(run, batch=16), {**OPTIONS, "shard": "data"}, 6)[0]
    found = world(2).run(partial(run, batch=8), {**OPTIONS, "shard": shard}, 6)
    assert only([result["digest"] for result in found])
    assert found[0]["fitness"] == pytest.approx(whole["fitness"], abs=1e-6)
    assert found[0]["weights"] == pytest.approx(whole["weights"], abs=1e-6)


@pytest.mark.slow
def test_a_grid(world):
    run = partial(train, dropout=0.0, shuffle=False)
    whole = world(1).run(partial(run, batch=16), {**OPTIONS, "shard": "data"}, 6)[0]
    found = world(4).run(partial(run, batch=8), {**OPTIONS, "shard": (2, 2)}, 6, timeout=120)
    assert only([result["digest"] for result in found])
    assert found[0]["weights"] == pytest.approx(whole["weights"], abs=1e-6)


# --- the update -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["optimizer", "in_place"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_ways_of_making_the_update(world, update, precision):
    """With a matrix that is large enough to be divided: 40,000 x 2 elements."""
    run = partial(train, width=40_000, precision=precision, dropout=0.0, gradient_clip_val=0.5)
    found = {}
    for name in ("replicated", "sharded", "auto"):
        results = world(2).run(run, {"update": update, "update_sync": name, "evaluation": "plain"}, 3)
        found[name] = only([result["digest"] for result in results])
    assert only(list(found.values()))


def choices():
    """How often two fits of one Trainer choose who makes the update."""

    quietly()
    found, choose = [], ddp.choose
    ddp.choose = lambda *args: found.append(choose(*args)) or found[-1]
    try:
        run = trainer(EvoDDPStrategy(population=4, seed=1), 2)
        for steps in (2, 4):
            run.fit_loop.epoch_loop.max_steps = steps
            run.fit(Model(), DataLoader(data(), 8))
    finally:
        ddp.choose = choose
    return len(found)


def test_each_fit_chooses_anew_and_once(world):
    assert world(2).run(choices) == [2, 2]


class CountBytes(L.Callback):
    """What this process hands to the process group during training steps."""

    steps: list = []

    def on_train_start(self, trainer, module):
        type(self).steps = []
        group = torch.distributed.ProcessGroup
        self.originals = {}
        for name in ("allgather", "_allgather_base", "allreduce", "broadcast", "reduce", "gather", "scatter", "send",
                     "alltoall", "alltoall_base", "reduce_scatter", "_reduce_scatter_base"):  # fmt: skip
            self.originals[name], original = vars(group)[name], getattr(group, name)

            def counted(this, *args, original=original, name=name, **kwargs):
                self.steps[-1] += size(args[1] if name in ("allgather", "_allgather_base") else args[0])
                return original(this, *args, **kwargs)

            setattr(group, name, counted)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.steps.append(0)

    def on_train_end(self, trainer, module):
        for name, original in self.originals.items():
            setattr(torch.distributed.ProcessGroup, name, original)


def size(tensors):
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(size, tensors))


def train_and_count(population, update_sync):
    train({"population": population, "update_sync": update_sync}, 5, callback=CountBytes, width=40_000, dropout=0.0)
    return CountBytes.steps


@pytest.mark.parametrize("population", [2, 10, 64])
def test_only_fitness_travels(world, population):
    for steps in world(2).run(train_and_count, population, "replicated"):
        assert len(steps) == 5
        assert max(steps) <= 16 * population + 1024
        assert min(steps) >= 8 * population  # the count counts
    for steps in world(2).run(train_and_count, population, "sharded"):
        assert max(steps) > 4 * 40_000 * 6 / 2


# --- what goes wrong ------------------------------------------------------------------------------------------------


class Damage(L.Callback):
    """Writes to a weight on one process."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            with torch.no_grad():
                module.net[0].bias[3] += 1e-3


def test_weights_that_differ_are_found(world):
    message = r"Generation 4: the weights of processes 1 are not those of process 0, in net\.0\.bias"
    with pytest.raises(Failed, match=message):
        world(2).run(partial(train, callback=Damage, dropout=0.0, limit_train_batches=2), {"checksum_every": 2}, 8)


def refused(message, function, *args, **options):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        function(*args, **options)
    assert message in str(raised.value)
    return raised.type.__name__


class Reducing(Model):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        torch.distributed.all_reduce(loss)
        return loss


def train_reducing(shard, uneven=10):
    quietly()
    run = trainer(EvoDDPStrategy(population=uneven, seed=1, shard=shard), 2)
    run.fit(Reducing(), DataLoader(data(), 8))
    return run.global_step


def test_collectives_among_members(world):
    message = "torch.distributed.all_reduce was called while members are evaluated"
    assert world(2).run(partial(refused, message, train_reducing), "population") == ["RuntimeError"] * 2
    assert world(2).run(train_reducing, "data") == [2, 2]


def test_synchronised_batch_norm(world):
    refusals = world(2).run(partial(refused, "sync_batchnorm=True can't be used", train, sync_batchnorm=True))
    assert refusals == ["ValueError"] * 2


class Failing(Model):
    fails = 1

    def training_step(self, batch, batch_idx):
        if torch.distributed.get_rank() == 1 and not torch.is_inference_mode_enabled() and self.trainer.training:
            self.calls = getattr(self, "calls", 0)
            Counted.calls[self.fails] += 1
            if Counted.calls[self.fails] > 100 - self.fails and Counted.calls[self.fails] <= 100:
                raise ArithmeticError("member failed")
        return super().training_step(batch, batch_idx)


class Counted:
    calls: Counter = Counter()


def train_failing(fails):
    quietly()
    Counted.calls.clear()
    module = Failing()
    module.fails = fails
    run = trainer(EvoDDPStrategy(population=8, seed=1, evaluation="plain", minimum_evaluated=0.9), 100)
    failed = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            failed.append(int(trainer.callback_metrics["evo/failed_members"]))

    run.callbacks.append(Watch())
    run.fit(module, DataLoader(data(), 8))
    return digest(module), sum(failed)


def test_failures_on_one_process_are_known_to_all(world):
    message = "failed"
    refusals = world(2).run(partial(refused, message, train_failing), 4)
    assert sorted(refusals) == ["ArithmeticError", "RuntimeError"]


def train_twice(strategy):
    """Without a seed, two modules one after the other."""
    quietly()
    torch.manual_seed(int(os.environ["RANK"]))
    run, found = trainer(EvoDDPStrategy(population=8, evaluation="plain", **strategy), 3), []
    for steps in (3, 6):
        module = Model(dropout=0.0)
        run.fit_loop.epoch_loop.max_steps = steps
        run.fit(module, DataLoader(data(), 8))
        found.append(digest(module))
    return tuple(found)


@pytest.mark.parametrize("options", [{"shard": "data"}, {"shard": "population"}], ids=str)
def test_a_second_fit(world, options):
    assert len(set(only(world(2).run(train_twice, options)))) == 2


class Unequal(torch.utils.data.IterableDataset):
    """Batches of other sizes on each process."""

    def __iter__(self):
        x, y = data().tensors
        for size in [(8, 3, 5, 7), (6, 8, 2, 9)][torch.distributed.get_rank()]:
            yield x[:size], y[:size]


def train_on_samples():
    quietly()
    strategy = EvoDDPStrategy(population=8, seed=1, shard="data", samples_per_generation=12, shaping="z_score")
    module = Model(dropout=0.0)
    run = trainer(strategy, 2, accumulate_grad_batches=2)
    run.fit(module, DataLoader(Unequal(), None))
    return digest(module), run.global_step


def test_processes_with_different_numbers_of_samples_learn_alike(world):
    assert only(world(2).run(train_on_samples))[1] == 2


def train_on_own_sampler(shard):
    quietly()
    sampler = torch.utils.data.DistributedSampler(data(), 2, torch.distributed.get_rank())
    module = Model(dropout=0.0)
    trainer(EvoDDPStrategy(population=8, seed=1, shard=shard), 2).fit(module, DataLoader(data(), 8, sampler=sampler))
    return digest(module)


def test_members_on_different_batches(world):
    world(2).run(train, {}, 1)  # the process group is there
    message = "processes evaluate different members on different batches"
    assert world(2).run(partial(refused, message, train_on_own_sampler), "population") == ["RuntimeError"] * 2
    assert only(world(2).run(train_on_own_sampler, "data"))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_checksums_of_batches_of_all_kinds():
    graph = torch.eye(3).to_sparse()
    batches = [
        graph,
        graph * 2,
        torch.eye(3).to_sparse_csr(),
        torch.ones(2, dtype=torch.complex128),
        torch.tensor([1j]),
    ]
    sums = [sum(map(checksum, dense_parts(batch))) for batch in batches]
    assert len(set(sums)) == len(sums)
    assert sums == [sum(map(checksum, dense_parts(batch.clone()))) for batch in batches]


class Uneven(torch.utils.data.IterableDataset):
    """A dataset with other batches on each process, the number of which is not known before."""

    def __iter__(self):
        x, y = data().tensors
        for _ in range(5 - torch.distributed.get_rank()):
            yield x[:8], y[:8]


def train_unevenly(loader, shard, max_steps=-1, **options):
    quietly()
    own = trainer(EvoDDPStrategy(population=8, seed=1, shard=shard), max_steps, max_epochs=2, **options)
    own.fit(Model(), loader())
    return own.global_step


def known():
    x, y = data().tensors
    samples = 48 - 16 * torch.distributed.get_rank()
    return DataLoader(TensorDataset(x[:samples], y[:samples]), 8, sampler=range(samples))


def unknown():
    return DataLoader(Uneven(), None)


@pytest.mark.parametrize("shard", ["population", "data"])
def test_processes_with_different_numbers_of_batches(world, shard):
    world(2).run(train, {}, 1)  # the process group is there
    message = "different numbers of training batches: process 0 has 6, process 1 has 4."
    run = partial(train_unevenly, use_distributed_sampler=False)
    assert world(2).run(partial(refused, message, run), known, shard) == ["RuntimeError"] * 2
    message = "different numbers of training batches: this is the last one of processes 1, but not of the others."
    assert world(2).run(partial(refused, message, run), unknown, shard) == ["RuntimeError"] * 2
    world(2).run(partial(run, limit_train_batches=4), known, shard)
    world(2).run(partial(run, limit_train_batches=4), unknown, shard)
    for loader in (known, unknown):  # the end, where they differ, is not reached
        assert world(2).run(partial(run, max_steps=4), loader, shard) == [4, 4]
        assert world(2).run(partial(run, max_steps=2, accumulate_grad_batches=2), loader, shard) == [2, 2]


class Manual(Model):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


def train_manually():
    quietly()
    trainer(EvoDDPStrategy(population=8, seed=1), 2).fit(Manual(), DataLoader(data(), 8))


def test_manual_optimization(world):
    message = "Manual uses manual optimization, which this strategy leaves alone: each of the 2 processes"
    assert world(2).run(partial(refused, message, train_manually)) == ["ValueError"] * 2


def test_a_grid_that_does_not_fit(world):
    message = "shard=(3, 1) is a grid of 3 processes, but there are 2 (1 nodes with 2 devices each)"
    assert world(2).run(partial(refused, message, train), {"shard": (3, 1)}) == ["ValueError"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "batch"}, "shard must be 'population', 'data' or two whole numbers"),
        ({"shard": (2,)}, "shard must be"),
        ({"shard": (2, 0)}, "shard must be"),
        ({"shard": (2, True)}, "shard must be"),
        ({"update_sync": "replicate"}, "Unknown update_sync 'replicate'. Did you mean 'replicated'?"),
        ({"checksum_every": -1}, "checksum_every must be a whole number >= 0"),
        ({"timeout": 30}, "timeout must be a positive datetime.timedelta, such as timedelta(minutes=5), got 30"),
        ({"timeout": timedelta(0)}, "timeout must be a positive datetime.timedelta"),
        ({"process_group_backend": "glo"}, "Unknown process_group_backend 'glo'. Did you mean 'gloo'?"),
        ({"process_group_backend": "cpu:gloo,cuda:ncl"}, "Did you mean 'nccl'? Use 'nccl' for GPUs"),
        ({"process_group_backend": 3}, "Unknown process_group_backend 3. Use 'nccl' for GPUs, 'gloo' for CPUs"),
        ({"start_method": "thread"}, "Unknown start_method 'thread'. Choose one of popen, spawn"),
    ],
    ids=str,
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        EvoDDPStrategy(**options)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "option",
    [{"find_unused_parameters": True}, {"gradient_as_bucket_view": True}, {"static_graph": True}, {"bucket_cap_mb": 5}],
    ids=str,
)
def test_options_of_distributed_data_parallel(option):
    (name,) = option
    with pytest.raises(TypeError, match=rf"^{name} is no option of .*: there is no DistributedDataParallel.*Leave it"):
        EvoDDPStrategy(**option)


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo,cuda:nccl", None])
def test_options_of_the_connection(backend):
    strategy = EvoDDPStrategy(process_group_backend=backend, timeout=timedelta(minutes=2))
    assert strategy.process_group_backend == backend
    assert strategy._timeout == timedelta(minutes=2)


def test_nccl_without_gpus(world):
    message = "process_group_backend='nccl' connects GPUs only"
    refusals = world(2).run(partial(refused, message, train), {"process_group_backend": "nccl"})
    assert refusals == ["ValueError"] * 2


# --- launchers ------------------------------------------------------------------------------------------------------


class Boring(BoringModel):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train_boring(strategy):
    """The same training by every launcher."""
    quietly()
    L.seed_everything(0, verbose=False)
    module = Boring()
    start = digest(module)
    run = L.Trainer(
        strategy=strategy, accelerator="cpu", devices=2, max_steps=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    run.fit(module)
    assert digest(module) != start
    return digest(module), run.is_global_zero


SCRIPT = """
from tests.strategies.test_ddp import train_boring

if __name__ == "__main__":
    weights, is_first = train_boring({strategy!r})
    if is_first:
        print("RESULT", weights)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["evo_ddp", "evo_ddp_spawn", "evo_ddp_fork", "torchrun"])
def test_launchers(launcher, world, tmp_path, monkeypatch):
    """Lightning's own ways of starting processes, and torchrun. (A spawned process hands its weights back.)"""
    weights = only([weights for weights, _ in world(2).run(train_boring, "evo_ddp")])
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    code, torchrun = SCRIPT.format(strategy=launcher.replace("torchrun", "evo_ddp")), ()
    if launcher == "torchrun":
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    printed = run_script(code, tmp_path, launcher=torchrun)
    assert [line for line in printed.splitlines() if "RESULT" in line] == [f"RESULT {weights}"]
