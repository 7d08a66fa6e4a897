"""The `torch.backends` hook.

What it does to `import torch` and to Lightning can only be seen in a fresh interpreter, so those tests run scripts in
subprocesses, against a stand-in for the installed package: a folder with `lightning_evo_autoload.py`, the metadata that
pip would have written, and a fake `lightning_evo`. Each takes seconds, hence several checks per script.
"""

import copy
import importlib
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_evo_autoload

ROOT = Path(__file__).resolve().parent.parent
ENTRY_POINT = '[project.entry-points."torch.backends"]\nlightning_evo = "lightning_evo_autoload:autoload"\n'

FAKE_STRATEGIES = """
    import importlib

    def strategy_class(name, namespace):
        base = importlib.import_module(f"{namespace}.strategies").SingleDeviceStrategy
        return type(name, (base,), {"namespace": namespace})
"""

# Defined for every script: the Trainer's strategy, and the modules that a lazy hook must not have imported.
PRELUDE = """
    import sys

    def trainer(package, strategy):
        return package.Trainer(strategy=strategy, logger=False, enable_checkpointing=False, barebones=False)

    def imported(*names):
        return [name for name in names if name in sys.modules]

    def finders():
        return [type(finder).__name__ for finder in sys.meta_path].count("LightningEvoFinder")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that looks like site-packages after `pip install lightning-evo`."""
    assert ENTRY_POINT in (ROOT / "pyproject.toml").read_text(), "the stand-in differs from what is shipped"
    metadata = tmp_path / "lightning_evo-0.0.1.dist-info"
    metadata.mkdir()
    # Same name as the real one, which this hides: importlib.metadata takes the first on the path.
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-evo\nVersion: 0.0.1\n")
    (metadata / "entry_points.txt").write_text("[torch.backends]\nlightning_evo = lightning_evo_autoload:autoload\n")
    (tmp_path / "lightning_evo_autoload.py").write_text((ROOT / "lightning_evo_autoload.py").read_text())
    write_package(tmp_path, "", FAKE_STRATEGIES)
    return tmp_path


def write_package(site: Path, init: str, strategies: str) -> None:
    (site / "lightning_evo").mkdir()
    (site / "lightning_evo" / "__init__.py").write_text(textwrap.dedent(init))
    (site / "lightning_evo" / "strategies.py").write_text(textwrap.dedent(strategies))


