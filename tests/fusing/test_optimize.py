"""Fused inference: equal to the unfused model, reversible, and quiet wherever fusing would be wrong."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

from simam_inject import InjectError, SimAM, bypass, eject, inject, injected, verify
from simam_inject.attention import chained
from simam_inject.export import LostSiteError, export, prove
from simam_inject.fusing import optimize, running, unoptimize


def with_statistics(model):
    """Batch norms as after training: nothing about them is trivial."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.randn(module.num_features, generator=generator) * 0.5 + 1)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
    return model.eval()


def block_of(activation=nn.ReLU, norm_first=False):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.act = activation(inplace=True)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return self.act(y + x) if norm_first else self.act(y)

    Block.__name__ = "Block"
    return with_statistics(nn.Sequential(Block(), Block()))


X = torch.randn(3, 6, 9, 7, generator=torch.Generator().manual_seed(1)) * 3


@torch.no_grad()
def compare(model, x, recipe, expected_chains, tolerance=1e-5):
    inject(model, recipe, example_inputs=x[:1])
    unfused, plain = model(x), None
    with bypass(model):
        plain = model(x)
    found = optimize(model)
    assert [fusion.chain for fusion in found] == expected_chains
    fused = model(x)
    scale = unfused.abs().max()
    assert (fused - unfused).abs().max() <= tolerance * scale
    assert (fused - plain).abs().max() > 0.05 * scale  # and far from the model without SimAM
    return model


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_simam_then_norm_then_activation(activation, layout):
    kind = activation.__name__.lower()
    x = X.to(memory_format=layout)
    model = block_of(activation).to(memory_format=layout)
    compare(model, x, "after block.conv", [f"SimAM > norm > {kind}"] * 2)
    with torch.no_grad():
        assert model(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norm_then_simam_then_add_then_activation(layout):
    model = block_of(norm_first=True).to(memory_format=layout)
    compare(model, X.to(memory_format=layout), "after block.norm", ["norm > SimAM > (+) > relu"] * 2)


def test_large_maps_are_cut_into_pieces():
    x = torch.randn(5, 6, 180, 190, generator=torch.Generator().manual_seed(2))
    compare(block_of(norm_first=True), x, "after block.norm", ["norm > SimAM > (+) > relu"] * 2)
    compare(block_of(), x.to(memory_format=torch.channels_last), "after block.conv", ["SimAM > norm > relu"] * 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float64, 1e-12)])
def test_other_dtypes(dtype, tolerance):
    compare(block_of().to(dtype), X.to(dtype), "after block.conv", ["SimAM > norm > relu"] * 2, tolerance)


def test_a_model_that_was_cast_after_it_was_injected():
    model = inject(block_of(), "after block.conv", example_inputs=X[:1]).to(torch.float64)
    x = X.double()
    with torch.no_grad():
        unfused = model(x)
        assert [fusion.chain for fusion in optimize(model)] == ["SimAM > norm > relu"] * 2
        torch.testing.assert_close(model(x), unfused)


@pytest.mark.parametrize(
    ("build", "recipe", "chains"),
    [
        (torchvision.models.resnet18, "after basicblock.conv2", ["SimAM > bn2 > (+) > relu"] * 8),
        (torchvision.models.resnet18, "after basicblock.bn2", ["bn2 > SimAM > (+) > relu"] * 8),
        (torchvision.models.resnet50, "paper", ["SimAM > bn2 > relu"] * 16),
        (lambda: timm.create_model("resnet18"), "after basicblock.conv1", ["SimAM > bn1"] * 8),
    ],
)
def test_real_networks(build, recipe, chains):
    torch.manual_seed(0)
    compare(with_statistics(build()), torch.rand(2, 3, 64, 64), recipe, chains)


def counted_runs(monkeypatch):
    runs = []
    forward = chained.forward
    monkeypatch.setattr(running.chained, "forward", lambda *args: runs.append(1) or forward(*args))
    return runs


