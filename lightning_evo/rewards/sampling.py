"""Sampling by noise that all members share: Gumbel noise at the address of (prompt, position, token).

The largest of ``logits / temperature + g`` with independent Gumbel noise ``g`` is a sample of the softmax (Gumbel 1954;
Maddison, Tarlow and Minka 2014, https://arxiv.org/abs/1411.0030). Here ``g`` is a pure function of its address, so that
members differ by their weights alone: how they are grouped, how prompts are padded, and what else was drawn do not
matter. In another generation it is other noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.values import draw

__all__ = ["GumbelNoise", "gumbel", "prompt_ids"]

_BITS = 2.0**-24  # of a uniform value
_LARGEST = 1 - _BITS  # below 1 in float32


def prompt_ids(tokens: Sequence[Sequence[int]]) -> list[int]:
    """A number for each prompt of a member's batch, which is the same wherever the prompt is among how many others.

    Args:
        tokens: Each prompt's token ids, without padding.

    Returns:
        Numbers in [0, 2^32). A prompt that comes again has another one each time: by its tokens and how often they came
        before.

    Example:
        >>> first, second, again = prompt_ids([[5, 6], [7], [5, 6]])
        >>> first == again, prompt_ids([[7], [5, 6]]) == [second, first]
        (False, True)
    """
    seen: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for prompt in map(tuple, tokens):
        content = b"".join(token.to_bytes(8, "little") for token in (seen[prompt], *prompt))
        numbers.append(int.from_bytes(blake2b(content, digest_size=4).digest(), "little"))
        seen[prompt] += 1
    return numbers


def gumbel(
    key: NoiseKey, prompts: Sequence[int], position: int, vocabulary: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Independent standard Gumbel noise ``-log(-log(u))`` for the tokens that may come next.

    Args:
        key: Seed, generation and stream.
        prompts: Numbers in [0, 2^32), as :func:`prompt_ids` gives them.
        position: How many tokens were written before, in [0, 2^28).
        vocabulary: Number of tokens.
        device: Where to make it.

    Returns:
        float32 ``[prompts, vocabulary]``.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> key = NoiseKey(seed=0, generation=3)
        >>> both = gumbel(key, [7, 9], position=0, vocabulary=5)
        >>> both.shape, torch.equal(gumbel(key, [9], position=0, vocabulary=5)[0], both[1])
        (torch.Size([2, 5]), True)
    """
    uniform = draw(key, prompts, position, 0, 2 * vocabulary, distribution="uniform", device=device)
    coarse, fine = uniform[:, :vocabulary], uniform[:, vocabulary:]
    # v = 1 - u has 48 bits where it is small: there lie the largest values, between which the choice is made.
    v = (coarse + (fine + _BITS / 2) * _BITS).clamp(max=_LARGEST)
    return -(-torch.log1p(-v)).log()


class GumbelNoise:
    """Adds noise to the scores of the next token, so that the largest is a sample: a logits processor of transformers.

    The processors before it see scores that are divided by the temperature, and what they rule out by minus infinity
    stays ruled out.

    Args:
        key: Seed, generation and stream.
        prompts: The number of each prompt of one member, as :func:`prompt_ids` gives them.
        length: Tokens of the padded prompts.

    Example:
        >>> noise = GumbelNoise(NoiseKey(seed=0, generation=3), [7, 9], length=2)
        >>> scores = torch.tensor([[0.0, -torch.inf, 0.0], [0.0, 0.0, -torch.inf]])
        >>> two_members = noise(torch.zeros(4, 2, dtype=torch.long), scores.repeat(2, 1))
        >>> torch.equal(two_members[:2], two_members[2:]), two_members[0, 1]
        (True, tensor(-inf))
    """

    def __init__(self, key: NoiseKey, prompts: Sequence[int], length: int) -> None:
        self._key, self._prompts, self._length = key, list(prompts), length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores with noise.

        Args:
            input_ids: Prompts and what was written, int64 ``[rows, length]``: all prompts of a member, then the next's.
            scores: ``[rows, vocabulary]``.

        Returns:
            ``[rows, vocabulary]``.
        """
        with torch._C.DisableTorchFunction():  # members may be rows that are followed; this is none of their business
            rows, vocabulary = scores.shape
            position = input_ids.shape[1] - self._length
            noise = gumbel(self._key, self._prompts, position, vocabulary, scores.device).to(scores.dtype)
            noise = noise.repeat(rows // len(self._prompts), 1)
        return scores + noise
