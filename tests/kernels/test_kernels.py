"""The C++ kernels: the bits of the plain tensor operations, and never in the way where they can't be built."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_evo import kernels
from lightning_evo.kernels import COMPILED, REFERENCE, Native, Pull, Span, Values, backend_for, build
from lightning_evo.kernels.native import threads as threads_for
from lightning_evo.kernels.values import noise_dtype
from lightning_evo.noise.philox import NoiseKey, address_of
from lightning_evo.noise.rounding import move
from lightning_evo.noise.values import draw
from lightning_evo.perturbations import Dense, Moving, Part
from tests.conftest import has_kernels
from tests.kernels.bits import bits, difficult, same_bits

DISTRIBUTIONS = ["gaussian", "rademacher", "uniform"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEY = NoiseKey(2**64 - 5, 7)

needs_kernels = pytest.mark.skipif(not has_kernels(), reason="needs the noise kernels")


def everything(distribution, dtype):
    """What all functions of the library give, by the public ways to them; whether or not they take those."""
    subject, center = Dense(KEY, distribution), difficult(9001, dtype)
    found = [
        draw(KEY, [0, 2**32 - 1, 5], 3, start, stop, distribution=distribution, dtype=dtype)
        for start, stop in [(0, 9001), (61, 5000), (2048, 4096), (10**9 + 1, 10**9 + 4000), (2**34 - 99, 2**34)]
    ]
    for steps in ([0.1], [0.1, -0.1], [1e-30, -3e38, 0.0, math.inf, 7.0]):
        found += subject.members([4], steps, [Part(3, center)])[0]
    found += subject.members([4, 0, 2**32 - 1], [0.1, -0.1, 7.0, 0.0, 1e-30, -3e38], [Part(3, center)])[0]
    found += subject.members([4], [0.1, -0.1], [Part.of_rows(3, center[:9000].view(90, 100), 17, 88)])[0]
    for width, chosen in [(128, [69, 0, 3, 3]), (100, [[89, 5], [0, 5]]), (3, [2999]), (2500, [2, 0])]:
        matrix = center[: 9001 // width * width].view(-1, width)
        found += subject.chosen_rows([4, 0], [0.1, -0.1, 7.0, 0.0], 3, matrix, torch.tensor(chosen))
    for weights in ([0.5], [0.5, 0.0, -1.25, 3e-5, -7.0, 0.1], [0.0, math.inf, -math.inf]):
        found += [subject.weighted_sum(weights, 3, center, *span) for span in [(), (128,), (2048, 8000), (77, 5000)]]
    for size in (1e-30, 1e-4, 1.0, 1e30):
        step = torch.randn(len(center), generator=torch.Generator().manual_seed(1)).to(noise_dtype(center)) * size
        step[::7] = 0
        for start in (0, 128, 128 * 1001):
            moving = center.clone()
            move(moving, step, KEY, 3, start)
            found.append(moving)
        # In one call: of several sizes, one of them more than a thread's part, and one of another dtype.
        moving = [center[:elements].clone() for elements in (len(center), 8192, 2049, 256, 31, 0)]
        moving += [center.repeat(4), center.double()]
        rates = [0.25, 0.5, -1.0, 2.0, 0.0, 1.0, 0.25, 0.25]
        each = enumerate(zip(moving, rates, strict=True), start=3)
        norms = subject.move([size, 0.0, -1.0], [Moving(i, *one) for i, one in each], NoiseKey(1, 2))
        assert len(norms) == len(moving)
        found += moving
    for pull in (Pull(center, "l2", 0.25), Pull(center, "l1", 0.1), Pull(center, "l2", 1e-3, 0.5)):
        found += drawn_back(subject, center, pull)
    several = [center, center[:100], center[:0], center[:9000].view(90, 100).T, center.repeat(4), center.double()]
    for members in subject.members([4, 7], [0.1, -0.1], [Part(i, tensor) for i, tensor in enumerate(several)]):
        found += members
    return found


def drawn_back(subject, center, pull):
    """What moves give that are drawn back to another tensor's values, some of which are already there."""
    anchor = center.roll(1)
    anchor[::3] = center[::3]
    for size in (0.0, 1e-4, 1.0):
        step = torch.randn(len(center), generator=torch.Generator().manual_seed(1)).to(noise_dtype(center)) * size
        step[::7] = 0
        for start in (0, 128 * 1001, 61):
            moving = center.clone()
            move(moving, step, KEY, 3, start, pull=replace(pull, anchor=anchor))
            yield moving
    moving = [center[:elements].clone() for elements in (len(center), 2049, 31, 0)] + [center.repeat(4)]
    anchors = [anchor[: len(each)] for each in moving[:-1]] + [anchor.repeat(4)]
    pulls = [replace(pull, anchor=each) for each in anchors]
    pulls[1] = None
    subject.move([0.5, 0.0, -1.0], [Moving(i, moving[i], 0.25, pulls[i]) for i in range(5)], NoiseKey(1, 2))
    yield from moving


