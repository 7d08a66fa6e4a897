"""Makes `Trainer(strategy="evo")` work without importing `lightning_evo` first.

Lightning has no entry-point group for strategies, so this borrows PyTorch's: torch>=2.5 calls the `torch.backends`
entry points at the end of `import torch`, which Lightning imports before it builds its strategy registries. The group
is meant for device backends, which this is not: it touches no device and nothing of torch. It watches for the import of
Lightning's strategies and adds our names to their registry. `lightning_evo` itself is imported at
`Trainer(strategy="evo")`, so a broken installation shows its true error there and cannot break `import torch`.

`PL_TRAINER_STRATEGY=evo` is Lightning's own variable for what a script leaves open. LightningCLI leaves nothing open:
it passes the default, "auto". So the Trainer is told to take one of our names from the variable for "auto", too.

Switch it off with `LIGHTNING_EVO_AUTOLOAD=0`, or all torch plugins with torch's `TORCH_DEVICE_BACKEND_AUTOLOAD=0`;
`import lightning_evo` then registers the names instead. What it cannot guard: delete the folder of an editable install
without `pip uninstall lightning-evo`, and the entry point stays behind with no module to load: `import torch` says
"Failed to load the backend extension: lightning_evo". Uninstalling cures that.
"""

import functools
import importlib
import logging
import os
import sys
from typing import Any

# Name for `Trainer(strategy=...)`, lower case as the Trainer lower-cases what it is given ->
# (class for `lightning_evo.strategies.strategy_class`, description in the registry, arguments if there are any).
STRATEGIES: dict[str, tuple[Any, ...]] = {
    "evo": ("EvoStrategy", "Trains by evolution on one device: a population of perturbed models, no backward pass."),
    "evo_ddp": ("EvoDDPStrategy", "Trains by evolution on several processes, which divide the population or the data."),
    "evo_ddp_spawn": ("EvoDDPStrategy", "evo_ddp, which starts its processes by spawning.", {"start_method": "spawn"}),
    "evo_ddp_fork": ("EvoDDPStrategy", "evo_ddp, which starts its processes by forking.", {"start_method": "fork"}),
    "evo_ddp_notebook": ("EvoDDPStrategy", "evo_ddp for notebooks: forks.", {"start_method": "fork"}),
    "evo_deepspeed_stage_3": (
        "EvoDeepSpeedStrategy",
        "Trains by evolution a model that DeepSpeed's ZeRO stage 3 has partitioned over processes.",
    ),
    "evo_fsdp": ("EvoFSDPStrategy", "Trains by evolution a model that FSDP2 has sharded over processes."),
}
# `lightning` and `pytorch_lightning` are separate copies of the same code, each with a registry of its own.
REGISTRY_MODULES = ("lightning.pytorch.strategies", "pytorch_lightning.strategies")
TRAINER_MODULES = ("lightning.pytorch.trainer.trainer", "pytorch_lightning.trainer.trainer")
VARIABLE = "PL_TRAINER_STRATEGY"
# Where Lightning refuses a strategy's name that it does not know.
NAME_MODULES = tuple(
    f"{name}.trainer.connectors.accelerator_connector" for name in ("lightning.pytorch", "pytorch_lightning")
)


def autoload() -> None:
    """Entry point of the group `torch.backends`: `install()`, unless switched off. Never raises."""
    try:
        if os.environ.get("LIGHTNING_EVO_AUTOLOAD", "1").strip().lower() not in ("0", "false", "no", "off"):
            install()
    except Exception:  # raised from here, it would fail the user's `import torch`
        logging.getLogger(__name__).warning('strategy="evo" now needs `import lightning_evo` first.', exc_info=True)


def install() -> None:
    """Prepares each Lightning namespace (see `_prepare`), now if it is imported, else when it is. Idempotent."""
    # By name: after a reload of this module the finder in place is of its former class. It is never removed: a registry
    # module may be reloaded, and shortening the list could make an import in another thread skip a finder.
    if not any(type(finder).__name__ == "LightningEvoFinder" for finder in sys.meta_path):
        sys.meta_path.insert(0, LightningEvoFinder())
    for name in _prepared():
        if sys.modules.get(name) is not None:
            # Not taken from `sys.modules`: this waits where another thread is still importing it.
            _prepare(importlib.import_module(name))


def _prepared() -> tuple[str, ...]:
    """The modules of Lightning's that something is done to."""
    return (*REGISTRY_MODULES, *TRAINER_MODULES, *NAME_MODULES)


