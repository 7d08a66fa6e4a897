"""Trainings on a GPU: the CPU's bits where fitness is given, one wait in a generation, and what Lightning adds."""

import os

import pytest
import torch
from torch import nn

from benchmarks.gpu import trained
from lightning_evo import Evolution
from lightning_evo.generation import evolution as evolution_module
from lightning_evo.generation.moves import InPlace, IntoGradients
from tests.generation.test_waiting import GENERATION, NOISE, Model, fitness_of
from tests.strategies.processes import run_script

pytestmark = [
    pytest.mark.filterwarnings("ignore:The (noise|Triton) kernels (could|can)"),
    pytest.mark.filterwarnings("ignore:Noise will not be compiled"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:.*members that should be compared have the same fitness"),
]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float32, {"noise": "rademacher"}),
        (torch.bfloat16, {"weight_decay": 0.1}),
        (torch.float16, {"sparsity": 0.5}),
        (torch.bfloat16, {"anchor": 0.1}),
    ],
)
def test_fifty_generations_end_with_the_weights_of_the_cpu(dtype, options, device):
    generations = 50 if device.type == "cuda" else 3
    found = trained(device, dtype, options, generations)
    expected = trained(torch.device("cpu"), dtype, options, generations)
    start = trained(torch.device("cpu"), dtype, options, 0)
    assert not any(torch.equal(a, b) for a, b in zip(start, expected, strict=True))
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


class Synchronisations:
    """While it is active, whatever waits for the device raises, but for the fitness, which is counted."""

    def __init__(self, device, monkeypatch):
        self.fitness, self._device = 0, device
        read = evolution_module.results_of

        def results_of(*given):
            self._set("default")
            self.fitness += 1
            try:
                return read(*given)
            finally:
                self._set("error")

        monkeypatch.setattr(evolution_module, "results_of", results_of)

    def _set(self, mode):
        if self._device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def __enter__(self):
        self._set("error")

    def __exit__(self, *error):
        self._set("default")


@pytest.mark.parametrize("way", ["plain", "in_forward", "batched", "rows"])
@pytest.mark.parametrize(
    ("noise", "moves"),
    [
        *((name, InPlace) for name in NOISE if name != "rms"),  # which reads the tensors' sizes before
        ("dense", IntoGradients),
        ("low rank", IntoGradients),
    ],
)
def test_a_generation_waits_once(way, noise, moves, device, monkeypatch):
    torch.manual_seed(0)
    model = Model().eval().to(device)
    model.last = model.last.to(device)
    batch = torch.randint(20, (3, 5)).to(device)
    evolution = Evolution("openai_es", population=4, sigma=0.01, seed=0, evaluation=way, **NOISE[noise])
    evolution.setup(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    learns = moves(lambda: [optimizer]) if moves is InPlace else moves()
    for _ in range(GENERATION):
        evolution.evaluate(fitness_of(model), batch)
        learns.learn(evolution.conclude())
    assert evolution.evaluation.summary.startswith(f"evaluation: {way}"), evolution.evaluation.summary
    evolution.drift()
    synchronisations = Synchronisations(device, monkeypatch)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with synchronisations:
        evolution.evaluate(fitness_of(model), batch)
        norm = learns.learn(evolution.conclude())
        drift = evolution.drift()
    assert synchronisations.fitness == 1
    assert float(norm) > 0
    assert all(float(value) > 0 for value in drift.values())
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved) == any(moved) == (moves is InPlace)


def test_clipping_by_norm_stays_on_the_device(device):
    torch.manual_seed(0)
    weights = []
    for limit in (1e9, 0.01):
        network = nn.Linear(50, 50).to(device)
        nn.init.zeros_(network.weight)
        evolution = Evolution("openai_es", population=8, sigma=0.1, seed=0, evaluation="plain")
        evolution.setup(network)
        evolution.recall(torch.arange(8.0, dtype=torch.float64))
        moves = InPlace(lambda network=network: [torch.optim.SGD(network.parameters(), lr=1.0)])
        moves.clip(None, limit)
        norm = moves.learn(evolution.conclude())
        weights.append(network.weight.detach().clone())
    assert norm.device.type == device.type
    torch.testing.assert_close(weights[1], weights[0] * (0.01 / float(norm)), rtol=1e-5, atol=1e-9)


# --- language models ---


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated")
@pytest.mark.parametrize("evaluation", ["rows", "in_forward"])
def test_a_language_model_learns_from_rewards(evaluation, device):
    pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    from tests.rewards.test_module import fit, flat, module

    made = module()
    before = flat(made)
    where = {"accelerator": "gpu" if device.type == "cuda" else "cpu"}
    trainer = fit(made, evaluation, steps=4, run=where)
    assert trainer.strategy.root_device.type == device.type
    assert trainer.strategy.evolution.evaluation.summary.startswith(f"evaluation: {evaluation}")
    assert not torch.equal(flat(made).cpu(), before)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert 0 <= metrics["evo/fitness_mean"] <= 1
    assert metrics["evo/update_norm"] > 0


# --- processes ---

SCRIPT = """
import torch
from tests.strategies.sharded import fit, whole

if __name__ == "__main__":
    for strategy in ("EvoStrategy", "{strategy}"):
        arguments = {{"population": 8, "sigma": 0.1, "seed": 3, "update": "in_place"}}
        if strategy != "EvoFSDPStrategy":
            arguments["evaluation"] = "plain"  # which is the way of sharded weights
        options = {{"accelerator": "{accelerator}", "max_epochs": 1, "use_distributed_sampler": False}}
        trainer, module = fit(strategy, arguments, **options)
        assert trainer.strategy.root_device.type == "{device}", trainer.strategy.root_device
        print("WEIGHTS", *[value.double().sum().item() for value in whole(module).values()])
    print("BACKEND", torch.distributed.get_backend_config())
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs a torch with torch.distributed")
@pytest.mark.parametrize("strategy", ["EvoDDPStrategy", "EvoFSDPStrategy"])
def test_a_process_of_many_trains_as_one_alone(strategy, device, tmp_path, monkeypatch):
    """On a GPU connected by NCCL; of one process, so the weights are those of a single device.

    Bit for bit, but for the statistics of batches where a GPU's products round by the addresses of gathered weights.
    """
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    printed = run_script(SCRIPT.format(strategy=strategy, accelerator=accelerator, device=device.type), tmp_path)
    alone, one_of_many = [line for line in printed.splitlines() if line.startswith("WEIGHTS")]
    if (strategy, device.type) == ("EvoFSDPStrategy", "cuda"):
        found, expected = ([float(number) for number in line.split()[1:]] for line in (one_of_many, alone))
        assert found == pytest.approx(expected, rel=1e-5)
    else:
        assert one_of_many == alone
    (connected,) = [line for line in printed.splitlines() if line.startswith("BACKEND")]
    assert ("nccl" in connected) == (device.type == "cuda")