@needs_kernels
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_function_gives_the_bits_of_the_plain_operations(distribution, dtype, plain):
    torch.manual_seed(3)
    found = everything(distribution, dtype)
    torch.manual_seed(3)
    expected = plain(lambda: everything(distribution, dtype))
    assert len(found) == len(expected)
    assert [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not same_bits(a, b)] == []


@needs_kernels
@pytest.mark.parametrize("elements", [0, 1, 63, 64, 127, 128, 129, 255, 256, 257, 2047, 2048, 2049, 4096, 4097, 6145])
def test_sizes_around_those_of_rows(elements, plain):
    center = torch.randn(elements).bfloat16()

    def results():
        moving = center.clone()
        move(moving, torch.ones(elements) * 1e-3, KEY, 1)
        subject = Dense(KEY)
        return [
            *subject.members([1], [0.5, -0.5], [Part(2, center)])[0],
            subject.weighted_sum([1.0, 2.0], 2, center),
            moving,
        ]

    assert all(same_bits(a, b) for a, b in zip(results(), plain(results), strict=True))


@needs_kernels
@pytest.mark.parametrize("bias", [None, "shared", "own"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_low_rank(dtype, rank, bias):
    torch.manual_seed(0)
    library = kernels.built()
    for members, shared_x, rows, inputs, outputs in [(1, True, 1, 1, 1), (3, False, 5, 37, 70), (2, True, 33, 64, 513)]:
        x = torch.randn(1 if shared_x else members, rows, inputs).to(dtype)
        b, a = torch.randn(members, rank, inputs), torch.randn(members, rank, outputs)
        biases = None if bias is None else torch.randn(1 if bias == "shared" else members, outputs).to(dtype)
        expected = x.double() @ b.double().mT @ a.double()
        if biases is not None:
            expected = expected + biases.double()[:, None]
        result = library.low_rank(b, a)(biases, x)
        assert result.dtype == dtype
        error = (result.double() - expected).abs().max() / expected.abs().max()
        assert error < {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]


@needs_kernels
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_norm_of_an_update_in_one_pass(distribution):
    weights, center = [0.5, -2.0, 1.0], torch.zeros(50_001)
    expected = float(Dense(KEY, distribution).weighted_sum(weights, 0, center).double().norm())
    (norm,) = Dense(KEY, distribution).move(weights, [Moving(0, center, 1e-3)], KEY)
    assert norm == pytest.approx(expected, rel=1e-6)  # summed in float32, 128 elements at a time


@needs_kernels
@pytest.mark.parametrize("by", ["l2", "l1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_distance_of_what_is_drawn_back(dtype, by):
    torch.manual_seed(0)
    anchor = torch.randn(50_001).to(dtype)
    center = (anchor + torch.randn(50_001) * 0.1).to(dtype)
    stepped, pieces, pull = center.clone(), center.clone(), Pull(anchor, by, 0.01)
    Dense(KEY).move([0.5, -2.0], [Moving(0, stepped, 0.1, pull)], KEY)
    assert pull.distance == pytest.approx(float((stepped.double() - anchor.double()).norm()), rel=1e-6)
    step = Dense(KEY).weighted_sum([0.5, -2.0], 0, pieces) * 0.1
    assert float(move(pieces, step, KEY, 0, pull=pull)) == pytest.approx(float(pull.distance), rel=1e-6)
    assert same_bits(stepped, pieces)


@needs_kernels
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_any_number_of_threads_gives_the_same_bits(distribution, threads):
    center = torch.randn(400_003).bfloat16()

    def results():
        moving, updated = center.clone(), center.clone()
        move(moving, torch.full((len(center),), 1e-3), KEY, 1)
        subject = Dense(KEY, distribution)
        subject.move([1.0, -2.0], [Moving(2, updated, 1e-3)], KEY)
        pulled = center.clone()
        subject.move([1.0, -2.0], [Moving(2, pulled, 1e-3, Pull(center.flip(0), "l2", 0.1))], KEY)
        return [
            pulled,
            draw(KEY, [0, 1], 2, 5, len(center), distribution=distribution),
            *subject.members([1], [0.5, -0.5], [Part(2, center)])[0],
            *subject.members([1], [0.5, -0.5], [Part(2, center), Part(3, center[:100])])[0],
            subject.chosen_rows([1], [0.5], 2, center[:400_000].view(20, -1), torch.tensor([7, 19, 7])),
            subject.weighted_sum([1.0, 2.0], 2, center),
            moving,
            updated,
        ]

    threads(1)
    expected = results()
    for count in (2, 3, 16):
        threads(count)
        assert threads_for(len(center)) == count
        assert all(same_bits(a, b) for a, b in zip(results(), expected, strict=True))
    assert threads_for(100) == 1


@needs_kernels
def test_the_centers_are_not_written_to():
    center = difficult(5000, torch.float32)
    before = center.clone()
    Dense(KEY).members([1], [0.5, -0.5], [Part(2, center)])
    assert torch.equal(bits(center), bits(before))


# --- which backend --------------------------------------------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


@needs_kernels
@pytest.mark.parametrize("setting", ["auto", "native", None])
def test_the_fastest_backend_of_the_device(setting, monkeypatch):
    if setting is None:
        monkeypatch.delenv("LIGHTNING_EVO_KERNELS")
    else:
        monkeypatch.setenv("LIGHTNING_EVO_KERNELS", setting)
    good = torch.zeros(8, 8)
    for tensor in (good, good.bfloat16(), good.half(), good.double(), good.T[:, 1:], good.long()):
        assert isinstance(backend_for(good, tensor), Native)
    assert backend_for(good.to("meta")) is COMPILED
    for other in (good.to("meta"), torch.nn.Parameter(good), good.as_subclass(Subclass)):
        assert backend_for(good, other) is REFERENCE
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", "torch")
    assert backend_for(good) is backend_for(good.to("meta")) is REFERENCE


@needs_kernels
def test_nothing_is_called_while_torch_compile_traces(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert backend_for(torch.zeros(8)) is REFERENCE


@pytest.mark.parametrize("setting", ["yes", "1", "", "Native"])
def test_the_setting_is_checked(setting, monkeypatch):
    monkeypatch.setenv("LIGHTNING_EVO_KERNELS", setting)
    message = f"^LIGHTNING_EVO_KERNELS must be one of auto, native, triton, torch, got '{setting}'\\.$"
    with pytest.raises(ValueError, match=message):
        draw(NoiseKey(0, 0), [0], 0, 0, 1)


# --- the other instruction sets -------------------------------------------------------------------------------------


def flags(*others):
    return [flag for flag in build._FLAGS if flag != "-march=native"] + list(others)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "needed"),
    [
        ([], ""),
        (["-U__FLT16_MAX__"], ""),  # as for g++ before 12, which has no 16-bit floats
        (["-mavx2", "-mf16c"], "avx2"),
        (["-mavx512f"], "avx512f"),
    ],
    ids=["any processor", "no _Float16", "AVX2", "AVX-512"],
)
def test_code_for_other_processors_gives_the_same_bits(others, needed, plain, monkeypatch, tmp_path):
    processor = build._processor()
    if "-U" not in str(others) and needed and needed not in processor:
        pytest.skip(f"this processor has no {needed}")
    monkeypatch.setattr(build, "_FLAGS", flags(*others))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = build.load()
    assert len(list((tmp_path / "lightning_evo").iterdir())) == 1
    monkeypatch.setattr(kernels, "built", lambda: library)
    for distribution, dtype in [
        ("gaussian", torch.float16),
        ("uniform", torch.bfloat16),
        ("rademacher", torch.float32),
    ]:
        torch.manual_seed(3)
        found = everything(distribution, dtype)
        torch.manual_seed(3)
        expected = plain(lambda d=distribution, t=dtype: everything(d, t))
        assert [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not same_bits(a, b)] == []


@needs_kernels
@pytest.mark.parametrize("others", [[], ["-U__FLT16_MAX__"]], ids=["the compiler's", "our own"])
def test_all_16_bit_floats_are_converted_to_and_fro(others, monkeypatch, tmp_path):
    if others:
        monkeypatch.setattr(build, "_FLAGS", [*build._FLAGS, *others])
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = build.load()
    values = Values("gaussian", address_of(KEY, 0))
    for dtype in (torch.bfloat16, torch.float16):
        center = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
        out = center.new_empty(1, len(center))
        library.members([Span(values, 0, center, out)], [0], [0.0])
        assert same_bits(out[0], center + torch.zeros(()).to(dtype) * 0)
        center = torch.zeros(64 * 128, dtype=dtype)
        out = center.new_empty(1, len(center))
        noise = draw(KEY, [0], 0, 0, len(center))[0]
        for exponent in range(-40, 20):  # ties, subnormal numbers and overflows among them
            library.members([Span(values, 0, center, out)], [0], [2.0**exponent])
            assert same_bits(out[0], (noise * 2.0**exponent).to(dtype)), exponent
