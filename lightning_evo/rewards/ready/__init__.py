"""Ready-made reward functions with TRL's signature.

Each is a small object that is made with its options and then called by keyword with lists, as TRL's trainers and
:class:`~lightning_evo.rewards.RewardModule` do. All take texts and conversational completions.

Example:
    >>> from lightning_evo.rewards.ready import ExactMatch, LengthPenalty
    >>> functions = [ExactMatch("capital", casefold=True), LengthPenalty("capital", scale=0.02, shorter_is_fine=True)]
    >>> [reward(completions=["It is Paris"], capital=["Paris"]) for reward in functions]
    [[0.0], [-0.12]]
"""

from lightning_evo.rewards.ready.countdown import Countdown, value_of
from lightning_evo.rewards.ready.json_texts import ValidJSON
from lightning_evo.rewards.ready.lengths import LengthPenalty
from lightning_evo.rewards.ready.matches import ExactMatch, PatternMatch
from lightning_evo.rewards.ready.numbers import NumberMatch, number_in

__all__ = [
    "Countdown",
    "ExactMatch",
    "LengthPenalty",
    "NumberMatch",
    "PatternMatch",
    "ValidJSON",
    "number_in",
    "value_of",
]
