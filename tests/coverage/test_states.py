"""Models in the states that users bring them in: checkpointed, in bf16, channels-last in memory, tied."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from simam_inject import inject, injected, verify
from simam_inject.verification.outputs import difference

EVERY_CONV = {"version": 1, "rules": [{"path": "*", "after": {"op": "conv"}}]}


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return timm.create_model("test_resnet")


def image(n=2, size=64):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def gradients(model, x):
    torch.manual_seed(0)
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_gradient_checkpointing_that_is_on_before_gives_the_same_gradients(resnet):
    """Switched on afterwards: tests/peers."""
    resnet.train()
    twin = inject(copy.deepcopy(resnet), EVERY_CONV, example_inputs=image())
    resnet.set_grad_checkpointing()
    inject(resnet, EVERY_CONV, example_inputs=image())
    assert len(injected(resnet)) == len(injected(twin)) > 10
    for ours, theirs in zip(gradients(resnet, image()), gradients(twin, image()), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert verify(resnet, example_inputs=image()).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_dtype_keeps_it(resnet, dtype):
    model = inject(resnet.to(dtype), EVERY_CONV, example_inputs=image().to(dtype))
    assert {insertion.dtype for insertion in injected(model)} == {str(dtype).removeprefix("torch.")}
    assert model(image().to(dtype)).dtype is dtype


def test_channels_last_memory_stays_channels_last(resnet):
    x = image().to(memory_format=torch.channels_last)
    model = inject(resnet.to(memory_format=torch.channels_last).eval(), EVERY_CONV, example_inputs=x)
    assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)


class Tied(nn.Module):
    """One layer at two paths, and one weight in two layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.two = nn.Sequential(self.one[0], nn.Tanh())
        self.three = nn.Conv2d(8, 8, 3, padding=1)
        self.three.weight = self.one[0].weight

    def forward(self, x):
        return self.three(self.two(self.one(self.stem(x))))


def test_tied_layers_stay_tied():
    model = inject(Tied().eval(), EVERY_CONV, example_inputs=image())
    assert sorted(insertion.path for insertion in injected(model)) == ["one.0", "stem", "three", "two.0"]
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.three.weight is twin.one[0].weight is twin.two[0].weight
        assert difference(twin(image()), model(image())) is None
    assert verify(model, example_inputs=image(1, 32)).ok
