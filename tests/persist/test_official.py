"""The authors' checkpoints, onto torchvision's models: every key accounted for, outputs as with their module order."""

import argparse
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet34, resnet50

from simam_inject import inject, injected
from simam_inject.persist import load_official
from tests.persist.authors import mobilenet, resnet, trained

X = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))


def checkpoint(model, path, **more):
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 90, "arch": "net", "state_dict": state, "optimizer": {}, **more}, path)
    return path


def agree(theirs, ours):
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(X), theirs(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "theirs", "how", "sites"),
    [
        (resnet18, lambda: resnet(resnet18), "114 exact, 8 unwrapped", 8),
        (resnet50, lambda: resnet(resnet50), "304 exact, 16 unwrapped", 16),
        (mobilenet_v2, lambda: mobilenet("wrapped"), "297 exact, 17 unwrapped", 17),
        (mobilenet_v2, lambda: mobilenet("member"), "314 in order", 17),
        (mobilenet_v2, lambda: mobilenet("flat"), "314 in order", 17),
    ],
    ids=["resnet18", "resnet50", "mobilenet wrapped", "mobilenet member", "mobilenet flat"],
)
def test_the_output_is_that_of_the_authors_network(build, theirs, how, sites, tmp_path):
    theirs, ours = trained(theirs()), build(num_classes=10)
    report = load_official(checkpoint(theirs, tmp_path / "x.pth.tar"), ours)
    agree(theirs, ours)
    assert len(injected(ours)) == len(report.sites) == sites
    assert {site.e_lambda for site in injected(ours)} == {0.1}
    assert sorted(entry.source for entry in report.mapped) == sorted(f"module.{name}" for name in theirs.state_dict())
    assert sorted(entry.target for entry in report.mapped) == sorted(ours.state_dict())
    assert report.kept == ()
    assert sorted(report.ignored) == ["arch", "epoch", "optimizer"]
    lines = str(report).splitlines()
    assert lines[0] == f"{len(report.mapped)} tensors ({how}), {sites} SimAM sites"
    assert "  epoch  ignored: not weights" in lines
    assert len(lines) == 1 + len(report.mapped) + 3


def test_a_bare_state_dict_without_prefix_and_counters(tmp_path):
    theirs = trained(resnet(resnet18))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "x.pth")
    ours = resnet18(num_classes=10)
    report = load_official(tmp_path / "x.pth", ours)
    agree(theirs, ours)
    assert "  layer1.0.conv2.0.weight -> layer1.0.conv2.weight  unwrapped" in str(report).splitlines()
    assert len(report.kept) == 20
    assert all(key.endswith("num_batches_tracked") for key in report.kept)


def test_sorted_keys_are_matched_by_name(tmp_path):
    theirs, ours = trained(resnet(resnet18)), resnet18(num_classes=10)
    torch.save(dict(sorted(theirs.state_dict().items())), tmp_path / "x.pth")
    load_official(tmp_path / "x.pth", ours)
    agree(theirs, ours)


def test_a_model_with_the_paper_recipe_only_gets_the_weights(tmp_path):
    theirs = trained(resnet(resnet18))
    ours = inject(resnet18(num_classes=10), "paper", verify=False)
    before = injected(ours)
    load_official(checkpoint(theirs, tmp_path / "x.pth"), ours)
    assert injected(ours) == before
    agree(theirs, ours)


@pytest.fixture
def refused(refused):
    return partial(refused, load_official)


@pytest.fixture
def file(tmp_path):
    return checkpoint(resnet(resnet18), tmp_path / "x.pth")


def test_a_checkpoint_of_another_network_says_what_differs(file, tmp_path, refused):
    refused("96 in the model, .*: layer1.2.conv1.weight", file, resnet34(num_classes=10))
    refused(r"2 of another shape .*: fc.weight \(file 10x512, model 1000x512\), fc.bias", file, resnet18())
    refused("ResNet, ResNeXt or MobileNetV2 .*Linear", file, nn.Linear(2, 2))
    more = resnet(resnet18)
    more.layer3[0].gate = nn.Linear(2, 2)
    path = checkpoint(more, tmp_path / "y.pth")
    refused("2 in the file, .*: layer3.0.gate.weight", path, resnet18(num_classes=10))


def test_sorted_keys_are_not_matched_in_order(tmp_path, refused):
    torch.save(dict(sorted(mobilenet("member").state_dict().items())), tmp_path / "x.pth")
    refused("its tensors do not fit this model", tmp_path / "x.pth", mobilenet_v2(num_classes=10))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.to("meta"), "without values in the file"),
        (lambda tensor: tensor.to_sparse() if tensor.dim() else tensor, "a torch.sparse_coo tensor in the file"),
        (lambda tensor: (10 * tensor).to(torch.int32), "file torch.int32, model torch.float32"),
        (lambda tensor: tensor.double() * 1e200, "which cannot represent its values"),
    ],
)
def test_tensors_that_the_model_cannot_hold_are_not_matched_in_order(change, words, tmp_path, refused):
    state = {name: change(tensor + 1) for name, tensor in resnet(resnet18).state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    refused(words, tmp_path / "x.pth", resnet18(num_classes=10))


def test_weights_that_the_model_does_not_take(file, refused):
    import lightning.pytorch  # noqa: F401 - an injected network has its mark then

    model = resnet18(num_classes=10)
    model.fc.bias = nn.Parameter(torch.zeros(1).expand(10))
    refused(r'ResNet.load_state_dict raises RuntimeError: .*(.|\n)*"fc.bias"', file, model)
    model = resnet18(num_classes=10)
    model.register_load_state_dict_pre_hook(lambda module, state, *_: state.pop("fc.bias"))
    refused("fit this ResNet:\n  1 with other values .*: fc.bias$", file, model)


def test_other_sites_in_the_model(file, refused):
    refused("SimAM at other sites", file, inject(resnet18(num_classes=10), "after basicblock.conv1", verify=False))
    weaker = {"rules": [{"block": "BasicBlock", "after": "conv2", "e_lambda": 0.5}]}
    refused("SimAM at other sites", file, inject(resnet18(num_classes=10), weaker, verify=False))


def test_more_than_tensors(tmp_path, refused):
    path = checkpoint(resnet(resnet18), tmp_path / "x.pth", args=argparse.Namespace(lr=0.1))
    refused("more than tensors", path, resnet18(num_classes=10))


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_truncated_checkpoint_is_refused(kept, file, refused):
    file.write_bytes(file.read_bytes()[:kept])
    refused("it (is truncated, damaged|holds more than)", file, resnet18(num_classes=10))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, refused):
    refused("it cannot be read: No such file", tmp_path / "nothing.pth", resnet18())
    for content in ([1, 2], {}, {"state_dict": {"a": 1}}, {"a": torch.zeros(1), "b": 2}, {1: torch.zeros(1)}):
        torch.save(content, tmp_path / "y.pth")
        refused("it (holds a list|is not a state_dict of tensors)", tmp_path / "y.pth", resnet18())
