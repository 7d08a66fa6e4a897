"""Not forgetting: each update draws the weights back to those that the run began with.

Anchored weight decay, https://arxiv.org/abs/2605.30148: after an update ``theta <- theta + alpha g``, with
``delta = theta - theta_0``, learning rate alpha and strength lambda,

    L2:  delta <- (1 - alpha lambda) delta
    L1:  delta <- sign(delta) max(|delta| - alpha lambda, 0)

Departure: the paper rounds twice, after the update and after the pull. Here both are one move,
``theta <- round(theta_0 + shrink(theta - theta_0 + alpha g))``, so that of 16-bit weights nothing is lost in between.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_evo.generation.norms import Norms
from lightning_evo.generation.step import Step
from lightning_evo.kernels import Pull
from lightning_evo.processes.checksums import checksum
from lightning_evo.spaces.search_space import EvolvingParameter, SearchSpace
from lightning_evo.spaces.shards import global_sum, shard_of
from lightning_evo.utils.messages import preview, shown
from lightning_evo.utils.options import number, one_of

__all__ = ["Anchor", "By", "StartingWeights", "as_anchor", "resume_anchor"]

By = Literal["l2", "l1"]
"""How the way from the starting weights is made shorter: by a share of it, or by the same for each element."""

_PIECE = 1 << 20  # elements that are measured at a time


@dataclass(frozen=True)
class Anchor:
    """How strongly each update draws the weights back to the starting weights, those that the script builds.

    It keeps what a pretrained model knows while evolution teaches it something else. It needs ``update="in_place"`` and
    an algorithm that estimates a gradient. The pull is as strong as the learning rate of a parameter's group times
    ``strength``, whatever clipping does to the estimate.

    Memory: one copy of the evolving weights, in their dtype. (Of sharded weights each process keeps its part.)

    Args:
        strength: Lambda, > 0. With ``"l2"`` the learning rate times it must be below 1.
        by: ``"l2"`` shortens the way from the starting weights by a share of it; ``"l1"`` takes the same off each
            element's way, so that weights which hardly moved are exactly the starting ones.
        device: Where the copy is kept: ``None`` for where the weights are; ``"cpu"`` takes no memory of the GPU, and is
            read piece by piece in each update.

    Raises:
        ValueError: If an argument has an impossible value.

    Example:
        >>> from lightning_evo import Anchor, EvoStrategy
        >>> strategy = EvoStrategy("es_at_scale", update="in_place", anchor=Anchor(10.0))  # or anchor=10.0
        >>> sparse = EvoStrategy("es_at_scale", update="in_place", anchor=Anchor(0.01, by="l1", device="cpu"))
    """

    strength: float
    by: By = "l2"
    device: str | None = None

    def __post_init__(self) -> None:
        strength = float(number("Anchor's strength", self.strength, above=0))
        by = one_of("kind of anchor", self.by, get_args(By))
        device = None if self.device is None else _device(self.device)
        for name, value in (("strength", strength), ("by", by), ("device", device)):
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def __str__(self) -> str:
        """Strength and kind."""
        return f"{self.strength:g} ({self.by})"


def _device(device: object) -> str:
    try:
        return str(torch.device(device))  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Anchor's device must be one of torch's, such as 'cpu', got {shown(device)}.") from error


def as_anchor(given: object) -> Anchor | None:
    """What a user gave for ``anchor``: a number is the strength of an L2 anchor.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> as_anchor(10)
        Anchor(strength=10.0, by='l2', device=None)
    """
    if given is None or isinstance(given, Anchor):
        return given
    return Anchor(number("anchor", given, above=0, wanted="an Anchor, or its strength, a number > 0"))


class StartingWeights:
    """The weights of a module as they were before evolution moved them, and how far it has come from there.

    Args:
        anchor: How strongly they draw.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> nn.init.ones_(layer.weight).data
        tensor([[1., 1.]])
        >>> start, space = StartingWeights(Anchor(10.0)), SearchSpace(layer)
        >>> start.hold(space, layer)
        >>> nn.init.constant_(layer.weight, 1.5).data
        tensor([[1.5000, 1.5000]])
        >>> start.drift(space)
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, anchor: Anchor) -> None:
        self.anchor = anchor
        self._module: nn.Module | None = None
        self._expected: dict[str, int] = {}  # checksums of the run that is resumed
        self._forget()

    def _forget(self) -> None:
        self._weights: dict[str, Tensor] = {}  # flat, by the parameter's name
        self._held: dict[str, EvolvingParameter] = {}  # of those that are where they belong, and in their last dtype
        self._checksums: dict[str, int] = {}
        self._norms: dict[tuple[str, ...], Tensor] = {}
        self._drift: Tensor | None = None

    # --- taking them ---

    @torch.no_grad()
    def take(self, module: nn.Module, names: Iterable[str]) -> None:
        """Copy some parameters as they are, before a checkpoint is restored into them; not those that were copied.

        Args:
            module: It has them.
            names: Theirs. Those that it does not have, or whose memory is not there yet, are left out.
        """
        self._begin(module)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name in names:
            parameter = parameters.get(name)
            missing = parameter is None or isinstance(parameter, UninitializedParameter) or parameter.is_meta
            if parameter is not None and not missing and name not in self._weights:
                shard = shard_of(parameter, name)
                self._weights[name] = self._copy(parameter.detach() if shard is None else shard.values)

    def share(self, share: Callable[[Tensor], object]) -> None:
        """Let processes that each built a module have the weights of the first: of those that :meth:`take` copied."""
        for name in sorted(self._weights.keys() - self._held):
            share(self._weights[name])

    @torch.no_grad()
    def hold(self, space: SearchSpace, module: nn.Module | None = None) -> None:
        """Copy what evolves and was not copied yet; a parameter that begins to evolve later begins where it is then.

        Args:
            space: What evolves.
            module: Whose weights they are: those of another one are forgotten.

        Raises:
            ValueError: If they are not the weights that the resumed run began with.
        """
        if module is not None:
            self._begin(module)
        new = [parameter for parameter in space if not self._is_held(parameter)]
        for parameter in new:
            name, local, taken = parameter.name, parameter.local, self._weights.get(parameter.name)
            if name in self._held:  # it was converted, moved or exchanged since
                self._expected.pop(name, None)
                self._checksums.pop(name, None)
                self._norms, self._drift = {}, None
            if taken is None or taken.numel() != local.numel():
                taken = self._copy(local)
            elif not self._is_in_place(taken, local):
                taken = self._copy(taken.to(local.dtype), local)
            self._weights[name] = taken
            self._held[name] = parameter
        if new:
            self._compare()

    def _is_held(self, parameter: EvolvingParameter) -> bool:
        """Whether there are starting weights of a parameter as it is now."""
        taken, local = self._weights.get(parameter.name), parameter.local
        return parameter.name in self._held and taken is not None and self._is_in_place(taken, local)

    def _is_in_place(self, taken: Tensor, local: Tensor) -> bool:
        place = self._place(local)
        there = taken.device.type == place.type and place.index in (None, taken.device.index)
        return there and taken.dtype == local.dtype and taken.numel() == local.numel()

    def _begin(self, module: nn.Module) -> None:
        if module is not self._module:
            if self._module is not None:
                self._forget()
                self._expected = {}
            self._module = module

    def _place(self, like: Tensor) -> torch.device:
        return like.device if self.anchor.device is None else torch.device(self.anchor.device)

    def _copy(self, values: Tensor, like: Tensor | None = None) -> Tensor:
        place = self._place(values if like is None else like)
        pinned = place.type == "cpu" and (values if like is None else like).is_cuda
        copy = torch.empty(values.numel(), dtype=values.dtype, device=place, pin_memory=pinned)
        return copy.copy_(values.reshape(-1))

    # --- what an update asks for ---

    def check(self, step: Step, space: SearchSpace) -> None:
        """Raise a ValueError if a step would draw weights beyond where they began."""
        rate = max((abs(step.rate(parameter)) for parameter in space), default=0.0)
        if self.anchor.by == "l2" and rate * self.anchor.strength >= 1:
            raise ValueError(
                f"anchor={self.anchor.strength:g} with a learning rate of {rate:g} draws the weights back by "
                f"{rate * self.anchor.strength:.0%} of their way in every step. Their product must be below 1."
            )

    def pull(self, parameter: EvolvingParameter, rate: float, decay: float) -> Pull | None:
        """What draws a parameter back in an update; ``None`` if its learning rate is 0.

        Args:
            parameter: One that evolves.
            rate: Its learning rate.
            decay: The share of it that ordinary weight decay takes away in this update, in the same rounding.
        """
        amount = abs(rate) * self.anchor.strength
        return Pull(self._weights[parameter.name], self.anchor.by, amount, decay) if amount else None

    def came(self, space: SearchSpace, distances: Norms) -> None:
        """Note how far an update has come from the start."""
        self._drift = self._relative(space, distances.total())

    def drift(self, space: SearchSpace) -> Tensor:
        """``||theta - theta_0|| / ||theta_0||`` over what evolves, float64 ``[]``; the distance itself if theta_0 is 0.

        It is that of the last update, which measures it while it moves the weights. Where processes hold shards, all
        must call this.
        """
        if self._drift is None:
            distances = Norms(space)
            for parameter in space:
                distances.add(parameter, self.distance(parameter))
            self.came(space, distances)
        assert self._drift is not None
        return self._drift

    @torch.no_grad()
    def distance(self, parameter: EvolvingParameter) -> Tensor:
        """``||theta - theta_0||`` of what this process holds of a parameter, float64 ``[]``."""
        return _norm(parameter.local.reshape(-1), self._weights[parameter.name])

    def _relative(self, space: SearchSpace, distance: Tensor) -> Tensor:
        names = tuple(parameter.name for parameter in space)
        if names not in self._norms:
            norms = Norms(space)
            for parameter in space:
                norms.add(parameter, _norm(self._weights[parameter.name]).to(parameter.local.device))
            self._norms[names] = norms.total()
        length = self._norms[names]
        return distance / torch.where(length == 0, 1.0, length)

    # --- checkpoints and journals ---

    def state_dict(self) -> dict[str, Any]:
        """Strength, kind, and a checksum of each tensor that evolved; where processes hold shards, all must call it."""
        start = {name: self._sum(parameter) for name, parameter in self._held.items()}
        return {"strength": self.anchor.strength, "by": self.anchor.by, "start": start}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Compare the starting weights with those of the run that is resumed: now, and those that are held later then.

        Args:
            saved: From :meth:`state_dict`.

        Raises:
            ValueError: If they are others.
        """
        self._expected, self._drift = dict(saved["start"]), None
        self._compare()

    def recorded(self, space: SearchSpace) -> dict[str, Any]:
        """How a journal describes the anchor: its strength, its kind, and a checksum of what evolves, as it was."""
        digest = hashlib.blake2b(digest_size=16)
        for parameter in space:
            digest.update(f"{parameter.index} {self._sum(parameter)} ".encode())
        return {"strength": self.anchor.strength, "by": self.anchor.by, "start": digest.hexdigest()}

    def _sum(self, parameter: EvolvingParameter) -> int:
        """The checksum of a parameter as it was at first."""
        name, shard = parameter.name, parameter.shard
        if name not in self._checksums:
            own = checksum(self._weights[name], 0 if shard is None else shard.start)
            if shard is not None:
                own = int(global_sum(torch.tensor([own], device=parameter.tensor.device), shard.group))
            self._checksums[name] = own
        return self._checksums[name]

    def _compare(self) -> None:
        known = [parameter for name, parameter in self._held.items() if name in self._expected]
        others = [parameter.name for parameter in known if self._sum(parameter) != self._expected[parameter.name]]
        if others:
            raise ValueError(
                f"The module's starting weights are not those that the resumed run was anchored to: {preview(others)}. "
                "They are the weights that the script builds, before the checkpoint is restored into them, and must be "
                "the same again, in the same precision: load the same pretrained weights, or call seed_everything with "
                "the same seed before the module is built. To begin a new run with the checkpoint's weights, load them "
                "into the module (load_from_checkpoint) and leave out ckpt_path; to go on without a pull, leave out "
                "anchor."
            )


def resume_anchor(start: StartingWeights | None, saved: Mapping[str, Any] | None) -> None:
    """Compare a run's anchor with that of the run that it resumes, and warn of another strength or kind.

    Args:
        start: This run's, if it has one.
        saved: From :meth:`StartingWeights.state_dict`, if that run had one.

    Raises:
        ValueError: If the starting weights are others.
    """
    here = None if start is None else start.anchor
    there = None if saved is None else Anchor(saved["strength"], saved["by"])
    if (here and (here.strength, here.by)) != (there and (there.strength, there.by)):
        warnings.warn(
            f"Resuming with anchor={here}; the checkpoint's run had {there}. The weights will be others than those of "
            "an uninterrupted run.",
            stacklevel=4,
        )
    if start is not None and saved is not None:
        start.load_state_dict(saved)


def _norm(values: Tensor, start: Tensor | None = None) -> Tensor:
    """``||values - start||``, float64 ``[]``, where ``values`` are; piece by piece."""
    squares = torch.zeros((), dtype=torch.float64, device=values.device)
    for begin in range(0, values.numel(), _PIECE):
        piece = values[begin : begin + _PIECE].double()
        if start is not None:
            piece = piece - start[begin : begin + _PIECE].to(piece.device, torch.float64, non_blocking=piece.is_cuda)
        squares += piece.square().sum()
    return squares.sqrt()
