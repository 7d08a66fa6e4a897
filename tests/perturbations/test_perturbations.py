"""What holds for every perturbation: members, rows, shards, sums and updates are of the one noise that it has."""

import pytest
import torch

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.noise.rounding import move
from lightning_evo.perturbations import (
    Dense,
    LowRank,
    Moving,
    Part,
    Perturbation,
    Scaled,
    Sparse,
    Vectors,
    WithoutRows,
)
from lightning_evo.spaces.memory import lies_as

KEY = NoiseKey(seed=5, generation=3)
SHAPES = {0: (20, 33), 1: (1000,), 2: (3, 20, 17), 3: (), 4: (0, 4), 5: (7, 2, 3)}
OFFSETS = {0: 0, 1: 660, 2: 1660, 3: 2680, 4: 2681, 5: 2681}
WEIGHTS = [0.5, 0.0, -1.25]


class Plainly(Perturbation):
    """All that the base class makes of the noise of another one."""

    def __init__(self, inner):
        self.inner = inner

    def noise_of_range(self, *args):
        return self.inner.noise_of_range(*args)


def table():
    return torch.randn(3, 2723, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


KINDS = {
    "dense": lambda: Dense(KEY),
    "rademacher": lambda: Dense(KEY, "rademacher"),
    "rank 2": lambda: LowRank(KEY, 2),
    "sparse": lambda: Sparse(Dense(KEY, "uniform"), 0.5),
    "scaled": lambda: Scaled(Dense(KEY)),
    "scaled, rank 1": lambda: Scaled(LowRank(KEY, 1)),
    "scaled, sparse": lambda: Scaled(Sparse(Dense(KEY), 0.25)),
    "table": lambda: Vectors(table(), OFFSETS),
    "without rows": lambda: WithoutRows(Dense(KEY), {0: 19, 2: 1, 5: 0}),
    "without rows, scaled, rank 1": lambda: WithoutRows(Scaled(LowRank(KEY, 1)), {0: 2}),
    "without rows, sparse": lambda: WithoutRows(Sparse(Dense(KEY), 0.5), {0: 0}),
    "without rows, table": lambda: WithoutRows(Vectors(table(), OFFSETS), {0: 2}),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]

either_way = pytest.mark.usefixtures("either_way")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def centers(dtype):
    return {index: torch.randn(shape).to(dtype) for index, shape in SHAPES.items()}


@either_way
@every_kind
@every_dtype
def test_members_are_center_plus_step_times_noise(kind, dtype):
    subject, steps = KINDS[kind](), [0.3, -0.3, 0.1, 7.0]
    for index, center in centers(dtype).items():
        noise = subject.noise([2, 0], index, center)
        assert noise.shape == (2, *center.shape)
        assert noise.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        [members] = subject.members([2, 0], steps, [Part(index, center)])
        assert members.shape == (4, *center.shape)
        assert members.dtype == dtype
        for i, (member, step) in enumerate(zip(members, steps, strict=True)):
            expected = (center.to(noise.dtype) + noise[i // 2] * step).to(dtype)
            if "scaled" in kind:  # the step is scaled, not the noise
                tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
                torch.testing.assert_close(member, expected, rtol=tolerance, atol=tolerance)
            else:
                assert torch.equal(member, expected)


@either_way
@every_kind
@every_dtype
def test_parts_of_several_tensors_are_made_as_each_is_alone(kind, dtype):
    subject, steps = KINDS[kind](), [0.3, -0.3]
    tensors = centers(dtype)
    whole = {index: subject.members([2], steps, [Part(index, center)])[0] for index, center in tensors.items()}
    parts, expected = [], []
    for index, center in tensors.items():
        parts.append(Part(index, center))
        expected.append(whole[index])
        if center.dim() > 1 and len(center):
            first, last = len(center) // 3, len(center) - 1
            out = torch.empty(2, (last - first) * center[0].numel() + 5, dtype=dtype)[:, :-5]
            for memory in (None, out):
                parts.append(Part.of_rows(index, center, first, last, memory))
                expected.append(whole[index][:, first:last])
        for start, stop in ((0, 0), (1, center.numel()), (center.numel() // 2, center.numel() - 1)):
            if start <= stop:
                parts.append(Part(index, center, start, center.flatten()[start:stop]))
                expected.append(whole[index].view(2, center.numel())[:, start:stop])
    found = subject.members([2], steps, parts)
    assert len(found) == len(parts)
    for part, values, members in zip(parts, found, expected, strict=True):
        assert torch.equal(values, members)
        if part.out is not None:
            assert values.data_ptr() == part.out.data_ptr()
        elif values.numel():
            assert lies_as(values[0], part.center if part.values is None else part.values)


@either_way
@every_kind
@every_dtype
def test_chosen_rows_are_those_of_the_members(kind, dtype):
    subject, steps = KINDS[kind](), [0.3, -0.3, 0.1, 7.0]
    for index, center in centers(dtype).items():
        if center.dim() < 2 or not len(center):
            continue
        [members] = subject.members([2, 0], steps, [Part(index, center)])
        for chosen in ([[2, 0, 2], [len(center) - 1, 1, 0]], 1, []):
            chosen = torch.tensor(chosen, dtype=torch.int64)
            rows = subject.chosen_rows([2, 0], steps, index, center, chosen)
            assert torch.equal(rows, members[:, chosen])


@either_way
@every_kind
@every_dtype
def test_the_sum_is_of_the_noise_in_any_range(kind, dtype):
    subject, plainly = KINDS[kind](), Plainly(KINDS[kind]())
    for index, center in centers(dtype).items():
        total, expected = (each.weighted_sum(WEIGHTS, index, center) for each in (subject, plainly))
        if "scaled" in kind or "rank" in kind:  # scaled after it was summed; by one product
            torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(total, expected)
        for start, stop in ((0, 0), (0, len(total)), (len(total) // 3, len(total))):
            assert torch.equal(subject.weighted_sum(WEIGHTS, index, center, start, stop), total[start:stop])


@either_way
@every_kind
@every_dtype
def test_an_update_moves_by_the_sum(kind, dtype):
    subject, tensors = KINDS[kind](), centers(dtype)
    sums = {index: subject.weighted_sum(WEIGHTS, index, center) for index, center in tensors.items()}
    moving = [Moving(index, center.clone(), 0.1 * index - 0.05) for index, center in tensors.items()]
    norms = KINDS[kind]().move(WEIGHTS, moving, KEY)
    for one, norm in zip(moving, norms, strict=True):
        expected = tensors[one.parameter].flatten()
        move(expected, sums[one.parameter] * one.coefficient, KEY, one.parameter)
        assert torch.equal(one.center.flatten(), expected)
        assert norm == pytest.approx(float(sums[one.parameter].double().norm()), rel=1e-5)


@every_kind
def test_factors_are_those_of_the_noise(kind):
    subject = KINDS[kind]()
    for index, center in centers(torch.float32).items():
        factors = subject.factors([2, 0], index, center)
        assert (factors is not None) == ("rank" in kind and index in (0, 5))
        if factors is not None:
            noise = subject.noise([2, 0], index, center)
            torch.testing.assert_close((factors[0] @ factors[1].mT).view(noise.shape), noise)


@pytest.mark.parametrize("kind", ["sparse", "scaled", "without rows, sparse"])
def test_what_depends_on_the_weights_needs_all_of_them(kind):
    stand_in = torch.zeros(()).expand(20, 33)
    name = "Scaled" if kind == "scaled" else "Sparse"
    with pytest.raises(NotImplementedError, match=f"{name} noise needs the whole tensor"):
        KINDS[kind]().members([0], [1.0], [Part(0, stand_in, 5, torch.ones(3))])
    with pytest.raises(NotImplementedError, match=f"{name} noise needs the whole tensor"):
        KINDS[kind]().weighted_sum([1.0], 0, stand_in)
