"""Building the C++ kernels: once, for this machine, and never in the way where they can't be built."""

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
from lightning_evo.kernels import COMPILED, Native, backend_for, build
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.perturbations import Dense, Part
from tests.conftest import has_kernels

KEY = NoiseKey(2**64 - 5, 7)
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")

needs_kernels = pytest.mark.skipif(not has_kernels(), reason="needs the noise kernels")


def forget():
    kernels.built.cache_clear()
    kernels._warn.cache_clear()


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has not built anything yet, and an empty cache. Optimizing would take most of a build's time."""
    forget()
    monkeypatch.setattr(build, "_FLAGS", ["-O0" if flag == "-O3" else flag for flag in build._FLAGS])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "auto")
    yield tmp_path / "cache" / "lightning_evo"
    forget()


def script(path, text):
    path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def expected_draw(plain):
    return plain(lambda: draw(KEY, [0, 1], 2, 5, 5000))


def assert_warns_once_and_draws_the_same(plain, reason):
    expected = expected_draw(plain)
    message = (
        rf"^The noise kernels could not be built, so noise is many times slower \({reason}\)\. The results "
        r"are the same \(with noise of low rank but for rounding\)\. Install a "
        r"C\+\+ compiler \(g\+\+ or clang\+\+; \$CXX names another\), or set "
        r"LIGHTNING_EVO_KERNELS=torch to silence this\.$"
    )
    with pytest.warns(UserWarning, match=message) as said:
        values = draw(KEY, [0, 1], 2, 5, 5000)
    assert len(said) == 1
    assert torch.equal(values, expected)
    assert torch.equal(draw(KEY, [0, 1], 2, 5, 5000), expected)  # a second warning would be an error here
    subject, center = Dense(KEY), torch.randn(5000)
    members, others = (
        call(lambda: subject.members([1], [0.1], [Part(0, center)])[0]) for call in (lambda f: f(), plain)
    )
    assert torch.equal(members, others)


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
    assert isinstance(kernels.built(), Native)


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
    assert isinstance(kernels.built(), Native)


@needs_kernels
def test_a_library_is_built_once(fresh, monkeypatch):
    assert isinstance(kernels.built(), Native)
    (library,) = fresh.iterdir()
    built = library.stat()
    assert re.fullmatch(r"noise-[0-9a-f]{16}\.so", library.name)
    if os.name == "posix":
        assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    forget()
    monkeypatch.setattr(build, "_build", None)
    assert isinstance(kernels.built(), Native)
    (library,) = fresh.iterdir()
    assert library.stat().st_mtime_ns == built.st_mtime_ns


@needs_kernels
@pytest.mark.parametrize("what", ["source", "compiler", "processor", "flags"])
def test_a_library_is_built_anew_if_something_changes(what, fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "_build", lambda compiler, library: built.append(library.name))
    monkeypatch.setattr(build, "Native", lambda path: None)
    built = []
    build.load()
    if what == "source":
        monkeypatch.setattr(build, "_SOURCE", tmp_path / "noise.cpp")
        build._SOURCE.write_text("// another")
    elif what == "compiler":
        monkeypatch.setenv("CXX", script(tmp_path / "c++", "echo 99"))
    elif what == "processor":
        monkeypatch.setattr(build, "_processor", lambda: "another")
    else:
        monkeypatch.setattr(build, "_FLAGS", [*build._FLAGS, "-g"])
    build.load()
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
            context.setattr(build, "_build", lambda compiler, library: names.append(library.name))
            context.setattr(build, "Native", lambda path: None)
            names = []
            build.load()
        fresh.mkdir(parents=True)
        (fresh / names[0]).write_text("rubbish")
    assert torch.equal(draw(KEY, [0, 1], 2, 5, 5000), expected_draw(plain))
    assert isinstance(kernels.built(), Native)
    assert list((tmp_path / "temporary").iterdir()) == []  # and leaves nothing behind


@needs_kernels
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_is_read_only(fresh, monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert isinstance(kernels.built(), Native)
    assert list(home.iterdir()) == []


def test_what_is_required_and_can_not_be_built_is_an_error(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "native")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    message = (
        r"^The noise kernels could not be built \(.*No such file or directory.*\)\. Install a C\+\+ compiler \(g\+\+ "
        r"or clang\+\+; \$CXX names another\), or set LIGHTNING_EVO_KERNELS=torch or auto to do without\.$"
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            draw(KEY, [0, 1], 2, 5, 5000)
    assert backend_for(torch.empty(1, device="meta")) is COMPILED  # they are the CPU's


def test_switched_off_nothing_is_built(fresh, plain, monkeypatch):
    monkeypatch.setattr(kernels, "load", None)
    assert expected_draw(plain).shape == (2, 4995)


# --- processes ------------------------------------------------------------------------------------------------------

DIGEST = """
import hashlib, torch, warnings
warnings.simplefilter("error")
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo import kernels
values = draw(NoiseKey(1, 2), range(8), 3, 0, 50_000)
assert isinstance(kernels.built(), kernels.Native)
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
