"""A GPU and what is left of the time to measure it in: what :mod:`benchmarks.gpu`'s sections stand on."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks import _roofline as roofline
from benchmarks._measure import Unavailable, seconds
from benchmarks._models import qwen3
from lightning_evo import kernels
from lightning_evo.kernels.triton import proven
from lightning_evo.utils.messages import first_line

TINY = roofline.Shape(2, 32, 2, 1, 64, head_size=16, tied=True, vocabulary=128)
Row = dict[str, Any]
"""``row``, its ``seconds`` in all rounds, a ``value`` and the ``limit`` that it is to be compared with, ``None`` if
there is none."""


class OutOfTime(BaseException):
    """A section's time is over. No Exception: members' code that raises one has failed, and the next member runs."""


@dataclass
class Machine:
    """Where the sections run, and what is left of the time.

    Attributes:
        deadline: Of the clock ``time.monotonic``, for all sections.
        tiny: Whether all shapes are miniatures.
        section: When the present section should end.
    """

    deadline: float
    tiny: bool
    section: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def gpu(self) -> roofline.Gpu:
        """Whose limits are shown."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        return roofline.gpu_named(name) or roofline.GPUS[0]

    @property
    def kernels(self) -> str:
        """What makes noise."""
        return type(kernels.backend_for(torch.empty(1, device=self.device))).__name__

    @property
    def without_triton(self) -> str | None:
        """Why the Triton kernels can't be used on a GPU; ``None`` if they can, or there is no GPU."""
        found = proven(self.device) if self.device.type == "cuda" else None
        return found if isinstance(found, str) else None

    @contextmanager
    def within(self, needed: float) -> Iterator[None]:
        """Run a section that takes about so many seconds, and stop it after twice as many.

        Raises:
            Unavailable: If there are fewer left.
            OutOfTime: From what runs, after twice the time, or when all time is over.
        """
        now = time.monotonic()
        left = self.deadline - now
        if left < needed and not self.tiny:
            raise Unavailable(f"needs about {needed:.0f} s, {max(left, 0):.0f} s are left")
        self.section = now + needed

        def stop(*_: object) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 600.0 if self.tiny else max(1.0, min(2 * needed, left + 5)))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def require(self, needed: float) -> None:
        """Skip the section if there is less memory, in bytes."""
        if self.device.type == "cuda" and not self.tiny:
            free = torch.cuda.mem_get_info()[0]
            if free < needed:
                raise Unavailable(f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")

    def shape(self, size: str) -> roofline.Shape:
        """Of a model."""
        return TINY if self.tiny else roofline.SHAPES[size]

    @contextmanager
    def model(self, size: str) -> Iterator[nn.Module]:
        """A model with random weights, made on the device: no memory of the host is needed. It is freed at the end."""
        model = build(self.shape(size), self.device)
        try:
            yield model
        finally:
            model.to("meta")  # frees the weights even where a traceback still holds the model
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def timed(self, rows: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, list[float]]:
        """Seconds of each row, in turns: a round that compiles and does not count, then as many as there is time for.

        A row that fails is left out, and says why.
        """
        times: dict[str, list[float]] = {name: [] for name in rows}
        for turn in range(1 + (1 if self.tiny else repeats)):
            if turn > 1 and time.monotonic() > self.section:
                break
            for name, function in rows.items():
                if name not in times:
                    continue
                try:
                    elapsed = seconds(function)
                except Exception as error:  # it must not take the others with it
                    print(f"  {name}: {type(error).__name__}: {first_line(error)}")
                    del times[name]
                    continue
                if turn:
                    times[name].append(elapsed)
        return times


def build(shape: roofline.Shape, device: torch.device | str) -> nn.Module:
    """A Qwen3 of a shape, in bfloat16."""
    return qwen3(
        *(shape.layers, shape.width, shape.heads, shape.key_value_heads, shape.feed_forward),
        vocabulary=shape.vocabulary,
        head_size=shape.head_size,
        tied=shape.tied,
        device=device,
    )
