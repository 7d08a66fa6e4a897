"""Products of low rank, to rounding, in the layouts of members in a batch and of members that are rows."""

import pytest
import torch

EXACTNESS = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.mark.parametrize("dtype", EXACTNESS)
@pytest.mark.parametrize(
    ("shared_x", "bias", "rank", "rows", "inputs", "outputs"),
    [(False, "own", 1, 5, 37, 300), (True, "shared", 2, 17, 64, 70), (False, None, 4, 1, 8, 1)],
)
def test_products_of_low_rank(shared_x, bias, rank, rows, inputs, outputs, dtype, triton_backend):
    members = 3
    x = torch.randn(1 if shared_x else members, rows, inputs).to(dtype)
    b, a = torch.randn(members, rank, inputs), torch.randn(members, rank, outputs)
    shift = None if bias is None else torch.randn(1 if bias == "shared" else members, outputs).to(dtype)
    hidden = (x.double() @ b.to(dtype).double().mT).to(dtype).double()  # x B is a product of x's dtype
    expected = hidden @ a.double() + (0 if shift is None else shift.double()[:, None])
    product = triton_backend.low_rank(b, a)
    for _ in range(2):
        found = product(shift, x)
        assert found.dtype == dtype
        assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() < EXACTNESS[dtype] * expected.abs().max()


def test_what_is_not_supported_is_left_to_matrix_products(triton_backend):
    x, b, a = (torch.randn(2, 3, 8, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(triton_backend.low_rank(b, a)(None, x), x @ b.mT @ a)
