"""The state of all global random number generators."""

import random

import numpy
import torch

from lightning_evo.utils.random_state import RandomState

CPU = torch.device("cpu")


def drawn():
    return torch.rand(1).item(), random.random(), float(numpy.random.rand())


def test_goes_back():
    state = RandomState(CPU)
    first = drawn()
    state.restore()
    assert drawn() == first


def test_is_handed_on_as_tensors():
    saved = RandomState(CPU).state_dict()
    assert all(isinstance(value, torch.Tensor) for value in saved.values())
    first = drawn()
    torch.manual_seed(9), random.seed(9), numpy.random.seed(9)
    RandomState(CPU).load_state_dict(saved)
    assert drawn() == first


def test_branches_differ_from_each_other_and_from_what_goes_on():
    found = []
    for _ in range(3):
        state = RandomState(CPU)
        state.branch()
        found.append(drawn())
        state.restore()
    found.append(drawn())
    assert len({number for numbers in found for number in numbers}) == 12


def test_another_kind_of_generator_in_numpy_is_left_out_of_what_is_saved():
    own = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(numpy.random.PCG64(1))
    try:
        state = RandomState(CPU)
        first = drawn()
        state.restore()
        assert drawn() == first
        state.branch()
        assert state.state_dict().keys() == {"torch", "python"}
        state.load_state_dict(state.state_dict())
    finally:
        numpy.random.set_bit_generator(own)