def test_the_fused_pass_is_really_taken_and_only_in_inference(monkeypatch):
    runs = counted_runs(monkeypatch)
    model = block_of()
    inject(model, "after block.conv", example_inputs=X[:1])
    optimize(model)
    with torch.no_grad():
        model(X)
        assert len(runs) == 2
        model.train()(X)
        assert len(runs) == 2
    model.eval()(X).sum().backward()
    assert len(runs) == 2
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bypass_and_a_norm_in_train_mode_run_the_parts(monkeypatch):
    runs = counted_runs(monkeypatch)
    model = block_of()
    plain = copy.deepcopy(model)
    inject(model, "after block.conv", example_inputs=X[:1])
    optimize(model)
    with torch.no_grad(), bypass(model):
        assert torch.equal(model(X), plain(X))
    with torch.no_grad():
        model[0].norm.train()
        model[0](X)
    assert runs == []


def test_it_is_reversible_and_leaves_no_trace_in_state_dict_or_pickle():
    model = block_of()
    stock = copy.deepcopy(model)
    inject(model, "after block.conv", example_inputs=X[:1])
    with torch.no_grad():
        unfused = model(X)
        before = type(model[0])
        optimize(model)
        assert type(model[0]) is not before
        assert isinstance(model[0], type(stock[0]).__mro__[1])
        assert list(model.state_dict()) == list(stock.state_dict())
        assert torch.equal(copy.deepcopy(model)(X), model(X))
        assert len(optimize(model)) == 2  # again: nothing changes
        unoptimize(model)
        assert type(model[0]) is before
        assert torch.equal(model(X), unfused)
        optimize(model)
        eject(model)
        assert type(model[0]) is type(stock[0])
        assert torch.equal(model(X), stock(X))


def test_a_pickled_model_comes_back_unfused():
    model = with_statistics(torchvision.models.resnet18())
    x = torch.rand(1, 3, 64, 64)
    inject(model, "after basicblock.conv2", example_inputs=x)
    with torch.no_grad():
        unfused = model(x)
        optimize(model)
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(x), unfused)
    assert len(injected(again)) == 8


def test_a_hook_on_a_part_of_the_chain_keeps_it_unfused():
    model = block_of()
    inject(model, "after block.conv", example_inputs=X[:1])
    model[0].norm.register_forward_hook(lambda module, args, output: output * 2)
    assert [fusion.path for fusion in optimize(model)] == ["1"]


def test_a_value_read_twice_is_not_swallowed():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    model = nn.Sequential(Block()).eval()
    inject(model, "after block.conv", example_inputs=X[:1])
    assert optimize(model) == ()


def test_what_cannot_be_optimized_is_one_message():
    with pytest.raises(InjectError, match="there is no SimAM in this model to fuse"):
        optimize(block_of())
    model = inject(block_of(), "after block.conv", example_inputs=X[:1]).train()
    with pytest.raises(InjectError, match=r"call model\.eval\(\) first"):
        optimize(model)


def test_a_compiled_model_runs_the_ordinary_forward():
    model = block_of()
    inject(model, "after block.conv", example_inputs=X[:1])
    optimize(model)
    with torch.no_grad():
        eager = model(X)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(X)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_a_hook_that_came_later_still_sees_simam_and_norm():
    model = block_of()
    inject(model, "after block.conv", example_inputs=X[:1])
    optimize(model)
    seen = []
    for module in (model[0].simam_conv, model[1].norm):
        module.register_forward_hook(lambda module, *_: seen.append(type(module)))
    with torch.no_grad():
        model(X)
    assert seen == [SimAM, nn.BatchNorm2d]


def test_verify_sees_every_simam_and_leaves_the_fused_forward():
    model = block_of()
    inject(model, "after block.conv", example_inputs=X[:1])
    optimize(model)
    fused = [type(block) for block in model]
    assert verify(model, example_inputs=X[:1]).ok
    assert [type(block) for block in model] == fused


def test_an_export_counts_every_simam_and_a_file_without_them_is_no_proof(tmp_path):
    model = block_of()
    plain = torch.jit.trace(copy.deepcopy(model), X[:1])
    torch.jit.save(plain, tmp_path / "plain.torchscript")
    inject(model, "after block.conv", example_inputs=X[:1])
    optimize(model)
    assert export(model, tmp_path / "x.torchscript", example_inputs=X[:1]).live == 2
    with pytest.raises(LostSiteError, match="lost 2 of 2 SimAM sites"):
        prove(tmp_path / "plain.torchscript", model, example_inputs=X[:1], tolerance=1e9)
