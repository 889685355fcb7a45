"""Other attention modules than SimAM at the same sites: they stay, they are ejected, and they do not mix."""

import copy
import io

import pytest
import torch
from torch import nn

from simam_inject import bypass, eject, inject, simam, verify
from simam_inject.errors import InjectError, ModelError
from simam_inject.export import export
from tests.engine.blocks import network
from tests.messages import says
from tests.oracle import hooked, same_bits
from tests.snapshot import snapshot

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


class Scale(nn.Module):
    """A peer with a parameter: one factor for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.factor = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x):
        return x * self.factor


def test_a_peer_stays_at_a_second_injection():
    model = network()
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X, attention=Scale)
    peer, before = model[0].simam, model(X)
    inject(model, {"rules": [{"path": "2", "after": "output"}]}, example_inputs=X)
    assert model[0].simam is peer
    with hooked(network(), {"2": 1}, 1e-4, simam) as stock, torch.no_grad():
        stock[0].weight.mul_(0.5)
        stock[0].bias.mul_(0.5)
        assert torch.allclose(model(X), stock(X), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(X), before, rtol=1e-2)


@pytest.mark.parametrize("change", ["insert", "wrap"])
def test_a_peer_in_a_module_that_was_moved_is_the_planned_one(change):
    model = inject(
        nn.Sequential(network()), {"rules": [{"path": "0.0", "after": "output"}]}, example_inputs=X, attention=Scale
    )
    wanted = model(X)
    if change == "insert":
        model.insert(0, nn.Identity())
    else:
        model[0][0] = nn.Sequential(model[0][0])
    assert same_bits(model(X), wanted)
    assert verify(model, example_inputs=X).ok
    with pytest.raises(InjectError, match="hold a Scale"):
        export(model, "unused.onnx", example_inputs=X)


def test_copies_that_are_made_in_a_bypass_attend_afterwards_and_can_be_saved():
    model = network()
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X, attention=Scale)
    wanted, plain = model(X), network()(X)
    with bypass(model):
        twin = copy.deepcopy(model)
        twins = [twin, copy.deepcopy(twin), copy.deepcopy([model])[0]]
        assert all(same_bits(each(X), plain) for each in twins)
    for each in (model, *twins):
        assert same_bits(each(X), wanted)
    assert "_bypasses" not in vars(model[0].simam)
    torch.save(twin, io.BytesIO())


def test_eject_takes_out_a_peer_whose_hook_was_dropped():
    model = network()
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X, attention=Scale)
    model[0]._forward_hooks.clear()
    eject(model)
    assert list(model.state_dict()) == list(network().state_dict())
    assert same_bits(model(X), network()(X))


@pytest.mark.parametrize("kinds", [(None, Scale), (Scale, None), (Scale, nn.Identity)])
def test_other_attention_at_the_same_sites_is_refused(kinds):
    first, second = kinds
    model = inject(network(), "after block.a", example_inputs=X, attention=first)
    before, name = snapshot(model), "SimAM" if first is None else "Scale"
    with pytest.raises(ModelError, match=rf"already has attention at its sites \({name}\); call eject\(model\)"):
        inject(model, "after block.a", example_inputs=X, attention=second)
    assert snapshot(model) == before


def test_other_attention_at_some_of_the_sites_is_refused():
    both = {"rules": [{"block": "block", "after": name} for name in "ab"]}
    model = inject(network(), "after block.a", example_inputs=X, attention=Scale)
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"already has attention at its sites \(Scale\)"):
        inject(model, both, example_inputs=X)
    assert snapshot(model) == before
    inject(model, "after block.b", example_inputs=X)
    with pytest.warns(UserWarning, match="already have SimAM"):  # the other module is elsewhere
        inject(model, "after block.b", example_inputs=X)


def shared(_channels, _module=nn.Identity()):  # noqa: B008 - one for all
    return _module


class Pair(Scale):
    def forward(self, x):
        return x, super().forward(x)


class Halved(Scale):
    def forward(self, x):
        return super().forward(x)[..., ::2]


class NotYet(Scale):
    def __init__(self, channels):
        nn.Module.__init__(self)
        self.scale = nn.LazyConv2d(channels, 1, bias=False)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (shared, "must return a new module for each site"),
        (Pair, r"attention at 1\.inner\.a returned a tuple"),
        (Halved, r"attention at 1\.inner\.a returned a tensor of shape \(.*\) for a map of shape \("),
        (NotYet, says("attention at 1.inner.a", "a NotYet", "no data")),
        (lambda c: Scale(c).to("meta"), says("attention at 1.inner.a", "a Scale", "no data")),
        (lambda _: nn.PixelShuffle(3), says("attention at 1.inner.a, a PixelShuffle", "(2, 4, 8, 8)", "RuntimeError")),
        (lambda c: torch.jit.trace(Scale(c), torch.zeros(1, c, 8, 8)), "must return an nn.Module in plain Python"),
        (lambda c: c, "must return an nn.Module in plain Python for a number of channels; it returned an int"),
        (nn.BatchNorm1d, says("attention at 1.inner.a, a BatchNorm1d", "(2, 4, 8, 8)", "got 4D input")),
    ],
)
def test_attention_that_cannot_be_used_leaves_the_model_as_it_was(factory, message):
    model = network()
    before = snapshot(model)
    with pytest.raises(InjectError, match=message):
        inject(model, "after block.a", example_inputs=X, attention=factory)
    assert snapshot(model) == before


def test_strength_for_other_attention_is_refused():
    with pytest.raises(ModelError, match=r"strength=0\.5 applies to SimAM only"):
        inject(network(), "after block.a", example_inputs=X, strength=0.5, attention=Scale)


def test_a_peer_does_not_run_in_a_bypass():
    model, runs = network(), []
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X, attention=Scale)
    model[0].simam.register_forward_hook(lambda *_: runs.append(1))
    with bypass(model):
        model(X)
    assert not runs
    model(X)
    assert runs == [1]
