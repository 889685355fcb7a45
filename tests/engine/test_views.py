"""A view that is written in place while what it looks into is read afterwards cannot be attended, and says so."""

import pytest
import torch

from simam_inject import inject, injected, plan, verify
from simam_inject.errors import NoMatchError
from tests.engine.blocks import Block, Net, conv

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


class WritesThroughView(Block):
    def forward(self, x):
        y = self.a(x)
        half = y[:, :2]
        half.mul_(3)
        return self.b(y)


class WritesThroughViewOfView(Block):
    def forward(self, x):
        y = self.a(x)
        half = y[:, :2]
        half.permute(0, 1, 3, 2).mul_(3)
        return self.b(y)


class WritesAndReadsView(Block):
    """Nobody reads the base after the write."""

    def __init__(self):
        super().__init__()
        self.b = conv(2, 4)

    def forward(self, x):
        half = self.a(x)[:, :2]
        half.mul_(3)
        return self.b(half)


@pytest.mark.parametrize("block", [WritesThroughView, WritesThroughViewOfView])
def test_a_view_that_is_written_in_place(block):
    model = Net(block()).eval()
    told = r"block\.getitem: .* shares memory with a tensor that is read after an in-place operation"
    with pytest.raises(NoMatchError, match=told):
        plan(model, f"after {block.__name__}.getitem", example_inputs=X)
    inject(model, f"after {block.__name__}.a", example_inputs=X)
    assert verify(model, example_inputs=X).ok


def test_a_view_whose_base_is_not_read_again():
    model = inject(Net(WritesAndReadsView()).eval(), "after writesandreadsview.getitem", example_inputs=X)
    assert [insertion.path for insertion in injected(model)] == ["block.getitem"]
