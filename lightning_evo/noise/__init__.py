"""Random numbers as a function of their address: :mod:`.values` draws them, :mod:`.rounding` rounds with them.

``from lightning_evo.noise import NoiseKey, draw`` is all that most need.
"""

from lightning_evo.kernels.philox import philox4x32
from lightning_evo.noise.philox import NoiseKey, Stream
from lightning_evo.noise.rounding import stochastic_round
from lightning_evo.noise.values import Distribution, draw

__all__ = ["Distribution", "NoiseKey", "Stream", "draw", "philox4x32", "stochastic_round"]
