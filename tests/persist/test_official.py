"""The authors' checkpoints, onto torchvision's models: every key accounted for, outputs as with their module order."""

import argparse

import pytest
import torch
from torchvision.models import mobilenet_v2, resnet18, resnet34, resnet50

from simam_inject import inject, injected
from simam_inject.errors import FileError
from simam_inject.persist import load_official
from tests.persist.authors import Basic, MobileNetV2, Narrow, ResNet, trained

X = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))


def checkpoint(model, path, *, prefix="module.", **more):
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 90, "arch": "net", "state_dict": state, "best_acc1": 77.45, "optimizer": {}, **more}, path)
    return path


def agree(theirs, ours):
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(X), theirs(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "theirs", "sites"),
    [
        (resnet18, lambda: ResNet(Basic, (2, 2, 2, 2)), 8),
        (resnet50, lambda: ResNet(Narrow, (3, 4, 6, 3)), 16),
        (mobilenet_v2, lambda: MobileNetV2("wrapped"), 17),
        (mobilenet_v2, lambda: MobileNetV2("member"), 17),
        (mobilenet_v2, lambda: MobileNetV2("flat"), 17),
    ],
    ids=["resnet18", "resnet50", "mobilenet wrapped", "mobilenet member", "mobilenet flat"],
)
def test_the_output_is_that_of_the_authors_network(build, theirs, sites, tmp_path):
    theirs, ours = trained(theirs()), build(num_classes=10)
    report = load_official(checkpoint(theirs, tmp_path / "x.pth.tar"), ours)
    agree(theirs, ours)
    assert len(injected(ours)) == len(report.sites) == sites
    assert {site.e_lambda for site in injected(ours)} == {0.1}
    assert sorted(entry.source for entry in report.mapped) == sorted(f"module.{name}" for name in theirs.state_dict())
    assert sorted(entry.target for entry in report.mapped) == sorted(ours.state_dict())
    assert report.kept == ()
    assert sorted(report.ignored) == ["arch", "best_acc1", "epoch", "optimizer"]


def test_the_report_names_every_key(tmp_path):
    theirs = trained(ResNet(Basic, (2, 2, 2, 2)))
    report = str(load_official(checkpoint(theirs, tmp_path / "x.pth"), resnet18(num_classes=10)))
    lines = report.splitlines()
    assert lines[0] == "122 tensors (114 exact, 8 unwrapped), 8 SimAM sites"
    assert "  module.layer1.0.conv2.0.weight -> layer1.0.conv2.weight  unwrapped" in lines
    assert "  epoch  ignored: not weights" in lines
    assert len(lines) == 1 + 122 + 4


def test_a_bare_state_dict_without_prefix_and_counters(tmp_path):
    theirs = trained(ResNet(Basic, (2, 2, 2, 2)))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "x.pth")
    ours = resnet18(num_classes=10)
    report = load_official(tmp_path / "x.pth", ours)
    agree(theirs, ours)
    assert len(report.kept) == 20
    assert all(key.endswith("num_batches_tracked") for key in report.kept)


def test_a_model_with_the_paper_recipe_only_gets_the_weights(tmp_path):
    theirs = trained(ResNet(Basic, (2, 2, 2, 2)))
    ours = inject(resnet18(num_classes=10), "paper", verify=False)
    before = injected(ours)
    load_official(checkpoint(theirs, tmp_path / "x.pth"), ours)
    assert injected(ours) == before
    agree(theirs, ours)


@pytest.fixture
def refused(tmp_path):
    """Load into this model, and see that it is refused with these words and nothing has happened."""

    def check(words, path, ours):
        before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
        sites = injected(ours)
        with pytest.raises(FileError, match=words) as caught:
            load_official(path, ours)
        assert str(caught.value).startswith(str(path))
        assert injected(ours) == sites
        assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())

    return check


@pytest.fixture
def file(tmp_path):
    return checkpoint(ResNet(Basic, (2, 2, 2, 2)), tmp_path / "x.pth")


def test_another_depth(file, refused):
    refused(
        r"its tensors do not fit this model:\n  96 in the model, not in the file: layer1.2.conv1.weight",
        file,
        resnet34(num_classes=10),
    )


def test_another_number_of_classes(file, refused):
    refused(r"2 of another shape: fc.weight \(file 10x512, model 1000x512\), fc.bias", file, resnet18())


def test_a_key_too_many(tmp_path, refused):
    theirs = ResNet(Basic, (2, 2, 2, 2))
    theirs.layer3[0].gate = torch.nn.Linear(2, 2)
    path = checkpoint(theirs, tmp_path / "x.pth")
    refused("2 in the file, not in the model: layer3.0.gate.weight, layer3.0.gate.bias", path, resnet18(num_classes=10))


def test_other_sites_in_the_model(file, refused):
    refused("SimAM at other sites", file, inject(resnet18(num_classes=10), "after basicblock.conv1", verify=False))
    weaker = {"rules": [{"block": "BasicBlock", "after": "conv2", "e_lambda": 0.5}]}
    refused("SimAM at other sites", file, inject(resnet18(num_classes=10), weaker, verify=False))


def test_another_family(file, refused):
    refused(
        "for torchvision's ResNet, ResNeXt and MobileNetV2, not for tests.persist.authors.ResNet",
        file,
        ResNet(Basic, (2, 2, 2, 2)),
    )


def test_more_than_tensors(tmp_path, refused):
    path = checkpoint(ResNet(Basic, (2, 2, 2, 2)), tmp_path / "x.pth", args=argparse.Namespace(lr=0.1))
    refused("it holds more than tensors, which could run code", path, resnet18(num_classes=10))


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_truncated(kept, file, refused):
    file.write_bytes(file.read_bytes()[:kept])
    refused("it (is truncated, damaged|holds more than)", file, resnet18(num_classes=10))


def test_no_checkpoint(tmp_path, refused):
    refused("it cannot be read: No such file", tmp_path / "nothing.pth", resnet18())
    for content in ([1, 2], {}, {"state_dict": {"a": 1}}, {"a": torch.zeros(1), "b": 2}):
        torch.save(content, tmp_path / "y.pth")
        refused("it (holds a list|is not a state_dict of tensors)", tmp_path / "y.pth", resnet18())
