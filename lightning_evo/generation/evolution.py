"""One generation: ask, evaluate, shape, learn. The one place that wires the other rooms together.

A generation may see several batches (gradient accumulation): the same population is evaluated on each, and its fitness
is averaged before anything is learnt from it, as if the batches had been one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_evo import algorithms
from lightning_evo.algorithms import Algorithm, NewCenter, Population, Recipe, State
from lightning_evo.evaluation import batches
from lightning_evo.evaluation.choice import Evaluation, EvaluationName
from lightning_evo.evaluation.faults import Failure
from lightning_evo.evaluation.fitness import as_record, as_records, details_of
from lightning_evo.evaluation.job import BatchOfRows
from lightning_evo.evaluation.sharing import for_members
from lightning_evo.generation.anchor import Anchor, StartingWeights, as_anchor, resume_anchor
from lightning_evo.generation.laying import laid_over
from lightning_evo.generation.scores import Reports, Scores, results_of
from lightning_evo.generation.update import Update, learn_from
from lightning_evo.isolation import Isolation, Traces
from lightning_evo.noise.philox import NoiseKey, Stream
from lightning_evo.noise.values import draw
from lightning_evo.processes.groups import Groups
from lightning_evo.processes.ranks import Ranks
from lightning_evo.spaces.search_space import Evolve, SearchSpace, checked_choice
from lightning_evo.utils.autograd import gradients_kept
from lightning_evo.utils.messages import preview, shown
from lightning_evo.utils.options import as_whole, check_names, number
from lightning_evo.utils.random_state import RandomState

__all__ = ["CHECKPOINT_KEY", "Evolution"]

CHECKPOINT_KEY = "lightning_evo"
"""Where a checkpoint keeps :meth:`Evolution.state_dict`."""

FitnessFunction = Callable[[Any], Any]
"""Runs the user's code on a batch with the weights as they are.

