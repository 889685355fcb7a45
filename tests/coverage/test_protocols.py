"""Ways in which blocks call each other that the sweep found, each as a small model."""

import copy
import pickle

import pytest
import torch
from torch import nn

from simam_inject import InjectError, inject, injected, verify
from simam_inject.verification.outputs import difference

EVERY_CONV = {"version": 1, "rules": [{"path": "*", "after": {"op": "conv"}}]}


def forward(model, x):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(x)


class Tokens(nn.Module):
    """Takes the size of the map as two whole numbers, as vision transformers with convolutions do."""

    def __init__(self):
        super().__init__()
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, tokens, size):
        n, _, c = tokens.shape
        grid = tokens.transpose(1, 2).view(n, c, *size)
        return tokens + self.dw(grid).flatten(2).transpose(1, 2), size


class TokenNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Tokens()

    def forward(self, x):
        x = self.stem(x)
        tokens, (h, w) = self.block(x.flatten(2).transpose(1, 2), x.shape[2:])
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, h, w)


def test_a_size_that_a_caller_passes_is_not_baked_in():
    model = inject(TokenNet(), EVERY_CONV, example_inputs=torch.rand(1, 3, 8, 8))
    assert [insertion.means for insertion in injected(model)] == ["forward", "forward"]
    assert verify(model, example_inputs=torch.rand(2, 3, 10, 6)).ok


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x, mode):
        return self.conv(x) if mode > 1 else x


class ChoosingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Choosing()
        self.mode = 2

    def forward(self, x):
        return self.block(x, self.mode)


def test_a_number_that_decides_is_a_constant_and_checked():
    model = inject(ChoosingNet(), "after choosing.conv", example_inputs=torch.rand(1, 3, 8, 8))
    with pytest.raises(InjectError, match="argument mode differs"):
        model.block(torch.rand(1, 3, 8, 8), 1)


class Extending(nn.Module):
    """Fills the lists of its caller, as torchvision's LastLevelP6P7 does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

    def forward(self, features, names):
        features.append(self.conv(features[-1]))
        names.append("next")


class ExtendingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Extending() for _ in range(2))

    def forward(self, x):
        features, names = [x], ["first"]
        for block in self.blocks:
            block(features, names)
        return dict(zip(names, features, strict=True))


def test_a_block_that_fills_its_callers_list_keeps_doing_so():
    plain = ExtendingNet().eval()
    model = inject(copy.deepcopy(plain), EVERY_CONV, example_inputs=torch.rand(1, 3, 16, 16))
    assert [insertion.means for insertion in injected(model)] == ["boundary", "boundary"]
    assert "changes a list that it is given" in injected(model)[0].note
    assert list(forward(model, torch.rand(1, 3, 16, 16))) == ["first", "next"]


class Undecided(nn.Module):
    def forward(self, x):
        return x * (1 if float(x.sum()) > 0 else -1)


class UndecidedNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Sequential(Undecided(), nn.ReLU()))


class WeightNormNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())


def test_a_model_that_needs_real_numbers_can_be_pickled():
    x = torch.rand(1, 3, 8, 8)
    model = inject(UndecidedNet(), "after undecidednet.0", example_inputs=x)
    assert difference(forward(pickle.loads(pickle.dumps(model)), x), forward(model, x)) is None


def test_a_parametrized_model_can_be_copied():
    x = torch.rand(1, 3, 8, 8)
    model = inject(WeightNormNet(), {"version": 1, "rules": [{"path": "0", "after": "output"}]}, example_inputs=x)
    assert difference(forward(copy.deepcopy(model), x), forward(model, x)) is None
    assert len(injected(copy.deepcopy(model))) == 1
