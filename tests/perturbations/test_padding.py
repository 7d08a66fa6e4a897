"""Rows that stand for padding have no noise; all others have the inner perturbation's."""

import pytest
import torch
from torch import nn

from lightning_evo.noise.philox import NoiseKey
from lightning_evo.perturbations import Dense, LowRank, Part, Scaled, WithoutRows, without_padding
from lightning_evo.spaces.search_space import SearchSpace

KEY = NoiseKey(seed=5, generation=3)


@pytest.mark.parametrize("row", [0, 3, 19])
@pytest.mark.parametrize("inner", [Dense(KEY), LowRank(KEY, 2), Scaled(Dense(KEY))], ids=lambda p: type(p).__name__)
def test_only_the_row_is_left_out(inner, row):
    center, subject = torch.randn(20, 33), WithoutRows(inner, {7: row})
    others = torch.arange(20) != row
    for mine, expected, rest in (
        (subject.noise([1], 7, center)[0], inner.noise([1], 7, center)[0], 0),
        (subject.weighted_sum([1.0, 2.0], 7, center).view(20, 33), inner.weighted_sum([1.0, 2.0], 7, center), 0),
        (subject.members([1], [0.5], [Part(7, center)])[0][0], inner.members([1], [0.5], [Part(7, center)])[0], center),
    ):
        assert torch.equal(mine[others], expected.view(20, 33)[others])
        assert torch.equal(mine[row], (center * 0 + rest)[row])
    assert torch.equal(subject.noise([1], 6, center), inner.noise([1], 6, center))  # another tensor


def test_the_inner_noise_is_not_written_to():
    class Kept(Dense):
        def noise_of_range(self, *args):
            return noise

        def factors(self, *args):
            return noise.view(1, 4, 3), noise.view(1, 4, 3)

    noise = torch.ones(1, 12)
    subject = WithoutRows(Kept(KEY), {0: 1})
    assert subject.noise([0], 0, torch.zeros(4, 3))[0].sum() == 9
    assert subject.factors([0], 0, torch.zeros(4, 3))[0].sum() == 9
    assert noise.sum() == 12


def test_the_padding_rows_of_a_search_space():
    tied = nn.Embedding(5, 3, padding_idx=1)
    module = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 3, padding_idx=-1),
            "bag": nn.EmbeddingBag(5, 3, padding_idx=0),
            "none": nn.Embedding(5, 3),
            "tied": tied,
            "head": nn.Linear(3, 5, bias=False),
        }
    )
    module["head"].weight = tied.weight  # it learns as a head
    found = without_padding(Dense(KEY), SearchSpace(module))
    assert isinstance(found, WithoutRows)
    assert found.rows == {0: 4, 1: 0}
    inner = Dense(KEY)
    assert without_padding(inner, SearchSpace(module["none"])) is inner
