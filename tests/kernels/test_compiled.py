"""Compiled noise: only once that saves time, with the reference's bits, and never in the way where it fails."""

import shutil

import pytest
import torch

from lightning_evo.kernels import REFERENCE, Moved, Span, Values, compiled
from lightning_evo.kernels.compiled import Compiled
from lightning_evo.kernels.normal import normal_table
from lightning_evo.kernels.values import rows
from lightning_evo.noise.philox import NoiseKey, address_of
from lightning_evo.noise.values import draw

DISTRIBUTIONS = ["gaussian", "rademacher", "uniform"]
CPU = torch.device("cpu")


@pytest.fixture
def subject(monkeypatch):
    """A backend that compiles, also for the CPU, as soon as it has drawn a little."""
    monkeypatch.setattr(compiled, "_COMPILE_AFTER", 1000)
    return Compiled()


def arguments(distribution, count=5):
    row = torch.arange(100, 100 + count)
    return distribution, row, row % 3, torch.tensor(address_of(NoiseKey(3, 4), 5)), normal_table(CPU)


def test_compiles_only_once_enough_noise_was_drawn(subject, monkeypatch):
    functions = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: functions.append(function) or function)
    expected = rows(*arguments("gaussian"))
    assert torch.equal(subject.run(rows, 999, *arguments("gaussian")), expected)
    assert functions == []
    assert torch.equal(subject.run(rows, 1, *arguments("gaussian")), expected)
    subject.run(rows, 1, *arguments("gaussian"))
    subject.run(rows, 1, *arguments("gaussian", count=7))  # another size needs no other code
    assert len(functions) == 1
    subject.run(rows, 1, *arguments("uniform"))
    assert len(functions) == 2
    assert len({id(function.__code__) for function in functions}) == 2  # by which torch.compile counts


def test_the_cpu_has_kernels_of_its_own_and_compiles_nothing(monkeypatch):
    monkeypatch.setattr(compiled, "_COMPILE_AFTER", 0)
    monkeypatch.setattr(torch, "compile", None)
    assert draw(NoiseKey(3, 4), [0], 5, 0, 1000).shape == (1, 1000)
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "torch")
    assert draw(NoiseKey(3, 4), [0], 5, 0, 1000, device="meta").shape == (1, 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_operation_passes_its_noise_through_the_compiler(dtype, subject, monkeypatch):
    """Functions that are only copied, not compiled, give the reference's bits."""
    functions = set()
    monkeypatch.setattr(torch, "compile", lambda function, **options: functions.add(function.__name__) or function)
    subject.drawn = 1000
    values, center = Values("gaussian", (1, 2, 3, 4)), torch.randn(5000).to(dtype)

    def results(backend):
        out, rows_out, moved = center.new_empty(2, 5000), center.new_empty(2, 3, 1000), center.clone()
        within = center.new_empty(2, 4900)
        spans = [Span(values, 0, center, out), Span(values, 77, center[77:4977], within)]
        backend.members(spans, [7], [0.1, -0.1])
        chosen = torch.tensor([4, 0, 4])
        backend.chosen_rows(values, [7], [0.1, -0.1], center.view(5, 1000), chosen, rows_out)
        total = backend.weighted_sum(values, [0, 3], [0.5, -2.0], 5, 4999, center)
        norms = backend.update([Moved(values, values.address, moved, 1e-3)], [0, 3], [0.5, -2.0])
        drawn = backend.draw(values, [0, 1], 3, 4000, dtype, torch.device("cpu"))
        return out, within, rows_out, total, moved, norms, drawn

    assert all(map(torch.equal, results(subject), results(REFERENCE)))
    assert functions == {"rows", "_write_rows", "_add_rows"}


def test_a_broken_compiler_is_said_once_and_changes_nothing(subject, monkeypatch):
    def no_compiler(function, **options):
        def fail(*args, **kwargs):
            raise RuntimeError("No working compiler found\nmore lines")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    expected = rows(*arguments("gaussian"))
    with pytest.warns(UserWarning, match=r"not be compiled.*RuntimeError: No working compiler found\)") as said:
        values = subject.run(rows, 1000, *arguments("gaussian"))
    assert len(said) == 1
    assert torch.equal(values, expected)
    assert torch.equal(
        subject.run(rows, 1000, *arguments("gaussian")), expected
    )  # a second warning would be an error here
    assert subject.failed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch and Python deprecate
@pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in ("g++", "c++", "clang++")), reason="needs a C++ compiler"
)
def test_compiled_values_are_the_same_bits(subject):
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if not pick_vec_isa():
        pytest.skip("torch's compiler makes C++ that does not compile without a processor's vectors")
    for distribution in (*DISTRIBUTIONS, "uniform16"):
        for count in (5, 2, 130):
            assert torch.equal(
                subject.run(rows, 1000, *arguments(distribution, count)), rows(*arguments(distribution, count))
            ), (
                distribution,
                count,
            )
    assert len(subject._compiled) == 4
    values, out, expected = Values("gaussian", (1, 2, 3, 4)), torch.empty(2, 5000), torch.empty(2, 5000)
    center = torch.randn(5000)
    for backend, memory in ((subject, out), (REFERENCE, expected)):
        backend.members([Span(values, 77, center, memory)], [7], [0.1, -0.1])
    assert torch.equal(out, expected)
    sums = (backend.weighted_sum(values, [0, 3], [0.5, -2.0], 5, 4999, center) for backend in (subject, REFERENCE))
    assert torch.equal(*sums)
    assert not subject.failed
