"""The noise: its bits against the published ones, its values against their distributions, its independence of layout.

All draws are deterministic, so a statistical test either always passes or always fails. Its threshold is what chance
alone would exceed less often than once in the number of cases given next to it.
"""

import hashlib
import math
import random
from statistics import NormalDist

import numpy
import pytest
import torch
from scipy import stats

from lightning_evo.kernels import COMPILED, backend, compiled
from lightning_evo.kernels.normal import SLICES, normal_table
from lightning_evo.kernels.philox import philox4x32
from lightning_evo.kernels.values import row_size, rows
from lightning_evo.noise.philox import NoiseKey, Stream, address_of
from lightning_evo.noise.values import Distribution, draw

DISTRIBUTIONS: list[Distribution] = ["gaussian", "rademacher", "uniform"]
MASK = 0xFFFFFFFF
CPU = torch.device("cpu")


# --- the bits -------------------------------------------------------------------------------------------------------


def reference_philox(counter, key):
    """Philox4x32-10 in plain Python integers, from the paper's definition: 32-bit multiply-high, multiply-low, xor."""
    x, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(x[0] * 0xD2511F53, 1 << 32)
        high1, low1 = divmod(x[2] * 0xCD9E8D57, 1 << 32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
    return x


def tensors(words):
    return [torch.tensor(word) for word in words]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's kat_vectors
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    counter, key, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    assert [int(word) for word in philox4x32(tensors(counter), tuple(tensors(key)))] == expected
    assert reference_philox(counter, key) == expected


def test_philox_equals_plain_integers_on_random_counters():
    integers = random.Random(1)
    cases = [[integers.getrandbits(32) for _ in range(6)] for _ in range(500)]
    cases += [[0, MASK, 0, MASK, MASK, 0], [1 << 31] * 6, [(1 << 31) - 1] * 6]
    columns = list(torch.tensor(cases).unbind(1))
    words = torch.stack(philox4x32(columns[:4], (columns[4], columns[5])), dim=1)
    assert words.tolist() == [reference_philox(case[:4], case[4:]) for case in cases]


def reference_word(key, member, parameter, index):
    """Word number ``index`` of a parameter, by the address layout that the head of values.py gives."""
    row, word, i = index // 64, index % 64 // 16, index % 16
    counter = [16 * row + i, parameter + (key.stream << 28), key.generation, member]
    return reference_philox(counter, [key.seed & MASK, key.seed >> 32 & MASK])[word]


ADDRESSES = [
    (NoiseKey(0, 0), 0, 0, 0),
    (NoiseKey(12345, 7), 3, 2, 1000),
    (NoiseKey(2**64 - 1, MASK, 15), MASK, (1 << 28) - 1, 77),
    (NoiseKey(2**63 + 12, 99, Stream.ROUNDING), 1 << 31, 1 << 27, 123_456_789),
    (NoiseKey(-3, 1, Stream.SUBSET), 5, 6, (1 << 34) - 40),  # the last words there are
]


@pytest.mark.parametrize(("key", "member", "parameter", "start"), ADDRESSES)
def test_uniform_values_are_the_upper_24_bits_of_the_words_at_their_address(key, member, parameter, start):
    values = draw(key, [member], parameter, start, start + 40, distribution="uniform")[0]
    expected = [(reference_word(key, member, parameter, start + i) >> 8) / 2**24 for i in range(40)]
    assert values.tolist() == expected


@pytest.mark.parametrize(("key", "member", "parameter", "start"), ADDRESSES)
def test_rademacher_values_are_single_bits_of_the_words_at_their_address(key, member, parameter, start):
    values = draw(key, [member], parameter, start, start + 40, distribution="rademacher")[0]
    expected = []
    for offset in range(start, start + 40):
        row, rest = divmod(offset, 64 * 32)  # a row holds 4 words x 32 bits x 16 blocks, in this order
        word, bit, i = rest // 512, rest % 512 // 16, rest % 16
        bits = reference_word(key, member, parameter, 64 * row + 16 * word + i)
        expected.append(1.0 if bits >> bit & 1 else -1.0)
    assert values.tolist() == expected


@pytest.mark.parametrize(("key", "member", "parameter", "start"), ADDRESSES)
def test_gaussian_values_are_looked_up_by_the_halves_of_the_words_at_their_address(key, member, parameter, start):
    values = draw(key, [member], parameter, start, start + 40)[0]
    expected = []
    for offset in range(start, start + 40):
        row, rest = divmod(offset, 64 * 2)  # a row holds 4 words x 2 halves x 16 blocks, in this order
        word, half, i = rest // 32, rest % 32 // 16, rest % 16
        bits = reference_word(key, member, parameter, 64 * row + 16 * word + i) >> 16 * half & 0xFFFF
        magnitude = float(normal_table(CPU)[bits & 0x7FFF])
        expected.append(-magnitude if bits >> 15 else magnitude)
    assert values.tolist() == expected


@pytest.mark.parametrize(("key", "member", "parameter", "start"), ADDRESSES[:4])
def test_uniform_values_of_16_bits_are_the_halves_of_the_words(key, member, parameter, start):
    """With these the update is rounded."""
    row = torch.tensor([start // 128, start // 128 + 5])
    address = torch.tensor(address_of(key, parameter))
    values = rows("uniform16", row, torch.tensor(member), address, normal_table(CPU))
    assert values.shape == (2, row_size("uniform16"))
    for r, found in zip(row.tolist(), values.tolist(), strict=True):
        words = [reference_word(key, member, parameter, 64 * r + i) for i in range(64)]
        halves = [words[16 * w + i] >> 16 * h & 0xFFFF for w in range(4) for h in range(2) for i in range(16)]
        assert found == [half / 2**16 for half in halves]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("distribution", "golden"),
    [
        ("gaussian", "f35d6ea7725beb5f3b279197068ad30cfb40304c3a52c523aaf7a14c62aa6642"),
        ("rademacher", "f51c7a6cc77d3c6d437935160c84a60c3569d41728a2a1e96f2b298d615a3b3e"),
        ("uniform", "bf32a6ecad37006289475e8e84bb6cb5c4e4fdd143a4cf11126342f1a08804fd"),
    ],
)
def test_values_are_the_same_everywhere(distribution, golden):
    values = draw(NoiseKey(2024, 5), [0, 3], 1, 17, 100_017, distribution=distribution)
    assert hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest() == golden


# --- the layout does not matter -------------------------------------------------------------------------------------


def whole(distribution, members=(0, 7, 4_000_000_000), stop=4_000, **options):
    return draw(NoiseKey(9, 4), members, 3, 0, stop, distribution=distribution, **options)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("chunk_rows", [1, 3, 1 << 14])
def test_any_slice_equals_the_slice_of_the_whole(distribution, chunk_rows, monkeypatch):
    expected = whole(distribution)
    monkeypatch.setattr(backend, "_CHUNK_ROWS", chunk_rows)
    integers = random.Random(2)
    bounds = [(0, 4_000), (5, 5), (63, 65), (64, 128), (127, 193), (2047, 2049), (3_999, 4_000)]
    bounds += [sorted(integers.sample(range(4_001), 2)) for _ in range(15)]
    for start, stop in bounds:
        part = draw(NoiseKey(9, 4), [0, 7, 4_000_000_000], 3, start, stop, distribution=distribution)
        assert torch.equal(part, expected[:, start:stop]), (start, stop)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_slices_across_the_border_of_a_full_chunk(distribution):
    border = backend._CHUNK_ROWS * row_size(distribution)
    key = NoiseKey(0, 0)
    across = draw(key, [1, 2], 0, border - 1000, border + 1000, distribution=distribution)
    before = draw(key, [1, 2], 0, border - 1000, border, distribution=distribution)
    after = draw(key, [1, 2], 0, border, border + 1000, distribution=distribution)
    assert torch.equal(across, torch.cat([before, after], dim=1))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_order_and_grouping_of_members_do_not_matter(distribution):
    key, members = NoiseKey(9, 4), [5, 0, 3, MASK, 0]
    together = draw(key, members, 3, 50, 3000, distribution=distribution)
    for row, member in zip(together, members, strict=True):
        assert torch.equal(draw(key, [member], 3, 50, 3000, distribution=distribution)[0], row)
    assert torch.equal(together[1], together[4])  # the same member twice
    backwards = draw(key, members[::-1], 3, 50, 3000, distribution=distribution)
    assert torch.equal(backwards.flip(0), together)
    assert torch.equal(draw(key, range(4), 3, 50, 3000, distribution=distribution)[3], together[2])


def test_neither_draws_from_nor_depends_on_global_generators():
    before = torch.get_rng_state()
    first = whole("gaussian")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(whole("gaussian"), first)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_dtypes_hold_the_same_values(distribution):
    single = whole(distribution)
    assert single.dtype == torch.float32
    double = whole(distribution, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(double, single.double())
    for dtype in (torch.bfloat16, torch.float16):
        short = whole(distribution, dtype=dtype)
        assert short.dtype == dtype
        assert torch.equal(short, nearest_even(single.double(), dtype))


def nearest_even(values, dtype):
    """Round to nearest, ties to even, from the definition: a grid of ``2^(exponent - mantissa bits)``."""
    mantissa_bits = {torch.bfloat16: 7, torch.float16: 10}[dtype]
    smallest_exponent = {torch.bfloat16: -126, torch.float16: -14}[dtype]
    _, exponent = torch.frexp(values)  # values = m 2^exponent with 1/2 <= |m| < 1
    step = torch.pow(2.0, (exponent - 1).clamp(min=smallest_exponent) - mantissa_bits).double()
    return ((values / step).round() * step).to(dtype)  # torch.round goes to even


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_empty_draws(dtype):
    assert draw(NoiseKey(0, 0), [0, 1], 0, 5, 5, dtype=dtype).shape == (2, 0)
    assert draw(NoiseKey(0, 0), [], 0, 5, 9, dtype=dtype).shape == (0, 4)


# --- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("setting", ["torch", "auto"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_gpu_gives_the_same_bits(distribution, setting, monkeypatch):
    spans = [(0, 1), (61, 5000), (10**9, 10**9 + 3_000_000)]
    expected = [draw(NoiseKey(2**64 - 5, 7), [0, MASK], 3, *span, distribution=distribution) for span in spans]
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", setting)
    monkeypatch.setattr(compiled, "_COMPILE_AFTER", 0)
    for span, values in zip(spans, expected, strict=True):
        on_gpu = draw(NoiseKey(2**64 - 5, 7), [0, MASK], 3, *span, distribution=distribution, device="cuda")
        assert on_gpu.device.type == "cuda"
        assert torch.equal(on_gpu.cpu(), values)
    assert not COMPILED.failed


# --- the distributions ----------------------------------------------------------------------------------------------


def test_gaussian_moments():
    n = 1 << 22
    values = draw(NoiseKey(0, 0), [0], 0, 0, n, dtype=torch.float64)[0]
    # Standard errors of the sample moments of N(0, 1): sqrt(Var(z^k) / n), Var = 1, 2, 15, 96. 4.9 of them are
    # exceeded once in a million.
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((values**power).mean()) - expected) < 4.9 * math.sqrt(variance / n), power


def test_gaussian_distribution_function():
    n = 1 << 21
    values = draw(NoiseKey(1, 0), [0], 0, 0, n)[0].numpy()
    # Kolmogorov-Smirnov: P(D > x / sqrt(n)) -> 2 exp(-2 x^2), once in a million at x = 2.69: D = 0.00186. Steps of
    # 2^-16 in the distribution function are far below.
    assert stats.kstest(values, "norm").statistic < 2.69 / math.sqrt(n)
    # All of the 65,536 values are equally likely: chi-square, once in a million.
    observed = numpy.unique(values, return_counts=True)
    assert len(observed[0]) == 1 << 16
    assert stats.chisquare(observed[1]).pvalue > 1e-6


def test_gaussian_tails():
    n_chunk, chunks = 1 << 20, 10
    beyond = {3.0: 0, 4.0: 0}
    largest = normal_table(CPU)[:SLICES].max()
    for start in range(0, n_chunk * chunks, n_chunk):
        magnitude = draw(NoiseKey(2, 0), [0], 0, start, start + n_chunk)[0].abs()
        assert magnitude.max() == largest  # 1 in 32,768 of all: none of the chunks goes without
        for limit in beyond:
            beyond[limit] += int((magnitude > limit).sum())
    # Counts are Poisson; 28,311 and 664 are expected of 10.5 M. Two-sided, once in a hundred thousand, plus the
    # documented error of the distribution function.
    for limit, count in beyond.items():
        expected = 2 * NormalDist().cdf(-limit) * n_chunk * chunks
        lower, upper = stats.poisson.ppf([5e-6, 1 - 5e-6], expected)
        error = 2e-5 * n_chunk * chunks
        assert lower - error <= count <= upper + error, (limit, count, expected)


def test_rademacher_bits_are_fair_and_independent():
    n = 1 << 22
    values = draw(NoiseKey(0, 0), [0], 0, 0, n, distribution="rademacher")[0]
    assert set(values.unique().tolist()) == {-1.0, 1.0}
    # Chi-square over the 2^8 patterns of 8 neighbours; chance exceeds the threshold once in a million.
    patterns = ((values.view(-1, 8) > 0) * 2 ** torch.arange(8)).sum(1)
    observed = torch.bincount(patterns, minlength=256)
    assert stats.chisquare(observed.numpy()).pvalue > 1e-6
    assert stats.chisquare([int((values > 0).sum()), int((values < 0).sum())]).pvalue > 1e-6
    # The same bit of neighbouring blocks, and the 32 bits of one word, lie 1 and 16 elements apart.
    for lag in (1, 2, 15, 16, 17, 32, 512, 2048):
        assert abs(float((values[lag:] * values[:-lag]).mean())) < 4.9 / math.sqrt(n - lag), lag


def test_uniform_distribution():
    n = 1 << 21
    values = draw(NoiseKey(0, 0), [0], 0, 0, n, distribution="uniform")[0]
    assert values.min() >= 0
    assert values.max() < 1
    assert torch.equal(values * 2**24, (values * 2**24).floor())
    assert stats.kstest(values.numpy(), "uniform").statistic < 2.69 / math.sqrt(n)  # as for the Gaussian
    assert stats.chisquare(torch.bincount((values * 1024).long(), minlength=1024).numpy()).pvalue > 1e-6


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_everything_in_an_address_gives_independent_noise(distribution):
    n = 1 << 14
    sequences = [
        draw(NoiseKey(seed, generation, stream), [0, 1, 2, 1 << 16], parameter, 0, n, distribution=distribution)
        for seed in (0, 1, 1 << 32)
        for generation in (0, 1, 2)
        for stream in (Stream.PERTURBATION, Stream.ROUNDING)
        for parameter in (0, 1, 1 << 27)
    ]
    values = torch.cat(sequences).double()
    assert len(values) == 216
    # 23,220 correlations with standard error 1/sqrt(n); chance alone exceeds 6 of them 5 times in 100,000.
    correlation = values @ values.T / n
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 6 / math.sqrt(n)
    if distribution == "gaussian":  # not even the sizes go together; z^2 has variance 2
        squares = (values**2 - 1) / math.sqrt(2)
        correlation = squares @ squares.T / n
        correlation.fill_diagonal_(0)
        assert correlation.abs().max() < 6 / math.sqrt(n)


def test_neighbours_are_independent():
    n = 1 << 20
    values = draw(NoiseKey(5, 5), [0], 0, 0, n, dtype=torch.float64)[0]
    for transform in (values, (values**2 - 1) / math.sqrt(2)):
        for lag in (*range(1, 20), 31, 32, 33, 48, 63, 64, 65, 128, 1024, 1 << 14):
            # 58 of them beyond 5.2 standard errors: once in 100,000
            assert abs(float((transform[lag:] * transform[:-lag]).mean())) < 5.2 / math.sqrt(n - lag), lag


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distribution": "cauchy"}, "Unknown distribution 'cauchy'; choose one of gaussian, rademacher, uniform"),
        ({"dtype": torch.int32}, "floating dtype such as torch.float32, got torch.int32"),
        ({"start": -1}, "got start=-1"),
        ({"start": 11}, "got start=11, stop=10"),
        ({"stop": (1 << 34) + 1}, "stop=17179869185"),
        ({"parameter": 1 << 28}, r"parameter must be in \[0, 2\^28\), got 268435456"),
        ({"parameter": -1}, "parameter must be"),
        ({"members": [0, 1 << 32]}, r"member must be in \[0, 2\^32\), got 4294967296"),
        ({"members": [0, -1]}, "member must be in"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    arguments = {"key": NoiseKey(0, 0), "members": [0], "parameter": 0, "start": 0, "stop": 10, **arguments}
    with pytest.raises(ValueError, match=message):
        draw(**arguments)


@pytest.mark.parametrize(
    ("generation", "stream", "message"),
    [
        (-1, 0, "generation must be"),
        (1 << 32, 0, r"generation must be in \[0, 2\^32\)"),
        (0, 16, r"\[0, 2\^4\), got 16"),
    ],
)
def test_keys_out_of_range(generation, stream, message):
    with pytest.raises(ValueError, match=message):
        NoiseKey(0, generation, stream)


def test_seeds_count_modulo_two_to_the_64():
    seeds = [5, 5 + 2**64, 5 - 2**64]
    first, *others = (draw(NoiseKey(seed, 0), [0], 0, 0, 100) for seed in seeds)
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, draw(NoiseKey(5 + 2**32, 0), [0], 0, 0, 100))
