"""The Triton kernels without a GPU: bits by Triton's interpreter, in processes of its own, and machine code by PTX."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_evo import kernels
from lightning_evo.kernels import COMPILED, REFERENCE, Moved, Native, Pull, Span, Values, backend_for
from lightning_evo.kernels.normal import normal_table
from lightning_evo.kernels.triton import language, low_rank, members, proven, tables, update
from lightning_evo.utils.tensors import uploaded
from tests.conftest import has_kernels
from tests.kernels.bits import same_bits

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(language.missing is not None, reason="needs Triton")


def pytest_in(folder, *arguments, interpreted=True):
    """Runs tests in a process of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["TRITON_INTERPRET"] = "1" if interpreted else "0"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if not re.search(r"\d+ (?:passed|failed)", done.stdout) and (lacking := re.search(r"Triton's .*", done.stdout)):
        pytest.skip(lacking.group())
    return done


# --- bits ------------------------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["not trainings", "trainings"])
def test_interpreted_kernels_give_the_bits_of_the_reference(what):
    done = pytest_in(ROOT, "tests/kernels/interpreted", "-k", what)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


MUTATIONS = {
    "a round of Philox less": ("noise.py", "static_range(10)", "static_range(9)", "test_philox_gives"),
    "both of a pair with one sign": ("members.py", "float_at(steps + m)", "float_at(steps)", "test_members_of_several"),
    "an element less at a tail": ("members.py", "(lane < stop)", "(lane < stop - 1)", "test_values_are_those"),
    "a truncating conversion": (
        *("rounding.py", "(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16", "bits >> 16"),
        "test_to_nearest_ties_to_even",
    ),
    "rounding by the wrong bits": ("rounding.py", "(random >> 3)", "(random >> 4)", "test_stochastically_as"),
    "sums in another order": (
        *("update.py", "numbers + 1 + count + d)", "numbers + count + count - d)"),
        "test_sums",
    ),
    "products and sums fused": ("tables.py", "enable_fp_fusion=False", "enable_fp_fusion=True", None),
}


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_kernels_are_noticed(mutation, tmp_path):
    """By the test that is named; so that one sees it, a test that fails by itself would not do."""
    file, right, wrong, test = MUTATIONS[mutation]
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("lightning_evo", "tests/kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for path in ("pyproject.toml", "tests/conftest.py", "lightning_evo_autoload.py"):
        shutil.copy(ROOT / path, tmp_path / path)
    path = tmp_path / "lightning_evo" / "kernels" / "triton" / file
    text = path.read_text(encoding="utf-8")
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    if test is None:
        done = pytest_in(tmp_path, "tests/kernels/test_triton.py", "-x", "-k", "machine_code", interpreted=False)
        test = "test_machine_code"
    else:
        done = pytest_in(tmp_path, "tests/kernels/interpreted", "-x", "-k", test)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"FAILED \S+::{test}", done.stdout)


# --- machine code ----------------------------------------------------------------------------------------------------

TYPES = dict.fromkeys(["parts", "tensors", "tensor", "numbers", "chosen", "bounds"], "*i64")
TYPES |= dict.fromkeys(["coefficients", "squares", "hidden", "a"], "*fp32")
TYPES |= {"bias": "*i16", "out": "*i16", "rows": "i32", "outputs": "i32", "stride": "i32"}  # of squares_kernel "*fp64"


