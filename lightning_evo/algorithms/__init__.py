"""Evolutionary algorithms, by name.

Each file holds one. :func:`available` lists them, :func:`get` returns one, :func:`register` adds your own::

    algorithm = get("openai_es")(population=32, sigma=0.1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from lightning_evo.algorithms._base import Algorithm, State, UpdateName
from lightning_evo.algorithms._options import Scaling
from lightning_evo.algorithms.ars import ARS
from lightning_evo.algorithms.ea4llm import EA4LLM
from lightning_evo.algorithms.eggroll import EGGROLL
from lightning_evo.algorithms.es_at_scale import ES_AT_SCALE
from lightning_evo.algorithms.evolution_strategy import ESState, EvolutionStrategy
from lightning_evo.algorithms.fzoo import FZOO
from lightning_evo.algorithms.lesson import Directions, Lesson, NewCenter, Term
from lightning_evo.algorithms.lozo import LOZO
from lightning_evo.algorithms.mezo import MEZO
from lightning_evo.algorithms.openai_es import OPENAI_ES
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.schedule import Schedule
from lightning_evo.algorithms.search.cem import CEM, CEMState, CrossEntropyMethod
from lightning_evo.algorithms.search.cma_es import CMA_ES, CMAEvolutionStrategy, CMAState
from lightning_evo.algorithms.search.csa_es import CSA_ES, CSAEvolutionStrategy, CSAState
from lightning_evo.algorithms.search.deep_ga import DEEP_GA, DeepGeneticAlgorithm
from lightning_evo.algorithms.search.differential_evolution import (
    DIFFERENTIAL_EVOLUTION,
    DEState,
    DifferentialEvolution,
)
from lightning_evo.algorithms.search.genetic import GENETIC, GeneticAlgorithm
from lightning_evo.algorithms.search.lm_ma_es import LM_MA_ES, LMMAEvolutionStrategy, LMMAState
from lightning_evo.algorithms.search.particle_swarm import PARTICLE_SWARM, ParticleSwarm, SwarmState
from lightning_evo.algorithms.search.pgpe import PGPE, ParameterExploringGradients, PGPEState
from lightning_evo.algorithms.search.sep_cma_es import SEP_CMA_ES, SepCMAEvolutionStrategy, SepCMAState
from lightning_evo.algorithms.search.snes import SNES, SeparableNES
from lightning_evo.algorithms.search.xnes import XNES, ExponentialNES, XNESState
from lightning_evo.algorithms.sparse_mezo import SPARSE_MEZO
from lightning_evo.utils.options import one_of

__all__ = [
    "CEMState",
    "CrossEntropyMethod",
    "DeepGeneticAlgorithm",
    "DEState",
    "DifferentialEvolution",
    "GeneticAlgorithm",
    "ParticleSwarm",
    "SwarmState",
    "ParameterExploringGradients",
    "PGPEState",
    "SeparableNES",
    "ExponentialNES",
    "XNESState",
    "CMAEvolutionStrategy",
    "CMAState",
    "CSAEvolutionStrategy",
    "LMMAEvolutionStrategy",
    "LMMAState",
    "SepCMAEvolutionStrategy",
    "SepCMAState",
    "Algorithm",
    "AlgorithmFactory",
    "CSAState",
    "Directions",
    "ESState",
    "EvolutionStrategy",
    "Lesson",
    "NewCenter",
    "Population",
    "Recipe",
    "Scaling",
    "Schedule",
    "State",
    "Term",
    "UpdateName",
    "available",
    "get",
    "register",
]


class AlgorithmFactory(Protocol):
    """What the registry holds: a :class:`Recipe`, or an object with the same attributes."""

    @property
    def name(self) -> str:
        """Name in the registry."""

    @property
    def summary(self) -> str:
        """One line."""

    @property
    def paper(self) -> str:
        """Authors, year and link."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options and their published values."""

    def __call__(self, **options: Any) -> Algorithm[Any]:
        """The algorithm with these options."""


_REGISTRY: dict[str, AlgorithmFactory] = {}


def available() -> list[str]:
    """Names of all registered algorithms, sorted.

    Example:
        >>> "openai_es" in available()
        True
    """
    return sorted(_REGISTRY)


def get(name: str) -> AlgorithmFactory:
    """The algorithm of that name; call it with options to get an :class:`Algorithm`.

    Raises:
        ValueError: If there is none; the message gives the nearest name.
    """
    return _REGISTRY[one_of("algorithm", name, available())]


def register(factory: AlgorithmFactory, *, override: bool = False) -> None:
    """Make an algorithm known under its name.

    Args:
        factory: A :class:`Recipe` or anything with its attributes.
        override: Replace an algorithm of that name.

    Raises:
        ValueError: If the name is taken and ``override`` is false.

    Example:
        >>> from dataclasses import replace
        >>> bold = replace(get("openai_es"), name="bold_es", defaults={**get("openai_es").defaults, "sigma": 0.5})
        >>> register(bold)
        >>> get("bold_es")().sigma
        0.5
        >>> del _REGISTRY["bold_es"]
    """
    if factory.name in _REGISTRY and not override:
        raise ValueError(f"An algorithm named {factory.name!r} exists already; pass override=True to replace it.")
    _REGISTRY[factory.name] = factory


for _recipe in (
    OPENAI_ES,
    EA4LLM,
    ES_AT_SCALE,
    EGGROLL,
    MEZO,
    LOZO,
    FZOO,
    SPARSE_MEZO,
    ARS,
    CSA_ES,
    CMA_ES,
    SEP_CMA_ES,
    LM_MA_ES,
    XNES,
    SNES,
    PGPE,
    CEM,
    DIFFERENTIAL_EVOLUTION,
    PARTICLE_SWARM,
    GENETIC,
    DEEP_GA,
):
    register(_recipe)
