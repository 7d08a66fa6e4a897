"""Which hooks of a module and its callbacks look at gradients: with ``update="in_place"`` there are none."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any

from lightning_evo.utils.messages import preview

__all__ = ["hooks_without_gradients"]

_HOOKS = ("on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping")
_HARMLESS = {  # names with "grad" in them that need no gradient, or work without
    "accumulate_grad_batches",
    "clip_gradients",
    "configure_gradient_clipping",
    "enable_grad",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "is_grad_enabled",
    "no_grad",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "requires_grad",
    "requires_grad_",
    "set_grad_enabled",
    "zero_grad",
}
_LIGHTNING = ("lightning.", "pytorch_lightning.", "lightning_evo.")


def hooks_without_gradients(module: Any) -> str | None:
    """What to say of hooks that would see gradients in backpropagation; ``None`` if there are none.

    A hook counts if its own code, or that of a method of the same object that it calls, names gradients: one that only
    counts or measures time has all that it needs.

    Args:
        module: A LightningModule that is attached to a Trainer.
    """
    owners = (module, *module.trainer.callbacks)
    found = [f"{type(owner).__name__}.{hook}" for owner in owners for hook in _HOOKS if _looks(owner, hook)]
    if not found:
        return None
    return (
        f"With update='in_place' there are no gradients, so {preview(found)} will find `.grad` None. Use "
        "update='optimizer' if that matters; for clipping, gradient_clip_val and self.clip_gradients work as they are."
    )


def _looks(owner: Any, hook: str) -> bool:
    given: Any = vars(owner).get(hook)  # of a LambdaCallback
    if given is None:
        home = next((cls for cls in type(owner).__mro__ if hook in vars(cls)), None)
        if home is None or home.__module__.startswith(_LIGHTNING):
            return False
        given = vars(home)[hook]
    code = getattr(given, "__code__", None)
    return code is None or _names_gradients(code, owner)  # what can't be read may look at anything


def _names_gradients(code: CodeType, owner: Any, deeper: bool = True) -> bool:
    names = {name for part in _nested(code) for name in (*part.co_names, *part.co_consts) if isinstance(name, str)}
    if any("grad" in name and name.isidentifier() and name not in _HARMLESS for name in names):
        return True
    methods = [getattr(getattr(type(owner), name, None), "__code__", None) for name in names - {*_HOOKS}]
    return deeper and any(
        _names_gradients(method, owner, False)
        for method in methods
        if method is not None and not _of_a_package(method.co_filename)
    )


def _of_a_package(path: str) -> bool:
    return any(f"/{name}/" in path.replace("\\", "/") for name in ("torch", "lightning", "pytorch_lightning"))


def _nested(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