def code(kernel, capability, fused=None, **constants):
    """A kernel's PTX, with the options that it is launched with."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    class Recorder:
        def __getitem__(self, grid):
            return lambda **given: options.update(given)

    options = {}
    tables.launch(Recorder(), 1, torch.device("cpu"), **constants)
    options = {name: value for name, value in options.items() if name not in constants}
    if fused is not None:
        options["enable_fp_fusion"] = fused
    names = [parameter.name for parameter in kernel.params]
    types = {name: TYPES[name] for name in names if name not in constants}
    if kernel is update.squares_kernel:
        types["out"] = "*fp64"
    if "constants" in inspect.signature(ASTSource.__init__).parameters:  # before Triton 3.2
        place = {name: i for i, name in enumerate(names)}
        source = ASTSource(
            kernel,
            {place[name]: kind for name, kind in types.items()},
            constants={place[name]: value for name, value in constants.items()},
        )
    else:
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, {name: types[name] for name in names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


MEMBERS = {"EACH": 2, "ALIGNED": True}
KERNELS = [  # but for the first, smaller than they are launched, to be compiled sooner
    (members.members_kernel, {"DISTRIBUTION": "gaussian", "DTYPE": "float32", "BLOCKS": 512, **MEMBERS}),
    (members.members_kernel, {"DISTRIBUTION": "gaussian", "DTYPE": "bfloat16", "BLOCKS": 64, **MEMBERS}),
    (members.members_kernel, {"DISTRIBUTION": "rademacher", "DTYPE": "float16", "BLOCKS": 64, **MEMBERS}),
    (members.chosen_rows_kernel, {"DISTRIBUTION": "uniform", "DTYPE": "bfloat16", "BLOCKS": 64, **MEMBERS}),
    (members.draw_kernel, {"DISTRIBUTION": "uniform16", "BLOCKS": 64, "ALIGNED": False}),
    (update.sum_kernel, {"DISTRIBUTION": "rademacher", "BLOCKS": 64, "ALIGNED": True}),
    (
        update.update_kernel,
        {"DISTRIBUTION": "gaussian", "DTYPE": "bfloat16", "PULL": False, "BLOCKS": 64, "ALIGNED": True},
    ),
    (
        update.update_kernel,
        {"DISTRIBUTION": "uniform", "DTYPE": "float32", "PULL": True, "BLOCKS": 64, "ALIGNED": True},
    ),
    (update.move_kernel, {"DTYPE": "float16", "PULL": True, "BLOCKS": 64, "ALIGNED": False}),
    (update.squares_kernel, {"KINDS": 2, "PARTS": 1024}),
    (low_rank.low_rank_kernel, {"DTYPE": "bfloat16", "RANK": 2, "BIAS": True, "ROWS": 16, "OUTPUTS": 256}),
]
FORBIDDEN = r"\bfma\.rn\.f(?:32|64)|\.ftz\b|\.approx\b"


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@needs_triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("capability", [80, 90])
def test_machine_code_rounds_every_product_and_sum(capability, own_cache):
    for kernel, constants in KERNELS:
        ptx = code(kernel, capability, **constants)
        assert re.findall(FORBIDDEN, ptx) == [], (kernel, constants)
        assert f".target sm_{capability}" in ptx


@needs_triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_machine_code_of_fused_products_is_recognised(own_cache):
    kernel, constants = KERNELS[0]
    assert len(re.findall(r"\bfma\.rn\.f32", code(kernel, 90, fused=True, **constants))) > 32


def test_machine_code_is_looked_at_for_every_kernel():
    found = {name for room in (members, update, low_rank) for name in room.__all__ if name.endswith("_kernel")}
    names = {"low_rank_kernel"} | {getattr(kernel, "__name__", None) for kernel, _ in KERNELS}
    assert found == names


# --- which backend ---------------------------------------------------------------------------------------------------


def test_required_kernels_that_cannot_be_used_are_an_error(monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "triton")
    monkeypatch.setattr(kernels, "proven", lambda device: "RuntimeError: no driver")
    with pytest.raises(RuntimeError, match=r"^LIGHTNING_EVO_KERNELS is triton, but .* on cuda:0 \(RuntimeError: no"):
        kernels._triton(torch.device("cuda", 0), required=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"can't be used on cpu \(.*LIGHTNING_EVO_KERNELS=auto to do without\.$"):
        backend_for(torch.zeros(2))


def test_without_triton_a_warning_says_why_once(monkeypatch):
    kernels._warn.cache_clear()
    monkeypatch.setattr(kernels, "proven", lambda device: "ModuleNotFoundError: No module named 'triton'")
    with pytest.warns(UserWarning, match=r"^The Triton kernels can't be used on cuda:0, .* \(ModuleNotFoundError: No"):
        assert kernels._triton(torch.device("cuda", 0), required=False) is COMPILED
    assert kernels._triton(torch.device("cuda", 0), required=False) is COMPILED  # a second warning would be an error
    kernels._warn.cache_clear()


def test_a_device_on_which_kernels_do_not_run():
    """Without the interpreter Triton has no way to run them on a CPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter runs them")
    assert isinstance(proven(torch.device("cpu")), str)


