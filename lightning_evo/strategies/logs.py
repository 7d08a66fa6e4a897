"""What is logged: ours, without waiting; and what a ``fitness_step`` logs, heard only where the center runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_evo.utils.messages import preview

__all__ = ["UnheardLogs", "as_logged"]


def as_logged(value: float | Tensor) -> Tensor:
    """A number for ``self.log``, which would copy one of Python's to the module's device, and wait for that.

    A tensor stays where it is, so that only whoever shows it waits.

    Args:
        value: A number, or a tensor of one element.

    Returns:
        ``[]``, in torch's default dtype.

    Example:
        >>> as_logged(0.5), as_logged(torch.tensor(2.0, dtype=torch.float64))
        (tensor(0.5000), tensor(2.))
    """
    dtype = torch.get_default_dtype()
    return value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype, device="cpu")


class UnheardLogs:
    """Watches one generation's ``self.log``, and warns of what only members say.

    Args:
        module: With ``fitness_step`` and ``training_step``.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._of_members: set[str] = set()
        self._of_center: set[str] = set()

    def in_members(self, fitness: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A member's fitness, watched."""

        def watched(batch: Any) -> Any:
            with _noting(self._module, self._of_members):
                return fitness(batch)

        return watched

    @contextmanager
    def in_center(self) -> Iterator[None]:
        """Watch the center's step."""
        with _noting(self._module, self._of_center):
            yield

    def warn(self) -> None:
        """Name what was logged in vain."""
        if unheard := sorted(self._of_members - self._of_center):
            rank_zero_warn(
                f"What fitness_step logs is not heard ({preview(unheard)}): {type(self._module).__name__} has a "
                "training_step, which is what the center runs, and members are silent. Log in training_step; or leave "
                "training_step out, and the center runs fitness_step."
            )


@contextmanager
def _noting(module: Any, names: set[str]) -> Iterator[None]:
    """Collect the names that the module's code logs."""
    own = vars(module)
    before = {name: own[name] for name in ("log", "log_dict") if name in own}
    log, log_dict = module.log, module.log_dict

    def note(name: str, *args: Any, **kwargs: Any) -> Any:
        names.add(name)
        return log(name, *args, **kwargs)

    def note_dict(dictionary: Any, *args: Any, **kwargs: Any) -> Any:
        names.update(map(str, dictionary))
        return log_dict(dictionary, *args, **kwargs)

    own.update(log=note, log_dict=note_dict)
    try:
        yield
    finally:
        del own["log"], own["log_dict"]
        own.update(before)
