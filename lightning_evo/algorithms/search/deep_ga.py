"""A genetic algorithm whose members are chains of seeds: the mutations that made them, in order.

F. P. Such et al., "Deep Neuroevolution: Genetic Algorithms Are a Competitive Alternative for Training Deep Neural
Networks for Reinforcement Learning", 2017, https://arxiv.org/abs/1712.06567: Algorithm 1 (truncation selection and
mutation, no crossover) and the encoding by seeds of Section 3.1, with the numbers of its Table 2. A member is
``x = x_0 + sigma eps(link_1) + sigma eps(link_2) + ...``, where a link names a generation and a member: an address of
the engine's noise.

The center is the elite. It is kept in float64 and is always the start plus its chain, added from the first link to the
last: :func:`rebuilt` gives the same bits. What members differ by from the elite is what their chains have after
the last link that they share, so a member costs few draws however long its chain is.

Departures. The paper evaluates the ten best of a generation on 30 more episodes, and the best of these is the elite.
Here they are members of the next generation, unchanged, together with the elite: on its batch, new to all of them, the
best of these is the elite from then on. So every generation compares on one batch, and an elite is never older than its
last comparison. ``x_0`` is where the search begins, not a seed. A generation whose members all tie changes nothing.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import ClassVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State, check_fitness
from lightning_evo.algorithms.lesson import NewCenter
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.search.search import Search, center_of
from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw
from lightning_evo.perturbations import Perturbation, noise_dtype
from lightning_evo.utils.options import whole

__all__ = ["DEEP_GA", "DeepGAState", "DeepGeneticAlgorithm", "elite_chain", "rebuilt"]

Link = tuple[int, int, float]
"""A mutation: its generation, its member, and sigma."""
Chain = tuple[Link, ...]

_TOGETHER = 2**16
"""The most elements that links of one generation draw at once; of larger vectors, each link draws by itself."""


@dataclass(frozen=True)
class DeepGAState(State):
    """What the algorithm remembers from one generation to the next.

    Chains are float64 ``[..., 3]``: generation, member and sigma of each link, and a generation of -1 after the last.

    Attributes:
        lineage: The links that all chains begin with, ``[links, 3]``; they are in ``base``.
        base: Where these lead to, float64 ``[d]``; ``None`` before the first generation that teaches something.
        chains: The elite's and the parents' further links, ``[1 + parents, links, 3]``; the best parent comes first.
        checksum: Of the center, to see whether it was moved from outside.
    """

    lineage: Tensor | None = field(default=None, repr=False)
    base: Tensor | None = field(default=None, repr=False)
    chains: Tensor | None = field(default=None, repr=False)
    checksum: int = 0


@dataclass(frozen=True, kw_only=True)
class DeepGeneticAlgorithm(Search[DeepGAState]):
    """The genetic algorithm of Such et al.

    Args:
        population: Number of members, the elite and the candidates among them.
        sigma: Size of a mutation, > 0.
        name: Name for checkpoints.
        parents: How many of the best have children; at most half of the population are taken.
        candidates: How many of the best are evaluated once more; at most a quarter of the population are taken.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = DeepGeneticAlgorithm(population=40, sigma=0.1)
        >>> start = torch.ones(5, dtype=torch.float64)
        >>> state = algorithm.init(start, seed=1)
        >>> for _ in range(60):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -population.vectors().square().sum(1))
        >>> bool(state.center.norm() < 0.4), torch.equal(rebuilt(start, elite_chain(state), seed=1), state.center)
        (True, True)
    """

    population: int | None = 1000
    sigma: float = 0.002
    name: str = "deep_ga"
    parents: int = 20
    candidates: int = 10

    State: ClassVar[type[State]] = DeepGAState
    smallest: ClassVar[tuple[int, str]] = (4, "one is the elite, one a candidate, and the others are mutants")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("parents", "candidates"):
            object.__setattr__(self, name, whole(name, getattr(self, name), minimum=1))

    def ask(self, state: DeepGAState) -> Population:
        """The elite, the candidates, and mutants of parents that are drawn uniformly."""
        chains = self.chains(state)
        return self.population_of(state, _Chains(state.seed, self.current_sigma(state), chains))

    def steps(self, state: DeepGAState) -> Tensor:
        """What members differ by from the elite, in units of sigma, float64 ``[members, d]``."""
        center = center_of(state).double()
        return self.ask(state).perturbation.noise(range(self.current_population(state)), 0, center)

    def chains(self, state: DeepGAState) -> list[Chain]:
        """Each member's links after those of the lineage; the elite is the first."""
        elite, *parents = _chains_of(_followed(state))
        members = self.current_population(state)
        again = [chain for chain in parents[: min(self.candidates, members // 4)] if chain != elite]
        chains = [elite, *again]
        key, sigma = NoiseKey(state.seed, state.generation), self.current_sigma(state)
        among = parents or [elite]
        # parameter 1: the mutations themselves are parameter 0's
        chance = draw(key, range(members), 1, 0, 1, distribution="uniform", dtype=torch.float64)[:, 0]  # in [0, 1)
        for member in range(len(chains), members):
            parent = among[int(float(chance[member]) * len(among))]
            chains.append((*parent, (state.generation, member, sigma)))
        return chains

    def learn(
        self, state: DeepGAState, population: Population, fitness: Tensor, numel: int
    ) -> tuple[DeepGAState, NewCenter]:
        """The best are the next parents; the best of those that were evaluated before is the elite.

        Raises:
            ValueError: If there is not one fitness for each member, or the state has no center.
        """
        values = check_fitness(population, fitness)
        following = replace(state, generation=state.generation + 1)
        valid = values.isfinite()
        if not valid.any() or bool((values[valid] == values[valid][0]).all() and valid.all()):
            return following, NewCenter(None)
        chains = self.chains(state)
        old = chains[0]
        order = torch.sort(torch.where(valid, values, -torch.inf), descending=True, stable=True).indices.tolist()
        order = [member for member in order if valid[member]]
        known = sum(not chain or chain[-1][0] < state.generation for chain in chains)
        elite = next((chains[member] for member in order if member < known), old)
        parents = [chains[member] for member in order[: min(self.parents, len(population) // 2)]]
        before = _followed(state)
        base = center_of(state).double() if before.base is None else before.base
        lineage = [] if before.lineage is None else _links(before.lineage)
        shared = _shared([elite, *parents])
        base = rebuilt(base, elite[:shared], state.seed)
        center = rebuilt(base, elite[shared:], state.seed).to(center_of(state).dtype)
        lesson = NewCenter(center_of(state) if elite == old else center)  # also the same elite won a comparison
        following = replace(
            following,
            lineage=_table([[*lineage, *elite[:shared]]])[0],
            base=base,
            chains=_table([chain[shared:] for chain in (elite, *parents)]),
            checksum=_checksum(center_of(state) if elite == old else center),
        )
        return following, lesson


def rebuilt(start: Tensor, chain: Sequence[Link], seed: int) -> Tensor:
    """The member that a chain of mutations makes of a start, float64 ``[d]``; the same bits wherever it is made.

    Args:
        start: Where the chain begins, ``[d]``.
        chain: Its links: generation, member and sigma.
        seed: The run's.

    Example:
        >>> rebuilt(torch.zeros(2), [(0, 3, 0.5), (4, 1, 0.5)], seed=0).shape
        torch.Size([2])
    """
    x = start.detach().to("cpu", torch.float64, copy=True)
    for generation, member, sigma in chain:
        x += sigma * draw(NoiseKey(seed, generation), [member], 0, 0, len(x), dtype=torch.float64)[0]
    return x


def elite_chain(state: DeepGAState) -> Chain:
    """All links of a state's elite, from where the search began."""
    state = _followed(state)
    lineage = [] if state.lineage is None else _links(state.lineage)
    return (*lineage, *_chains_of(state)[0])


class _Chains(Perturbation):
    """What members differ by from the elite, in units of sigma.

    Args:
        seed: The run's.
        sigma: The population's.
        chains: Of the members; the first is the elite's.
        offsets: Where each parameter begins in a vector, by its index.
    """

    def __init__(
        self, seed: int, sigma: float, chains: Sequence[Chain], offsets: Mapping[int, int] | None = None
    ) -> None:
        self._seed, self._sigma, self._chains = seed, sigma, chains
        self._offsets = {0: 0} if offsets is None else dict(offsets)

    def over(self, offsets: Mapping[int, int]) -> _Chains:
        return _Chains(self._seed, self._sigma, self._chains, offsets)

    def noise_of_range(
        self, directions: Sequence[int], parameter: int, center: Tensor, start: int, stop: int
    ) -> Tensor:
        dtype, device = noise_dtype(center), center.device
        total = torch.zeros(len(directions), stop - start, dtype=dtype, device=device)
        elite = self._chains[0]
        apart: dict[Link, list[int]] = defaultdict(list)  # the rows that a member's link is added to
        back: dict[Link, list[int]] = defaultdict(list)  # and those that the elite's is taken from
        for row, direction in enumerate(directions):
            chain = self._chains[direction]
            shared = _shared([chain, elite])
            for links, rows_of in ((chain, apart), (elite, back)):
                for link in links[shared:]:
                    rows_of[link].append(row)
        at_once = max(1, _TOGETHER // max(1, stop - start))
        rows = total.unbind()
        for rows_of, sign in ((apart, 1), (back, -1)):
            ordered = sorted(rows_of)  # by generation, as every chain is: so a row adds its links in their order
            for generation, group in groupby(ordered, key=itemgetter(0)):
                alike, key = list(group), NoiseKey(self._seed, generation)
                for begin in range(0, len(alike), at_once):
                    together = alike[begin : begin + at_once]
                    members, first = [member for _, member, _ in together], self._offsets[parameter]
                    drawn = draw(key, members, 0, first + start, first + stop, dtype=dtype, device=device)
                    for noise, link in zip(drawn, together, strict=True):
                        for row in rows_of[link]:
                            rows[row].add_(noise, alpha=sign * link[2] / self._sigma)
        return total


def _followed(state: DeepGAState) -> DeepGAState:
    """The state, begun anew where its center was moved from outside."""
    if state.base is None or state.checksum == _checksum(center_of(state)):
        return state
    return replace(state, lineage=None, base=None, chains=None)


def _checksum(center: Tensor) -> int:
    return zlib.crc32(center.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def _shared(chains: Sequence[Chain]) -> int:
    """How many links all of some chains begin with."""
    first, last = min(chains), max(chains)  # what these two share, all between them do
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _chains_of(state: DeepGAState) -> list[Chain]:
    """The elite's chain and the parents'."""
    return [()] if state.chains is None else [tuple(_links(chain)) for chain in state.chains]


def _links(chain: Tensor) -> list[Link]:
    return [(int(generation), int(member), sigma) for generation, member, sigma in chain.tolist() if generation >= 0]


def _table(chains: Sequence[Sequence[Link]]) -> Tensor:
    """Chains as a tensor, ``[chains, links, 3]``."""
    table = torch.full((len(chains), max(map(len, chains)), 3), -1.0, dtype=torch.float64)
    for row, chain in zip(table, chains, strict=True):
        if chain:
            row[: len(chain)] = torch.tensor(chain, dtype=torch.float64)
    return table


DEEP_GA = Recipe(
    name="deep_ga",
    summary="A genetic algorithm: the best have mutated children, each kept as a chain of seeds.",
    paper="Such et al. 2017, arXiv:1712.06567",
    defaults={"population": 1000, "sigma": 0.002, "parents": 20, "candidates": 10},
    algorithm=DeepGeneticAlgorithm,
)
