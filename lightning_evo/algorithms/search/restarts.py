"""Runs of a search: criteria that end one, and restarts with larger populations.

A. Auger and N. Hansen, "A restart CMA evolution strategy with increasing population size", CEC 2005
(https://doi.org/10.1109/CEC.2005.1554902; IPOP): each run has twice the members of the last. N. Hansen, "Benchmarking a
BI-population CMA-ES on the BBOB-2009 function testbed", GECCO 2009 workshop (https://doi.org/10.1145/1570256.1570333;
BIPOP): in between are runs of small populations and steps, as long as they have spent less than the large ones.

Criteria have pycma's names and values (4.5). Those that ask how far fitness differs (``tolfun``, ``tolfunhist``,
``tolflatfitness``, ``tolstagnation``) are off unless a value is given: accuracies of batches tie often.
``tolstagnation`` compares medians over the oldest and the newest 30 % of the generations that it names, as
arXiv:1604.00772, B.3, has it.

Each run begins where the first began, as in pycma, with its sigma. Without restarts a criterion that is met is named in
the state and in a warning, and the search goes on.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State, check_fitness
from lightning_evo.algorithms.lesson import NewCenter
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.search.search import Search, center_of
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.utils.options import flag, number, one_of, whole

__all__ = ["RestartingSearch", "RunState", "Spread"]


@dataclass(frozen=True)
class RunState(State):
    """What a search remembers of its runs.

    Attributes:
        run: How many restarts there were.
        run_began: The generation with which the current run began.
        run_population: Its members; ``None`` for the first run's.
        run_sigma: Its first sigma; ``None`` before its first generation.
        run_maxiter: The most generations of a small run of BIPOP; 0 for the option's.
        start: Where runs begin, ``[d]``.
        start_sigma: The first run's first sigma.
        large_runs: Finished runs of large populations.
        large_evaluations: What they took.
        small_evaluations: What finished runs of small populations took.
        stopped: The criterion that ended the last run, where no other followed; empty as long as none did.
        best: The best member of all runs, ``[d]``, as its generation's fitness had it.
        best_fitness: Its fitness.
        history: The best and the median fitness of the run's last generations, float64 ``[generations, 2]``, the newest
            last; only where a criterion asks for it.
        flat: Consecutive generations whose members nearly all tied.
    """

    run: int = 0
    run_began: int = 0
    run_population: int | None = None
    run_sigma: float | None = None
    run_maxiter: int = 0
    start: Tensor | None = field(default=None, repr=False)
    start_sigma: float | None = None
    large_runs: int = 0
    large_evaluations: int = 0
    small_evaluations: int = 0
    stopped: str = ""
    best: Tensor | None = field(default=None, repr=False)
    best_fitness: float | None = None
    history: Tensor | None = field(default=None, repr=False)
    flat: int = 0


AnyRun = TypeVar("AnyRun", bound=RunState)


class Spread(NamedTuple):
    """How members are spread around the center, in units of sigma.

    Attributes:
        deviations: Of each coordinate, ``[d]``.
        path: The path of the center's steps, ``[d]``.
        shortest: Of the longest and the shortest axis of the distribution, the shortest.
        longest: The longest.
        axis: One of the axes, with its length, ``[d]``; ``None`` where they are the coordinates'.
    """

    deviations: Tensor
    path: Tensor
    shortest: float
    longest: float
    axis: Tensor | None


@dataclass(frozen=True, kw_only=True)
class RestartingSearch(Search[AnyRun]):
    """A search whose runs end by criteria, and begin again.

    Args:
        population: Members of the first run; ``None`` for ``4 + floor(3 ln d)``.
        sigma: Step size of a run's first generation, > 0.
        name: Name for checkpoints.
        restarts: ``"ipop"``, ``"bipop"``, or ``None`` for one run.
        tolx: Ends a run when all deviations and the path are below it; 0 for never, as for all that follow.
        tolfacupx: When a deviation has grown by this factor.
        tolupsigma: When sigma has grown by this factor more than the distribution's longest axis.
        tolconditioncov: When the condition number of the covariance matrix is above it.
        noeffectaxis: Whether a run ends when a tenth of an axis does not change the center, by rounding.
        noeffectcoord: Whether it ends when a fifth of a deviation does not change a coordinate of the center.
        maxiter: After so many generations; ``None`` for ``100 + 150 (d + 3)^2 / sqrt(population)``.
        tolfun: When all fitness of the generation, and of the best of the last ``10 + 30 d / population``, differ by
            less.
        tolfunhist: When the latter do.
        tolflatfitness: After more than so many consecutive generations whose best three quarters tie.
        tolstagnation: When neither the best nor the median fitness has improved over so many generations.
        ftarget: When a member's fitness reaches it. No other run follows.

    Raises:
        ValueError: If an option is out of range.
    """

    restarts: Literal["ipop", "bipop"] | None = None
    tolx: float = 1e-11
    tolfacupx: float = 1e3
    tolupsigma: float = 1e20
    tolconditioncov: float = 1e14
    noeffectaxis: bool = True
    noeffectcoord: bool = True
    maxiter: int | None = None
    tolfun: float = 0.0
    tolfunhist: float = 0.0
    tolflatfitness: int = 0
    tolstagnation: int = 0
    ftarget: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checked: dict[str, Any] = {}
        if self.restarts is not None:
            checked["restarts"] = one_of("restarts", self.restarts, ("ipop", "bipop"))
        for name in ("tolx", "tolfacupx", "tolupsigma", "tolconditioncov", "tolfun", "tolfunhist"):
            checked[name] = number(name, getattr(self, name), minimum=0)
        for name in ("noeffectaxis", "noeffectcoord"):
            checked[name] = flag(name, getattr(self, name))
        for name in ("maxiter", "tolflatfitness", "tolstagnation"):
            if getattr(self, name) is not None:
                checked[name] = whole(name, getattr(self, name), minimum=0)
        if self.ftarget is not None:
            checked["ftarget"] = number("ftarget", self.ftarget)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def current_population(self, state: AnyRun) -> int:
        """Members of the coming generation."""
        return super().current_population(state) if state.run_population is None else state.run_population

    @abstractmethod
    def update(self, state: AnyRun, population: Population, fitness: Tensor, numel: int) -> tuple[AnyRun, NewCenter]:
        """The state after a generation within a run, and its new center.

        Args:
            state: The one that ``population`` was asked from.
            population: From :meth:`ask`.
            fitness: float64 ``[members]``.
            numel: Number of evolving elements.
        """

    @abstractmethod
    def spread(self, state: AnyRun) -> Spread:
        """How members are spread after a generation."""

    @abstractmethod
    def begun_anew(self, state: AnyRun) -> AnyRun:
        """The state with nothing learnt about the distribution."""

    def learn(self, state: AnyRun, population: Population, fitness: Tensor, numel: int) -> tuple[AnyRun, NewCenter]:
        """The state after a generation, of this run or, if a criterion ends it, of the next.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        fitness = check_fitness(population, fitness)
        if state.run_sigma is None:
            first = population.sigma if state.start_sigma is None else state.start_sigma
            start = center_of(state) if state.start is None else state.start
            state = replace(
                state, run_began=state.generation, run_sigma=population.sigma, start=start, start_sigma=first
            )
        following, lesson = self.update(state, population, fitness, numel)
        following = self._remembering(following, population, fitness, state)
        reached = "" if state.stopped else self._reached(following, population, fitness, lesson)
        if not reached:
            return following, lesson
        if self.restarts is not None and reached != "ftarget":
            return self._restarted(following, population), NewCenter(state.start)
        if reached != "ftarget":
            warnings.warn(
                f"{self.name} has ended its search in generation {state.generation}, by the criterion {reached!r}, and "
                f"goes on nevertheless. End the training there (state.stopped tells), let the search restart "
                f"(restarts='ipop'), or leave the criterion out ({reached}=0).",
                stacklevel=2,
            )
        return replace(following, stopped=reached), lesson

    def _remembering(self, following: AnyRun, population: Population, fitness: Tensor, state: AnyRun) -> AnyRun:
        """The state with what criteria ask for of a generation's fitness, and with the best member."""
        finite = fitness[fitness.isfinite()].sort(descending=True).values
        if not len(finite):
            return following
        changes: dict[str, Any] = {}
        best = float(finite[0])
        if self.restarts is not None and (state.best_fitness is None or best > state.best_fitness):
            member = int(fitness.where(fitness.isfinite(), -math.inf).argmax())
            center, step = center_of(state), self.steps_of(population, state)[member]
            changes |= {"best": (center + population.sigma * step).to(center.dtype), "best_fitness": best}
        kept = max(
            self._recent(center_of(state).numel(), len(fitness)) if self._asks_history else 0, self.tolstagnation
        )
        if kept:
            now = torch.stack([finite[0], finite.median()])[None]
            history = now if state.history is None else torch.cat([state.history, now])[-kept:]
            changes["history"] = history
        if self.tolflatfitness:
            changes["flat"] = state.flat + 1 if finite[0] == finite[int(0.75 * len(finite))] else 0
        return replace(following, **changes) if changes else following

    @property
    def _asks_history(self) -> bool:
        return bool(self.tolfun or self.tolfunhist)

    @staticmethod
    def _recent(dimension: int, members: int) -> int:
        """Generations over which ``tolfun`` and ``tolfunhist`` look back."""
        return 10 + math.ceil(30 * dimension / members)

    def _reached(self, state: AnyRun, population: Population, fitness: Tensor, lesson: NewCenter) -> str:
        """The criterion that is met, by its name; empty if none is."""
        done, n, members = state.generation - state.run_began, len(center_of(state)), len(population)
        finite = fitness[fitness.isfinite()]
        if self.ftarget is not None and bool((finite >= self.ftarget).any()):
            return "ftarget"
        limit = int(100 + 150 * (n + 3) ** 2 / math.sqrt(members)) if self.maxiter is None else self.maxiter
        if (limit and done >= limit) or (state.run_maxiter and done >= state.run_maxiter):
            return "maxiter"
        if self.tolflatfitness and state.flat > self.tolflatfitness:
            return "tolflatfitness"
        if not lesson:  # nothing was learnt, so nothing else has changed
            return ""
        return self._reached_by_fitness(state, finite, done, n, members) or self._reached_by_spread(state, lesson)

    def _reached_by_fitness(self, state: AnyRun, finite: Tensor, done: int, n: int, members: int) -> str:
        if state.history is None:
            return ""
        recent = state.history[-self._recent(n, members) :, 0]
        differs = float(recent.max() - recent.min())
        if self.tolfun and max(differs, float(finite.max() - finite.min())) < self.tolfun:
            return "tolfun"
        if self.tolfunhist and len(recent) > 9 and differs < self.tolfunhist:
            return "tolfunhist"
        if self.tolstagnation and len(state.history) >= self.tolstagnation:
            part = max(1, int(0.3 * self.tolstagnation))
            if bool((state.history[-part:].median(0).values <= state.history[:part].median(0).values).all()):
                return "tolstagnation"
        return ""

    def _reached_by_spread(self, state: AnyRun, lesson: NewCenter) -> str:
        spread, sigma = self.spread(state), self.current_sigma(state)
        assert lesson.center is not None
        assert state.run_sigma is not None
        center = lesson.center
        largest = float(spread.deviations.max()) * sigma
        if max(largest, float(spread.path.max()) * sigma) < self.tolx:
            return "tolx"
        if self.tolfacupx and largest > self.tolfacupx * state.run_sigma:
            return "tolfacupx"
        if self.tolupsigma and sigma / spread.longest > self.tolupsigma * state.run_sigma:
            return "tolupsigma"
        if self.tolconditioncov and spread.longest > math.sqrt(self.tolconditioncov) * spread.shortest:
            return "tolconditioncov"
        if self.noeffectcoord and bool((center == center + (0.2 * sigma * spread.deviations).to(center.dtype)).any()):
            return "noeffectcoord"
        axis = spread.axis
        if (
            self.noeffectaxis
            and axis is not None
            and torch.equal(center, center + (0.1 * sigma * axis).to(center.dtype))
        ):
            return "noeffectaxis"
        return ""

    def _restarted(self, state: AnyRun, population: Population) -> AnyRun:
        """The state with which the next run begins."""
        spent = (state.generation - state.run_began) * len(population)
        small, large, runs = state.small_evaluations, state.large_evaluations, state.large_runs
        if state.run_maxiter:
            small += spent
        else:
            large, runs = large + spent, runs + 1
        start = state.start
        assert start is not None
        assert state.start_sigma is not None
        members = self.population_for(start.numel()) if self.population is None else self.population
        sigma, maxiter, members_now = state.start_sigma, 0, members * 2**runs
        if self.restarts == "bipop" and state.run > 0 and small < large:
            u = draw(NoiseKey(state.seed, state.generation), [0], 1, 0, 2, distribution="uniform")[0].tolist()
            members_now = int(members * (members_now / members) ** (u[0] ** 2))
            sigma, maxiter = sigma * 0.01 ** u[1], max(1, int(0.5 * large / members_now))
        return replace(
            self.begun_anew(state),
            run=state.run + 1,
            run_began=state.generation,
            run_population=members_now,
            run_sigma=sigma,
            run_maxiter=maxiter,
            sigma=sigma,
            large_runs=runs,
            large_evaluations=large,
            small_evaluations=small,
            history=None,
            flat=0,
        )