It gives a number, one value per sample or a :class:`~lightning_evo.Fitness`, or ``None`` to skip the batch."""


class Evolution:
    """An algorithm applied to a module's parameters. Does not depend on Lightning.

    Args:
        algorithm: A registered name, or an :class:`~lightning_evo.algorithms.Algorithm`.
        evolve: Which parameters evolve: regular expressions over names, a function of name and parameter, or ``None``
            for all.
        seed: Seed of the noise; ``None`` takes torch's current seed at :meth:`setup`.
        evaluation: How members are run: ``"plain"``, ``"in_forward"``, ``"batched"`` or ``"rows"`` (see
            docs/evaluation.md), or ``"auto"``, which chooses.
        members_per_forward: With ``"batched"`` and ``"rows"``, how many members run at once; ``None`` and ``"auto"``
            choose by memory.
        member_timeout: Seconds after which a member has failed; ``None`` means no limit. It needs the
            main thread and a system with interval timers.
        minimum_evaluated: The share of members, in [0, 1], that must not fail by an exception or the timeout; if more
            fail, the run stops with the first member's exception. NaN and infinite fitness never stop it.
        anchor: Draws the weights back to those of :meth:`setup` in each update, which must be in place: an
            :class:`~lightning_evo.Anchor`, or a number, the strength of one by L2. ``None`` for no pull.
        **options: Options of the algorithm; ``None`` means its own default.

    Raises:
        ValueError: If the algorithm is unknown or an option is out of range.
        TypeError: If the algorithm has no such option, or ``seed``, ``evolve`` or ``algorithm`` is of a wrong type.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> evolution = Evolution("openai_es", population=16, seed=0)
        >>> evolution.setup(model)
        >>> x, y = torch.randn(32, 3), torch.randn(32, 1)
        >>> evolution.evaluate(lambda batch: -(model(batch[0]) - batch[1]).square().mean(), (x, y))
        True
        >>> update = evolution.conclude()
        >>> norm = update.apply()
    """

    def __init__(
        self,
        algorithm: str | Algorithm[Any] = "openai_es",
        *,
        evolve: Evolve = None,
        seed: int | None = None,
        evaluation: EvaluationName = "auto",
        members_per_forward: int | Literal["auto"] | None = None,
        member_timeout: float | None = None,
        minimum_evaluated: float = 0.5,
        anchor: Anchor | float | None = None,
        **options: Any,
    ) -> None:
        if isinstance(algorithm, str):
            recipe = algorithms.get(algorithm)
            if isinstance(recipe, Recipe):  # of another factory the options are not known
                own = list(inspect.signature(Evolution).parameters)[1:-1]
                given = [name for name, value in options.items() if value is not None]
                check_names(repr(recipe.name), given, [*recipe.options, *own])
            algorithm = recipe(**options)
        elif any(value is not None for value in options.values()):
            names = ", ".join(name for name, value in options.items() if value is not None)
            raise ValueError(
                f"Options go with an algorithm's name; give them to the algorithm object instead: {names}."
            )
        if isinstance(algorithm, Recipe):
            raise TypeError(
                f"algorithm is the recipe {algorithm.name!r}; call it to make an algorithm, or give its name."
            )
        if not isinstance(algorithm, Algorithm):
            raise TypeError(
                f"algorithm must be a name ({', '.join(algorithms.available())}) or an Algorithm, got "
                f"{type(algorithm).__name__}."
            )
        if seed is not None and as_whole(seed) is None:
            raise TypeError(f"seed must be a whole number or None, got {shown(seed)}.")
        self.algorithm: Algorithm[Any] = algorithm
        self.learning_rate_was_given = options.get("learning_rate") is not None
        self.seed = as_whole(seed)
        self.state: State = algorithm.init(seed=self.seed or 0)
        self.minimum_evaluated = number(
            "minimum_evaluated", minimum_evaluated, minimum=0, maximum=1, wanted="a share of the members, in [0, 1]"
        )
        self.evaluation = Evaluation(evaluation, members_per_forward, member_timeout)
        together = as_whole(members_per_forward)
        if together is not None and together % 2 and getattr(algorithm, "antithetic", False):
            warnings.warn(
                f"members_per_forward={together} is odd, but antithetic members come in pairs: "
                f"{max(2, together - 1)} of them will share a forward.",
                stacklevel=3,
            )
        chosen = as_anchor(anchor)
        if chosen is not None and algorithm.owns_center:
            raise ValueError(
                f"anchor has no effect on {algorithm.name!r}, which says where the weights go. Use an algorithm that "
                "estimates a gradient, such as 'openai_es', or leave anchor out."
            )
        self.start = None if chosen is None else StartingWeights(chosen)
        """The weights that updates are drawn back to; ``None`` without ``anchor``."""
        self.ranks = Ranks()
        self._groups = Groups(as_whole(members_per_forward) or 0)
        self.evaluating: Callable[[], AbstractContextManager[object]] = nullcontext
        """Makes a context for the evaluation of members; a strategy sets it, and :attr:`ranks`."""
        self.traces = Traces()
        """What members were seen to change; a strategy says what they can reach besides the module."""
        self.wants_details: Callable[[int], bool] | None = None
        """Says of a generation whether its members' :attr:`details` are wanted; the same on all processes."""
        self.details: list[list[Any]] = []
        """What members told about their samples of the last batch, by :attr:`Fitness.details
        <lightning_evo.Fitness.details>`: ``details[member][sample]``, of all processes. Empty if it was not wanted, and
        for a member that told nothing."""
        self._evolve = checked_choice(evolve)
        self._repeat = batches.Repeat()
        self._module: nn.Module | None = None
        self._resumed = False
        self._searched: list[int] | None = None  # indices of the parameters of an algorithm's own center
        self._space: SearchSpace | None = None
        self._population: Population | None = None
        self._sigma_recorded: float | None = None  # of the current generation
        self._sigma_set_since: float | None = None  # by hand, after the current generation was asked for
        self._scores = Scores(0)  # until a population is evaluated
        self._reports = Reports()

    def setup(self, module: nn.Module, parameters: list[nn.Parameter] | None = None) -> None:
        """Choose the search space. Continues with the next generation if the module is the same as before.

        Call it again between generations when parameters were frozen, unfrozen or given to the optimizer.

        Args:
            module: Its parameters evolve.
            parameters: If given, only these do (for example those of an optimizer).

        Raises:
            ValueError: If ``evolve`` matches nothing.
        """
        self._space = SearchSpace(module, self._evolve, among=parameters)
        if not self._resumed:
            self._forget_batches()  # of a fit that was interrupted
            if module is not self._module:
                self._searched = None
                self.evaluation.forget()
                self._repeat = batches.Repeat()
                self.traces.forget()
                self._groups.forget()
                seed = self.seed if self.seed is not None else torch.initial_seed()
                sigma = self.state.sigma if self._module is None else None  # set by hand for the module before
                self.state = self.algorithm.init(seed=seed, sigma=sigma)
        self._module, self._resumed = module, False
        if self.start is not None:
            self.start.hold(self._space, module)
        if self.algorithm.owns_center:
            self._follow_weights()

    def _follow_weights(self) -> None:
        """Begin where the weights are, and go on from there if they were moved by others.

        Raises:
            ValueError: If other parameters evolve than those that the search has begun with.
        """
        center, space = self.state.center, self.space
        evolving = [parameter.index for parameter in space]
        if center is not None and (center.numel() != space.numel or self._searched not in (None, evolving)):
            raise ValueError(
                f"{self.algorithm.name} has begun to search among {center.numel():,} elements, and others evolve now: "
                f"{space.numel:,} elements of {preview([parameter.name for parameter in space])}. Freeze and unfreeze "
                "parameters before the search begins; for another choice make another Evolution or strategy."
            )
        self._searched = evolving
        if center is not None:
            parts = [(p.local, p.keep_padding(space.part_of(center, p).to(p.local), p.local)) for p in space]
            if all(torch.equal(weights, rounded) for weights, rounded in parts):
                return
            self._reports.moved(self.state.generation)
        self.state = replace(self.state, center=space.vector())

    @property
    def is_set_up(self) -> bool:
        """Whether :meth:`setup` was called."""
        return self._space is not None

    @property
    def space(self) -> SearchSpace:
        """The evolving parameters.

        Raises:
            RuntimeError: Before :meth:`setup`.
        """
        if self._space is None:
            raise RuntimeError("The evolution has no module yet; call `setup` first.")
        return self._space

    @property
    def sigma(self) -> float:
        """Sigma of the coming generation. Setting it overrides the algorithm's own sigma from then on.

        Raises:
            ValueError: If it is set to a value that is not a positive finite number.
        """
        return self.algorithm.current_sigma(self.state)

    @sigma.setter
    def sigma(self, value: float) -> None:
        sigma = self.algorithm.init(sigma=value).sigma  # validated there
        self.state = replace(self.state, sigma=sigma)
        if self._population is not None:
            self._sigma_set_since = sigma

    @property
    def population(self) -> Population:
        """The current generation's members."""
        if self._population is None:
            population = laid_over(self.algorithm.ask(self.state), self.space)
            recorded = self._sigma_recorded
            self._population = population if recorded is None else replace(population, sigma=recorded)
        return self._population

    # --- a generation ---

    @torch.no_grad()
    def evaluate(self, fitness: FitnessFunction, batch: Any) -> bool:
        """Evaluate the population on one more batch.

        Args:
            fitness: Runs the user's code on a batch.
            batch: The batch. With ``samples_per_generation``, members see a random part of it.

        Returns:
            Whether the batch counted; ``False`` if every member declined it by ``None``, or the generation has seen
            all of its samples.
        """
        population = self.population
        if not self.has_fitness:
            self._scores = Scores(len(population))
        batch, weight = self._subset(batch)
        if not weight:
            return False
        if self._groups.shrink(self.ranks, population):
            self.evaluation.limit_groups(self._groups.size)
        ranks = self._groups.divide(self.ranks, population)
        members = ranks.share(population)
        values = self._evaluate_members(fitness, batch, members)
        failures = [value.error for value in values if isinstance(value, Failure)]
        results, sizes = ranks.gather(results_of(values, weight), population, self.evaluation.group_size)
        if self._groups.keep(sizes, self.ranks, population):
            self.evaluation.limit_groups(self._groups.size)
        failed = (results[..., 1] < 0).any(0)
        self._reports.failures(self.state.generation, failed, failures, self.minimum_evaluated)
        wanted = self.wants_details is not None and self.wants_details(self.state.generation)
        self.details = ranks.gather_details(list(map(details_of, values)), population) if wanted else []
        return self._scores.add(results)

    def _evaluate_members(self, fitness: FitnessFunction, batch: Any, members: range) -> list[Any]:
        """What ``fitness`` gives for some members."""
        space, module = self.space, self._module
        assert module is not None
        shared = batches.SharedBatch(batch)
        try:
            evolving = [parameter.tensor for parameter in space]
            isolation = Isolation(module, evolving[0].device, evolving, self.traces)
            with gradients_kept(module), isolation, self.evaluating():
                run = partial(self._run, fitness, shared)
                samples = self._repeat.samples(batch)
                rows = BatchOfRows(samples, partial(self._run_rows, fitness, shared, samples)) if samples else None
                return self.evaluation(module, space, self.population, run, isolation, members, rows)
        finally:
            shared.restore()

    @staticmethod
    def _run(fitness: FitnessFunction, shared: batches.SharedBatch) -> Any:
        try:
            value = fitness(shared.for_member())
            return None if value is None else as_record(value)
        finally:
            shared.take_back()

    def _run_rows(
        self, fitness: FitnessFunction, shared: batches.SharedBatch, samples: int, members: int
    ) -> list[Any] | None:
        try:
            with for_members(members):
                value = fitness(self._repeat(shared.for_member(), members))
            return None if value is None else as_records(value, members, samples)
        finally:
            shared.take_back()

    def recall(self, fitness: Tensor, sigma: float | None = None) -> None:
        """Take a recorded generation's fitness instead of evaluating it; :meth:`conclude` then gives the same update.

        Args:
            fitness: ``[members]``, as :attr:`Update.fitness` had it.
            sigma: The generation's sigma; ``None`` for the current one.

        Raises:
            ValueError: If there is not one fitness for each member.
        """
        if fitness.shape != (len(self.population),):
            raise ValueError(
                f"A fitness for each of {len(self.population)} members is needed, got {list(fitness.shape)}."
            )
        if sigma is not None:
            self._sigma_recorded, self._population = sigma, None
        self._scores.recall(fitness)

    def conclude(self) -> Update:
        """Learn from the generation's fitness and move on to the next generation.

        Raises:
            RuntimeError: If no batch was evaluated.
        """
        if not self.has_fitness:
            raise RuntimeError("No batch of this generation was evaluated; call `evaluate` first.")
        population, fitness, generation = self.population, self._scores.fitness, self.state.generation
        self.state, update = learn_from(self.algorithm, self.state, population, self.space, fitness, self.start)
        if self.ranks.world_size > 1 and not self.algorithm.learns_alike:
            self.state = self.algorithm.State.from_state_dict(self.ranks.of_first(self.state.state_dict()))
            update = replace(update, lesson=NewCenter(self.state.center)) if update else update
        if self._sigma_set_since is not None:  # it counts from the next generation on, whatever was learnt about it
            self.state = replace(self.state, sigma=self._sigma_set_since)
        self._reports.learning(generation, update, self._scores.failed)
        self._forget_batches()
        return update

    @property
    def has_fitness(self) -> bool:
        """Whether a batch of the current generation was evaluated."""
        return self._scores.weight > 0

    def drift(self) -> dict[str, float]:
        """With an anchor ``{"drift": ||theta - theta_0|| / ||theta_0||}``, over what evolves; empty without one."""
        return {} if self.start is None else {"drift": self.start.drift(self.space)}

    def statistics(self) -> dict[str, float]:
        """Mean, deviation and best fitness of the current generation so far, over the members that did not fail.

        And how many did: by an exception, the timeout, or a fitness that is NaN or infinite.
        """
        return self._scores.statistics()

    def _forget_batches(self) -> None:
        self._population = self._sigma_recorded = self._sigma_set_since = None
        self._scores = Scores(0)

    def _subset(self, batch: Any) -> tuple[Any, float]:
        """The part of a batch that this generation still wants, and what it weighs in the mean."""
        wanted = self.algorithm.samples_per_generation
        if wanted is None:
            return batch, 1.0
        total = batches.count(batch)
        seen = int(self._scores.weight)  # with this option a batch weighs as much as it has samples
        chosen = min(total, -(-(wanted - seen) // self.ranks.data))
        if 0 < chosen < total:
            key = NoiseKey(self.state.seed, self.state.generation, Stream.SUBSET)
            uniform = draw(key, [seen], 0, 0, total, distribution="uniform")[0]  # each batch's own: `seen` differs
            batch = batches.choose(batch, batches.random_samples(total, chosen, uniform))
        return batch, float(chosen)

    # --- checkpoints ---

    def state_dict(self, random_state: RandomState) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as plain numbers, strings and tensors.

        Args:
            random_state: The random numbers that the run continues with.
        """
        saved: dict[str, Any] = {
            "algorithm": self.algorithm.name,
            "state": self.state.state_dict(),
            **self._scores.state_dict(),
            "random_state": random_state.state_dict(),
        }
        if self.has_fitness:
            saved["generation_sigma"] = self.population.sigma  # of the members that were evaluated
        if self.start is not None:
            saved["anchor"] = self.start.state_dict()
        return {**saved, **self.evaluation.state_dict()}

    def load_evaluation(self, saved: Mapping[str, Any]) -> None:
        """Run members as another run did, unless a way was asked for here.

        Args:
            saved: From :meth:`Evaluation.state_dict <lightning_evo.evaluation.choice.Evaluation.state_dict>`.
        """
        self.evaluation.load_state_dict(saved)
        self._groups.load(int(saved.get("members_per_forward", 0)))

    def before_restoring(self, module: Any, saved: Mapping[str, Any]) -> None:
        """Copy the weights that a module was built with, if they will be needed, before others are put there.

        Args:
            module: About to be given the weights of a checkpoint.
            saved: From :meth:`state_dict`; empty if the checkpoint is not of evolution.
        """
        if self.start is not None:
            anchored = (saved.get("anchor") or {}).get("start")
            names = anchored or [parameter.name for parameter in SearchSpace(module, self._evolve)]
            self.start.take(module, names)

    def start_at(self, generation: int) -> None:
        """Set the number of the coming generation: a run that continues other training should not repeat noise."""
        self.state = replace(self.state, generation=generation)

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Continue a run: the next noise, and every other random number, is what it would have been.

        Args:
            saved: From :meth:`state_dict`.
            device: Its random number generator is restored, too.

        Raises:
            ValueError: If another algorithm or version wrote it, or its population in the middle of a generation was
                another.
        """
        if saved["algorithm"] != self.algorithm.name:
            raise ValueError(
                f"This checkpoint was written by the algorithm {saved['algorithm']!r}, but this run uses "
                f"{self.algorithm.name!r}. Use the same algorithm to resume, or load only the weights (for example "
                "`MyModule.load_from_checkpoint(path)`) to start a new run from them."
            )
        if "state" not in saved:
            raise ValueError(
                "This checkpoint was written by an older version of lightning-evo, which this one can't continue. Load "
                "only the weights (for example `MyModule.load_from_checkpoint(path)`) to start a new run from them."
            )
        state = self.algorithm.State.from_state_dict(saved["state"])
        scores = Scores(self.algorithm.current_population(state) if saved["fitness_weight"] else 0)
        scores.load_state_dict(saved)
        self.state = state
        if self.seed is not None and self.seed & (1 << 64) - 1 != self.state.seed:
            warnings.warn(
                f"Resuming with seed={self.seed}; the checkpoint's run used {self.state.seed}. The noise will be "
                "different from an uninterrupted run's.",
                stacklevel=2,
            )
            self.state = replace(self.state, seed=self.seed & (1 << 64) - 1)
        self.load_evaluation(saved)
        resume_anchor(self.start, saved.get("anchor"))
        self._forget_batches()
        self._scores, self._sigma_recorded = scores, saved.get("generation_sigma")
        if self._sigma_recorded not in (None, self.sigma):
            self._sigma_set_since = self.sigma
        self._resumed = True
        RandomState(device).load_state_dict(saved["random_state"])
