"""Members: the reference's bits, of many tensors at once, of rows, and where an offset needs more than 32 bits."""

import math

import pytest
import torch

from lightning_evo.kernels import REFERENCE, Span, Values
from lightning_evo.kernels.normal import SLICES, normal_table
from tests.kernels.bits import difficult, same_bits

ADDRESS = (7, 2**32 - 1, 2**32 - 5, 2**31 + 3)
KINDS = [
    ("gaussian", torch.float32),
    ("gaussian", torch.bfloat16),
    ("gaussian", torch.float16),
    ("rademacher", torch.bfloat16),
    ("uniform", torch.float16),
    ("uniform", torch.float32),
]


@pytest.mark.parametrize(("distribution", "dtype"), KINDS)
def test_members_of_several_tensors(distribution, dtype, triton_backend):
    """Whole rows, an offset within a row, memory that is not aligned, more than a program's elements, none at all."""
    centers = [difficult(512, dtype), difficult(300, dtype), difficult(8200, dtype)[1:], torch.empty(0, dtype=dtype)]
    starts, steps = [0, 61, 2048, 0], [0.1, -0.1]
    results = []
    for backend in (triton_backend, REFERENCE):
        outs = [center.new_empty(2, len(center)) for center in centers]
        spans = [
            Span(Values(distribution, (i, *ADDRESS[1:])), start, center, out)
            for i, (start, center, out) in enumerate(zip(starts, centers, outs, strict=True))
        ]
        backend.members(spans, [2**32 - 1], steps)
        results.append(outs)
    assert [i for i, (a, b) in enumerate(zip(*results, strict=True)) if not same_bits(a, b)] == []
    pair = results[0][0].double() - centers[0].double()
    moved = pair[0].isfinite() & (centers[0].double().abs() < 1e-3)
    assert (pair[0, moved].sign() == -pair[1, moved].sign()).all()


def test_several_directions_and_steps_of_all_sizes(triton_backend):
    center, values = difficult(1000, torch.float32), Values("gaussian", ADDRESS)
    outs = []
    for backend in (triton_backend, REFERENCE):
        # Members lie apart: they are parts of larger tensors.
        out = torch.zeros(6, 1100)
        backend.members([Span(values, 0, center, out[:, :1000])], [4, 0], [0.1, 1e-30, -3e38, 0.0, math.inf, 7.0])
        outs.append(out)
    assert same_bits(*outs)


def test_what_is_not_supported_is_left_to_the_reference(triton_backend):
    values, outs = Values("gaussian", ADDRESS), []
    for backend in (triton_backend, REFERENCE):
        for center in (torch.ones(50, dtype=torch.float64), torch.ones(50, 2)[:, 0]):
            outs.append(center.new_empty(1, 50))
            backend.members([Span(values, 3, center, outs[-1])], [1], [0.5])
    assert torch.equal(outs[0], outs[2])
    assert torch.equal(outs[1], outs[3])


@pytest.mark.parametrize(("distribution", "dtype", "width"), [
    ("gaussian", torch.bfloat16, 128),
    ("gaussian", torch.float32, 100),
    ("rademacher", torch.float16, 300),
    ("uniform", torch.float32, 3),
])  # fmt: skip
def test_chosen_rows(distribution, dtype, width, triton_backend):
    center, chosen = difficult(40 * width, dtype).view(40, width), torch.tensor([39, 0, 7, 7])
    outs = []
    for backend in (triton_backend, REFERENCE):
        outs.append(center.new_empty(2, 4, width))
        backend.chosen_rows(Values(distribution, ADDRESS), [3], [0.1, -0.1], center, chosen, outs[-1])
        backend.chosen_rows(Values(distribution, ADDRESS), [3], [0.1], center, chosen[:0], outs[-1][:1, :0])
    assert same_bits(*outs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offsets_beyond_32_bits(dtype, triton_backend):
    """A program far into a tensor, of which only its own elements are in memory: the address is that much lower."""
    from lightning_evo.kernels.triton.members import members_kernel
    from lightning_evo.kernels.triton.tables import Table, blocks_for

    blocks, far = blocks_for(dtype), 1 << 33
    size = 8 * blocks
    center = torch.randn(size).to(dtype)
    out, expected = center.new_empty(2, size), center.new_empty(2, size)
    before = far * center.element_size()
    address = out.data_ptr() - before
    row = [*ADDRESS, 0, 0, size, 0, center.data_ptr() - before, address, size]
    table = Table([row], blocks, center.device, [1, 5, *torch.tensor([0.5, -0.5]).view(torch.int32).tolist()])
    # The table's only part is the tensor's first: say that a great many come before it.
    table._tensors[7], table._tensors[6] = -(far // size), far + size
    kinds = {"DISTRIBUTION": "gaussian", "DTYPE": str(dtype).removeprefix("torch."), "EACH": 2, "ALIGNED": False}
    table.launch(members_kernel, normal_table(center.device)[SLICES:], **kinds)
    REFERENCE.members([Span(Values("gaussian", ADDRESS), far, center, expected)], [5], [0.5, -0.5])
    assert same_bits(out, expected)