def run(site: Path, script: str, **environment: str) -> str:
    """Runs the script, which must succeed, and returns what it wrote to stderr."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PL_", "PYTHON")) and "AUTOLOAD" not in name
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(script)],
        cwd=site,
        env=inherited | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def test_registers_in_both_namespaces_without_an_import_of_ours(site: Path) -> None:
    run(
        site,
        """
        import torch
        assert not imported("lightning", "pytorch_lightning", "lightning_evo"), "import torch got heavier"
        assert finders() == 1

        import importlib.util, pickle
        import lightning as L
        from lightning.pytorch.strategies import StrategyRegistry
        assert "evo" in StrategyRegistry and not imported("lightning_evo")
        strategy = trainer(L, "evo").strategy
        assert type(strategy).__name__ == "EvoStrategy" and strategy.namespace == "lightning.pytorch"
        assert isinstance(strategy, L.pytorch.strategies.SingleDeviceStrategy)

        # Nothing of the hook is left on the module, and other tools see the loader that Python gave it.
        module = sys.modules["lightning.pytorch.strategies"]
        assert module.__loader__ is module.__spec__.loader
        assert type(module.__loader__).__module__ == "_frozen_importlib_external", module.__loader__
        assert pickle.loads(pickle.dumps(module.__spec__)).origin == module.__file__

        # A reload makes an empty registry, and so does forgetting the module.
        def forget_and_import(old):
            del sys.modules[old.__name__]
            return importlib.import_module(old.__name__)
        for again in (importlib.reload, forget_and_import):
            registry = module.StrategyRegistry
            module = again(module)
            assert module.StrategyRegistry is not registry and "evo" in module.StrategyRegistry
        assert not imported("pytorch_lightning.strategies")

        import pytorch_lightning
        assert trainer(pytorch_lightning, "evo").strategy.namespace == "pytorch_lightning"
        assert finders() == 1
        """,
    )


@pytest.mark.slow
def test_registers_whichever_namespace_comes_first(site: Path) -> None:
    run(
        site,
        """
        from pytorch_lightning import Trainer
        import pytorch_lightning, lightning.pytorch
        assert not imported("lightning_evo")
        by_environment = Trainer(logger=False, enable_checkpointing=False).strategy
        assert by_environment.namespace == "pytorch_lightning"
        assert trainer(pytorch_lightning, "EVO").strategy.namespace == "pytorch_lightning"
        assert trainer(lightning.pytorch, "evo").strategy.namespace == "lightning.pytorch"
        """,
        PL_TRAINER_STRATEGY="evo",
    )


@pytest.mark.parametrize(
    ("package", "strategy"),
    [("lightning.pytorch", "evo"), pytest.param("pytorch_lightning", "evo_ddp", marks=pytest.mark.slow)],
)
def test_the_variable_counts_for_auto(site: Path, package: str, strategy: str) -> None:
    """LightningCLI passes "auto", and so do scripts; any other strategy that is given wins."""
    run(
        site,
        f"""
        import importlib, inspect, os
        L = importlib.import_module("{package}")
        LightningCLI = importlib.import_module("{package}.cli").LightningCLI
        options = dict(accelerator="cpu", logger=False, enable_checkpointing=False)

        class Module(L.LightningModule):
            pass

        class MyTrainer(L.Trainer):
            def __init__(self, strategy="auto", **kwargs):
                super().__init__(strategy=strategy, **kwargs)

        class Silent(L.Trainer):
            pass

        def by_cli(*more, **options):
            args = ["--trainer.accelerator=cpu", "--trainer.logger=false", *more]
            return LightningCLI(Module, run=False, save_config_callback=None, args=args, **options).trainer

        def name(trainer):
            return getattr(trainer.strategy, "namespace", "its own")

        trainers = {{
            "nothing": lambda: L.Trainer(**options),
            "auto": lambda: L.Trainer(strategy="auto", **options),
            "subclass": lambda: MyTrainer(**options),
            "silent subclass": lambda: Silent(**options),
            "CLI": by_cli,
            "CLI auto": lambda: by_cli("--trainer.strategy=auto"),
            "CLI subclass": lambda: by_cli(trainer_class=Silent),
        }}
        for how, make in trainers.items():
            assert name(make()) == "its own", how
            os.environ["PL_TRAINER_STRATEGY"] = "{strategy.upper()}"
            assert name(make()) == "{package}", how
            del os.environ["PL_TRAINER_STRATEGY"]

        os.environ["PL_TRAINER_STRATEGY"] = "{strategy}"
        single = importlib.import_module("{package}.strategies").SingleDeviceStrategy
        given = single("cpu")
        assert L.Trainer(strategy=given, **options).strategy is given
        assert type(L.Trainer(strategy="ddp", **options).strategy).__name__ == "DDPStrategy"
        assert type(by_cli("--trainer.strategy=ddp").strategy).__name__ == "DDPStrategy"
        os.environ["PL_SILENT_STRATEGY"] = "ddp"
        assert type(Silent(**options).strategy).__name__ == "DDPStrategy"

        # A variable that is none of ours is Lightning's affair.
        os.environ["PL_TRAINER_STRATEGY"] = "ddp"
        assert type(L.Trainer(strategy="auto", **options).strategy).__name__ == "SingleDeviceStrategy"

        # Nobody sees the difference in the signature.
        assert "strategy" in inspect.signature(L.Trainer).parameters
        assert L.Trainer.__init__.__qualname__ == "Trainer.__init__"
        """,
    )


def test_a_broken_package_shows_its_own_error_and_only_when_asked_for(site: Path) -> None:
    run(
        site,
        """
        import torch
        import lightning as L
        from pathlib import Path
        assert type(trainer(L, "auto").strategy).__name__ == "SingleDeviceStrategy"

        init, strategies = Path("lightning_evo/__init__.py"), Path("lightning_evo/strategies.py")
        def error():
            for name in imported("lightning_evo", "lightning_evo.strategies"):
                del sys.modules[name]
            importlib.invalidate_caches()
            try:
                trainer(L, "evo")
            except Exception as caught:
                return caught

        import importlib
        init.write_text("def broken(:")
        assert isinstance(error(), SyntaxError) and error().filename.endswith("__init__.py")
        init.write_text("import a_package_that_is_not_there")
        assert error().name == "a_package_that_is_not_there", repr(error())
        init.write_text("raise RuntimeError('torch is too old')")
        assert error().args == ("torch is too old",)
        init.write_text("")
        strategies.write_text("def strategy_class(name, namespace): raise KeyError(name, namespace)")
        assert error().args == ("EvoStrategy", "lightning.pytorch")
        strategies.write_text("")
        assert "strategy_class" in str(error()) and isinstance(error(), ImportError)
        del sys.modules["lightning_evo.strategies"]
        sys.modules["lightning_evo"] = None  # as if uninstalled: the real one may be importable here
        try:
            trainer(L, "evo")
        except ModuleNotFoundError as caught:
            assert "lightning_evo" in str(caught)
        else:
            raise AssertionError("a strategy from nowhere")
        assert type(trainer(L, "auto").strategy).__name__ == "SingleDeviceStrategy"
        """,
    )


def test_import_torch_survives_a_hook_that_fails(site: Path) -> None:
    stderr = run(
        site,
        """
        sys.meta_path = tuple(sys.meta_path)  # cannot be inserted into
        import torch
        assert torch.ones(2).sum() == 2 and finders() == 0
        """,
    )
    assert "needs `import lightning_evo` first" in stderr
    assert "AttributeError" in stderr  # the cause is not hidden


@pytest.mark.parametrize(
    "variable",
    [pytest.param("LIGHTNING_EVO_AUTOLOAD", marks=pytest.mark.slow), "TORCH_DEVICE_BACKEND_AUTOLOAD"],
)
def test_can_be_switched_off(site: Path, variable: str) -> None:
    script = """
        import torch
        assert finders() == 0
        """
    if variable == "LIGHTNING_EVO_AUTOLOAD":  # once is enough for the slow part
        script += """
        import lightning as L
        from lightning.pytorch.strategies import StrategyRegistry
        assert "evo" not in StrategyRegistry
        from lightning_evo_autoload import install  # what `import lightning_evo` calls
        install()
        install()
        assert finders() == 1 and trainer(L, "evo").strategy.namespace == "lightning.pytorch"
        """
    run(site, script, **{variable: "0"})


# From here on in this process, with a fake Lightning: the hook knows Lightning by the names of two modules only.

FAKE_LIGHTNING = """
    if WAITS:
        import threading

        began, go_on = threading.importing
        began.set()
        go_on.wait(60)

    class Registry(dict):
        def register(self, name, strategy, description=None, **arguments):
            if name in self:
                raise ValueError(f"{name} is already present")
            self[name] = (strategy, description)

    StrategyRegistry = Registry(TAKEN)
