"""The C++ kernels: the bits of the plain tensor operations, and never in the way where they can't be built."""

import math
import multiprocessing
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from lightning_evo import kernels
from lightning_evo.kernels.library import threads as threads_for
from lightning_evo.noise.normal import normal_table
from lightning_evo.noise.philox import NoiseKey, address_of
from lightning_evo.noise.rounding import move
from lightning_evo.noise.values import draw
from lightning_evo.perturbations.dense import Dense

DISTRIBUTIONS = ["gaussian", "rademacher", "uniform"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEY = NoiseKey(2**64 - 5, 7)
TABLE = normal_table(torch.device("cpu"))

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")

needs_kernels = pytest.mark.skipif(not kernels.enabled(), reason="needs the noise kernels")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def plain(monkeypatch):
    """Calls a function without the kernels."""

    def call(function):
        with monkeypatch.context() as context:
            context.setenv("LIGHTNING_EVO_COMPILE", "0")
            return function()

    return call


def bits(values):
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def same_bits(a, b):
    """Of all values but NaN, whose bits the standard leaves open."""
    assert a.dtype == b.dtype
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and torch.equal(bits(a)[~nan], bits(b)[~nan])


def difficult(elements, dtype):
    """Values of all sizes: subnormal and huge ones, zeros of both signs, infinities, NaN."""
    exponent = torch.randint(-150, 128, (elements,)) if dtype != torch.float16 else torch.randint(-26, 16, (elements,))
    values = (torch.randn(elements, dtype=torch.float64) * 2.0**exponent).to(dtype)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max, -torch.finfo(dtype).max]
    special += [torch.finfo(dtype).tiny, torch.finfo(dtype).tiny / 2, -torch.finfo(dtype).smallest_normal / 4]
    values[torch.randperm(elements)[: len(special)]] = torch.tensor(special, dtype=torch.float64).to(dtype)
    return values