class LightningEvoFinder:
    """Meta-path finder that finds nothing itself: it has `_prepare` run once a module to prepare has been executed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Returns what the next finder knows of a module to prepare, its loader wrapped; None for any other module."""
        if fullname not in _prepared() or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:  # those before it were asked already
            spec: Any = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _PreparingLoader(spec.loader)
                return spec
        return None


class _PreparingLoader:
    """A module's own loader, then `_prepare`. It steps aside before the module runs, so that nothing sees it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # while being unpickled it is not there yet, and looking for it would never end
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _prepare(module)


def _prepare(module: Any) -> None:
    """Registers our strategies with a registry, lets a Trainer take them from the variable, or explains their names."""
    if module.__name__ in TRAINER_MODULES:
        _heed_variable(module)
    elif module.__name__ in NAME_MODULES:
        _explain_names(module)
    else:
        _register(module)


def _register(module: Any) -> None:
    """Adds those of `STRATEGIES` that the registry lacks. Never raises: Lightning must import without us."""
    try:
        for name, (class_name, description, *options) in STRATEGIES.items():
            if name not in module.StrategyRegistry:
                factory = functools.partial(_create_strategy, class_name, module.__name__.rpartition(".")[0])
                own: dict[str, Any] = options[0] if options else {}
                module.StrategyRegistry.register(name, factory, description=description, **own)
    except Exception:
        logging.getLogger(__name__).warning("Could not register in %s.", module.__name__, exc_info=True)


def _explain_names(module: Any) -> None:
    """Has Lightning's error about an unknown strategy end with what was meant, if that is one of ours. Never raises."""
    try:
        connector = module._AcceleratorConnector  # private; without it Lightning's own error is all that there is
        check = connector._check_config_and_set_final_flags
        if getattr(check, "explains_names", False):
            return

        @functools.wraps(check)
        def check_and_explain(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return check(self, *args, **kwargs)
            except ValueError as error:
                hint = _about_strategy(self, module.__name__.rpartition(".trainer.")[0])
                raise (ValueError(f"{error}\n{hint}") if hint else error) from None

        check_and_explain.explains_names = True  # type: ignore[attr-defined]
        connector._check_config_and_set_final_flags = check_and_explain
    except Exception:
        logging.getLogger(__name__).warning("Could not explain names in %s.", module.__name__, exc_info=True)


def _about_strategy(connector: Any, package: str) -> str:
    """What a strategy's name may have meant that Lightning has refused; empty if nothing of ours."""
    try:
        name, known = connector._strategy_flag, connector._registered_strategies
        if not isinstance(name, str) or name == "auto" or name in known:
            return ""
        from lightning_evo.strategies.names import about_strategy  # only now: see the head of this file

        return about_strategy(name, known, package)
    except Exception:  # Lightning's own error is what counts
        return ""


def _create_strategy(class_name: str, namespace: str, /, **kwargs: Any) -> Any:
    from lightning_evo.strategies import strategy_class  # only now: see the head of this file

    return strategy_class(class_name, namespace)(**kwargs)


def _heed_variable(module: Any) -> None:
    """Lets one of our names in `VARIABLE` count for `strategy="auto"`, as LightningCLI passes it. Never raises."""
    try:
        init = module.Trainer.__init__
        if hasattr(init, "heeds_lightning_evo"):
            return

        @functools.wraps(init)
        def heeding(self: Any, *args: Any, **kwargs: Any) -> None:
            name = os.environ.get(VARIABLE, "").strip().lower()
            if name in STRATEGIES and _is_open(self, args, kwargs):
                kwargs["strategy"] = name
            init(self, *args, **kwargs)

        heeding.heeds_lightning_evo = True  # type: ignore[attr-defined]
        module.Trainer.__init__ = heeding
    except Exception:
        logging.getLogger(__name__).warning("%s does not count in %s.", VARIABLE, module.__name__, exc_info=True)


def _is_open(trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a Trainer is given no strategy, or "auto"."""
    if args:  # an error in Lightning
        return False
    if "strategy" not in kwargs:  # Lightning looks a subclass's up under its own name
        own = f"PL_{type(trainer).__name__.upper()}_STRATEGY"
        return own == VARIABLE or not os.environ.get(own)
    given = kwargs["strategy"]
    return isinstance(given, str) and given.strip().lower() == "auto"
