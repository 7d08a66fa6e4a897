"""Memory that lies as another tensor's."""

import pytest
import torch

from lightning_evo.spaces.memory import Scratch, copies_of, empty_copies, lies_as


def tensor_at(start, *shape, dtype=torch.float32):
    """A tensor that begins so many elements after a cache line."""
    size = torch.Size(shape).numel()
    memory = torch.zeros(start + size + 256, dtype=dtype)
    line = -memory.data_ptr() % 64 // memory.element_size()
    return memory[line + start : line + start + size].view(shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("start", [0, 1, 5, 7])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_copies_lie_as_the_tensor_does(dtype, start, count):
    center = tensor_at(start, 3, 7, dtype=dtype)
    assert center.data_ptr() % 64 == start * center.element_size()
    others = [tensor_at(3, 5, dtype=dtype), tensor_at(0, dtype=dtype), tensor_at(2, 0, 4, dtype=dtype)]
    copies, *more = empty_copies([center, *others], count)
    assert copies.shape == (count, 3, 7)
    for copy in copies:
        assert copy.is_contiguous()
        assert copy.data_ptr() % 64 == start * center.element_size()
    for other, made in zip(others, more, strict=True):
        assert made.shape == (count, *other.shape)
        assert all(lies_as(copy, other) for copy in made if other.numel())
    everything = [copies, *more]  # nothing shares memory
    for number, tensor in enumerate(everything):
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(everything))


def test_copies_are_made_only_where_they_are_needed():
    center = tensor_at(0, 4, 16)
    values = torch.randn(2, 4, 16)
    assert copies_of(center, values).data_ptr() == values.data_ptr()
    odd = torch.randn(2, 5, 3)  # the second one does not begin with a cache line
    copied = copies_of(tensor_at(0, 5, 3), odd)
    assert torch.equal(copied, odd)
    assert [copy.data_ptr() % 64 for copy in copied] == [0, 0]
    assert odd[1].data_ptr() % 64


def test_a_point_of_channels_last_keeps_its_strides():
    """By which convolutions choose their layout, though the tensor counts as contiguous, too."""
    center = torch.empty_strided((16, 8, 1, 1), (8, 1, 8, 8))
    assert center.is_contiguous()
    copies = copies_of(center, torch.randn(2, 16, 8, 1, 1))
    assert [copy.stride() for copy in copies] == [center.stride()] * 2


def test_an_address_within_an_element_counts_as_the_one_below():
    whole = torch.frombuffer(bytearray(200), dtype=torch.uint8)
    start = -whole.data_ptr() % 64 + 6
    center = torch.frombuffer(whole.numpy().data, dtype=torch.float32, count=5, offset=start)
    assert center.data_ptr() % 64 == 6
    copies = copies_of(center, torch.randn(2, 5))
    assert [copy.data_ptr() % 64 for copy in copies] == [4, 4]
    assert copies_of(center, copies).data_ptr() == copies.data_ptr()


def test_copies_have_the_memory_format():
    center = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    values = torch.randn(2, 4, 3, 5, 5)
    copies = copies_of(center, values)
    assert torch.equal(copies, values)
    assert all(copy.is_contiguous(memory_format=torch.channels_last) for copy in copies)
    assert all(lies_as(copy, center) for copy in copies)


def test_scratch_is_used_again_and_lies_as_it_is_asked_to():
    scratch = Scratch()
    addresses = set()
    for start in (0, 3, 5):
        memory = scratch.elements(tensor_at(start, 10), 10)
        assert memory.shape == (10,)
        assert memory.data_ptr() % 64 == 4 * start
        addresses.add(memory.untyped_storage().data_ptr())
    assert len(addresses) == 1
    assert scratch.elements(tensor_at(1, 10), 1000).shape == (1000,)
    for size in (10, 26, 42):  # also where only the line that it begins in makes it too long
        assert Scratch().elements(tensor_at(0, 10), size).shape == (size,)
        grown = Scratch()
        grown.elements(tensor_at(0, 10), 10)
        assert grown.elements(tensor_at(15, 10), size).shape == (size,)
    assert scratch.elements(tensor_at(1, 10, dtype=torch.float64), 10).dtype == torch.float64