"""


@pytest.fixture
def fake_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an importable registry module, the only one that the hook now looks out for."""
    package = tmp_path / "fake_lightning"
    package.mkdir()
    (package / "__init__.py").touch()
    write_registry(package)
    monkeypatch.setattr(lightning_evo_autoload, "REGISTRY_MODULES", ("fake_lightning.strategies",))
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if type(f).__name__ != "LightningEvoFinder"])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    yield "fake_lightning.strategies"
    for name in ("fake_lightning.strategies", "fake_lightning"):
        sys.modules.pop(name, None)


def write_registry(package: Path, waits: bool = False, taken: str = "{}") -> None:
    source = textwrap.dedent(FAKE_LIGHTNING).replace("WAITS", str(waits)).replace("TAKEN", taken)
    (package / "strategies.py").write_text(source)


def test_the_factory_is_lazy_and_carries_the_class_name(fake_lightning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_evo_autoload, "STRATEGIES", {"evo": ("A", "first"), "evo_ddp": ("B", "second")})
    lightning_evo_autoload.install()
    registry = importlib.import_module(fake_lightning).StrategyRegistry
    assert {name: description for name, (_, description) in registry.items()} == {"evo": "first", "evo_ddp": "second"}
    assert registry["evo_ddp"][0].args == ("B", "fake_lightning")
    pickle.loads(pickle.dumps(registry["evo"][0]))  # registries travel to spawned processes