@pytest.mark.skipif(not has_kernels(), reason="needs the noise kernels")
def test_the_cpu_has_its_own_kernels_under_every_setting(monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert isinstance(backend_for(torch.zeros(2)), Native)
    assert backend_for(torch.zeros(2, device="meta")) is COMPILED
    assert backend_for(torch.zeros(2), torch.zeros(2, device="meta")) is REFERENCE


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.filterwarnings("ignore:The noise kernels could not be built")
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_the_bits_of_the_cpu_and_waits_for_nothing(dtype, distribution, monkeypatch):
    sizes, anchors = [1_000_000, 4096, 77], [None, "l2", "l1"]
    centers = [torch.randn(size).to(dtype) for size in sizes]
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "auto")

    def results(device, before, after):
        here = [center.to(device) for center in centers]
        chosen, outs = torch.tensor([3, 0, 31], device=device), [center.new_empty(2, len(center)) for center in here]
        rows = here[1].new_empty(2, 3, 128)
        moved = [
            Moved(
                Values(distribution, (i, 2, 3, 4)),
                (i, 6, 7, 8),
                center.clone(),
                0.1,
                None if by is None else Pull(center.flip(0), by, 0.01, 0.1),
            )
            for i, (center, by) in enumerate(zip(here, anchors, strict=True))
        ]
        backend, values = backend_for(*here), Values(distribution, (1, 2, 3, 4))
        backend.draw(values, [0], 0, 1, torch.float32, here[0].device)  # the normal values' table
        before()
        backend.members([Span(values, 5, *pair) for pair in zip(here, outs, strict=True)], [3], [0.5, -0.5])
        backend.chosen_rows(values, [3], [0.5, -0.5], here[1].view(32, 128), chosen, rows)
        norms = backend.update(moved, [0, 5, 9], [0.5, -2.0, 1.0])
        sums = backend.weighted_sum(values, [0, 5], [0.5, -2.0], 77, 5000, here[0])
        after()
        return norms.cpu(), [tensor.cpu() for tensor in (*outs, rows, *(one.center for one in moved), sums)]

    norms_expected, expected = results("cpu", lambda: None, lambda: None)
    mode = torch.cuda.set_sync_debug_mode
    for _ in range(2):  # the first time kernels are compiled
        norms, found = results("cuda", lambda: mode("error"), lambda: mode("default"))
    torch.testing.assert_close(norms, norms_expected, rtol=1e-5, atol=0.0)  # of float32 partial sums
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_default_device_does_not_matter():
    """Tables are made on the CPU and go up from there, whatever ``torch.set_default_device`` says."""
    cpu = torch.device("cpu")
    for cached in (normal_table, tables._parts):
        cached.cache_clear()
    with torch.device("meta"):
        assert tables.float_bits([1.0]) == [0x3F800000]
        assert uploaded([0.5, 2.0], torch.float32, cpu).tolist() == [0.5, 2.0]
        assert normal_table(cpu).device == cpu
        _, parts = tables.parts_of([300, 5], 256, cpu)
        assert parts.device == cpu


def test_the_same_numbers_are_uploaded_once():
    device = torch.device("cpu")
    rows, numbers = tables.upload([tables.fields((1, 2, 3, 4), 300, 50)], [7, 8], device)
    again = tables.upload([tables.fields((1, 2, 3, 4), 300, 50)], [7, 8], device)
    assert rows.data_ptr() == again[0].data_ptr()
    assert numbers.tolist() == [7, 8]
    assert rows.tolist()[:8] == [1, 2, 3, 4, 2, 44, 94, 0]
    other = tables.upload([tables.fields((1, 2, 3, 4), 300, 50)], [7, 9], device)
    assert other[0].data_ptr() == rows.data_ptr()
    assert other[1].tolist() == [7, 9]


def test_tables_of_many_tensors_are_all_kept():
    """As members of a large model need them, one after the other, again and again."""
    device = torch.device("cpu")
    first = [tables.upload([[i]], [1], device)[0].data_ptr() for i in range(300)]
    assert [tables.upload([[i]], [1], device)[0].data_ptr() for i in range(300)] == first


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 512), (torch.bfloat16, 1024), (torch.float16, 1024)])
def test_a_program_is_as_large_as_it_need_be(dtype, largest):
    assert tables.blocks_for(dtype) == largest
    for elements, blocks in ((1, 32), (256, 32), (257, 64), (8 * largest, largest), (10**9, largest)):
        assert tables.blocks_for(dtype, elements) == blocks


def test_what_is_aligned():
    row = tables.fields((0, 0, 0, 0), 128, 4096)
    assert tables.aligned(row, 512, 16)
    assert not tables.aligned(row, 512, 8)
    assert not tables.aligned(tables.fields((0, 0, 0, 0), 64, 4096), 512)
    assert not tables.aligned(tables.fields((0, 0, 0, 0), 128, 4090), 512)
