"""Random numbers as a function of their address: :mod:`.values` draws them, :mod:`.rounding` rounds with them.

``from lightning_evo.noise import NoiseKey, draw`` is all that most need.
"""

from lightning_evo.noise.rounding import stochastic_round
from lightning_evo.noise.values import Distribution, NoiseKey, Stream, draw, philox4x32

__all__ = ["Distribution", "NoiseKey", "Stream", "draw", "philox4x32", "stochastic_round"]
