"""Models in the states that users bring them in: checkpointed, in bf16, partly scripted or compiled, hooked, frozen."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from simam_inject import eject, inject, injected, verify
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


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_gradient_checkpointing_gives_the_same_gradients(resnet, first):
    resnet.train()
    twin = inject(copy.deepcopy(resnet), EVERY_CONV, example_inputs=image())
    if first:
        resnet.set_grad_checkpointing()
    inject(resnet, EVERY_CONV, example_inputs=image())
    if not first:
        resnet.set_grad_checkpointing()
    assert len(injected(resnet)) == len(injected(twin)) > 10
    for ours, theirs in zip(gradients(resnet, image()), gradients(twin, image()), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert verify(resnet, example_inputs=image()).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(resnet, dtype):
    model = inject(resnet.to(dtype), EVERY_CONV, example_inputs=image().to(dtype))
    assert {insertion.dtype for insertion in injected(model)} == {str(dtype).removeprefix("torch.")}
    assert model(image().to(dtype)).dtype is dtype


def test_channels_last_memory_stays_channels_last(resnet):
    x = image().to(memory_format=torch.channels_last)
    model = inject(resnet.to(memory_format=torch.channels_last).eval(), EVERY_CONV, example_inputs=x)
    assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)


def test_a_scripted_child_is_left_alone_with_a_reason():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())))
    inject(model, EVERY_CONV, example_inputs=image())
    assert [insertion.path for insertion in injected(model)] == ["0"]


def test_a_compiled_child_keeps_its_attention():
    block = torch.compile(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), backend="eager")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), block).eval()
    plain = copy.deepcopy(model[0])
    inject(model, {"version": 1, "rules": [{"path": "0", "after": "output"}]}, example_inputs=image())
    assert verify(model, example_inputs=image()).ok
    eject(model)
    assert torch.equal(model[0](image()), plain(image()))


def doubling(module, args, output):
    return output * 2


def test_hooks_that_are_there_still_run(resnet):
    resnet.eval()
    resnet.layer1.register_forward_hook(doubling)
    resnet.layer2[0].conv1.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with torch.no_grad():
        plain = resnet(image())
        inject(resnet, EVERY_CONV, example_inputs=image())
        assert verify(resnet, example_inputs=image()).ok
        eject(resnet)
        assert torch.equal(resnet(image()), plain)


def test_frozen_norms_in_train_mode_stay_frozen(resnet):
    resnet.train()
    norms = [module for module in resnet.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval().requires_grad_(False)
    before = [norm.running_mean.clone() for norm in norms]
    inject(resnet, EVERY_CONV, example_inputs=image())
    resnet(image())
    assert resnet.training
    assert not any(norm.training for norm in norms)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


class Audio(nn.Module):
    """A raw-waveform network with strides far apart."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv1d(a, b, k, s), nn.BatchNorm1d(b), nn.ReLU(), nn.MaxPool1d(4))
                for name, a, b, k, s in (("wide", 1, 16, 80, 16), ("narrow", 16, 32, 3, 1))
            }
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        for stage in self.stages.values():
            x = stage(x)
        return self.head(x.mean(-1)).log_softmax(-1)


def test_an_audio_network():
    model = inject(Audio(), EVERY_CONV, example_inputs=torch.rand(2, 1, 8000))
    assert [insertion.shape[1:] for insertion in injected(model)] == [(16, 496), (32, 122)]
    assert verify(model, example_inputs=torch.rand(1, 1, 16000)).ok


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
