"""CMA-ES: members are normally distributed, and the distribution learns the shape of the fitness around its center.

N. Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, https://arxiv.org/abs/1604.00772: sampling (Eqs. 38 to 40),
recombination (Eqs. 41 and 42 with c_m = 1), cumulative step-size adaptation (Eqs. 43 and 44), and the covariance matrix
by its path and by all members, the worse ones with negative weights (Eqs. 45 to 47), with the constants of its Table 1.

Where pycma (4.5) has other constants, they are pycma's: c_sigma has mu_eff + 3 for mu_eff + 5 and is at most 1/2;
d_sigma has, for many parents, the factor 3 (1 - 2^(-n/9)) before the root, if it is above 1; c_1 is smaller by
lambda / 6 for fewer than 6 members; the path p_c waits while ||p_sigma||^2 / (1 - (1 - c_sigma)^2t) > n (2 + 4 / (n +
1)), and ln sigma changes by at most 1 in a generation. As in pycma, the decomposition C = B D^2 B^T is made every
1 / (10 n (c_1 + c_mu)) generations (B.2), and when the condition number of C comes to 1e12, once, its square root
becomes a linear transformation of space and C the identity.

Departures. Members of equal fitness share the mean of the weights that their ranks would have; failed members have
none, and constants are those of the others. A generation whose members all tie changes nothing. pycma moves the
condition of single coordinates (1e8) into a scaling before it transforms; here there is the transformation only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy
import torch
from torch import Tensor

from lightning_evo.algorithms._base import State
from lightning_evo.algorithms.lesson import NewCenter
from lightning_evo.algorithms.population import Population
from lightning_evo.algorithms.recipe import Recipe
from lightning_evo.algorithms.search.ranks import negative_weights, recombination_weights
from lightning_evo.algorithms.search.restarts import RestartingSearch, RunState, Spread
from lightning_evo.algorithms.search.search import center_of, expected_length
from lightning_evo.algorithms.shaping import shape

__all__ = ["CMA_ES", "CMAEvolutionStrategy", "CMAState", "Constants", "step_size"]

_ALLEVIATE = 1e12  # the condition number of C that becomes a transformation


@dataclass(frozen=True)
class CMAState(RunState):
    """What CMA-ES remembers from one generation to the next. ``None`` stands for zero or the identity.

    Attributes:
        path: The evolution path ``p_sigma``, float64 ``[d]``.
        path_c: The evolution path ``p_c``, float64 ``[d]``.
        covariance: ``C``, float64 ``[d, d]``.
        axes: ``B``, its eigenvectors as columns, float64 ``[d, d]``, as of the last decomposition.
        lengths: ``D``, the roots of its eigenvalues, float64 ``[d]``, the smallest first.
        decomposed: Generations of the run when ``axes`` were computed.
        transform: ``T``, of the space in which ``C`` is, float64 ``[d, d]``: steps are ``T B D z``.
    """

    path: Tensor | None = field(default=None, repr=False)
    path_c: Tensor | None = field(default=None, repr=False)
    covariance: Tensor | None = field(default=None, repr=False)
    axes: Tensor | None = field(default=None, repr=False)
    lengths: Tensor | None = field(default=None, repr=False)
    decomposed: int = 0
    transform: Tensor | None = field(default=None, repr=False)


class Constants(NamedTuple):
    """What rates the paths, the covariance matrix and sigma change at.

    Attributes:
        c_sigma: Of the path ``p_sigma``.
        d_sigma: Damping of sigma.
        c_c: Of the path ``p_c``.
        c_1: Of the covariance matrix by the path.
        c_mu: By the members.
        negative: Sum of the negative weights' sizes.
    """

    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    negative: float

    @classmethod
    def of(cls, n: int, members: int, mu_eff: float, mu_eff_negative: float) -> Constants:
        """Those of a dimension, a population, and the effective numbers of its better and worse members.

        Example:
            >>> [round(c, 4) for c in Constants.of(n=10, members=10, mu_eff=3.1673, mu_eff_negative=3.4)]
            [0.3196, 1.3196, 0.295, 0.0153, 0.0236, 1.6489]
        """
        c_sigma, d_sigma = step_size(n, mu_eff)
        c_1 = min(1.0, members / 6) * 2 / ((n + 1.3) ** 2 + mu_eff)  # Eq. 57
        c_mu = min(1 - c_1, 2 * (1 / 4 + mu_eff + 1 / mu_eff - 2) / ((n + 2) ** 2 + mu_eff))  # Eq. 58
        negative = min(  # Eqs. 50 to 52
            1 + c_1 / c_mu, 1 + 2 * mu_eff_negative / (mu_eff + 2), (1 - c_1 - c_mu) / (n * c_mu)
        )
        return cls(c_sigma, d_sigma, (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n), c_1, c_mu, negative)  # Eq. 56

    @property
    def generations_between(self) -> float:
        """Times the dimension: generations from one decomposition to the next."""
        return 1 / (10 * (self.c_1 + self.c_mu))


def step_size(n: int, mu_eff: float) -> tuple[float, float]:
    """``c_sigma`` and ``d_sigma`` of a dimension and an effective number of parents (Eq. 55, as pycma has it)."""
    c = min(0.5, (mu_eff + 2) / (n + mu_eff + 3))
    many = max(1.0, 3 * (1 - 0.5 ** (n / 9)))
    return c, 1 + 2 * max(0.0, many * math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c


@dataclass(frozen=True, kw_only=True)
class CMAEvolutionStrategy(RestartingSearch[CMAState]):
    """The (mu/mu_w, lambda)-CMA-ES with active covariance matrix adaptation.

    Args:
        population: Number of members, lambda; ``None`` for ``4 + floor(3 ln d)``.
        sigma: Step size of the first generation, > 0, about a third of how far away the optimum may be.
        name: Name for checkpoints.
        active: Whether members of the worse half have negative weights in the covariance matrix.
        **criteria: ``restarts``, ``tolx`` … ``ftarget``: when a run ends and whether another follows, as in
            :class:`~lightning_evo.algorithms.search.restarts.RestartingSearch`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> algorithm = CMAEvolutionStrategy(sigma=0.5)
        >>> state = algorithm.init(torch.ones(5, dtype=torch.float64), seed=1)
        >>> scales = torch.logspace(0, 4, 5, dtype=torch.float64)
        >>> for _ in range(200):
        ...     population = algorithm.ask(state)
        ...     state = algorithm.tell(state, population, -(population.vectors().square() @ scales))
        >>> float(state.center.norm()) < 1e-4
        True
    """

    name: str = "cma_es"
    active: bool = True

    State: ClassVar[type[State]] = CMAState
    learns_alike: ClassVar[bool] = False

    def steps(self, state: CMAState) -> Tensor:
        """``y_k = T B D z_k``, float64 ``[members, d]``."""
        return self._steps(state, self.normal(state))

    @staticmethod
    def _steps(state: CMAState, z: Tensor, transformed: bool = True) -> Tensor:
        if state.axes is not None and state.lengths is not None:
            z = (z * state.lengths) @ state.axes.T
        return z @ state.transform.T if transformed and state.transform is not None else z

    def update(
        self, state: CMAState, population: Population, fitness: Tensor, numel: int
    ) -> tuple[CMAState, NewCenter]:
        """Center, paths, covariance matrix and sigma after a generation."""
        w = shape(fitness, recombination_weights)
        following = replace(state, generation=state.generation + 1)
        if not w.any():
            return following, NewCenter(None)
        n, sigma, done = numel, population.sigma, following.generation - state.run_began
        worse = shape(fitness, negative_weights)
        mu_eff = 1 / float(w.square().sum())
        c = Constants.of(n, int(fitness.isnan().logical_not().sum()), mu_eff, 1 / float(worse.square().sum()))
        z = self.normal(state)
        y = self.steps_of(population, state) if state.transform is None else self._steps(state, z, transformed=False)
        step = w @ y
        # p_sigma <- (1 - c) p_sigma + sqrt(c (2 - c) mu_eff) C^(-1/2) <y>_w (Eq. 43), where C^(-1/2) y = B z
        white = w @ z if state.axes is None else state.axes @ (w @ z)
        path = math.sqrt(c.c_sigma * (2 - c.c_sigma) * mu_eff) * white
        path = path if state.path is None else path.add_(state.path, alpha=1 - c.c_sigma)
        length = float(path.norm())
        grown = math.exp(max(-1.0, min(1.0, c.c_sigma / c.d_sigma * (length / expected_length(n) - 1))))  # Eq. 44
        h = length**2 / (1 - (1 - c.c_sigma) ** (2 * done)) < n * (2 + 4 / (n + 1))
        # p_c <- (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) <y>_w (Eq. 45)
        path_c = (math.sqrt(c.c_c * (2 - c.c_c) * mu_eff) if h else 0.0) * step
        path_c = path_c if state.path_c is None else path_c.add_(state.path_c, alpha=1 - c.c_c)
        weights = w + c.negative * worse if self.active else w
        decay = 1 - c.c_1 * (1 if h else 1 - c.c_c * (2 - c.c_c)) - c.c_mu * float(weights.sum())
        scaled = torch.where(weights < 0, weights * n / (z.norm(dim=1) + 1e-9).square(), weights)  # Eq. 46
        # C <- decay C + c_1 p_c p_c^T + c_mu sum_i w_i y_i y_i^T (Eq. 47)
        rows = torch.cat([path_c[None], y])
        factors = torch.cat([torch.tensor([c.c_1], dtype=torch.float64), c.c_mu * scaled])
        old = torch.eye(n, dtype=torch.float64) if state.covariance is None else state.covariance
        covariance = torch.addmm(old, (rows * factors[:, None]).T, rows, beta=decay)
        following = replace(following, path=path, path_c=path_c, covariance=covariance, sigma=sigma * grown)
        if done >= state.decomposed + c.generations_between / n:
            following = _decomposed(following, done)
        center = center_of(state)
        shift = step if state.transform is None else state.transform @ step
        return following, NewCenter((center.double() + sigma * shift).to(center.dtype))  # Eqs. 41 and 42

    def spread(self, state: CMAState) -> Spread:
        """How members are spread around the center."""
        n = center_of(state).numel()
        covariance, path_c, transform = state.covariance, state.path_c, state.transform
        if covariance is None or path_c is None:
            ones = torch.ones(n, dtype=torch.float64)
            return Spread(ones, 0 * ones, 1.0, 1.0, None)
        if transform is None:
            variances = covariance.diagonal()
        else:
            variances, path_c = ((transform @ covariance) * transform).sum(1), transform @ path_c
        if state.axes is None or state.lengths is None:
            return Spread(variances.clamp(min=0).sqrt(), path_c, 1.0, 1.0, None)
        i = state.generation % n
        axis = state.axes[:, i] * state.lengths[i]
        axis = axis if transform is None else transform @ axis
        shortest, longest = float(state.lengths[0]), float(state.lengths[-1])
        return Spread(variances.clamp(min=0).sqrt(), path_c, shortest, longest, axis)

    def begun_anew(self, state: CMAState) -> CMAState:
        """The state with the identity as covariance matrix."""
        return replace(
            state, path=None, path_c=None, covariance=None, axes=None, lengths=None, decomposed=0, transform=None
        )


def _decomposed(state: CMAState, done: int) -> CMAState:
    """The state with ``C = B D^2 B^T``, and with C's root as a transformation where its condition is large."""
    covariance = state.covariance
    assert covariance is not None
    covariance = (covariance + covariance.T).div_(2)
    found = numpy.linalg.eigh(covariance.numpy())  # its LAPACK takes three quarters of the time of torch's
    eigenvalues, axes = (torch.from_numpy(each).clone() for each in found)  # aligned, so that products round alike
    if eigenvalues[0] <= 0:  # by rounding only: C is positive definite
        least = torch.finfo(torch.float64).eps * eigenvalues[-1] - eigenvalues[0]
        covariance.diagonal().add_(least)
        eigenvalues = eigenvalues + least
    lengths = eigenvalues.sqrt()
    state = replace(state, covariance=covariance, axes=axes, lengths=lengths, decomposed=done)
    if eigenvalues[-1] < _ALLEVIATE * eigenvalues[0] or state.transform is not None:
        return state
    assert state.path_c is not None
    root = (axes * lengths) @ axes.T
    return replace(
        state,
        path_c=axes @ ((axes.T @ state.path_c) / lengths),
        covariance=None,
        axes=None,
        lengths=None,
        transform=root,
    )


CMA_ES = Recipe(
    name="cma_es",
    summary="A normal distribution that learns the shape of the fitness; for up to some thousand elements.",
    paper="Hansen 2016, arXiv:1604.00772",
    defaults={"sigma": 0.3},
    algorithm=CMAEvolutionStrategy,
)
