"""Layers whose weight's noise is a product of thin matrices."""

import torch

from lightning_evo.evaluation.ways.low_rank import _laid_out


def test_factors_of_rank_one_have_the_strides_of_a_new_tensor():
    """``contiguous()`` leaves any stride in a dimension of size 1, and batched products choose their kernel by it."""
    factors = torch.randn(4, 32, 1)
    for transposed in (factors.mT, factors.mT.clone(memory_format=torch.contiguous_format)):
        assert transposed.is_contiguous()
        laid_out = _laid_out(transposed)
        assert laid_out.stride() == (32, 32, 1)
        assert torch.equal(laid_out, transposed)
        assert laid_out.data_ptr() == transposed.data_ptr()  # not copied