def everything(distribution, dtype):
    """What all functions of the library give, by the public ways to them; whether or not they take those."""
    subject, center = Dense(KEY, distribution), difficult(9001, dtype)
    found = [
        draw(KEY, [0, 2**32 - 1, 5], 3, start, stop, distribution=distribution, dtype=dtype)
        for start, stop in [(0, 9001), (61, 5000), (2048, 4096), (10**9 + 1, 10**9 + 4000), (2**34 - 99, 2**34)]
    ]
    for steps in ([0.1], [0.1, -0.1], [1e-30, -3e38, 0.0, math.inf, 7.0]):
        found += subject.members([4], steps, 3, center)
    found += subject.members([4, 0, 2**32 - 1], [0.1, -0.1, 7.0, 0.0, 1e-30, -3e38], 3, center)
    found += subject.members_of_rows([4], [0.1, -0.1], 3, center[:9000].view(90, 100), 17, 88)
    for width, chosen in [(128, [69, 0, 3, 3]), (100, [[89, 5], [0, 5]]), (3, [2999]), (2500, [2, 0])]:
        matrix = center[: 9001 // width * width].view(-1, width)
        found += subject.members_of_chosen_rows([4, 0], [0.1, -0.1, 7.0, 0.0], 3, matrix, torch.tensor(chosen))
    for weights in ([0.5], [0.5, 0.0, -1.25, 3e-5, -7.0, 0.1], [0.0, math.inf, -math.inf]):
        found += [subject.weighted_sum(weights, 3, center, *span) for span in [(), (128,), (2048, 8000), (77, 5000)]]
    for size in (1e-30, 1e-4, 1.0, 1e30):
        step = torch.randn(len(center), generator=torch.Generator().manual_seed(1)) * size
        step[::7] = 0
        for start in (0, 128, 128 * 1001):
            moving = center.clone()
            move(moving, step, KEY, 3, start)
            found.append(moving)
        # In one call: of several sizes, one of them more than a thread's part, and one of another dtype.
        moving = [center[:elements].clone() for elements in (len(center), 8192, 2049, 256, 31, 0)]
        moving += [center.repeat(4), center.double()]
        rates = [0.25, 0.5, -1.0, 2.0, 0.0, 1.0, 0.25, 0.25]
        norms = subject.move([size, 0.0, -1.0], range(3, 11), moving, rates, NoiseKey(1, 2))
        for i, (norm, tensor) in enumerate(zip(norms, moving, strict=True)):
            if norm is None:  # as Update.apply does then
                change = subject.weighted_sum([size, 0.0, -1.0], 3 + i, tensor) * rates[i]
                move(tensor, change, NoiseKey(1, 2), 3 + i)
        found += moving
    several = [center, center[:100], center[:0], center[:9000].view(90, 100).T, center.repeat(4), center.double()]
    for members in subject.members_of_several([4, 7], [0.1, -0.1], range(6), several):
        found += members
    return found


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_function_gives_the_bits_of_the_plain_operations(distribution, dtype, plain):
    torch.manual_seed(3)
    found = everything(distribution, dtype)
    torch.manual_seed(3)
    expected = plain(lambda: everything(distribution, dtype))
    assert len(found) == len(expected)
    assert [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not same_bits(a, b)] == []


@needs_kernels
@pytest.mark.parametrize("elements", [0, 1, 63, 64, 127, 128, 129, 255, 256, 257, 2047, 2048, 2049, 4096, 4097, 6145])
def test_sizes_around_those_of_rows(elements, plain):
    center = torch.randn(elements).bfloat16()

    def results():
        moving = center.clone()
        move(moving, torch.ones(elements) * 1e-3, KEY, 1)
        subject = Dense(KEY)
        return [*subject.members([1], [0.5, -0.5], 2, center), subject.weighted_sum([1.0, 2.0], 2, center), moving]

    assert all(same_bits(a, b) for a, b in zip(results(), plain(results), strict=True))


@needs_kernels
@pytest.mark.parametrize("bias", [None, "shared", "own"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_low_rank(dtype, rank, bias):
    torch.manual_seed(0)
    library = kernels._library()
    for members, shared_x, rows, inputs, outputs in [(1, True, 1, 1, 1), (3, False, 5, 37, 70), (2, True, 33, 64, 513)]:
        x = torch.randn(1 if shared_x else members, rows, inputs).to(dtype)
        b, a = torch.randn(members, rank, inputs), torch.randn(members, rank, outputs)
        biases = None if bias is None else torch.randn(1 if bias == "shared" else members, outputs).to(dtype)
        expected = x.double() @ b.double().mT @ a.double()
        if biases is not None:
            expected = expected + biases.double()[:, None]
        result = library.low_rank(biases, x, b, a)
        assert result.dtype == dtype
        error = (result.double() - expected).abs().max() / expected.abs().max()
        assert error < {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]


@needs_kernels
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_norm_of_an_update_in_one_pass(distribution):
    weights, center = [0.5, -2.0, 1.0], torch.zeros(50_001)
    expected = float(Dense(KEY, distribution).weighted_sum(weights, 0, center).double().norm())
    (norm,) = Dense(KEY, distribution).move(weights, [0], [center], [1e-3], KEY)
    assert norm == pytest.approx(expected, rel=1e-6)  # summed in float32, 128 elements at a time


@needs_kernels
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_any_number_of_threads_gives_the_same_bits(distribution, threads):
    center = torch.randn(400_003).bfloat16()

    def results():
        moving, updated = center.clone(), center.clone()
        move(moving, torch.full((len(center),), 1e-3), KEY, 1)
        subject = Dense(KEY, distribution)
        subject.move([1.0, -2.0], [2], [updated], [1e-3], KEY)
        return [
            draw(KEY, [0, 1], 2, 5, len(center), distribution=distribution),
            *subject.members([1], [0.5, -0.5], 2, center),
            *subject.members_of_several([1], [0.5, -0.5], [2, 3], [center, center[:100]])[0],
            subject.members_of_chosen_rows([1], [0.5], 2, center[:400_000].view(20, -1), torch.tensor([7, 19, 7])),
            subject.weighted_sum([1.0, 2.0], 2, center),
            moving,
            updated,
        ]

    threads(1)
    expected = results()
    for count in (2, 3, 16):
        threads(count)
        assert threads_for(len(center)) == count
        assert all(same_bits(a, b) for a, b in zip(results(), expected, strict=True))
    assert threads_for(100) == 1


@needs_kernels
def test_the_centers_are_not_written_to():
    center = difficult(5000, torch.float32)
    before = center.clone()
    Dense(KEY).members([1], [0.5, -0.5], 2, center)
    assert torch.equal(bits(center), bits(before))


@needs_kernels
def test_only_tensors_that_they_can_work_on():
    good = torch.zeros(8, 8)
    assert kernels.library_for(good, good.bfloat16(), good.half()) is not None
    for bad in (good.double(), good.T[:, 1:], good[:, ::2], good.to("meta"), good.long(), torch.nn.Parameter(good)):
        assert kernels.library_for(good, bad) is None


@needs_kernels
def test_nothing_is_called_while_torch_compile_traces(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernels.library_for(torch.zeros(8)) is None


# --- the other instruction sets -------------------------------------------------------------------------------------


def flags(*others):
    return [flag for flag in kernels._FLAGS if flag != "-march=native"] + list(others)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "needed"),
    [
        ([], ""),
        (["-U__FLT16_MAX__"], ""),  # as for g++ before 12, which has no 16-bit floats
        (["-mavx2", "-mf16c"], "avx2"),
        (["-mavx512f"], "avx512f"),
    ],
    ids=["any processor", "no _Float16", "AVX2", "AVX-512"],
)
def test_code_for_other_processors_gives_the_same_bits(others, needed, plain, monkeypatch, tmp_path):
    processor = kernels._processor()
    if "-U" not in str(others) and needed and needed not in processor:
        pytest.skip(f"this processor has no {needed}")
    monkeypatch.setattr(kernels, "_FLAGS", flags(*others))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = kernels._load()
    assert len(list((tmp_path / "lightning_evo").iterdir())) == 1
    monkeypatch.setattr(kernels, "_library", lambda: library)
    for distribution, dtype in [
        ("gaussian", torch.float16),
        ("uniform", torch.bfloat16),
        ("rademacher", torch.float32),
    ]:
        torch.manual_seed(3)
        found = everything(distribution, dtype)
        torch.manual_seed(3)
        expected = plain(lambda d=distribution, t=dtype: everything(d, t))
        assert [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not same_bits(a, b)] == []


@needs_kernels
@pytest.mark.parametrize("others", [[], ["-U__FLT16_MAX__"]], ids=["the compiler's", "our own"])
def test_all_16_bit_floats_are_converted_to_and_fro(others, monkeypatch, tmp_path):
    if others:
        monkeypatch.setattr(kernels, "_FLAGS", [*kernels._FLAGS, *others])
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = kernels._load()
    arguments = ("gaussian", [address_of(KEY, 0)], TABLE, 0, [0])
    for dtype in (torch.bfloat16, torch.float16):
        center = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
        out = center.new_empty(1, len(center))
        library.members(*arguments, [center], [out], [0.0])
        assert same_bits(out[0], center + torch.zeros(()).to(dtype) * 0)
        center = torch.zeros(64 * 128, dtype=dtype)
        out = center.new_empty(1, len(center))
        noise = draw(KEY, [0], 0, 0, len(center))[0]
        for exponent in range(-40, 20):  # ties, subnormal numbers and overflows among them
            library.members(*arguments, [center], [out], [2.0**exponent])
            assert same_bits(out[0], (noise * 2.0**exponent).to(dtype)), exponent


# --- building -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has not built anything yet, and an empty cache. Optimizing would take most of a build's time."""
    kernels._library.cache_clear()
    monkeypatch.setattr(kernels, "_FLAGS", ["-O0" if flag == "-O3" else flag for flag in kernels._FLAGS])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LIGHTNING_EVO_COMPILE", "1")
    yield tmp_path / "cache" / "lightning_evo"
    kernels._library.cache_clear()


def script(path, text):
    path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def expected_draw(plain):
    return plain(lambda: draw(KEY, [0, 1], 2, 5, 5000))


def assert_warns_once_and_draws_the_same(plain, reason):
    expected = expected_draw(plain)
    message = (
        rf"^The noise kernels could not be built, so noise is many times slower \({reason}\)\. The results are the same"
        r"\. Install a C\+\+ compiler \(g\+\+ or clang\+\+; \$CXX names another\), or set LIGHTNING_EVO_COMPILE=0 to "
        r"silence this\.$"
    )
    with pytest.warns(UserWarning, match=message) as said:
        values = draw(KEY, [0, 1], 2, 5, 5000)
    assert len(said) == 1
    assert torch.equal(values, expected)
    assert torch.equal(draw(KEY, [0, 1], 2, 5, 5000), expected)  # a second warning would be an error here
    subject, center = Dense(KEY), torch.randn(5000)
    assert all(
        map(torch.equal, subject.members([1], [0.1], 0, center), plain(lambda: subject.members([1], [0.1], 0, center)))
    )


def test_no_compiler(fresh, plain, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_warns_once_and_draws_the_same(plain, r"no C\+\+ compiler was found")


def test_a_compiler_that_is_not_there(fresh, plain, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert_warns_once_and_draws_the_same(plain, r".*No such file or directory.*")


def test_a_compiler_that_fails(fresh, plain, monkeypatch, tmp_path):
    text = '[ "$1" = --version ] && echo 1.0 && exit\necho "$0: no über-header" >&2\necho more >&2\nexit 1'
    monkeypatch.setenv("CXX", script(tmp_path / "c++", text))
    assert_warns_once_and_draws_the_same(plain, r".*: no über-header")
    assert list(fresh.iterdir()) == []  # nothing unfinished is left


def test_a_compiler_that_says_nothing(fresh, plain, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", script(tmp_path / "c++", "exit 1"))
    assert_warns_once_and_draws_the_same(plain, r"Command .* returned non-zero exit status 1\.")


def test_a_compiler_that_makes_rubbish(fresh, plain, monkeypatch, tmp_path):
    text = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo rubbish > "$2"; shift; done'
    monkeypatch.setenv("CXX", script(tmp_path / "c++", text))
    assert_warns_once_and_draws_the_same(plain, ".*")
    assert list(fresh.iterdir()) == []


@needs_kernels
def test_the_compiler_may_come_with_arguments(fresh, plain, monkeypatch, tmp_path):
    wrapper = script(tmp_path / "my c++", f'exec {COMPILER} "$@"')
    monkeypatch.setenv("CXX", f"'{wrapper}' -O1")
    assert torch.equal(draw(KEY, [0, 1], 2, 5, 5000), expected_draw(plain))
    assert kernels._library() is not None


@needs_kernels
def test_a_compiler_without_openmp(fresh, plain, monkeypatch, tmp_path, threads):
    """As Apple's, which does not know ``-march=native`` either on some machines."""
    text = f"""for argument; do
        case $argument in -fopenmp|-march=native) echo "unsupported option '$argument'" >&2; exit 1;; esac
    done
    exec {COMPILER} "$@"
    """
    monkeypatch.setenv("CXX", script(tmp_path / "c++", text))
    threads(4)
    assert torch.equal(draw(KEY, range(20), 2, 5, 50_000), plain(lambda: draw(KEY, range(20), 2, 5, 50_000)))
    assert kernels._library() is not None


@needs_kernels
def test_a_library_is_built_once(fresh, monkeypatch):
    assert kernels._library() is not None
    (library,) = fresh.iterdir()
    built = library.stat()
    assert re.fullmatch(r"noise-[0-9a-f]{16}\.so", library.name)
    if os.name == "posix":
        assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    kernels._library.cache_clear()
    monkeypatch.setattr(kernels, "_build", None)
    assert kernels._library() is not None
    (library,) = fresh.iterdir()
    assert library.stat().st_mtime_ns == built.st_mtime_ns


@needs_kernels
@pytest.mark.parametrize("what", ["source", "compiler", "processor", "flags"])
def test_a_library_is_built_anew_if_something_changes(what, fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "_build", lambda compiler, library: built.append(library.name))
    monkeypatch.setattr(kernels, "Library", lambda path: None)
    built = []
    kernels._load()
    if what == "source":
        monkeypatch.setattr(kernels, "_SOURCE", tmp_path / "noise.cpp")
        kernels._SOURCE.write_text("// another")
    elif what == "compiler":
        monkeypatch.setenv("CXX", script(tmp_path / "c++", "echo 99"))
    elif what == "processor":
        monkeypatch.setattr(kernels, "_processor", lambda: "another")
    else:
        monkeypatch.setattr(kernels, "_FLAGS", [*kernels._FLAGS, "-g"])
    kernels._load()
    assert len(set(built)) == 2


@needs_kernels
@pytest.mark.parametrize("cache", ["a file", "rubbish in the cache", "no home"])
def test_without_a_usable_cache_each_process_builds_its_own(cache, fresh, plain, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    if cache == "a file":
        fresh.parent.write_text("not a folder")
    elif cache == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", no_home)
    else:
        with monkeypatch.context() as context:
            context.setattr(kernels, "_build", lambda compiler, library: names.append(library.name))
            context.setattr(kernels, "Library", lambda path: None)
            names = []
            kernels._load()
        fresh.mkdir(parents=True)
        (fresh / names[0]).write_text("rubbish")
    assert torch.equal(draw(KEY, [0, 1], 2, 5, 5000), expected_draw(plain))
    assert kernels._library() is not None
    assert list((tmp_path / "temporary").iterdir()) == []  # and leaves nothing behind


@needs_kernels
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_is_read_only(fresh, monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kernels._library() is not None
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("setting", ["yes", "auto", "", "2"])
def test_the_switch_is_checked(setting, monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_COMPILE", setting)
    with pytest.raises(ValueError, match=f"LIGHTNING_EVO_COMPILE must be 0 or 1, got '{setting}'"):
        draw(NoiseKey(0, 0), [0], 0, 0, 1)


def test_switched_off_nothing_is_built(fresh, plain, monkeypatch):
    monkeypatch.setattr(kernels, "_load", None)
    assert expected_draw(plain).shape == (2, 4995)
    monkeypatch.setenv("LIGHTNING_EVO_COMPILE", "0")
    assert kernels.library_for() is None


# --- processes ------------------------------------------------------------------------------------------------------

DIGEST = """
import hashlib, torch, warnings
warnings.simplefilter("error")
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo import kernels
values = draw(NoiseKey(1, 2), range(8), 3, 0, 50_000)
assert kernels._library() is not None
print(hashlib.sha256(values.numpy().tobytes()).hexdigest())
"""


@needs_kernels
@pytest.mark.slow
def test_several_processes_build_at_the_same_time(fresh, plain):
    processes = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(DIGEST)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    digests = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(digests)) == 1
    assert len(list(fresh.iterdir())) == 1


def in_a_worker(queue):
    torch.set_num_threads(1)  # as a DataLoader does in its workers
    queue.put(float(draw(NoiseKey(1, 2), range(8), 3, 0, 50_000).double().sum()))


@needs_kernels
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_workers_draw_after_their_parent_has_drawn_in_threads(threads):
    """OpenMP's threads don't survive a fork; a worker of one thread must not wait for them."""
    threads(4)
    expected = float(draw(NoiseKey(1, 2), range(8), 3, 0, 50_000).double().sum())
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process that has threads
        worker = context.Process(target=in_a_worker, args=(queue,), daemon=True)
        worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert queue.get() == expected
