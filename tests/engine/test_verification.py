"""Verification notices sabotage, and says in which respect."""

import copy

import pytest
import torch
from simam_inject.rewriting import graphs
from torch import nn

from simam_inject import InjectError, SimAM, bypass, eject, inject, injected, verify
from simam_inject import operation as facade
from simam_inject.errors import ModelError, VerificationError
from tests.engine.blocks import Block, Net, conv
from tests.engine.oracle import same_bits, snapshot

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


class Joined(Block):
    def forward(self, x):
        return torch.relu(self.b(self.a(x)) + x)


def network(recipe="after joined.a"):
    torch.manual_seed(1)
    return inject(Net(Joined()).eval(), recipe, example_inputs=X)


def failures(model):
    return {check.name: check.detail for check in verify(model, example_inputs=X).checks if check.ok is False}


def test_what_a_sound_model_is_told():
    found = verify(network(), example_inputs=X)
    assert found.ok
    assert [(check.name, check.ok) for check in found.checks] == [
        ("every SimAM is the one planned", True),
        ("state_dict keys and parameters unchanged", True),
        ("bypassed: equal to the original in eval mode", True),
        ("bypassed: equal to the original in train mode", True),
        ("every SimAM ran, on the planned shape", True),
        ("finite output", True),
        ("equal to forward hooks on the original", True),
    ]


@pytest.mark.parametrize("recipe", ["after joined.a", {"rules": [{"block": "joined", "after": {"op": "add"}}]}])
@pytest.mark.parametrize(
    ("sabotage", "told"),
    [
        (lambda block, name: block._modules.update({name: nn.Identity()}), "Identity in the place of SimAM"),
        (lambda block, name: block._modules.pop(name), "in the place of SimAM"),
        (lambda block, name: setattr(getattr(block, name), "bypassed", True), "is bypassed"),
        (lambda block, name: setattr(getattr(block, name), "e_lambda", 5.0), "e_lambda 5"),
        (lambda block, name: setattr(getattr(block, name), "channel_dim", -1), "channel_dim -1"),
    ],
    ids=["identity", "removed", "bypassed", "e_lambda", "channel_dim"],
)
def test_another_module_in_the_place_of_simam(recipe, sabotage, told):
    model = network(recipe)
    (name,) = [name for name, child in model.block.named_children() if isinstance(child, SimAM)]
    sabotage(model.block, name)
    assert told in failures(model)["every SimAM is the one planned"]


def test_a_lost_site():
    model = network()
    object.__setattr__(model.block, "__class__", Joined)  # the stock forward again, the SimAM child still there
    found = failures(model)
    assert found["every SimAM ran, on the planned shape"] == "block.a never ran"


def test_an_attention_at_another_place(monkeypatch):
    model = network()
    real = graphs.find_places

    def elsewhere(graph, edits, reference, role):
        (place,) = real(graph, edits, reference, role)
        other = next(node for node in graph.nodes if node.target == "b")
        return (graphs.Place(place.edit, other, tuple(other.users)),)

    monkeypatch.setattr(graphs, "find_places", elsewhere)
    eject(model)
    before = snapshot(model)
    with pytest.raises(VerificationError, match=r"the model is as it was.*equal to forward hooks"):
        inject(model, "after joined.a", example_inputs=X)
    assert snapshot(model) == before
    monkeypatch.undo()
    assert inject(model, "after joined.a", example_inputs=X) is model


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: model.stem.weight.detach().mul_(1.001),
        lambda model: setattr(model.stem, "weight", nn.Parameter(model.stem.weight.detach().clone())),
        lambda model: model.block.extra.add_(1),
    ],
    ids=["in place", "replaced", "buffer"],
)
def test_a_changed_weight(monkeypatch, damage):
    torch.manual_seed(1)
    model = Net(Joined()).eval()
    model.block.register_buffer("extra", torch.zeros(1))
    real = facade.operate

    def operate_and_damage(operations):
        real(operations)
        damage(model)

    monkeypatch.setattr(facade, "operate", operate_and_damage)
    with pytest.raises(VerificationError, match="replaced or written to"):
        inject(model, "after joined.a", example_inputs=X)
    assert injected(model) == ()


def test_a_rewrite_that_makes_nan_is_noticed(monkeypatch):
    model = network()
    monkeypatch.setattr(SimAM, "forward", lambda self, x: x if self.bypassed else x * float("nan"))
    assert failures(model)["finite output"] == "NaN or infinity with SimAM on"


def test_a_rewrite_that_changes_train_mode_only_is_noticed(monkeypatch):
    model = network()
    monkeypatch.setattr(SimAM, "forward", lambda self, x: x + 1 if self.training else x)
    assert "bypassed: equal to the original in train mode" in failures(model)


def test_a_verification_that_raises_leaves_the_model_as_it_was(monkeypatch):
    torch.manual_seed(1)
    model = Net(Joined())
    before = snapshot(model)
    monkeypatch.setattr(SimAM, "forward", lambda self, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        inject(model, "after joined.a", example_inputs=X)
    assert snapshot(model) == before


def test_verify_inside_bypass_says_so():
    model = network()
    with bypass(model):
        assert "bypassed" in failures(model)["every SimAM is the one planned"]
    assert verify(model, example_inputs=X).ok


def test_verify_needs_a_simam():
    with pytest.raises(ModelError, match="there is no SimAM in this model"):
        verify(Net(Block()), example_inputs=X)


def test_verify_changes_nothing():
    model = network()
    model.train()
    model.stem.eval()
    model(X).sum().backward()
    before = snapshot(model)
    assert verify(model, example_inputs=X).ok
    assert snapshot(model) == before


class NeedsTargets(Block):
    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should not be none in train mode")
        return self.b(self.a(x))


def test_a_check_that_cannot_run_says_why():
    model = inject(NeedsTargets(), "after needstargets", example_inputs=torch.rand(1, 4, 8, 8))
    (check,) = [
        check for check in verify(model, example_inputs=torch.rand(1, 4, 8, 8)).checks if "train mode" in check.name
    ]
    assert check.ok is None
    assert "targets should not be none" in check.detail


def test_a_model_with_infinite_output_is_told_apart():
    model = nn.Sequential(conv(3, 4), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        model[1].weight.fill_(float("inf"))
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=X)
    checks = {check.name: check for check in verify(model, example_inputs=X).checks}
    assert checks["finite output"].ok is None


def test_verification_of_a_copy_is_independent():
    model = network()
    other = copy.deepcopy(model)
    other.block.simam_a.e_lambda = 7.0
    assert verify(model, example_inputs=X).ok
    assert not verify(other, example_inputs=X).ok
    with pytest.raises(InjectError):
        inject(model, "after joined.nothing", example_inputs=X)
    with torch.no_grad():
        assert not same_bits(model(X), other(X))
