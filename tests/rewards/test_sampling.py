"""Sampling by shared noise: the right distribution, and the same noise wherever a prompt stands."""

import hashlib
import struct

import pytest
import torch
from scipy import stats

from lightning_evo.noise.philox import NoiseKey, Stream
from lightning_evo.rewards.sampling import GumbelNoise, gumbel, prompt_ids

KEY = NoiseKey(seed=3, generation=5, stream=Stream.SAMPLING)


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return float(stats.chi2.sf(float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1))


def test_the_largest_is_a_sample_of_the_softmax():
    """20,000 prompts at one position, and one prompt at 4,000 positions; p > 0.001."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -3.0])
    over_prompts = (logits + gumbel(KEY, range(20_000), 0, 5)).argmax(1)
    over_positions = torch.cat([(logits + gumbel(KEY, [7], position, 5)).argmax(1) for position in range(4_000)])
    for chosen in (over_prompts, over_positions):
        assert chi_square(torch.bincount(chosen, minlength=5).double(), logits.double().softmax(0)) > 1e-3


def test_noise_is_standard_gumbel():
    """Kolmogorov and Smirnov's test of 50,000 values, and the correlation of neighbours."""
    noise = gumbel(KEY, [1, 2], 0, 25_000)
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 4 / 25_000**0.5
    assert abs(float(torch.corrcoef(torch.stack([noise[0, :-1], noise[0, 1:]]))[0, 1])) < 4 / 25_000**0.5


def test_the_largest_values_are_fine():
    """Among many tokens that are equally likely the largest values decide: 24 bits would be few, and tie."""
    largest = gumbel(KEY, [0], 0, 1 << 22).flatten().topk(2000).values
    assert len(largest.unique()) >= 1990
    assert largest.isfinite().all()
    assert gumbel(KEY, [0], 0, 1 << 22).isfinite().all()


@pytest.mark.parametrize(
    "other",
    [
        lambda: gumbel(KEY, [8], 0, 50),
        lambda: gumbel(KEY, [7], 1, 50),
        lambda: gumbel(NoiseKey(3, 6, Stream.SAMPLING), [7], 0, 50),
        lambda: gumbel(NoiseKey(4, 5, Stream.SAMPLING), [7], 0, 50),
        lambda: gumbel(NoiseKey(3, 5, Stream.SUBSET), [7], 0, 50),
    ],
    ids=["prompt", "position", "generation", "seed", "stream"],
)
def test_another_address_has_other_noise(other):
    assert (gumbel(KEY, [7], 0, 50) != other()).float().mean() > 0.9


def test_every_backend_gives_the_same_noise(monkeypatch):
    fast = gumbel(KEY, [7, (1 << 32) - 1], 3, 100)
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "torch")
    assert torch.equal(fast, gumbel(KEY, [7, (1 << 32) - 1], 3, 100))


def test_prompts_are_known_by_tokens_and_occurrence():
    ids = prompt_ids([[1, 2], [3], [1, 2], [1, 2], [2, 1]])
    assert len(set(ids)) == 5
    assert prompt_ids([[3], [1, 2], [2, 1], [1, 2]]) == [ids[1], ids[0], ids[4], ids[2]]
    assert all(0 <= number < 1 << 32 for number in ids)
    assert prompt_ids([[1, 2]]) == [
        int.from_bytes(hashlib.blake2b(struct.pack("<3Q", 0, 1, 2), digest_size=4).digest(), "little")
    ]


def test_members_share_noise_and_padding_does_not_matter():
    scores = torch.randn(3, 11)
    four = GumbelNoise(KEY, [5, 6, 7], length=4)(torch.zeros(12, 6, dtype=torch.long), scores.repeat(4, 1))
    for member in four.split(3):
        assert torch.equal(member, four[:3])
    alone = GumbelNoise(KEY, [6], length=9)(torch.zeros(1, 11, dtype=torch.long), scores[1:2])
    torch.testing.assert_close(alone[0], four[1], rtol=1e-6, atol=1e-6)
