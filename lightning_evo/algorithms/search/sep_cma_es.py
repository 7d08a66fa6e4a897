"""CMA-ES with a diagonal covariance matrix: one deviation for each element, at linear cost.

R. Ros and N. Hansen, "A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity", PPSN X, 2008,
https://doi.org/10.1007/978-3-540-87700-4_30: CMA-ES in which only the diagonal of C is learnt, so that it can be learnt
faster. Sampling, recombination and step-size adaptation are those of arXiv:1604.00772 (Eqs. 38 to 44) with
C^(-1/2) y = z. Rates are those of pycma 4.5 for its diagonal option (c_1, c_mu and c_c of Akimoto and Hansen, "Diagonal
Acceleration for CMA-ES", 2020, https://doi.org/10.1162/evco_a_00260), about 3/2 of the paper's; those of sigma and its
path are pycma's, too.

Departures. Members of equal fitness share the mean of the weights that their ranks would have; failed members have
none. A generation whose members all tie changes nothing. Steps are in float32 and made once: that is a relative
rounding of each step, and what members were is what is learnt from. Center, paths and variances are in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_evo.algorithms._base import State
from lightning_evo.algorithms.lesson import NewCenter
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.search.cma_es import step_size
from lightning_evo.algorithms.search.ranks import recombination_weights
from lightning_evo.algorithms.search.restarts import RestartingSearch, RunState, Spread
from lightning_evo.algorithms.search.search import center_of, expected_length
from lightning_evo.algorithms.shaping import shape

__all__ = ["SEP_CMA_ES", "SepCMAEvolutionStrategy", "SepCMAState"]

_CHUNK = 1 << 14  # elements of which all members' fit into a cache


@dataclass(frozen=True)
class SepCMAState(RunState):
    """What the strategy remembers from one generation to the next. ``None`` stands for zero, or variances of one.

    Attributes:
        path: The evolution path ``p_sigma``, float64 ``[d]``.
        path_c: The evolution path ``p_c``, float64 ``[d]``.
        variances: The diagonal of ``C``, float64 ``[d]``.
    """

    path: Tensor | None = field(default=None, repr=False)
    path_c: Tensor | None = field(default=None, repr=False)
    variances: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class SepCMAEvolutionStrategy(RestartingSearch[SepCMAState]):
    """The separable (mu/mu_w, lambda)-CMA-ES.

    Args:
        population: Number of members, lambda; ``None`` for ``4 + floor(3 ln d)``.
        sigma: Step size of the first generation, > 0, about a third of how far away the optimum may be.
        name: Name for checkpoints.
        **criteria: ``restarts``, ``tolx`` … ``ftarget``: when a run ends and whether another follows, as in
            :class:`~lightning_evo.algorithms.search.restarts.RestartingSearch`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = SepCMAEvolutionStrategy(sigma=0.5)
        >>> state = algorithm.init(torch.ones(20, dtype=torch.float64), seed=1)
        >>> scales = torch.logspace(0, 4, 20, dtype=torch.float64)
        >>> for _ in range(400):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -(population.vectors().square() @ scales))
        >>> float(state.center.norm()) < 1e-4
        True
    """

    name: str = "sep_cma_es"

    State: ClassVar[type[State]] = SepCMAState

    def steps(self, state: SepCMAState) -> Tensor:
        """``y_k = D z_k``, float32 ``[members, d]``."""
        z = self.normal(state, torch.float32)
        return z if state.variances is None else z.mul_(state.variances.sqrt().float())

    def update(
        self, state: SepCMAState, population: Population, fitness: Tensor, numel: int
    ) -> tuple[SepCMAState, NewCenter]:
        """Center, paths, variances and sigma after a generation."""
        w = shape(fitness, recombination_weights)
        following = replace(state, generation=state.generation + 1)
        if not w.any():
            return following, NewCenter(None)
        n, sigma, done = numel, population.sigma, following.generation - state.run_began
        mu_eff = 1 / float(w.square().sum())
        c_sigma, d_sigma = step_size(n, mu_eff)
        c_c = (1 + 1 / n + mu_eff / n) / (math.sqrt(n) + 1 / n + 2 * mu_eff / n)
        c_1 = 1 / (n + 2 * math.sqrt(n) + mu_eff / n)
        c_mu = min(1 - c_1, (1 / 4 + mu_eff + 1 / mu_eff - 2) / (n + 4 * math.sqrt(n) + mu_eff / 2))
        step, squares = _weighted(w, self.steps_of(population, state))
        # p_sigma <- (1 - c) p_sigma + sqrt(c (2 - c) mu_eff) D^-1 <y>_w (arXiv:1604.00772, Eq. 43)
        path = step.clone() if state.variances is None else step / state.variances.sqrt()
        path.mul_(math.sqrt(c_sigma * (2 - c_sigma) * mu_eff))
        if state.path is not None:
            path.add_(state.path, alpha=1 - c_sigma)
        length = float(path.norm())
        grown = math.exp(max(-1.0, min(1.0, c_sigma / d_sigma * (length / expected_length(n) - 1))))  # Eq. 44
        h = length**2 / (1 - (1 - c_sigma) ** (2 * done)) < n * (2 + 4 / (n + 1))
        # p_c <- (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) <y>_w (Eq. 45)
        path_c = step * (math.sqrt(c_c * (2 - c_c) * mu_eff) if h else 0.0)
        if state.path_c is not None:
            path_c.add_(state.path_c, alpha=1 - c_c)
        # C_jj <- decay C_jj + c_1 p_c,j^2 + c_mu sum_i w_i y_ij^2 (Eq. 47, its diagonal)
        decay = 1 - c_1 * (1 if h else 1 - c_c * (2 - c_c)) - c_mu
        variances = squares.mul_(c_mu).addcmul_(path_c, path_c, value=c_1)
        variances.add_(1.0 if state.variances is None else state.variances, alpha=decay)
        following = replace(following, path=path, path_c=path_c, variances=variances, sigma=sigma * grown)
        center = center_of(state)
        moved = step.mul_(sigma).add_(center).to(center.dtype)  # Eqs. 41 and 42
        return following, NewCenter(moved)

    def spread(self, state: SepCMAState) -> Spread:
        """How members are spread around the center."""
        variances, path_c = state.variances, state.path_c
        assert variances is not None
        assert path_c is not None
        deviations = variances.sqrt()
        axis, i = torch.zeros_like(deviations), state.generation % len(deviations)
        axis[i] = deviations[i]
        return Spread(deviations, path_c, float(deviations.min()), float(deviations.max()), axis)

    def begun_anew(self, state: SepCMAState) -> SepCMAState:
        """The state with variances of one."""
        return replace(state, path=None, path_c=None, variances=None)


def _weighted(w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_i w_i y_i`` and ``sum_i w_i y_i^2``, float64 ``[d]``, in one pass over the parents.

    Args:
        w: float64 ``[members]``.
        y: ``[members, d]``.
    """
    parents = w.nonzero().flatten().tolist()
    chosen, size = w[parents].to(y.dtype), y.shape[1]
    step, squares = torch.empty(size, dtype=torch.float64), torch.empty(size, dtype=torch.float64)
    for start in range(0, size, _CHUNK):
        part = y[parents, start : start + _CHUNK]
        step[start : start + _CHUNK] = chosen @ part
        squares[start : start + _CHUNK] = chosen @ part.square_()
    return step, squares


SEP_CMA_ES = Recipe(
    name="sep_cma_es",
    summary="CMA-ES with one deviation for each element, at linear cost; for up to millions of elements.",
    paper="Ros & Hansen 2008, doi:10.1007/978-3-540-87700-4_30",
    defaults={"sigma": 0.3},
    algorithm=SepCMAEvolutionStrategy,
)
