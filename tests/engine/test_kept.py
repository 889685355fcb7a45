"""What is in a model already stays as it is when more is planned, even where it could not be worked out again."""

import pickle

import pytest
import torch
from torch import nn

from simam_inject import InjectError, inject, injected, plan, verify
from tests.engine.blocks import Block, conv
from tests.engine.oracle import same_bits
from tests.engine.test_containers import ConvNorm, conv_norm

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


class TrainsWithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.aux = conv(3, 4), Block()

    def forward(self, x):
        y = self.stem(x)
        return self.aux(y) if self.training else y * 2


def test_a_part_that_the_example_does_not_reach():
    model = TrainsWithHead().eval()
    inject(model.aux, "after block.a", example_inputs=torch.rand(1, 4, 8, 8))
    planned = plan(model, "after trainswithhead.stem", example_inputs=X)
    assert [insertion.path for insertion in planned.present] == ["aux.a"]
    kind = type(model.aux)
    inject(model, "after trainswithhead.stem", example_inputs=X)
    assert {insertion.path for insertion in injected(model)} == {"stem", "aux.a"}
    assert type(model.aux) is kind
    found = verify(model, example_inputs=X)
    assert found.ok
    assert any("does not reach aux.a" in check.detail for check in found.checks)


def test_a_site_whose_norm_was_folded_away():
    model = nn.Sequential(conv_norm(), conv()).eval()
    inject(model, "after convnorm.norm", example_inputs=X)
    model[0].fold()
    inject(model, {"rules": [{"path": "1", "after": "output"}]}, example_inputs=X)
    assert {insertion.path for insertion in injected(model)} == {"0.norm", "1"}
    with pytest.raises(InjectError, match=r"ConvNorm cannot be pickled.*norm is not computed.*before folding"):
        pickle.dumps(model)


@pytest.mark.parametrize("site", ["act", "output"])
def test_a_folded_block_whose_site_is_still_there_can_be_read_back(site):
    model = inject(conv_norm(), f"after convnorm.{site}", example_inputs=X).fold()
    again = pickle.loads(pickle.dumps(model))
    assert isinstance(again, ConvNorm)
    assert same_bits(again(X), model(X))
