"""What an algorithm is: ask for a population, learn from its fitness."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from torch import Tensor

from lightning_evo.algorithms.lesson import Lesson
from lightning_evo.algorithms.population import Population
from lightning_evo.utils.messages import shown
from lightning_evo.utils.options import as_whole, number, one_of

__all__ = ["Algorithm", "State", "UpdateName"]

UpdateName = Literal["optimizer", "in_place"]
"""Who moves a module's weights: the user's optimizer, by gradients, or the update itself."""


@dataclass(frozen=True)
class State:
    """All that an algorithm remembers from one generation to the next: plain numbers and tensors.

    The coming population is a function of it: random numbers are addressed by seed and generation.

    Attributes:
        seed: The run's seed.
        generation: Generations finished.
        sigma: The step size, where it is not the algorithm's option: set by hand, or adapted by the algorithm.
        center: ``[d]``. Inside a module ``None`` for algorithms whose center is the weights themselves.
    """

    seed: int = 0
    generation: int = 0
    sigma: float | None = None
    center: Tensor | None = field(default=None, repr=False)

    def state_dict(self) -> dict[str, Any]:
        """All that is not ``None`` or empty, as plain numbers and tensors: a checkpoint holds it as it is."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor) or value not in (None, ())}

    @classmethod
    def from_state_dict(cls: type[AnyState], saved: Mapping[str, Any]) -> AnyState:
        """The state that :meth:`state_dict` described.

        Raises:
            ValueError: If it is of another algorithm or version.
        """
        unknown = sorted(saved.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(
                f"The saved state of the algorithm has {', '.join(unknown)}, which {cls.__name__} does not know. Use "
                "the algorithm and the version of lightning-evo that wrote it, or start from the weights alone."
            )
        return cls(**saved)


AnyState = TypeVar("AnyState", bound=State)


class Algorithm(ABC, Generic[AnyState]):
    """An evolutionary algorithm as pure functions on a small state. Higher fitness is better.

    :meth:`ask` gives a generation's members and :meth:`learn` what their fitness teaches: directions to move along, or
    a new center. What it teaches is carried out by the engine, on a module's weights, or by :meth:`tell`, on a vector.

    Example:
        >>> import torch, lightning_evo.algorithms as algorithms
        >>> algorithm = algorithms.get("openai_es")(population=32, learning_rate=0.1)
        >>> state = algorithm.init(torch.ones(5), sigma=0.1, seed=0)
        >>> for _ in range(100):
        ...     population = algorithm.ask(state)
        ...     fitness = -population.vectors().square().sum(1)
        ...     state = algorithm.tell(state, population, fitness)
        >>> bool(state.center.norm() < 0.2)
        True
    """

    name: str
    """The name under which it is registered; checkpoints store it."""

    population: int | None
    """Members of a generation, where the user or a recipe says it; ``None`` where the dimension does."""

    samples_per_generation: int | None = None
    """The most samples that a generation wants to see; ``None`` for all."""

    State: ClassVar[type[State]] = State
    """The class of its state."""

    updates: ClassVar[tuple[UpdateName, ...]] = ("in_place",)
    """Who can move a module's weights; the first is its own default."""

    owns_center: ClassVar[bool] = True
    """Whether its state holds the center, also inside a module: the weights are then its rounding."""

    learns_alike: ClassVar[bool] = True
    """Whether all processors learn the same bits from the same fitness. Where they need not, as a decomposition of a
    matrix rounds differently on another, the first process's state counts for all processes."""

    @property
    def needs_whole_tensors(self) -> str:
        """The option, as a user writes it, for which no process may hold a part of a tensor only; empty if none is."""
        return f"algorithm={self.name!r}" if self.owns_center else ""

    def checked_update(self, update: object, option: str = "update") -> UpdateName:
        """Who moves the weights: what the user asks for, or with ``None`` the algorithm's own default.

        Args:
            update: What the user asks for.
            option: Where, for the message.

        Raises:
            ValueError: If it is unknown, or the algorithm can't do that.
        """
        if update is None:
            return self.updates[0]
        given: UpdateName = one_of(option, update, get_args(UpdateName))
        if given not in self.updates:
            raise ValueError(
                f"{option}={given!r} does not work with {self.name!r}, which gives no gradient but says where the "
                "weights go. Leave it out."
            )
        return given

    def init(self, center: Tensor | None = None, *, sigma: float | None = None, seed: int = 0) -> AnyState:
        """The state before the first generation.

        Args:
            center: Where to start, floating ``[d]``; ``None`` inside a module, whose weights are the center.
            sigma: Overrides the option for this run.
            seed: Seed of the noise: any whole number, taken modulo 2^64.

        Raises:
            ValueError: If ``center`` is not a floating vector or ``sigma`` is not positive.
            TypeError: If ``seed`` is not a whole number.
        """
        if center is not None and (center.dim() != 1 or not center.is_floating_point()):
            raise ValueError(f"center must be a floating vector [d], got {center.dtype} {list(center.shape)}.")
        whole_seed = as_whole(seed)
        if whole_seed is None:
            raise TypeError(f"seed must be a whole number, got {shown(seed)}.")
        state: Any = self.State(
            seed=whole_seed & (1 << 64) - 1,
            sigma=None if sigma is None else number("sigma", sigma, above=0),
            center=None if center is None else center.detach().clone(),
        )
        return state  # type: ignore[no-any-return]

    def current_population(self, state: AnyState) -> int:
        """Members of the coming generation.

        Raises:
            ValueError: If the dimension says it, and the state has no center yet.
        """
        assert self.population is not None, "an algorithm without a fixed population says here what it is"
        return self.population

    @abstractmethod
    def current_sigma(self, state: AnyState) -> float:
        """Sigma of the coming generation."""

    @abstractmethod
    def ask(self, state: AnyState) -> Population:
        """The next population. The same state gives the same population."""

    @abstractmethod
    def learn(self, state: AnyState, population: Population, fitness: Tensor, numel: int) -> tuple[AnyState, Lesson]:
        """The state after a generation, and what it teaches. Leaves ``state`` as it is.

        The center is not moved here: who carries the lesson out puts a :class:`NewCenter` into the state.

        Args:
            state: The one that ``population`` was asked from.
            population: From :meth:`ask`.
            fitness: ``[members]``, higher is better; NaN where a member failed.
            numel: Number of evolving elements.

        Raises:
            ValueError: If ``fitness`` has another shape.
        """

    def tell(self, state: AnyState, population: Population, fitness: Tensor) -> AnyState:
        """The state after a generation, with its center moved by what was learnt. Leaves ``state`` as it is.

        A generation with nothing to learn leaves the center as it is.

        Raises:
            ValueError: If the state was made without a center, or ``fitness`` has the wrong shape.
        """
        center = state.center
        if center is None:
            raise ValueError("`tell` moves a center, and this state has none. Give `init` a vector.")
        learnt, lesson = self.learn(state, population, fitness, center.numel())
        return replace(learnt, center=lesson.moved(center)) if lesson else learnt


def check_fitness(population: Population, fitness: Tensor) -> Tensor:
    """The fitness on the CPU, float64 ``[members]``.

    Raises:
        ValueError: If there is not one for each member.
    """
    if fitness.shape != (len(population),):
        raise ValueError(f"fitness must hold one value per member, [{len(population)}]; got {list(fitness.shape)}.")
    return fitness.detach().cpu().double()
