"""What low-rank noise adds to a layer's output, with the bias, in one pass over it."""

from __future__ import annotations

from lightning_evo.kernels.triton.language import jit, tl
from lightning_evo.kernels.triton.rounding import narrow, widen

__all__ = ["low_rank_kernel"]


@jit
def low_rank_kernel(
    hidden,
    a,
    bias,
    out,
    rows,
    outputs,
    stride,
    DTYPE: tl.constexpr,
    RANK: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """``out = bias + hidden A^T`` for each member, added up in float32.

    Args:
        hidden: ``x B``, float32 ``[members, rows, RANK]``.
        a: A transposed, float32 ``[members, RANK, outputs]``.
        bias: ``[members or 1, outputs]``.
        out: ``[members, rows, outputs]``.
        rows: How many there are.
        outputs: How many there are.
        stride: Elements of the bias from a member to the next.
        DTYPE: Of bias and output, stored as uint16 if it has 16 bits.
        RANK: Of the noise.
        BIAS: Whether there is a bias.
        ROWS: Rows in a program.
        OUTPUTS: Outputs in a program.
    """
    across, down = (outputs + OUTPUTS - 1) // OUTPUTS, (rows + ROWS - 1) // ROWS
    program = tl.program_id(0).to(tl.int64)
    m = program // (across * down)
    row = program // across % down * ROWS + tl.arange(0, ROWS)
    output = program % across * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for k in tl.static_range(RANK):
        left = tl.load(hidden + (m * rows + row) * RANK + k, mask=row < rows, other=0.0)
        right = tl.load(a + (m * RANK + k) * outputs + output, mask=output < outputs, other=0.0)
        total += left[:, None] * right[None, :]
    if BIAS:
        shift = widen(tl.load(bias + m * stride + output, mask=output < outputs, other=0), DTYPE)
        total += shift[None, :]
    place = (m * rows + row)[:, None] * outputs + output[None, :]
    tl.store(out + place, narrow(total, DTYPE), mask=(row < rows)[:, None] & (output < outputs)[None, :])