def test_a_spec_that_is_only_looked_up_is_usable(fake_lightning: str) -> None:
    lightning_evo_autoload.install()
    for copied in (copy.deepcopy, lambda spec: pickle.loads(pickle.dumps(spec)), lambda spec: spec):
        spec = copied(importlib.util.find_spec(fake_lightning))
        assert spec.loader.get_filename() == spec.origin
        assert "StrategyRegistry" in spec.loader.get_source(fake_lightning)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "evo" in module.StrategyRegistry
    assert fake_lightning not in sys.modules
    assert importlib.util.find_spec("fake_lightning.no_such_module") is None


def test_passes_on_what_the_next_finder_says(fake_lightning: str, tmp_path: Path) -> None:
    lightning_evo_autoload.install()
    (tmp_path / "fake_lightning" / "strategies.py").unlink()
    with pytest.raises(ModuleNotFoundError, match="fake_lightning.strategies"):
        importlib.import_module(fake_lightning)
    (tmp_path / "fake_lightning" / "strategies.py").write_text("raise OSError('from Lightning itself')")
    importlib.invalidate_caches()
    with pytest.raises(OSError, match="from Lightning itself"):
        importlib.import_module(fake_lightning)
    assert fake_lightning not in sys.modules


def test_registering_twice_or_over_another_is_no_error(
    fake_lightning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_registry(tmp_path / "fake_lightning", taken="{'evo': 'of somebody else'}")
    lightning_evo_autoload.install()
    module = importlib.import_module(fake_lightning)
    lightning_evo_autoload.install()
    assert module.StrategyRegistry.keys() == lightning_evo_autoload.STRATEGIES.keys()
    assert module.StrategyRegistry["evo"] == "of somebody else"
    assert caplog.text == ""


def test_a_registry_that_changed_is_reported_and_lightning_still_imports(
    fake_lightning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fake_lightning" / "strategies.py").write_text("ElsewhereRegistry = {}")
    lightning_evo_autoload.install()
    with caplog.at_level(logging.WARNING):
        importlib.import_module(fake_lightning)
    assert "Could not register in fake_lightning.strategies" in caplog.text
    assert "StrategyRegistry" in caplog.text


def test_waits_for_an_import_under_way_in_another_thread(
    fake_lightning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_registry(tmp_path / "fake_lightning", waits=True)
    began, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "importing", (began, go_on), raising=False)
    thread = threading.Thread(target=importlib.import_module, args=(fake_lightning,))
    thread.start()
    assert began.wait(60)  # before the finder was there, so the finder cannot help
    assert not hasattr(sys.modules[fake_lightning], "StrategyRegistry")
    install = threading.Thread(target=lightning_evo_autoload.install)
    install.start()
    install.join(0.1)
    assert install.is_alive()
    go_on.set()
    install.join(60)
    thread.join(60)
    assert "evo" in sys.modules[fake_lightning].StrategyRegistry


def test_only_one_finder_also_after_a_reload(fake_lightning: str) -> None:
    lightning_evo_autoload.install()
    importlib.reload(lightning_evo_autoload).install()
    assert [type(finder).__name__ for finder in sys.meta_path].count("LightningEvoFinder") == 1


@pytest.mark.parametrize(("value", "installed"), [("0", 0), (" Off ", 0), ("1", 1), ("", 1)])
def test_the_switch(fake_lightning: str, monkeypatch: pytest.MonkeyPatch, value: str, installed: int) -> None:
    monkeypatch.setenv("LIGHTNING_EVO_AUTOLOAD", value)
    lightning_evo_autoload.autoload()
    assert [type(finder).__name__ for finder in sys.meta_path].count("LightningEvoFinder") == installed


def test_needs_only_the_standard_library() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import lightning_evo_autoload; "
        "assert not {'torch', 'lightning', 'numpy', 'lightning_evo'} & set(sys.modules)"
    )
    # -I -S: neither site-packages nor this environment
    subprocess.run([sys.executable, "-I", "-S", "-c", script, str(ROOT)], check=True, timeout=60)
